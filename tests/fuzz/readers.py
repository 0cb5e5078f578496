"""Every reader of what comes from outside: what it reads, which of it is mutated, and the call."""

import io
import json
import shutil
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import gguf
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llama_edge.backends import get_exporter
from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.examine import examine
from llama_edge.bundle.folder import (
    PARITY_FILE,
    list_files,
    open_bundle,
    parse_manifest,
    write_manifest,
)
from llama_edge.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from llama_edge.bundle.prompt_state import STATE_FILE, is_own, read_prompt_state, why_unusable
from llama_edge.bundle.signing import check_signature, sign_manifest
from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.huggingface_config import read_config
from llama_edge.checkpoints.tiktoken import LLAMA3_SPECIALS, LLAMA3_TEMPLATE
from llama_edge.checkpoints.torch_file import TorchFile
from llama_edge.checkpoints.weight_files import open_weight_files
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import LlamaEdgeError
from llama_edge.core.json_files import read_json_object
from llama_edge.core.progress import SilentProgress
from llama_edge.generate.warm import WarmRequest, warm_bundle
from llama_edge.models.weights import weight_shapes
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.pipeline.text_cache import TextCache
from llama_edge.quantize import W4A8_RTN, W4A8_SPINQUANT
from llama_edge.quantize.arithmetic import EXACT
from llama_edge.quantize.calibration import generate_calibration
from llama_edge.quantize.recipe_file import find_recipe, recipe_file
from llama_edge.quantize.stage import quantize_checkpoint
from llama_edge.report.page import render_page
from llama_edge.serve.errors import ApiError
from llama_edge.serve.grammars import tools_of
from llama_edge.serve.requests import parse_request
from llama_edge.serve.stdio import serve
from llama_edge.suites.suite import load_suite
from llama_edge.suites.tools import valid_calls
from llama_edge.text.contract import build_text_contract
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import (
    random_weights,
    shard_huggingface,
    write_gguf,
    write_huggingface,
    write_meta,
)
from tests.conftest import DEBUG_CONFIG, MemoryWeights, debug_text
from tests.serve.test_stdio import CountingModel
from tests.suites.test_checks import TIMER
from tests.suites.tiny import TINY, tiny_prompt
from tests.text.test_sentencepiece import folder_of, trained

#: As small as every backend takes it: an input takes the time that its file's size takes.
CONFIG: Final = replace(
    DEBUG_CONFIG,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=64,
    rope_scaling=None,
)
_KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
#: Not of the tokenizer: what a mutated one makes of it is seen.
_TEXT: Final = "the thing <|im_end|> and on \u00e9\u0e01 12345"


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader, and its seed."""

    #: writes good files into a folder that is empty
    build: Callable[[Path], object]
    #: what of them is mutated: patterns of `Path.glob`
    targets: tuple[str, ...]
    #: reads the folder as the product does; it returns, or raises one of our errors
    read: Callable[[Path], object]
    #: seconds that an input may take
    limit_s: float = 10
    #: targets that a process of its own reads, which may die: what is told then is shown elsewhere
    confined: tuple[str, ...] = ()


def _checkpoint(folder: Path) -> None:
    """Everything of it: config, text, and each weight."""
    checkpoint = load_checkpoint(str(folder))
    for name in weight_shapes(checkpoint.config):
        checkpoint.weights.read(name)


def _huggingface(folder: Path) -> None:
    weights = random_weights(CONFIG)
    write_huggingface(folder, CONFIG, weights, debug_text())
    shard_huggingface(folder, weights, 2)


def _weights(folder: Path) -> None:
    for name, file in open_weight_files(folder).files.items():
        file.load(name)


def _config(folder: Path) -> None:
    read_config(folder / "config.json")
    read_text_assets(folder)


def _text(folder: Path) -> None:
    """The tokenizer and the template, used as the gate and `run` use them."""
    assets = read_text_assets(folder)
    tokenizer = Tokenizer(assets)
    tokenizer.decode(tokenizer.encode(_TEXT))
    if tokenizer.has_chat_template:
        tokenizer.encode_chat([{"role": "user", "content": _TEXT}])


def _write_template(folder: Path) -> None:
    _huggingface(folder)
    (folder / "chat_template.jinja").write_text(LLAMA3_TEMPLATE)


def _template(folder: Path) -> None:
    build_text_contract(read_text_assets(folder))


def _gguf(folder: Path) -> None:
    _checkpoint(folder / "model.gguf")


def _write_gguf(folder: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    weights = random_weights(CONFIG)
    write_gguf(folder / "model.gguf", CONFIG, weights, debug_text(), kind, "smollm")


def _write_torch(folder: Path) -> None:
    """New and old form, a view, a nested state dict."""
    matrix = torch.arange(96, dtype=torch.float32).reshape(8, 12)
    state = {"a": matrix, "b": matrix[2:5, ::2], "c": torch.ones(3, dtype=torch.bfloat16)}
    torch.save(state, folder / "new.pth")
    torch.save({"model": state, "step": 3}, folder / "nested.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)


def _torch(folder: Path) -> None:
    for path in sorted(folder.glob("*.pth")):
        file = TorchFile(path)
        for name in file.entries():
            file.load(name)


def _write_meta(folder: Path) -> None:
    """With a tiktoken file as small as it can be."""
    single = [bytes([byte]) for byte in range(256)]
    tokens = [*single, b"th", b"the", b"in", b"ing", b" t", b" the", b"an", b"and"]
    config = replace(CONFIG, vocab_size=len(tokens) + len(LLAMA3_SPECIALS))
    write_meta(folder, config, random_weights(config))
    lines = (f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (folder / "tokenizer.model").write_text("".join(lines))


def _write_sentencepiece(folder: Path) -> None:
    folder_of(trained(vocab_size=450), folder)


def _artifact(backend: str) -> Reader:
    """A backend's files, and all that `doctor` and the debugging commands read of them."""

    def build(folder: Path) -> None:
        with TemporaryDirectory() as place:
            checkpoint = Checkpoint(
                source="fuzz", config=CONFIG, weights=MemoryWeights(CONFIG), text=debug_text()
            )
            quantized = quantize_checkpoint(checkpoint, W4A8_RTN, Path(place), SilentProgress())
            get_exporter(backend).lower(
                quantized, folder, LowerOptions(max_context=512), SilentProgress()
            )

    def read(folder: Path) -> None:
        exporter = get_exporter(backend)
        exporter.runner_values(folder)
        written = exporter.open(folder)
        written.placement()
        written.interface()
        written.storage()
        written.operators()
        written.end_tokens()
        weights = written.weights()
        for name in weights.quantized_names():
            weights.quantized(name)

    return Reader(build, ("**/*.*",), read)


