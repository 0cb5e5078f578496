"""What every checkpoint reader shares: the check of names and shapes, and of each value read."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from llama_edge.core.errors import CheckpointError
from llama_edge.core.model_config import ModelConfig
from llama_edge.models.weight_names import LM_HEAD
from llama_edge.models.weights import weight_shapes


class StoredTensors(Protocol):
    """A checkpoint's tensors under canonical names, in whatever dtype they are stored."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor, canonical layout."""
        ...

    def load(self, name: str) -> Tensor:
        """The tensor in canonical layout, any floating dtype.

        Raises:
            CheckpointError: The file is damaged.
        """
        ...


class CheckedWeights:
    """`Weights` over stored tensors, which are exactly those that the config asks for."""

    def __init__(self, where: str, config: ModelConfig, stored: StoredTensors) -> None:
        self._where = where
        self._stored = stored
        self._expected = weight_shapes(config)
        found = stored.shapes()
        missing = [name for name in self._expected if name not in found]
        extra = [name for name in found if name not in self._expected]
        if missing:
            raise CheckpointError(f"{where}: {_what_is_missing(missing, extra, len(found))}")
        if extra:
            raise CheckpointError(
                f"{where}: {_list(extra)} unexpected; a plain Llama has no such weight, and "
                "leaving it out would change what the model computes"
            )
        for name, shape in self._expected.items():
            if found[name] != shape:
                raise CheckpointError(
                    f"{where}: {name} has shape {found[name]}; the config asks for {shape}"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self._expected)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        return self._expected[name]

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        tensor = self._stored.load(name).to(torch.float32).contiguous()
        # One pass and no temporary: a sum is finite unless a term is not (or it overflows).
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            place = tuple(torch.nonzero(~torch.isfinite(tensor))[0].tolist())
            raise CheckpointError(
                f"{self._where}: {name} holds {tensor[place].item()} at {place}; "
                "the file is damaged or the training run diverged"
            )
        return tensor


def _what_is_missing(missing: list[str], extra: list[str], found: int) -> str:
    """Why weights that the config asks for are not there."""
    if missing == [LM_HEAD] and not extra:
        return (
            f"{LM_HEAD} is missing. If the model's head is its embedding, as in Llama 3.2 1B, set "
            "tie_word_embeddings to true in config.json; if the model was saved without its head "
            "(LlamaModel), save it as LlamaForCausalLM"
        )
    if len(extra) == found:
        named = f", such as {extra[0]}" if extra else ""
        return (
            f"{_list(missing)} missing; the {found} weights that are there have other names"
            f"{named}: it is no Llama, or was saved by a program with names of its own"
        )
    return (
        f"{_list(missing)} missing, of the weights that the config asks for; {found} weights are "
        "there: the checkpoint is incomplete, or the config of another model"
    )


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def unpermute_heads(weight: Tensor, heads: int) -> Tensor:
    """Rows of a Q or K matrix from interleaved RoPE pairs (Meta, GGUF) to two halves (HF).

    Source: `permute` in transformers' `convert_llama_weights_to_hf.py`.
    """
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
