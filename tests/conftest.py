"""A tiny random Llama, and the embedded real model, quantized once per test session."""

import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.folder import Bundle, list_tensors
from llama_edge.bundle.manifest import (
    ArtifactInterface,
    FileEntry,
    Manifest,
    Model,
    Verdict,
)
from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.bpe import Vocabulary, smollm_tokenizer
from llama_edge.core.artifact import Artifact, Interface, Placement, TensorSpec
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.model_config import ModelConfig, RopeScaling
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import CalibrationRecord, QuantizedCheckpoint
from llama_edge.core.text_assets import TextAssets
from llama_edge.models.weights import weight_shapes
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.quantize import W4A8_RTN
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.text.contract import build_text_contract
from llama_edge.text.text_assets import write_text_assets
from llama_edge.text.token_bytes import byte_letters
from tests.checkpoint_writers import write_huggingface, write_llama32_shaped
from tests.guard_model import small_text, write_guard
from tests.sdks import PACKAGES, hide, imported_sdks, is_installed, needed_sdks
from tests.warm_children import warm_children

#: When slow tests end to begin.
LATEST = pytest.StashKey[float | None]()
#: The SDKs that are not installed here.
MISSING = pytest.StashKey[frozenset[str]]()

DEBUG_SCALING = RopeScaling(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
#: Three query heads a key/value head, llama3 rope scaling that bites within a short context.
DEBUG_CONFIG = ModelConfig(
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=160,
    vocab_size=256,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=DEBUG_SCALING,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)


class MemoryWeights:
    """`Weights` that were made up: seeded, normal, norms around one."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}
        for name, shape in weight_shapes(config).items():
            noise = torch.randn(shape, generator=generator)
            self.tensors[name] = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[1] ** 0.5

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


#: Of `served_bundle`.
SERVED_CONTEXT = 1280

#: ChatML, as small as it can be.
DEBUG_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def debug_text() -> TextAssets:
    """A byte-level BPE of 256 tokens: two ids that end a turn (0 and 2), BOS 3, nine merges."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>"]
    never_in_utf8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
    letters = [letter for byte, letter in byte_letters().items() if byte not in never_in_utf8]
    merges = [("h", "e"), ("i", "n"), ("a", "n"), ("o", "n"), ("r", "e"), ("t", "he")]
    merges += [("Ġ", "the"), ("in", "g"), ("an", "d")]
    vocabulary = Vocabulary(
        tokens=[*special, *letters, *("".join(merge) for merge in merges)],
        merges=merges,
        added=dict.fromkeys(range(len(special)), True),
    )
    return TextAssets(
        tokenizer_json=smollm_tokenizer(vocabulary, None).tokenizer_json,
        chat_template=DEBUG_TEMPLATE,
        special_tokens={"bos_token": "<|begin|>", "eos_token": "<|im_end|>"},
        bos_token_id=3,
        eos_token_ids=(0, 2),
        add_bos=False,
        generation_defaults={"temperature": 0.6, "top_p": 0.9},
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow-seconds", type=float, help="begin no slow test after so many seconds; skip it"
    )
    parser.addoption(
        "--without-sdks", action="store_true", help="as where no vendor's library is installed"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-sdks"):
        hide([*PACKAGES])
    missing: frozenset[str] = frozenset(sdk for sdk in PACKAGES if not is_installed(sdk))
    config.stash[MISSING] = missing


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    missing = config.stash[MISSING]
    if missing:
        terminalreporter.write_line(
            f"left out what needs {', '.join(sorted(missing))}: not installed"
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What imports what is missing cannot be collected; None: as pytest decides."""
    missing = config.stash[MISSING]
    return True if missing and imported_sdks(collection_path) & missing else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for sdk in needed_sdks(item):
            item.add_marker(sdk)
    missing = config.stash[MISSING]
    without = [item for item in items if any(map(item.get_closest_marker, missing))]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in set(without)]


def pytest_sessionstart(session: pytest.Session) -> None:
    limit = session.config.getoption("--slow-seconds")
    session.config.stash[LATEST] = None if limit is None else time.monotonic() + limit


def pytest_runtest_setup(item: pytest.Item) -> None:
    latest = item.config.stash[LATEST]
    if latest is not None and item.get_closest_marker("slow") and time.monotonic() > latest:
        pytest.skip("a slow test, and the time for these is over")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and children would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither find nor leave anything in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def few_processes() -> Iterator[None]:
    """See `tests.warm_children`."""
    with warm_children():
        yield


@pytest.fixture(scope="session")
def debug_checkpoint() -> Checkpoint:
    return Checkpoint(
        source="debug",
        config=DEBUG_CONFIG,
        weights=MemoryWeights(DEBUG_CONFIG),
        text=debug_text(),
    )


@pytest.fixture(scope="session")
def debug_quantized(
    debug_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedCheckpoint:
    folder = tmp_path_factory.mktemp("debug-quantized")
    return quantize_checkpoint(debug_checkpoint, W4A8_RTN, folder, SilentProgress())


@pytest.fixture(scope="session")
def smollm2() -> Checkpoint:
    return load_checkpoint("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_quantized(
    smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedCheckpoint:
    folder = tmp_path_factory.mktemp("smollm2-quantized")
    return quantize_checkpoint(smollm2, W4A8_RTN, folder, SilentProgress())


def lower_onnx(
    checkpoint: QuantizedCheckpoint,
    factory: pytest.TempPathFactory,
    accuracy_level: int,
    max_context: int,
) -> Artifact:
    """An ONNX folder, tokenizer included, as ONNX Runtime GenAI opens it."""
    from llama_edge.backends.onnx.exporter import OnnxExporter

    folder = factory.mktemp(f"onnx-level-{accuracy_level}")
    options = LowerOptions(max_context=max_context, accuracy_level=accuracy_level)
    artifact = OnnxExporter().lower(checkpoint, folder, options, SilentProgress())
    write_text_assets(folder, checkpoint.text)
    return artifact


@pytest.fixture(scope="session")
def debug_onnx(
    debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[int, Artifact]:
    """The debug model by accuracy level."""
    return {level: lower_onnx(debug_quantized, tmp_path_factory, level, 256) for level in (0, 4)}


@pytest.fixture(scope="session")
def smollm2_onnx(
    smollm2_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[int, Artifact]:
    """SmolLM2 by accuracy level."""
    return {level: lower_onnx(smollm2_quantized, tmp_path_factory, level, 2048) for level in (0, 4)}


@pytest.fixture(scope="session")
def llama32_shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: Llama 3.2 shrunk to two layers of 64, with its real tokenizer."""
    return write_llama32_shaped(tmp_path_factory.mktemp("llama32-shaped") / "model")


@pytest.fixture
def debug_manifest(debug_quantized: QuantizedCheckpoint) -> Manifest:
    """A manifest of a model that was never lowered; its one file is made up."""
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, "tokens"))
    return Manifest(
        verdict=Verdict.PASSED,
        model=Model(source="debug", source_sha256="0" * 64, config=debug_quantized.config),
        recipe=debug_quantized.recipe,
        calibration=CalibrationRecord(
            origin="self-generated, seed 0", sequences=32, length=256, sha256="2" * 64
        ),
        mixed_precision=None,
        target="android",
        backend="executorch",
        files=(FileEntry(path="model.pte", size_bytes=1, sha256="1" * 64),),
        artifact=ArtifactInterface(
            interface=Interface(inputs=(spec,), outputs=(spec,), cache="inside"),
            activation_quantization="int8_per_token",
            kv_cache="float32",
            max_context=128,
            max_prefill=64,
        ),
        text=build_text_contract(debug_quantized.text),
        tensors=list_tensors(debug_quantized.weights, SilentProgress()),
        placement=Placement(
            linears=1,
            linears_delegated=1,
            weight_bytes=1,
            weight_bytes_delegated=1,
            operators=2,
            operators_delegated=1,
            portable={"aten::add": 1},
        ),
        parity={"passed": True},
        fidelity=None,
        versions={"llama-edge": "0"},
    )