def _bundle(folder: Path) -> None:
    """Signed, for ONNX Runtime, which is the fastest to make."""
    with TemporaryDirectory() as place:
        model = write_huggingface(
            Path(place) / "model", CONFIG, random_weights(CONFIG), debug_text()
        )
        made = Path(place) / "bundle"
        request = ExportRequest(
            model=str(model),
            target="onnx",
            recipe="w4a8-rtn",
            out=made,
            options=LowerOptions(max_context=512),
        )
        export_model(request, SilentProgress())
        sign_manifest(made, (made / MANIFEST_FILE).read_bytes(), _KEY)
        shutil.copytree(made, folder, dirs_exist_ok=True)


def _write_state(folder: Path) -> None:
    """The same bundle with a prompt state."""
    with TemporaryDirectory() as place:
        made = Path(place) / "bundle"
        made.mkdir()
        _bundle(made)
        (made / SIGNATURE_FILE).unlink()
        warm_bundle(made, WarmRequest(system="Be brief."), SilentProgress())
        shutil.copytree(made, folder, dirs_exist_ok=True)


def _state(folder: Path) -> None:
    """Whatever the manifest says of its hash."""
    manifest = parse_manifest(folder).manifest
    artifact = get_exporter(manifest.backend).open(folder).artifact
    state = read_prompt_state(folder, manifest, artifact)
    assert state is not None
    why_unusable(state, "onnx", manifest.backend)
    state.cache.require(artifact.config, state.cache.kv_cache, artifact.max_context)
    is_own(folder)


def _manifest(folder: Path) -> None:
    bundle = parse_manifest(folder)
    bundle.manifest.to_json()
    open_bundle(folder)


def _signature(folder: Path) -> None:
    check_signature(folder, (folder / MANIFEST_FILE).read_bytes(), _KEY.public_key())


def _parity(folder: Path) -> None:
    """What makes a page of the measurements, whatever the manifest says of their file."""
    parity = read_json_object(folder / PARITY_FILE)
    render_page(parse_manifest(folder).manifest, parity)


def _examined(folder: Path) -> None:
    """A bundle by somebody who also wrote the manifest's hashes anew."""
    with suppress(LlamaEdgeError):  # unless it is the manifest that cannot be read
        bundle = parse_manifest(folder)
        files = list_files(folder, [entry.path for entry in bundle.manifest.files])
        write_manifest(folder, replace(bundle.manifest, files=files))
    examine(folder, None, SilentProgress())


