"""What a LoRA adapter says of itself: `adapter_config.json`, as PEFT's `LoraConfig` writes it."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_edge.checkpoints.json_fields import Fields, read_fields
from llama_edge.core.errors import CheckpointError

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
#: Between a model's name and an adapter's folder.
JOINT: Final = "+"

#: Initializations that change the base model's weights as well; PEFT repeats them when it loads.
_CHANGE_BASE: Final = ("corda", "kasa", "loftq", "lora_ga", "olora", "pissa")
#: Fields that must be absent or empty: with them the adapter is no fixed change of one matrix.
_NOT_MERGED: Final[Mapping[str, str]] = {
    "alora_invocation_tokens": "acts after certain tokens only (aLoRA)",
    "arrow_config": "chooses among adapters token by token (Arrow)",
    "kasa_config": "changes the base model's weights (KaSA)",
    "layer_replication": "repeats layers of the base model",
    "lora_bias": "has biases of its own, and no network here has them there",
    "megatron_config": "is of a Megatron model",
    "monteclora_config": "samples its weights (MonteCLoRA)",
    "target_parameters": "changes parameters that are no linear's",
    "use_bdlora": "is block-diagonal (BD-LoRA)",
    "use_qalora": "pools its inputs (QA-LoRA)",
}
#: A mirror's or a quantized copy's name ends with it.
_COPY_SUFFIX: Final = re.compile(r"(-unsloth)?(-bnb-4bit|-bnb-8bit|-4bit|-8bit|-hf|-gguf|-bf16)+$")
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A checked `adapter_config.json`."""

    path: Path
    #: DoRA: the rows of the sum get lengths that were learned
    has_magnitudes: bool
    #: as in the model's tree, without `.weight`: modules whose rows `rows_of` lists are replaced
    token_rows: Mapping[str, tuple[int, ...]]
    #: the head of a model with one table for head and embedding has the embedding's changes
    keeps_tie: bool
    base_name: str | None
    _alpha: float
    _alpha_pattern: Mapping[str, float]
    _by_root: bool

    def scaling(self, module: str, rank: int) -> float:
        """What the product of the two factors is multiplied by.

        Source: `LoraLayer.update_layer` and `get_pattern_key` in PEFT.

        Args:
            module: Its name in the model's tree.
            rank: Rows of its factor A.
        """
        fits = (
            alpha
            for pattern, alpha in self._alpha_pattern.items()
            if re.match(rf"(.*\.)?({pattern})$", module)
        )
        alpha = next(fits, self._alpha)
        return alpha / math.sqrt(rank) if self._by_root else alpha / rank

    def require_base(self, names: Iterable[str]) -> None:
        """Refuse a model that has another name than the one that the adapter was trained on.

        Args:
            names: Of the model, as `owner/name`; none where it is a folder or file.

        Raises:
            CheckpointError: All of them are other models' names.
        """
        given = tuple(names)
        if self.base_name is None or not _HUB_ID.fullmatch(self.base_name) or not given:
            return
        if _model_name(self.base_name) not in map(_model_name, given):
            raise CheckpointError(
                f"{self.path}: was trained on {self.base_name}, and the model is {given[0]}; give "
                "that model. If the two are one under two names, change base_model_name_or_path "
                "in this file"
            )


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check it.

    Raises:
        CheckpointError: It is absent or damaged, or of an adapter that cannot be merged.
    """
    path = folder / ADAPTER_CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; an adapter is one")
    if not path.exists():
        raise CheckpointError(
            f"{folder}: has no {ADAPTER_CONFIG_FILE}; an adapter is a folder that PEFT's "
            "save_pretrained wrote"
        )
    fields = read_fields(path)
    kind = fields.values.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{path}: is an adapter of PEFT's type {kind!a:.40}; LORA is merged here. Merge it "
            "with peft's merge_and_unload, and give the result as MODEL"
        )
    for key, what in _NOT_MERGED.items():
        if fields.values.get(key):
            raise CheckpointError(f"{path}: {key} is set: the adapter {what}, and is not merged")
    _require_own_base(fields)
    base = fields.values.get("base_model_name_or_path")
    return AdapterConfig(
        path=path,
        has_magnitudes=fields.flag("use_dora", default=False),
        token_rows=_token_rows(fields),
        keeps_tie=fields.flag("ensure_weight_tying", default=False),
        base_name=base if isinstance(base, str) and base else None,
        _alpha=fields.number("lora_alpha"),
        _alpha_pattern=_alpha_pattern(fields),
        _by_root=fields.flag("use_rslora", default=False),
    )


def _require_own_base(fields: Fields) -> None:
    way = fields.values.get("init_lora_weights")
    name = way.lower() if isinstance(way, str) else ""
    if name.startswith(_CHANGE_BASE):
        raise CheckpointError(
            f"{fields.path}: init_lora_weights is {way!r:.40}, which changes the base model's "
            "weights too; save the adapter with path_initial_model_for_weight_conversion, which "
            "makes it one of the unchanged model"
        )


def _alpha_pattern(fields: Fields) -> dict[str, float]:
    found = fields.values.get("alpha_pattern") or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{fields.path}: alpha_pattern is no object of numbers")
    inner = Fields(fields.path, found)
    checked = {}
    for pattern in found:
        if not _is_name_pattern(pattern):
            raise CheckpointError(
                f"{fields.path}: alpha_pattern has {pattern!a:.60}, which is no module's name"
            )
        checked[pattern] = inner.number(pattern)
    return checked


def _is_name_pattern(pattern: str) -> bool:
    """Whether it is a module's name, with numbers left open; never one that takes long to match."""
    plain = re.sub(r"\\d\+|\[0-9\]\+|\\\.", "0", pattern)
    if not re.fullmatch(r"\^?(\.\*)?[\w.|()]{1,200}\$?", plain):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _token_rows(fields: Fields) -> dict[str, tuple[int, ...]]:
    """`trainable_token_indices`: a list is of the embedding."""
    found = fields.values.get("trainable_token_indices") or {}
    by_module: Any = {"embed_tokens": found} if isinstance(found, list) else found
    if not isinstance(by_module, dict) or not all(
        isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)
        for rows in by_module.values()
    ):
        raise CheckpointError(f"{fields.path}: trainable_token_indices holds no token ids")
    return {name: tuple(rows) for name, rows in by_module.items()}


def _model_name(hub_id: str) -> str:
    """Without the owner, who may be a mirror, and what a quantized copy adds."""
    return _COPY_SUFFIX.sub("", hub_id.rpartition("/")[2].lower())
