"""Hugging Face folders: config.json, weights as safetensors or torch files, tokenizer.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.checkpoints.base import CheckedWeights
from llama_edge.checkpoints.huggingface_config import read_config
from llama_edge.checkpoints.names import plain_names
from llama_edge.checkpoints.recognise import CONFIG_FILE
from llama_edge.checkpoints.weight_files import (
    FLOAT_DTYPES,
    WeightFile,
    WeightFiles,
    open_weight_files,
)
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.core.model_config import ModelConfig
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.text.text_assets import read_text_assets

#: Computed from the config; older checkpoints store it all the same.
_HARMLESS_SUFFIX: Final = "rotary_emb.inv_freq"
#: in safetensors' names and in torch's
_READ: Final = "float32, float16 and bfloat16 are read"
_OUTPUT_BIAS: Final = ".self_attn.o_proj.bias"
_BASE: Final = "model."


def load_huggingface(folder: Path, source: str) -> Checkpoint:
    """Open a folder as `save_pretrained` writes it.

    Raises:
        CheckpointError: It is damaged, incomplete or not a plain Llama.
        ConfigError: Its sizes contradict each other.
        TokenizerError: Its tokenizer is damaged.
    """
    config = read_config(folder / CONFIG_FILE)
    files = open_weight_files(folder)
    stored = _stored_tensors(folder, config, files)
    return Checkpoint(
        source=source,
        config=config,
        weights=CheckedWeights(str(folder), config, stored),
        text=read_text_assets(folder),
        note=files.note,
        folder=folder,
    )


@dataclass(frozen=True, slots=True)
class _Stored:
    """`StoredTensors`: canonical name -> the file, and the name in it."""

    tensors: Mapping[str, tuple[WeightFile, str]]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `StoredTensors`."""
        shapes = {}
        for name, (file, own_name) in self.tensors.items():
            dtype, shapes[name] = file.entries()[own_name]
            if dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"{file.path}: {own_name} is {dtype}; {_READ}, so take the model's "
                    "unquantized release"
                )
        return shapes

    def load(self, name: str) -> Tensor:
        """See `StoredTensors`."""
        file, own_name = self.tensors[name]
        return file.load(own_name)


def _stored_tensors(folder: Path, config: ModelConfig, files: WeightFiles) -> _Stored:
    """All tensors under canonical names, without those that are computed or there twice."""
    tied = config.tie_word_embeddings
    _require_merged(folder, files)
    names = _canonical_names(files)
    _require_present(names, files, tied=tied)
    tensors = {
        name: (files.files[own_name], own_name)
        for name, own_name in names.items()
        if own_name in files.files and not name.endswith(_HARMLESS_SUFFIX)
    }
    stored = _Stored(_without_output_biases(tensors))
    if LM_HEAD not in stored.tensors or not tied:
        return stored
    if EMBEDDING not in stored.tensors or not _equal(stored.load(LM_HEAD), stored.load(EMBEDDING)):
        raise CheckpointError(
            f"{folder}: {LM_HEAD} differs from {EMBEDDING} although tie_word_embeddings is "
            f"true; set it to false in {CONFIG_FILE} if the head is meant to be its own"
        )
    return _Stored({name: found for name, found in stored.tensors.items() if name != LM_HEAD})


def _equal(head: Tensor, embedding: Tensor) -> bool:
    """Whether the values are, in whatever dtypes they are stored."""
    dtype = torch.promote_types(head.dtype, embedding.dtype)
    return torch.equal(head.to(dtype), embedding.to(dtype))


def _without_output_biases(
    tensors: Mapping[str, tuple[WeightFile, str]],
) -> Mapping[str, tuple[WeightFile, str]]:
    """Leave out biases of attention's outputs, which must be zero: no network here has them."""
    kept = {}
    for name, (file, own_name) in tensors.items():
        if not name.endswith(_OUTPUT_BIAS):
            kept[name] = file, own_name
        elif file.load(own_name).count_nonzero():
            raise CheckpointError(
                f"{file.path}: {own_name} is a bias at attention's outputs, which no backend here "
                "computes; queries, keys and values may have one, and one of zeros is left out"
            )
    return kept


def _require_merged(folder: Path, files: WeightFiles) -> None:
    adapter = next((name for name in files.files if ".lora_" in name), None)
    if adapter is not None:
        raise CheckpointError(
            f"{folder}: {adapter} is part of a LoRA adapter that was not merged into its model; "
            "merge it with peft's merge_and_unload and save the result"
        )


def _canonical_names(files: WeightFiles) -> Mapping[str, str]:
    """Canonical name -> name in the files or in the index."""
    own_names = [*files.files, *files.absent]
    names = plain_names(own_names, EMBEDDING)
    if EMBEDDING in names:
        return names
    # `LlamaModel` alone: the same without the head, and without the name of the part.
    base = plain_names(own_names, EMBEDDING.removeprefix(_BASE))
    if EMBEDDING.removeprefix(_BASE) not in base:
        return names
    return {name if name == LM_HEAD else _BASE + name: own for name, own in base.items()}


def _require_present(names: Mapping[str, str], files: WeightFiles, *, tied: bool) -> None:
    """What the index lists is there, but for what is not needed.

    Older versions of transformers list a tied head, which they do not write.
    """
    for name, own_name in names.items():
        if own_name in files.absent and not name.endswith(_HARMLESS_SUFFIX):
            if tied and name == LM_HEAD:
                continue
            raise CheckpointError(
                f"{files.absent[own_name]}: {own_name} is missing, although the index lists it: "
                "the index and the shard are of different versions; download both from one"
            )
