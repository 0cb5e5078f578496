"""A roofline: decoding waits for memory, prefill for arithmetic, and both are shares of a peak.

Four numbers are fitted, all on Meta's six published rows (`plan.published`); everything else is
arithmetic on the config and on the device's published figures. `docs/plan.md` says what each means
and how far the rows are off.
"""

from dataclasses import dataclass
from typing import Final

from llama_edge.core.model_config import ModelConfig
from llama_edge.plan.devices import Device

MIB: Final = 2**20
#: Tokens, as in the published figures that the plan is calibrated on.
DEFAULT_PROMPT: Final = 64

#: Of the memory's peak bandwidth, what decoding reaches: midway between the six rows' extremes.
DECODE_SHARE: Final = 0.59
#: Of the peak of int8 products (SMMLA), what prefill reaches: geometric mean of the four int8 rows.
INT8_SHARE: Final = 0.182
#: Of the peak of float32 products, the same: geometric mean of the two BF16 rows.
FLOAT_SHARE: Final = 0.335
#: Runtime, tokenizer and activations: mean of the four rows without adapters.
RUNTIME_MIB: Final = 220.0

#: How far the plan is off at most, on the rows that it was calibrated on.
SIZE_BAND: Final = 0.01
DECODE_BAND: Final = 0.10
RSS_BAND: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSize:
    """What is on disk, and what of it goes through memory for each token."""

    #: all model files together, without tokenizer and manifest
    file_bytes: int
    #: weights that a decode step reads whole; of a table that only the embedding uses, one row
    streamed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a model asks of a device, whatever the device."""

    config: ModelConfig
    size: ArtifactSize
    #: in the caches of all layers
    kv_bytes_per_token: int
    #: products per token in linears that take int8 activations, and in those that do not
    int8_macs: int
    float_macs: int
    #: the head's, once per call, counted with the linears' kind
    head_macs: int
    #: held next to the file: weights that a runtime unpacks when it loads them
    unpacked_bytes: int = 0

    def rss_mib(self, context: int) -> float:
        """Peak, with a cache of `context` tokens: file, cache, runtime and two copies of a table.

        Weights are packed anew while the file is mapped: the packed ones take the file's size, the
        mapped table stays, and the head's is there twice for a moment.
        """
        table = self.config.vocab_size * self.config.hidden_size
        held = self.size.file_bytes + 2 * table + self.unpacked_bytes
        return (held + context * self.kv_bytes_per_token) / MIB + RUNTIME_MIB

    def decode_tokens_per_s(self, device: Device, position: int) -> float:
        """One token at a time, with `position` tokens in the cache."""
        read = self.size.streamed_bytes + position * self.kv_bytes_per_token
        return device.bandwidth_gb_s * 1e9 * DECODE_SHARE / read

    def first_token_s(self, device: Device, tokens: int) -> float:
        """From a prompt of `tokens` to the first token after it."""
        int8_rate = device.int8_gmacs * 1e9 * INT8_SHARE
        float_rate = device.float_gmacs * 1e9 * FLOAT_SHARE
        int8_macs, float_macs = tokens * self.int8_macs, tokens * self.float_macs
        if self.int8_macs:
            int8_macs += self.head_macs
        else:
            float_macs += self.head_macs
        # Half of a square of scores, for the queries' product and again for the values'.
        float_macs += tokens**2 * self.config.query_size * self.config.num_hidden_layers
        computing = int8_macs / int8_rate + float_macs / float_rate
        # A prompt of few tokens still reads every weight.
        return max(computing, 1 / self.decode_tokens_per_s(device, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Planned, not measured."""

    file_mib: float
    kv_cache_mib: float
    rss_mib: float
    decode_tokens_per_s: float
    #: when the cache is full
    decode_at_context_tokens_per_s: float
    prefill_tokens_per_s: float
    time_to_first_token_s: float
    #: the device's memory for one app
    usable_mib: float
    fits: bool


def estimate(workload: Workload, device: Device, context: int, prompt: int) -> Estimate:
    """What `workload` does on `device`, with a cache of `context` tokens and such a prompt."""
    first_token_s = workload.first_token_s(device, prompt)
    rss_mib = workload.rss_mib(context)
    return Estimate(
        file_mib=workload.size.file_bytes / MIB,
        kv_cache_mib=context * workload.kv_bytes_per_token / MIB,
        rss_mib=rss_mib,
        decode_tokens_per_s=workload.decode_tokens_per_s(device, prompt),
        decode_at_context_tokens_per_s=workload.decode_tokens_per_s(device, context),
        prefill_tokens_per_s=prompt / first_token_s,
        time_to_first_token_s=first_token_s,
        usable_mib=device.usable_mib,
        fits=rss_mib <= device.usable_mib,
    )