def _write_requests(folder: Path) -> None:
    requests = (
        {"op": "open"},
        {"op": "generate", "tokens": [1, 2, 3], "ends": [9], "temperature": 0.7, "top_p": 0.9},
        {"op": "generate", "tokens": [4], "ends": [], "max_new_tokens": 3, "top_k": 5, "seed": 7},
        {"op": "cancel"},
        {"op": "reset"},
    )
    (folder / "requests").write_text("".join(f"{json.dumps(item)}\n" for item in requests))


def _serve(folder: Path) -> None:
    """Each line has its answer, and none ends the program."""
    replies = io.StringIO()
    serve(CountingModel(), io.BytesIO((folder / "requests").read_bytes()), replies)
    for line in replies.getvalue().splitlines():
        json.loads(line)


def _write_body(folder: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "y"}], "name": "n"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "z", "tool_call_id": "1"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "seed": 1,
        "stop": ["a"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        "logit_bias": {},
    }
    (folder / "body").write_text(json.dumps(body))


def _read_body(folder: Path) -> None:
    """A request, or an error that is the client's."""
    with suppress(ApiError):
        request = parse_request((folder / "body").read_bytes())
        json.dumps(request.dialog)
        tools_of(request)


def _write_recipe(folder: Path) -> None:
    (folder / "own.json").write_text(json.dumps({**recipe_file(W4A8_SPINQUANT), "name": "own"}))
    (folder / "based.json").write_text('{"base": "w4a8-mixed", "name": "b", "group_size": 64}')


def _recipe(folder: Path) -> None:
    for name in ("own.json", "based.json"):
        recipe_file(find_recipe(str(folder / name)))


def _short_model() -> Checkpoint:
    """So short that it writes its calibration text at once."""
    config = replace(CONFIG, max_position_embeddings=8)
    weights = MemoryWeights(config)
    return Checkpoint(source="fuzz", config=config, weights=weights, text=debug_text())


def _write_text_cache(folder: Path) -> None:
    model = _short_model()
    written = generate_calibration(model, 0, SilentProgress(), EXACT)
    TextCache(folder / "text.safetensors").keep(model, written, 0, "0" * 64)


def _text_cache(folder: Path) -> None:
    TextCache(folder / "text.safetensors").read(_short_model(), 0)


def _write_suite(folder: Path) -> None:
    prompts = [{**tiny_prompt(0, "en"), "tools": [TIMER]}, tiny_prompt(1, "th")]
    (folder / "tiny.json").write_text(json.dumps({**TINY, "prompts": prompts}))


def _suite(folder: Path) -> None:
    """Every check works on what a model may answer, whatever its limits are."""
    for prompt in load_suite(str(folder / "tiny.json")).prompts:
        for check in prompt.checks:
            check.passes('[set_timer(minutes=1, label="x")]', prompt)
        valid_calls('[set_timer(minutes=1, label="x")]', prompt.tools)


READERS: Final[Mapping[str, Reader]] = {
    "safetensors": Reader(_huggingface, ("*.safetensors", "*.index.json"), _weights),
    "config": Reader(_huggingface, ("*config.json",), _config),
    "tokenizer": Reader(
        _huggingface, ("tokenizer.json", "tokenizer_config.json"), _text, confined=("*",)
    ),
    "sentencepiece": Reader(_write_sentencepiece, ("tokenizer.model",), _text, confined=("*",)),
    "template": Reader(_write_template, ("chat_template.jinja",), _template, confined=("*",)),
    "gguf": Reader(_write_gguf, ("model.gguf",), _gguf),
    "torch": Reader(_write_torch, ("*.pth",), _torch, confined=("*",)),
    "meta": Reader(_write_meta, ("params.json", "tokenizer.model", "*.pth"), _checkpoint),
    "manifest": Reader(_bundle, (MANIFEST_FILE,), _manifest),
    "signature": Reader(_bundle, (SIGNATURE_FILE,), _signature),
    "parity": Reader(_bundle, (PARITY_FILE,), _parity),
    "doctor": Reader(
        _bundle, ("*.json", "*.jinja"), _examined, confined=("tokenizer.json", "*.jinja")
    ),
    "executorch": _artifact("executorch"),
    "onnx": _artifact("onnx"),
    "coreml": _artifact("coreml"),
    "body": Reader(_write_body, ("body",), _read_body),
    "state": Reader(_write_state, (STATE_FILE,), _state),
    "suite": Reader(_write_suite, ("tiny.json",), _suite),
    "recipe": Reader(_write_recipe, ("*.json",), _recipe),
    "text-cache": Reader(_write_text_cache, ("text.safetensors",), _text_cache),
    "serve": Reader(_write_requests, ("requests",), _serve),
}
