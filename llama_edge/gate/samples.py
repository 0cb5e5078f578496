"""A few short greedy answers of an artifact and of full precision, for a person to read.

They prove nothing, and no gate looks at them: one flipped token changes all that follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from llama_edge.core.progress import Progress
from llama_edge.core.session import Session
from llama_edge.core.text_assets import TextAssets
from llama_edge.gate.full_answers import FullAnswers
from llama_edge.models.reference import Reference
from llama_edge.models.weights import weight_shapes
from llama_edge.text.generate import Generation
from llama_edge.text.prompt_prefix import common_length
from llama_edge.text.tokenizer import Tokenizer

#: Language (BCP 47) and question.
SAMPLE_QUESTIONS: Final = (
    ("en", "What is the capital of France?"),
    ("es", "¿Cuántos días tiene una semana?"),
)
#: Each costs SmolLM2's full precision 90 ms of one core: with 16, answers are 6 % of an export.
MAX_NEW_TOKENS: Final = 16
#: Full precision answers token by token only where its weights fit in this much memory in float32:
#: 135M and 360M models do; Llama 3.2 1B would take 5 GB and as many seconds a token as it is read.
MAX_FULL_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question and its answers."""

    language: str
    question: str
    artifact: str
    #: None: that model was not available, or is too large to answer
    full: str | None
    #: tokens that both answers begin with
    same_tokens: int
    artifact_tokens: int


def write_samples(
    session: Session, full: Reference | None, text: TextAssets, progress: Progress
) -> tuple[Sample, ...]:
    """Ask both the same; `full` is left out where it is None or too large."""
    tokenizer = Tokenizer(text)
    precise = None
    if full is not None and _fits(full):
        precise = FullAnswers(full, text, MAX_NEW_TOKENS)
    samples = []
    for language, question in SAMPLE_QUESTIONS:
        prompt = _encode(tokenizer, question)
        if len(prompt) + MAX_NEW_TOKENS <= session.max_context:
            found = _answer(session, prompt, text)
            wanted = None if precise is None else precise.answer(prompt, found)
            samples.append(
                Sample(
                    language=language,
                    question=question,
                    artifact=tokenizer.decode(found),
                    full=None if wanted is None else tokenizer.decode(wanted),
                    same_tokens=common_length(found, wanted or []),
                    artifact_tokens=len(found),
                )
            )
        progress.advance()
    return tuple(samples)


def _fits(model: Reference) -> bool:
    numbers = sum(prod(shape) for shape in weight_shapes(model.config).values())
    return 4 * numbers <= MAX_FULL_BYTES


def _encode(tokenizer: Tokenizer, question: str) -> list[int]:
    if not tokenizer.has_chat_template:
        return tokenizer.encode(question)
    return tokenizer.encode_chat([{"role": "user", "content": question}])


def _answer(session: Session, prompt: Sequence[int], text: TextAssets) -> list[int]:
    session.reset()
    return [
        *Generation(
            session,
            prompt,
            eos_token_ids=text.eos_token_ids,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    ]
