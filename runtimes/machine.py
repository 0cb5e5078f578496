"""What this machine says about itself: memory of a process, memory bandwidth, energy."""

import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

POWERCAP: Final = Path("/sys/class/powercap")
#: Eight times the 32 MiB of a large last-level cache, so that memory answers and not a cache.
_BANDWIDTH_BYTES: Final = 256 << 20
_BANDWIDTH_READS: Final = 5


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident, file pages included.

    Linux: not `getrusage`, whose peak a new process takes over from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory: the best of a few passes."""
    pieces = np.array_split(np.ones(_BANDWIDTH_BYTES // 8, np.int64), threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_BANDWIDTH_READS):
            start = time.perf_counter()
            # numpy lets go of the interpreter's lock while it looks for the largest number.
            list(pool.map(np.max, pieces))
            seconds.append(time.perf_counter() - start)
    return _BANDWIDTH_BYTES / min(seconds)


@dataclass(frozen=True, slots=True)
class _Zone:
    """One counter: its file, and where it starts again from zero."""

    energy: Path
    range_uj: int


class EnergyCounter:
    """The processor packages' own counters (Linux powercap, RAPL)."""

    def __init__(self, zones: Sequence[_Zone]) -> None:
        self._zones = tuple(zones)

    @classmethod
    def find(cls, folder: Path = POWERCAP) -> Self | None:
        """The counters of whole packages, or None where there are none that may be read."""
        zones = []
        for zone in sorted(folder.glob("*")):
            try:
                if (zone / "name").read_text().startswith("package"):
                    int((zone / "energy_uj").read_text())
                    limit = int((zone / "max_energy_range_uj").read_text())
                    zones.append(_Zone(zone / "energy_uj", limit))
            except (OSError, ValueError):  # not a zone, or for root alone
                continue
        return cls(zones) if zones else None

    def read(self) -> tuple[int, ...]:
        """Microjoules so far, one number a package."""
        return tuple(int(zone.energy.read_text()) for zone in self._zones)

    def joules_since(self, before: Sequence[int]) -> float:
        """Joules since `before` was read, all packages; a counter may have wrapped once."""
        return (
            sum(
                (now - then) % (zone.range_uj + 1)
                for zone, then, now in zip(self._zones, before, self.read(), strict=True)
            )
            / 1e6
        )
