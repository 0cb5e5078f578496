"""What a path given as a model is: a form that is read, or its true name and what to do with it.

Goes by names and first bytes; nothing is parsed but small JSON files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_edge.checkpoints.json_fields import read_fields
from llama_edge.core.errors import CheckpointError
from llama_edge.core.regular import open_regular
from llama_edge.core.walk import walk

CONFIG_FILE: Final = "config.json"
PARAMS_FILE: Final = "params.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
TORCH_WEIGHTS_FILE: Final = "pytorch_model.bin"
TORCH_INDEX_FILE: Final = "pytorch_model.bin.index.json"
#: In the order in which transformers looks for them.
WEIGHT_SOURCES: Final = (WEIGHTS_FILE, INDEX_FILE, TORCH_WEIGHTS_FILE, TORCH_INDEX_FILE)
ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
GGUF_SUFFIX: Final = ".gguf"
GGUF_MAGIC: Final = b"GGUF"
_FIRST_PART: Final = re.compile(r"-0*1-of-\d+\.gguf$")
_SHOWN: Final = 4

_LOOKED_FOR: Final = (
    "looked for a folder with config.json (Hugging Face), a folder with params.json (Meta), or a "
    "GGUF file"
)
_TAKE_HUGGINGFACE: Final = "take the model's Hugging Face folder"
_UNPACK: Final = "unpack it, and give the folder in it"
#: of a single file, by its suffix: what it is, and the remedy
_FILES: Final[Mapping[str, tuple[str, str]]] = {
    ".nemo": ("a NeMo archive", "convert it to Hugging Face form with NeMo's scripts"),
    ".zip": ("a zip archive", _UNPACK),
    ".tar": ("a tar archive", _UNPACK),
    ".tgz": ("a tar archive", _UNPACK),
    ".gz": ("a compressed file", _UNPACK),
    ".bz2": ("a compressed file", _UNPACK),
    ".xz": ("a compressed file", _UNPACK),
    ".zst": ("a compressed file", _UNPACK),
    ".7z": ("a 7-Zip archive", _UNPACK),
    ".rar": ("a RAR archive", _UNPACK),
    ".onnx": ("an ONNX graph, exported already", _TAKE_HUGGINGFACE),
    ".pte": ("an ExecuTorch program, exported already", _TAKE_HUGGINGFACE),
    ".tflite": ("a LiteRT model, exported already", _TAKE_HUGGINGFACE),
    ".litertlm": ("a LiteRT-LM model, exported already", _TAKE_HUGGINGFACE),
    ".task": ("a MediaPipe model, exported already", _TAKE_HUGGINGFACE),
    ".mlmodel": ("a Core ML model, exported already", _TAKE_HUGGINGFACE),
    ".ggml": ("a GGML file, which came before GGUF", "take the model's GGUF file"),
    ".h5": ("TensorFlow weights", _TAKE_HUGGINGFACE),
    ".msgpack": ("Flax weights", _TAKE_HUGGINGFACE),
    ".npz": ("NumPy arrays", _TAKE_HUGGINGFACE),
}
#: of a file whose suffix says nothing
_MAGICS: Final[Mapping[bytes, str]] = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a compressed file",
    b"BZh": "a compressed file",
    b"\xfd7zXZ\x00": "a compressed file",
    b"\x28\xb5\x2f\xfd": "a compressed file",
}
#: Weights alone: the folder has the config and the tokenizer.
_WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class _Sign:
    """A file in a folder, by its whole name or as a pattern, that says what the folder is."""

    pattern: str
    what: str
    remedy: str


#: Of folders without config.json and params.json, or without weights that are read; the first
#: one that fits.
_SIGNS: Final = (
    _Sign(r"model_index\.json", "a diffusers pipeline, no language model", "give another model"),
    _Sign(r"zero_to_fp32\.py|global_step\d+", "a DeepSpeed checkpoint",
          "run the zero_to_fp32.py in it, and save the result as Hugging Face folder"),
    _Sign(r".*\.distcp|pytorch_model_fsdp_\d+", "a sharded FSDP checkpoint",
          "merge it with accelerate merge-weights"),
    _Sign(r".*\.nemo|model_weights\.ckpt", "a NeMo model",
          "convert it to Hugging Face form with NeMo's scripts"),
    _Sign(r"mlc-chat-config\.json", "a model of MLC", _TAKE_HUGGINGFACE),
    _Sign(r"consolidated\.safetensors", "in Mistral's own form",
          "take the Hugging Face files of the same repository"),
    _Sign(r"tf_model.*\.h5|.*\.tf_index", "only there with TensorFlow weights",
          "load it with from_tf=True in transformers 4 and save it with save_pretrained"),
    _Sign(r"flax_model.*\.msgpack", "only there with Flax weights",
          "load it with from_flax=True in transformers 4 and save it with save_pretrained"),
    _Sign(r"rust_model\.ot", "only there with rust-bert's weights", _TAKE_HUGGINGFACE),
    _Sign(r"openvino_.*\.xml", "an OpenVINO export", _TAKE_HUGGINGFACE),
    _Sign(r".*\.onnx|genai_config\.json|onnx", "an ONNX export", _TAKE_HUGGINGFACE),
    _Sign(r".*\.pte", "an ExecuTorch export", _TAKE_HUGGINGFACE),
    _Sign(r".*\.mlpackage", "a Core ML export", _TAKE_HUGGINGFACE),
    _Sign(r"snapshots", "a folder of the Hugging Face cache",
          "give the folder of a revision in its folder snapshots"),
    _Sign(r"checkpoint-\d+", "a training run's folder", "give one of the checkpoint folders in it"),
    _Sign(r"pytorch_model.*\.bin|model.*\.safetensors", "without config.json",
          "download config.json and the tokenizer from the same repository"),
    _Sign(r"consolidated\.\d\d\.pth", "without params.json",
          "download params.json and tokenizer.model as well"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recognised:
    """A form of `checkpoints.FORMS`, and what its reader is given."""

    form: str
    path: Path


def recognise(path: Path) -> Recognised:
    """Which form a path has.

    Raises:
        CheckpointError: None that is read; the message says what it is instead.
    """
    return _recognise_folder(path) if path.is_dir() else _recognise_file(path)


def _recognise_file(path: Path) -> Recognised:
    with open_regular(path, CheckpointError) as stream:
        start = stream.read(8)
    suffix = path.suffix.lower()
    # The reader of GGUF says what is wrong with a file that only has the name.
    if start.startswith(GGUF_MAGIC) or suffix == GGUF_SUFFIX:
        return Recognised("gguf", path)
    if suffix in _WEIGHT_SUFFIXES:
        beside = _has_config(path.parent)
        remedy = (
            f"give its folder, {path.parent}"
            if beside
            else "give a folder that has its config.json and tokenizer as well"
        )
        raise CheckpointError(f"{path}: is only a model's weights; {remedy}")
    if suffix in _FILES:
        what, remedy = _FILES[suffix]
        raise CheckpointError(f"{path}: is {what}; {remedy}")
    if path.name in (CONFIG_FILE, PARAMS_FILE, INDEX_FILE, TORCH_INDEX_FILE):
        raise CheckpointError(f"{path}: is one file of a model; give its folder, {path.parent}")
    for begin, what in _MAGICS.items():
        if start.startswith(begin):
            raise CheckpointError(f"{path}: is {what}; {_UNPACK}")
    raise CheckpointError(f"{path}: not a checkpoint; {_LOOKED_FOR}")


def _recognise_folder(path: Path) -> Recognised:
    names = [entry.name for entry in walk(path, CheckpointError, depth=1)]
    if not names:
        raise CheckpointError(f"{path}: is an empty folder; {_LOOKED_FOR}")
    _require_no_adapter(path, names)
    is_huggingface = CONFIG_FILE in names
    has_weights = any(name in names for name in WEIGHT_SOURCES)
    if PARAMS_FILE in names and not (is_huggingface and has_weights):
        return Recognised("meta", path)
    models = [name for name in names if name.lower().endswith(GGUF_SUFFIX)]
    if models and not has_weights:
        return Recognised("gguf", path / _one_gguf(path, models))
    if is_huggingface:
        return Recognised("huggingface", path)
    refuse_by_sign(str(path), names)
    inner = [name for name in names if _has_config(path / name)]
    if inner:
        raise CheckpointError(f"{path}: is a folder of models; give one: {_shown(inner)}")
    raise CheckpointError(f"{path}: not a checkpoint; {_LOOKED_FOR}; there is {_shown(names)}")


def _has_config(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or (folder / PARAMS_FILE).is_file()


def refuse_without_weights(folder: Path) -> None:
    """Say what a Hugging Face folder has in place of the weights that are read.

    Raises:
        CheckpointError: Always.
    """
    names = [entry.name for entry in walk(folder, CheckpointError, depth=1)]
    refuse_by_sign(str(folder), names)
    others = [name for name in names if name.endswith(_WEIGHT_SUFFIXES)]
    found = f"; {_shown(others)} {'is' if len(others) == 1 else 'are'} there" if others else ""
    raise CheckpointError(
        f"{folder}: has no weights: none of {', '.join(WEIGHT_SOURCES)}{found}; download the "
        "model's weights into it"
    )


def _require_no_adapter(folder: Path, names: Sequence[str]) -> None:
    if ADAPTER_CONFIG_FILE not in names and not any(
        name.startswith("adapter_model.") for name in names
    ):
        return
    has_config = ADAPTER_CONFIG_FILE in names
    config = read_fields(folder / ADAPTER_CONFIG_FILE).values if has_config else {}
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    of = f" of {base[:200]}" if isinstance(base, str) and base else ""
    is_lora = kind in (None, "LORA")
    what = "a LoRA adapter" if is_lora else f"an adapter of PEFT's type {kind!a:.40}"
    remedy = (
        "give its base model as MODEL, and this folder with --adapter"
        if is_lora
        else "merge it into its base model first, with peft's merge_and_unload, and save the result"
    )
    also = (
        f", besides a model; if the adapter is merged into it already, delete {ADAPTER_CONFIG_FILE}"
        if any(name in names for name in WEIGHT_SOURCES)
        else ""
    )
    raise CheckpointError(f"{folder}: is {what}{of}{also}; {remedy}")


def _one_gguf(folder: Path, names: Sequence[str]) -> str:
    firsts = [name for name in names if _FIRST_PART.search(name)]
    parts = [name for name in names if re.search(r"-\d+-of-\d+\.gguf$", name)]
    wholes = [name for name in names if name not in parts]
    candidates = [*wholes, *(firsts or parts[:1])]
    if len(candidates) > 1:
        raise CheckpointError(
            f"{folder}: has {len(candidates)} GGUF models, {_shown(candidates)}; give one of the "
            "files"
        )
    return candidates[0]


def refuse_by_sign(where: str, names: Sequence[str]) -> None:
    """Say what a folder is that is read in no form, if a name in it tells.

    Args:
        where: For the message.
        names: What is in it, at the top.

    Raises:
        CheckpointError: It is told.
    """
    for sign in _SIGNS:
        found = [name for name in names if re.fullmatch(sign.pattern, name)]
        if found:
            raise CheckpointError(f"{where}: is {sign.what} ({found[0]}); {sign.remedy}")


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
