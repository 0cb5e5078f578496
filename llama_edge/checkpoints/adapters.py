"""LoRA adapters as PEFT saves them, merged into a model's weights one by one as they are read.

Merging is exact: the sum is in float32, before any rotation or rounding. Source of the arithmetic:
`get_delta_weight` and `merge` in PEFT's `tuners/lora/layer.py` and `variants.py`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NoReturn

import torch
from torch import Tensor

from llama_edge.checkpoints.adapter_config import JOINT, AdapterConfig, read_adapter_config
from llama_edge.checkpoints.names import plain_names
from llama_edge.checkpoints.torch_file import TorchFile
from llama_edge.checkpoints.weight_files import FLOAT_DTYPES, SafetensorsFile, WeightFile
from llama_edge.core.checkpoint import Checkpoint, Weights
from llama_edge.core.errors import CheckpointError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.regular import real_path
from llama_edge.core.text_assets import TextAssets
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.models.weights import weight_shapes
from llama_edge.text.text_assets import SENTENCEPIECE_FILE, TOKENIZER_FILE, read_text_assets

_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")
#: The module, and what of its change the tensor is. The adapter's own name may stand in between.
_NAME: Final = re.compile(
    r"(?:base_model\.model\.)?(?P<module>[\w.]+?)\."
    r"(?:(?P<part>lora_embedding_A|lora_embedding_B|lora_A|lora_B|lora_magnitude_vector"
    r"|token_adapter\.trainable_tokens_delta)(?:\.\w+?)??(?:\.weight)?"
    r"|(?:base_layer\.|modules_to_save\.(?:\w+\.)?)?(?P<whole>weight|bias))"
)


@dataclass(slots=True)
class _Change:
    """What an adapter does to one weight: names in its file."""

    #: takes the weight's place
    whole: str | None = None
    #: factors of what is added
    factors: dict[str, str] = field(default_factory=dict)
    magnitude: str | None = None
    #: values of rows that are replaced
    rows: str | None = None


class _Adapter:
    """An adapter's tensors, compared with the model that it is for."""

    def __init__(self, folder: Path, config: AdapterConfig) -> None:
        self.config = config
        self.file = _open(folder)
        self._shapes = {name: shape for name, (_, shape) in self.file.entries().items()}
        self.changes = self._read_names()

    def _read_names(self) -> Mapping[str, _Change]:
        changes: dict[str, _Change] = {}
        stored = plain_names(self._shapes, "base_model.model.model.embed_tokens.weight")
        for plain, name in stored.items():
            dtype = self.file.entries()[name][0]
            if dtype not in FLOAT_DTYPES:
                self._refuse(f"{name[:100]} is {dtype}; float32, float16 and bfloat16 are read")
            found = _NAME.fullmatch(plain)
            if found is None:
                self._refuse(f"{name[:100]} is no part of a LoRA adapter that is known here")
            whole, part = found["whole"], found["part"]
            change = changes.setdefault(f"{found['module']}.{whole or 'weight'}", _Change())
            if whole is not None:
                change.whole = name
            elif part == "lora_magnitude_vector":
                change.magnitude = name
            elif part.startswith("token_adapter"):
                change.rows = name
            else:
                change.factors[part[-1]] = name
        return changes

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of a tensor in the file."""
        return self._shapes[name]

    def rows_of(self, weight: str) -> tuple[int, ...]:
        """Ids of the rows that are replaced."""
        module = weight.removesuffix(".weight")
        listed = self.config.token_rows
        return next((ids for name, ids in listed.items() if f".{module}".endswith(f".{name}")), ())

    def check(self, weight: str, shape: tuple[int, ...]) -> None:
        """Compare the change of a weight with the weight's shape.

        Raises:
            CheckpointError: It is of another model, or incomplete.
        """
        change = self.changes[weight]
        expected = {} if change.whole is None else {change.whole: shape}
        if change.factors:
            expected |= self._factor_shapes(weight, shape)
        self._check_magnitude(weight)
        if change.magnitude is not None:
            expected[change.magnitude] = shape[:1]
        if change.rows is not None:
            ids = self.rows_of(weight)
            if max(ids, default=0) >= shape[0]:
                self._refuse(f"{weight} has {shape[0]} rows, and row {max(ids)} is to be replaced")
            expected[change.rows] = (len(ids), *shape[1:])
        for name, wanted in expected.items():
            if self._shapes[name] != wanted:
                self._refuse(
                    f"{name} has shape {self._shapes[name]}; {wanted} fits the model's {weight}, "
                    f"which has {shape}: it is an adapter of another model"
                )

    def _factor_shapes(self, weight: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        factors = self.changes[weight].factors
        if set(factors) != {"A", "B"} or len(shape) != 2:
            self._refuse(f"{weight} has one factor of its change and not the other")
        rank, (rows, columns) = self._rank(weight), shape
        if self._is_embedding(self.changes[weight]):
            return {factors["A"]: (rank, rows), factors["B"]: (columns, rank)}
        return {factors["A"]: (rank, columns), factors["B"]: (rows, rank)}

    def _check_magnitude(self, weight: str) -> None:
        change = self.changes[weight]
        if change.magnitude is None:
            if self.config.has_magnitudes and change.factors:
                self._refuse(f"{weight} has no magnitude, although use_dora is true")
        elif not self.config.has_magnitudes or not change.factors or self._is_embedding(change):
            self._refuse(f"{weight} has a magnitude (DoRA), which is merged for linears only")

    def _rank(self, weight: str) -> int:
        rank = next(iter(self._shapes[self.changes[weight].factors["A"]]), 0)
        if rank < 1:
            self._refuse(f"{weight} has a change of rank 0; the adapter was saved incompletely")
        return rank

    def are_equal(self, one: _Change, other: _Change) -> bool:
        """Whether two changes give the same values, and nothing else."""
        if one.factors or other.factors or None in (one.whole, other.whole):
            return False
        return torch.equal(self._load(str(one.whole)), self._load(str(other.whole)))

    @staticmethod
    def _is_embedding(change: _Change) -> bool:
        return "lora_embedding" in change.factors["A"]

    def merged(self, weight: str, base: Tensor) -> Tensor:
        """The weight with its change, float32.

        Args:
            weight: Its canonical name; one of `changes`.
            base: float32, of the model; it is not changed.
        """
        change = self.changes[weight]
        made = base if change.whole is None else self._load(change.whole)
        if change.rows is not None:
            made = made.clone()
            made[list(self.rows_of(weight))] = self._load(change.rows)
        if not change.factors:
            return made
        delta = self._load(change.factors["B"]) @ self._load(change.factors["A"])
        delta *= self.config.scaling(weight.removesuffix(".weight"), self._rank(weight))
        made = made + (delta.T if self._is_embedding(change) else delta)
        if change.magnitude is None:
            return made
        lengths: Tensor = torch.linalg.vector_norm(made, dim=1)
        unit: Tensor = made / lengths.unsqueeze(1)
        return unit * self._load(change.magnitude).flatten().unsqueeze(1)

    def _load(self, name: str) -> Tensor:
        tensor = self.file.load(name).to(torch.float32)
        if not torch.isfinite(tensor).all():
            self._refuse(f"{name} holds NaN or infinity; the training run diverged")
        return tensor

    def _refuse(self, why: str) -> NoReturn:
        raise CheckpointError(f"{self.file.path}: {why}")


class _MergedWeights:
    """`Weights` of a model with an adapter."""

    def __init__(
        self,
        base: Weights,
        adapter: _Adapter,
        changed: frozenset[str],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._base = base
        self._names = frozenset(base)
        self._adapter = adapter
        self._changed = changed
        self._shapes = shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        return self._shapes[name]

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        base = self._base.read(self._origin(name))
        return self._adapter.merged(name, base) if name in self._changed else base

    def base_shape(self, name: str) -> tuple[int, ...]:
        """Of the model's own weight."""
        return self._base.shape(self._origin(name))

    def _origin(self, name: str) -> str:
        """A head that was the embedding, and is no more, comes from it."""
        return name if name in self._names else EMBEDDING


