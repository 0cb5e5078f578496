"""Devices that a plan can be made for: memory and processor as reported, nothing measured by us.

Each says where its processor and its memory can be read; most of these pages are the press's, since
makers publish little. Bandwidth is what the memory's data rate and the width of its bus (64 bits in
phones) come to; no phone reaches it. `simd_ghz` counts the cores that are not efficiency cores: GHz
times the number of 128-bit vector pipes, four in Cortex-X and Apple's large cores and two in
Cortex-A7xx.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llama_edge.core.errors import UnknownNameError

#: What a vector pipe multiplies in a cycle: int8 by SMMLA (Arm i8mm) or SDOT, float32 by FMLA.
I8MM: Final = 32
DOT_PRODUCT: Final = 16
FLOAT_MACS: Final = 4

#: Of the memory, what one app can hold. Android and iOS publish no such number; the largest that
#: Meta reports, 7419 MiB on a phone of 16 GB, is 45 %.
USABLE_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device."""

    name: str
    label: str
    chipset: str
    ram_gib: int
    memory: str
    #: million transfers a second, and bits of each
    transfers_mt_s: int
    bus_bits: int
    simd_ghz: float
    int8_macs: int
    #: the targets whose bundles it runs
    targets: tuple[str, ...]
    #: where the processor can be read, and the kind of memory
    source: str
    #: where the amount of memory can be, and its kind where the other page has none
    memory_source: str
    note: str | None = None

    @property
    def bandwidth_gb_s(self) -> float:
        """Of the memory, at its published data rate; 10^9 bytes a second."""
        return self.transfers_mt_s * self.bus_bits / 8 / 1000

    @property
    def usable_mib(self) -> float:
        """What a plan lets one app take."""
        return self.ram_gib * 1024 * USABLE_SHARE

    @property
    def int8_gmacs(self) -> float:
        """Peak, 10^9 products a second."""
        return self.simd_ghz * self.int8_macs

    @property
    def float_gmacs(self) -> float:
        """Peak, 10^9 products a second."""
        return self.simd_ghz * FLOAT_MACS


_ANDROID: Final = ("android", "onnx")
_8_GEN_3: Final = "https://droidholic.com/snapdragon-8-gen-3-launched/"
_8_GEN_1: Final = "https://br.atsit.in/de/?p=131763"
_TENSOR: Final = (
    "https://technewsmix.com/google-tensor-g4-explained-everything-you-need-to-know-about-"
    "the-pixel-9-processor-3689.html"
)
_RASPBERRY: Final = "https://docs.zephyrproject.org/4.0.0/boards/raspberrypi/rpi_5/doc/index.html"
_APPLE: Final = (
    "Apple publishes neither clock nor memory: both are as others report, and the memory's speed "
    "is assumed from its kind; planned as if the processor computed, and GPU and Neural Engine are "
    "faster"
)
_NO_SPEED: Final = (
    "Google publishes the kind of memory, not its speed; LPDDR5X's first grade is assumed"
)

