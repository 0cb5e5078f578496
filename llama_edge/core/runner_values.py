"""What a written model tells the program that will run it, in words that no format owns.

A `.pte` has constant methods, an ONNX folder has `genai_config.json`, a Core ML package has
metadata; and each has tensors whose sizes say what is really there.
"""

from dataclasses import dataclass
from enum import StrEnum


class RunnerField(StrEnum):
    """What a value is about."""

    BOS_TOKEN_ID = "bos_token_id"
    #: tokens that the smallest cache or position table in the file has room for
    CACHE_TOKENS = "cache_tokens"
    EOS_TOKEN_IDS = "eos_token_ids"
    HEAD_DIM = "head_dim"
    HIDDEN_SIZE = "hidden_size"
    #: most tokens that the runner may keep
    MAX_CONTEXT = "max_context"
    #: most tokens that one call takes
    MAX_PREFILL = "max_prefill"
    NUM_ATTENTION_HEADS = "num_attention_heads"
    NUM_HIDDEN_LAYERS = "num_hidden_layers"
    NUM_KEY_VALUE_HEADS = "num_key_value_heads"
    #: SHA-256 of the manifest's `text` as canonical JSON
    TEXT_CONTRACT_SHA256 = "text_contract_sha256"
    #: 1: the file keeps keys and values from call to call
    USES_KV_CACHE = "uses_kv_cache"
    VOCAB_SIZE = "vocab_size"


RunnerWord = int | str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerValue:
    """One of them, and where it stands."""

    field: RunnerField
    #: the file relative to its folder, and after a colon and a space the place in it
    where: str
    value: RunnerWord
