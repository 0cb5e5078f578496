"""Run the written artifact over real prompts, teacher-forced, next to the reference's variants.

Each prompt is prefilled and its continuation decoded token by token; the continuation is given, so
that one flipped token does not hide what follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from llama_edge.core.checkpoint import FULL_PRECISION
from llama_edge.core.errors import CheckFailedError
from llama_edge.core.progress import Progress
from llama_edge.core.session import FloatArray, Session
from llama_edge.gate.metrics import Comparison, compare, concatenate
from llama_edge.gate.prompts import Prompt
from llama_edge.gate.teacher import Variant, final_hidden, with_source
from llama_edge.gate.tolerances import Tolerances
from llama_edge.models.reference import Reference
from llama_edge.models.sources import CachedSource

_REFERENCE: Final = "reference"
_DISTURBED: Final = "disturbed"
_FULL: Final = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMeasurement:
    """One prompt's positions, prefill first; each field is KL(first || second) and the like."""

    prompt: Prompt
    #: the artifact against the reference: same codes, same activation rounding
    reference_artifact: Comparison
    #: the reference disturbed by a hair against itself: the noise floor
    reference_disturbed: Comparison
    #: against full precision; None when that model is not available
    full_artifact: Comparison | None
    full_reference: Comparison | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEnd:
    """What one run over all prompts measured."""

    prompts: tuple[PromptMeasurement, ...]
    #: what `full_artifact` and `full_reference` are compared with (`Checkpoint.precision`)
    against: str = FULL_PRECISION

    def reference_artifact(self) -> Comparison:
        """All positions of all prompts."""
        return concatenate([found.reference_artifact for found in self.prompts])

    def reference_disturbed(self) -> Comparison:
        """All positions of all prompts."""
        return concatenate([found.reference_disturbed for found in self.prompts])

    def full_artifact(self) -> Comparison | None:
        """All positions of all prompts, or None without full precision."""
        parts = [found.full_artifact for found in self.prompts if found.full_artifact]
        return concatenate(parts) if parts else None

    def full_reference(self) -> Comparison | None:
        """All positions of all prompts, or None without full precision."""
        parts = [found.full_reference for found in self.prompts if found.full_reference]
        return concatenate(parts) if parts else None


@torch.no_grad()
def measure_end_to_end(
    reference: Reference,
    full: Reference | None,
    session: Session,
    prompts: Sequence[Prompt],
    tolerances: Tolerances,
    progress: Progress,
) -> EndToEnd:
    """Every variant in one pass over the weights, then prompt by prompt next to the artifact.

    Args:
        reference: The network with the artifact's codes and activation rounding.
        full: The full-precision network, or None.
        session: The artifact's runtime.
        prompts: With their continuations.
        tolerances: Sets the disturbance.
        progress: Advances once per layer and once per prompt.

    Raises:
        CheckFailedError: The artifact's logits are not finite or of the wrong width.
    """
    variants = {
        _REFERENCE: Variant(model=reference),
        _DISTURBED: Variant(
            model=reference,
            disturbance=tolerances.disturbance,
            seed=tolerances.disturbance_seed,
        ),
    }
    if full is not None:
        variants[_FULL] = Variant(model=full)
    sequences = [prompt.sequence for prompt in prompts]
    hidden = dict(
        zip(variants, final_hidden(list(variants.values()), sequences, progress), strict=True)
    )
    # Each head is read once; the disturbed variant shares the reference's.
    head = with_source(reference, CachedSource(reference.source))
    full_head = None if full is None else with_source(full, CachedSource(full.source))
    measured = []
    for index, prompt in enumerate(prompts):
        artifact = artifact_logits(session, prompt, reference.config.vocab_size)
        wanted = _logits(head, hidden[_REFERENCE][index])
        disturbed = _logits(head, hidden[_DISTURBED][index])
        precise = None if full_head is None else _logits(full_head, hidden[_FULL][index])
        tokens = prompt.sequence
        measured.append(
            PromptMeasurement(
                prompt=prompt,
                reference_artifact=compare(wanted, artifact, tokens),
                reference_disturbed=compare(wanted, disturbed, tokens),
                full_artifact=None if precise is None else compare(precise, artifact, tokens),
                full_reference=None if precise is None else compare(precise, wanted, tokens),
            )
        )
        progress.advance()
    return EndToEnd(prompts=tuple(measured))


def _logits(model: Reference, hidden_TD: Tensor) -> FloatArray:
    logits: FloatArray = model.head(hidden_TD).numpy()
    return logits


def artifact_logits(session: Session, prompt: Prompt, vocab_size: int) -> FloatArray:
    """Logits (T, V) after every token: prefill in one call, then decode step by step.

    Raises:
        CheckFailedError: They have another width than the model's vocabulary.
    """
    session.reset()
    rows = [session.prefill_logits(prompt.tokens)]
    rows.extend(session.decode(token)[None] for token in prompt.continuation)
    logits: FloatArray = np.concatenate(rows)
    if logits.shape != (len(prompt.sequence), vocab_size):
        raise CheckFailedError(
            f"prompt {prompt.name}: the artifact's logits have shape {logits.shape}; "
            f"{(len(prompt.sequence), vocab_size)} is needed: its head is not this model's"
        )
    return logits