DEVICES: Final[Mapping[str, Device]] = {
    device.name: device
    for device in (
        Device(
            name="oneplus-12",
            label="OnePlus 12",
            chipset="Snapdragon 8 Gen 3",
            ram_gib=16,
            memory="LPDDR5X-9600",
            transfers_mt_s=9600,
            bus_bits=64,
            # 1 Cortex-X4 at 3.3, 3 Cortex-A720 at 3.2 and 2 at 3.0
            simd_ghz=3.3 * 4 + (3 * 3.2 + 2 * 3.0) * 2,
            int8_macs=I8MM,
            targets=_ANDROID,
            source=_8_GEN_3,
            memory_source=(
                "https://www.androidguys.com/news/"
                "oneplus-12-confirmed-to-feature-snapdragon-8-gen-3-chipset-2/"
            ),
            note=(
                "Meta's published figures were measured on it: the plan is calibrated here; sold "
                "with 12 to 24 GB"
            ),
        ),
        Device(
            name="galaxy-s24-plus",
            label="Galaxy S24+",
            chipset="Snapdragon 8 Gen 3 for Galaxy",
            ram_gib=12,
            memory="LPDDR5X-9600",
            transfers_mt_s=9600,
            bus_bits=64,
            # 1 Cortex-X4 at 3.4, 3 Cortex-A720 at 3.2 and 2 at 3.0
            simd_ghz=3.4 * 4 + (3 * 3.2 + 2 * 3.0) * 2,
            int8_macs=I8MM,
            targets=_ANDROID,
            source=_8_GEN_3,
            memory_source="https://www.droid-life.com/2024/01/17/galaxy-s24-ultra-specs-official/",
            note="sold with another chipset (Exynos 2400) in some countries",
        ),
        Device(
            name="galaxy-s22",
            label="Galaxy S22",
            chipset="Snapdragon 8 Gen 1",
            ram_gib=8,
            memory="LPDDR5-6400",
            transfers_mt_s=6400,
            bus_bits=64,
            # 1 Cortex-X2 at 3.0, 3 Cortex-A710 at 2.5
            simd_ghz=3.0 * 4 + 3 * 2.5 * 2,
            int8_macs=I8MM,
            targets=_ANDROID,
            source=_8_GEN_1,
            memory_source=(
                "https://rassegna.lbit-solution.it/"
                "the-galaxy-s22-line-is-official-for-800-1200-ships-february-25"
            ),
            note="sold with another chipset (Exynos 2200) in some countries",
        ),
        Device(
            name="pixel-8",
            label="Pixel 8",
            chipset="Tensor G3",
            ram_gib=8,
            memory="LPDDR5X-7500",
            transfers_mt_s=7500,
            bus_bits=64,
            # 1 Cortex-X3 at 2.91, 4 Cortex-A715 at 2.37
            simd_ghz=2.91 * 4 + 4 * 2.37 * 2,
            int8_macs=I8MM,
            targets=_ANDROID,
            source=_TENSOR,
            memory_source="https://www.phonearena.com/news/tensor-g3-specs-leaked_id151181",
            note=_NO_SPEED,
        ),
        Device(
            name="pixel-9",
            label="Pixel 9",
            chipset="Tensor G4",
            ram_gib=12,
            memory="LPDDR5X-7500",
            transfers_mt_s=7500,
            bus_bits=64,
            # 1 Cortex-X4 at 3.1, 3 Cortex-A720 at 2.6
            simd_ghz=3.1 * 4 + 3 * 2.6 * 2,
            int8_macs=I8MM,
            targets=_ANDROID,
            source=_TENSOR,
            memory_source="https://9to5google.com/2024/07/25/google-pixel-9-specs-ram-cameras/",
            note=_NO_SPEED,
        ),
        Device(
            name="iphone-15-pro",
            label="iPhone 15 Pro",
            chipset="A17 Pro",
            ram_gib=8,
            memory="LPDDR5-6400",
            transfers_mt_s=6400,
            bus_bits=64,
            # 2 performance cores at 3.78
            simd_ghz=2 * 3.78 * 4,
            int8_macs=I8MM,
            targets=("ios", "onnx"),
            source="https://grokipedia.com/page/Apple_A17",
            memory_source="https://mobilesyrup.com/2023/09/13/iphone-15-pro-8gb-ram-report/",
            note=_APPLE,
        ),
        Device(
            name="iphone-16",
            label="iPhone 16",
            chipset="A18",
            ram_gib=8,
            memory="LPDDR5X-7500",
            transfers_mt_s=7500,
            bus_bits=64,
            # 2 performance cores at 4.04
            simd_ghz=2 * 4.04 * 4,
            int8_macs=I8MM,
            targets=("ios", "onnx"),
            source="https://wikipedia.bradmurray.com/wiki/Apple_A18?lang=uk",
            memory_source=(
                "https://technologytodaynow.com/en/"
                "iphone-16-series-ram-chipset-ai-performance-significantly-improved"
            ),
            note=_APPLE,
        ),
        Device(
            name="raspberry-pi-5",
            label="Raspberry Pi 5",
            chipset="BCM2712",
            ram_gib=8,
            memory="LPDDR4X-4267",
            transfers_mt_s=4267,
            bus_bits=32,
            # 4 Cortex-A76 at 2.4, without i8mm
            simd_ghz=4 * 2.4 * 2,
            int8_macs=DOT_PRODUCT,
            targets=_ANDROID,
            source=_RASPBERRY,
            memory_source=_RASPBERRY,
        ),
    )
}


def get_device(name: str) -> Device:
    """The device of that name.

    Raises:
        UnknownNameError: There is none; the message lists those that are.
    """
    if name not in DEVICES:
        raise UnknownNameError(f"device {name!r} is unknown; choose from: {', '.join(DEVICES)}")
    return DEVICES[name]
