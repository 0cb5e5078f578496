"""Run what was written, in a child process, and judge it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from llama_edge.bundle.contract import check_contract, check_end_tokens
from llama_edge.core.artifact import Artifact, KVCacheDtype
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckFailedError, LlamaEdgeError, SessionError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress, Step, layer_name
from llama_edge.core.quantized import QuantizedWeights
from llama_edge.core.recipe import Recipe
from llama_edge.core.session import BlockTrace
from llama_edge.core.text_assets import TextAssets
from llama_edge.gate.blocks import BlocksReport, check_blocks
from llama_edge.gate.end_to_end import EndToEnd, measure_end_to_end
from llama_edge.gate.findings import Finding, rounded
from llama_edge.gate.parity import FidelityReport, ParityReport, check_fidelity, check_parity
from llama_edge.gate.prompt_state import StateReport
from llama_edge.gate.prompts import (
    ALL_PROMPTS,
    Prompt,
    PromptPlan,
    fidelity_prompts,
    gate_prompts,
)
from llama_edge.gate.samples import SAMPLE_QUESTIONS, Sample, write_samples
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import DequantizedSource, FullPrecisionSource
from llama_edge.models.weights import block_linear_weights
from llama_edge.runtimes.child import ChildRuntime
from llama_edge.text.contract import TextContract, rebuild_text_contract
from llama_edge.text.tokenizer import Tokenizer

#: A weight that the artifact multiplies with a token, heads next to it included, as so many of the
#: reference's in one layer. Assumed; `benchmarks/step_times.py` shows what comes of it.
_ARTIFACT: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSubject:
    """What is judged, and what it is compared with."""

    artifact: Artifact
    #: the shape that the artifact must have; never taken from what the artifact says of itself
    config: ModelConfig
    #: how it must keep keys and values
    kv_cache: KVCacheDtype
    #: the end tokens that the artifact itself tells its runner
    end_tokens: tuple[int, ...]
    #: the text files that are next to the artifact
    text: TextAssets
    #: what those text files must amount to
    contract: TextContract
    #: codes, scales and norms that the artifact must compute with
    reference: QuantizedWeights
    recipe: Recipe
    #: the full-precision model; None when it is not available
    full: Checkpoint | None
    #: what is run
    prompts: PromptPlan = ALL_PROMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutcome:
    """The reports, or the reason why there are none."""

    parity: ParityReport | None
    fidelity: FidelityReport | None
    #: why the gate failed, in one line; None when it passed
    reason: str | None
    #: short answers of the artifact and of full precision, to be read next to the figures
    samples: tuple[Sample, ...] = ()
    #: None where the bundle has no prompt state
    prompt_state: StateReport | None = None

    @classmethod
    def failed(cls, error: LlamaEdgeError) -> Self:
        """A gate that ended before anything could be measured."""
        return cls(parity=None, fidelity=None, reason=str(error))

    @property
    def passed(self) -> bool:
        """Whether every gate held."""
        return self.reason is None

    def to_json(self) -> dict[str, Any]:
        """The measurements in full, for `parity.json`."""
        value = {
            "passed": self.passed,
            "reason": self.reason,
            "parity": None if self.parity is None else self.parity.to_json(),
            "fidelity": None if self.fidelity is None else self.fidelity.to_json(),
            "samples": [asdict(sample) for sample in self.samples],
        }
        if self.prompt_state is not None:
            value["prompt_state"] = self.prompt_state.to_json()
        return value

    def with_prompt_state(self, report: StateReport) -> Self:
        """With what a check of the bundle's prompt state found."""
        reason = self.reason or (_reason(report.findings) if report.findings else None)
        return replace(self, prompt_state=report, reason=reason)

    def parity_summary(self) -> dict[str, Any]:
        """Graph parity for the manifest."""
        summary: dict[str, Any] = {"passed": self.passed, "reason": self.reason}
        if self.parity is None:
            return summary
        blocks, found = self.parity.blocks, self.parity.end_to_end
        measured = {
            "blocks": {
                "count": len(blocks.blocks),
                "worst": blocks.worst.name,
                "severity": blocks.worst.severity,
            },
            "positions": found.artifact.positions,
            "mean_kl": found.artifact.mean_kl,
            "top1_agreement": found.artifact.top1_agreement,
            "noise_floor_kl": found.noise_floor,
        }
        return {**summary, "passed": self.parity.passed, **rounded(measured)}

    def fidelity_summary(self) -> dict[str, Any] | None:
        """Fidelity for the manifest; None when it was not measured."""
        if self.fidelity is None:
            return None
        found = self.fidelity.artifact
        measured = {
            "positions": found.positions,
            "mean_kl": found.mean_kl,
            "p999_kl": found.p999_kl,
            "top1_agreement": found.top1_agreement,
            "perplexity_ratio": found.perplexity_ratio,
            "limit_kl": self.fidelity.max_mean_kl,
        }
        passed, against = self.fidelity.passed, self.fidelity.against
        return {"passed": passed, "against": against, **rounded(measured)}