def merge_adapter(
    base: Checkpoint, folder: Path, name: str, base_names: Iterable[str] = ()
) -> Checkpoint:
    """The model with an adapter; nothing is computed before a weight is read.

    A head that is the embedding and gets a change of its own, or whose embedding does, becomes a
    matrix of its own, as it is in the model that was trained. A tokenizer in the adapter's folder
    takes the place of the model's.

    Args:
        base: Full precision.
        folder: As PEFT's `save_pretrained` writes it.
        name: How the user named it.
        base_names: Ids under which the model is published, `owner/name`; none if it is local.

    Raises:
        CheckpointError: It is no adapter, cannot be merged, or is one of another model.
        TokenizerError: Its tokenizer is damaged.
    """
    config = read_adapter_config(folder)
    short = real_path(folder).name if Path(name).exists() else name
    if base.codes is not None:
        raise CheckpointError(
            f"{folder}: {base.source} came with quantized values of its own, which a merged "
            "adapter would change; merge it into the model's unquantized release"
        )
    config.require_base(base_names)
    adapter = _Adapter(folder, config)
    merged = _merged_config(base.config, adapter)
    shapes = weight_shapes(merged)
    is_one = merged.tie_word_embeddings
    changed = frozenset(adapter.changes) - ({LM_HEAD} if is_one else set())
    weights = _MergedWeights(base.weights, adapter, changed, shapes)
    for weight in sorted(changed):
        if weight not in shapes:
            raise CheckpointError(
                f"{adapter.file.path}: changes {weight}, which the model does not have; it is an "
                "adapter of another model"
            )
        adapter.check(weight, shapes[weight])
    for weight, shape in shapes.items():
        is_new = weight in changed and adapter.changes[weight].whole is not None
        if not is_new and weights.base_shape(weight) != shape:
            raise CheckpointError(
                f"{adapter.file.path}: has an embedding of {merged.vocab_size} rows and no "
                f"{weight} of as many; save the adapter with save_embedding_layers=True"
            )
    return replace(
        base,
        source=f"{base.source}{JOINT}{name}",
        config=merged,
        weights=weights,
        text=_text(base, folder),
        note="; ".join(filter(None, (base.note, f"with the adapter {short}"))),
    )


