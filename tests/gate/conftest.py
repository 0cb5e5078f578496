"""One measurement of every stand-in artifact, for all tests of this folder."""

from collections.abc import Callable
from functools import cache

import pytest

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.gate.blocks import check_blocks
from llama_edge.gate.end_to_end import EndToEnd, measure_end_to_end
from llama_edge.gate.parity import ParityReport, check_parity
from llama_edge.gate.prompts import Prompt, gate_prompts
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource, DequantizedSource, FullPrecisionSource
from llama_edge.runtimes.eager import EagerSession
from llama_edge.text.tokenizer import Tokenizer
from tests.gate.faulty_models import calls_of, candidates, trace_model

MAX_CONTEXT = 512
Judge = Callable[[str, ActivationQuantization], ParityReport]


@pytest.fixture(scope="session")
def debug_prompts(debug_checkpoint: Checkpoint) -> tuple[Prompt, ...]:
    return gate_prompts(Tokenizer(debug_checkpoint.text), MAX_CONTEXT)


@pytest.fixture(scope="session")
def measure(
    debug_checkpoint: Checkpoint,
    debug_quantized: QuantizedCheckpoint,
    debug_prompts: tuple[Prompt, ...],
) -> Callable[[str, ActivationQuantization], EndToEnd]:
    config = debug_quantized.config
    full = Reference(config, FullPrecisionSource(config, debug_checkpoint.weights))

    @cache
    def run(fault: str, activation: ActivationQuantization) -> EndToEnd:
        reference = Reference(config, DequantizedSource(debug_quantized.weights), activation)
        candidate = candidates(config, debug_quantized.weights, activation)[fault]
        with EagerSession(candidate, MAX_CONTEXT) as session:
            return measure_end_to_end(
                reference, full, session, debug_prompts, Tolerances(), SilentProgress()
            )

    return run


@pytest.fixture(scope="session")
def judge(
    debug_quantized: QuantizedCheckpoint,
    debug_prompts: tuple[Prompt, ...],
    measure: Callable[[str, ActivationQuantization], EndToEnd],
) -> Judge:
    """The gate over one stand-in artifact; `none` is the right one."""
    config, weights = debug_quantized.config, debug_quantized.weights

    @cache
    def run(fault: str, activation: ActivationQuantization) -> ParityReport:
        reference = Reference(config, CachedSource(DequantizedSource(weights)), activation)
        candidate = candidates(config, weights, activation)[fault]
        traces = [
            trace_model(candidate, calls_of(prompt.tokens, prompt.continuation))
            for prompt in debug_prompts
        ]
        blocks = check_blocks(reference, traces, Tolerances(), SilentProgress())
        measured = measure(fault, activation)
        return check_parity(activation, blocks, measured, (), Tolerances())

    return run