def run_gate(subject: GateSubject, progress: Progress) -> GateOutcome:
    """Judge the text files, every block, and whole sequences.

    A runtime that refuses the file, crashes or hangs is a failed gate, not an error of the tool.
    """
    contract = (*_check_config(subject), *_check_text(subject))
    if contract:  # another network, or prompts through another tokenizer, would prove nothing
        return GateOutcome(parity=None, fidelity=None, reason=_reason(contract))
    tolerances = Tolerances()
    try:
        with ChildRuntime(subject.artifact.backend) as runtime:
            blocks = _check_blocks(subject, runtime, tolerances, progress)
            measured, samples = _measure(subject, runtime, tolerances, progress)
    except (CheckFailedError, SessionError) as error:
        return GateOutcome.failed(error)
    parity = check_parity(subject.artifact.activation, blocks, measured, (), tolerances)
    fidelity = check_fidelity(measured, subject.recipe)
    findings = (*parity.findings, *(() if fidelity is None else fidelity.findings))
    return GateOutcome(
        parity=parity,
        fidelity=fidelity,
        reason=_reason(findings) if findings else None,
        samples=samples,
    )


def _reason(findings: tuple[Finding, ...]) -> str:
    first = findings[0]
    more = f" (and {len(findings) - 1} more findings)" if len(findings) > 1 else ""
    return f"{first.check}: {first.where}: {first.message}{more}"


def _check_config(subject: GateSubject) -> tuple[Finding, ...]:
    """What the file says of its own arithmetic, field by field."""
    artifact = subject.artifact
    found = {**artifact.config.to_json(), "kv_cache": artifact.kv_cache.value}
    expected = {**subject.config.to_json(), "kv_cache": subject.kv_cache.value}
    return tuple(
        Finding(
            check="config",
            code="parity.config",
            where=name,
            message=f"{artifact.files[0]} says {found[name]!r}; the model has {value!r}",
        )
        for name, value in expected.items()
        if found[name] != value
    )


def _check_text(subject: GateSubject) -> tuple[Finding, ...]:
    expected, vocab_size = subject.contract, subject.config.vocab_size
    found = rebuild_text_contract(subject.text, expected)
    breaches = (
        *check_contract(expected, found, vocab_size),
        *check_end_tokens(expected.eos_token_ids, subject.end_tokens, subject.artifact.files[0]),
    )
    return tuple(Finding.of_contract(breach) for breach in breaches)


def _reference(subject: GateSubject) -> Reference:
    source = DequantizedSource(subject.reference)
    return Reference(subject.config, source, subject.artifact.activation, subject.kv_cache)


def _check_blocks(
    subject: GateSubject, runtime: ChildRuntime, tolerances: Tolerances, progress: Progress
) -> BlocksReport:
    artifact = subject.artifact
    prompts = gate_prompts(Tokenizer(subject.text), artifact.max_context, subject.prompts)
    progress.start("run, and look into blocks", [*map(_run_step, prompts)])
    traces: list[BlockTrace] = []
    for prompt in prompts:
        steps = [[token] for token in prompt.continuation]
        traces.append(runtime.trace(artifact, [prompt.tokens, *steps]))
        progress.advance()
    progress.start("graph parity, block by block", _block_steps(artifact.config, prompts))
    return check_blocks(_reference(subject), traces, tolerances, progress)


def _measure(
    subject: GateSubject, runtime: ChildRuntime, tolerances: Tolerances, progress: Progress
) -> tuple[EndToEnd, tuple[Sample, ...]]:
    artifact, full = subject.artifact, subject.full
    prompts = fidelity_prompts(Tokenizer(subject.text), artifact.max_context, subject.prompts)
    precise = (
        None
        if full is None
        else Reference(full.config, FullPrecisionSource(full.config, full.weights))
    )
    progress.start("parity and fidelity, end to end", _end_to_end_steps(artifact.config, prompts))
    with runtime.open(artifact) as session:
        measured = measure_end_to_end(
            _reference(subject), precise, session, prompts, tolerances, progress
        )
        progress.start("sample answers", [Step(text) for _, text in SAMPLE_QUESTIONS])
        samples = write_samples(session, precise, subject.text, progress)
    if full is not None:
        measured = replace(measured, against=full.precision)
    return measured, samples


def _run_step(prompt: Prompt) -> Step:
    return Step(f"prompt {prompt.name}", len(prompt.sequence))


def _block_steps(config: ModelConfig, prompts: Sequence[Prompt]) -> list[Step]:
    """The layers, and the head after them, whose rows are those of calls."""
    tokens = sum(len(prompt.sequence) for prompt in prompts)
    calls = sum(1 + len(prompt.continuation) for prompt in prompts)
    return [
        *_layer_steps(config, tokens),
        Step("head", calls * config.vocab_size * config.hidden_size),
    ]


def _end_to_end_steps(config: ModelConfig, prompts: Sequence[Prompt]) -> list[Step]:
    """All texts through one layer after the other, then each through the artifact."""
    tokens = sum(len(prompt.sequence) for prompt in prompts)
    numbers = config.num_hidden_layers * block_linear_weights(config)
    numbers += config.vocab_size * config.hidden_size
    steps = map(_run_step, prompts)
    return [
        *_layer_steps(config, tokens),
        *(replace(step, work=step.work * numbers * _ARTIFACT) for step in steps),
    ]


def _layer_steps(config: ModelConfig, tokens: int) -> list[Step]:
    layers = config.num_hidden_layers
    work = tokens * block_linear_weights(config)
    return [Step(layer_name(layer, layers), work) for layer in range(layers)]