def _merged_config(config: ModelConfig, adapter: _Adapter) -> ModelConfig:
    """With the rows that the adapter brings; and whether the head still is the embedding."""
    embedding = adapter.changes.get(EMBEDDING)
    rows = config.vocab_size
    if embedding is not None and embedding.whole is not None:
        shape = adapter.shape_of(embedding.whole)
        rows = shape[0] if shape else rows
    is_one = config.tie_word_embeddings and _stays_one(adapter, grows=rows != config.vocab_size)
    return replace(config, vocab_size=rows, tie_word_embeddings=is_one)


def _stays_one(adapter: _Adapter, *, grows: bool) -> bool:
    """Whether one table still is head and embedding, in the model that was trained."""
    embedding, head = (adapter.changes.get(table) for table in (EMBEDDING, LM_HEAD))
    if adapter.config.keeps_tie:
        return True
    if head is not None:
        return embedding is not None and adapter.are_equal(embedding, head)
    # Replaced rows are replaced in both; an embedding that was resized is tied again.
    return embedding is None or (not embedding.factors and (embedding.whole is None or grows))


def _text(base: Checkpoint, folder: Path) -> TextAssets:
    """The tokenizer that the adapter was trained with, where it brings one."""
    if not any((folder / name).exists() for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE)):
        return base.text
    own = {"eos_token_id": list(base.text.eos_token_ids), **base.text.generation_defaults}
    return read_text_assets(folder, generation=own)


def _open(folder: Path) -> WeightFile:
    path = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if path is None:
        raise CheckpointError(
            f"{folder}: has no {' or '.join(_FILES)}; copy or download the whole adapter"
        )
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