@pytest.fixture(scope="session")
def debug_folder(debug_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("debug") / "tiny-llama"
    weights = MemoryWeights(DEBUG_CONFIG).tensors
    return write_huggingface(folder, DEBUG_CONFIG, weights, debug_checkpoint.text)


@pytest.fixture(scope="session")
def debug_bundles(
    debug_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Bundle]:
    """The debug model, exported for each target through the whole pipeline."""
    place = tmp_path_factory.mktemp("bundles")
    return {
        target: export_model(debug_request(debug_folder, target, place / target), SilentProgress())
        for target in ("android", "onnx")
    }


@pytest.fixture(scope="session")
def guard_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A guard that finds everything unsafe, see `tests.guard_model`."""
    place = tmp_path_factory.mktemp("guard")
    model = write_guard(place / "guard", small_text())
    request = debug_request(model, "onnx", place / "bundle")
    # The gate's prompts have a token for each letter here.
    request = replace(request, options=LowerOptions(max_context=1280))
    return export_model(request, SilentProgress())


@pytest.fixture(scope="session")
def served_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The debug model with room for definitions of tools, which have a token for each letter."""
    place = tmp_path_factory.mktemp("served")
    config = replace(DEBUG_CONFIG, max_position_embeddings=SERVED_CONTEXT)
    tensors = MemoryWeights(config).tensors
    folder = write_huggingface(place / "model", config, tensors, debug_text())
    request = debug_request(folder, "onnx", place / "bundle")
    request = replace(request, options=LowerOptions(max_context=SERVED_CONTEXT))
    return export_model(request, SilentProgress())


def debug_request(model: Path, target: str, out: Path, *, force: bool = False) -> ExportRequest:
    options = LowerOptions(max_context=512)
    return ExportRequest(
        model=str(model),
        target=target,
        recipe="w4a8-rtn",
        out=out,
        options=options,
        force=force,
    )


@pytest.fixture(scope="session")
def android_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 for Android, through the whole pipeline; takes a minute or two."""
    out = tmp_path_factory.mktemp("smollm2") / "android"
    request = ExportRequest(model="smollm2-135m", target="android", recipe="w4a8-rtn", out=out)
    return export_model(request, SilentProgress())


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 for ONNX Runtime, through the whole pipeline; takes a minute or two."""
    out = tmp_path_factory.mktemp("smollm2") / "onnx"
    request = ExportRequest(model="smollm2-135m", target="onnx", recipe="w4a8-rtn", out=out)
    return export_model(request, SilentProgress())
