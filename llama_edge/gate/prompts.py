"""The gate's prompts as tokens: real text through the model's own tokenizer and chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llama_edge.core.errors import ConfigError, TokenizerError
from llama_edge.gate.prompt_texts import GATE_TEXTS, MORE_TEXTS, PromptText
from llama_edge.text.tokenizer import Tokenizer

#: A prompt has at least this many tokens, and is followed by this many teacher-forced ones.
MIN_PROMPT_TOKENS: Final = 64
DECODE_STEPS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """`tokens` are prefilled; `continuation` is then decoded token by token, teacher-forced."""

    name: str
    language: str
    tokens: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and continuation."""
        return self.tokens + self.continuation


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPlan:
    """How much a gate runs; less than all of it is for benchmarks of large random models."""

    #: prompts for graph parity
    gate: int = len(GATE_TEXTS)
    #: prompts for fidelity, those of the gate first
    fidelity: int = len(GATE_TEXTS) + len(MORE_TEXTS)
    #: a longer prompt is cut to so many tokens
    max_prompt_tokens: int | None = None
    #: tokens that are decoded after a prompt
    decode_steps: int = DECODE_STEPS


#: What every export runs.
ALL_PROMPTS: Final = PromptPlan()


def check_context(tokenizer: Tokenizer, max_context: int, plan: PromptPlan = ALL_PROMPTS) -> None:
    """Fail before any work when a gate could not run its prompts.

    Raises:
        ConfigError: A prompt cannot be made to fit the context.
        TokenizerError: The chat template fails, or the tokenizer swallows text.
    """
    fidelity_prompts(tokenizer, max_context, plan)
    gate_prompts(tokenizer, max_context, plan)


def gate_prompts(
    tokenizer: Tokenizer, max_context: int, plan: PromptPlan = ALL_PROMPTS
) -> tuple[Prompt, ...]:
    """Four prompts in four languages and scripts: enough for graph parity.

    Raises:
        ConfigError: A prompt cannot be made to fit the context.
    """
    return _prompts(GATE_TEXTS[: plan.gate], tokenizer, max_context, plan)


def fidelity_prompts(
    tokenizer: Tokenizer, max_context: int, plan: PromptPlan = ALL_PROMPTS
) -> tuple[Prompt, ...]:
    """The gate's prompts first, then more: eight languages, five kinds of work.

    Raises:
        ConfigError: A prompt cannot be made to fit the context.
    """
    texts = (*GATE_TEXTS, *MORE_TEXTS)[: plan.fidelity]
    return _prompts(texts, tokenizer, max_context, plan)


def _prompts(
    texts: Sequence[PromptText], tokenizer: Tokenizer, max_context: int, plan: PromptPlan
) -> tuple[Prompt, ...]:
    minimum = min(MIN_PROMPT_TOKENS, max_context // 2)
    prompts = []
    for text in texts:
        tokens = _shortest_request(text, tokenizer, minimum)[: plan.max_prompt_tokens]
        if len(tokens) >= max_context:
            enough = 1 + max(
                len(_shortest_request(text, tokenizer, MIN_PROMPT_TOKENS)[: plan.max_prompt_tokens])
                for text in texts
            )
            raise ConfigError(
                f"max_context is {max_context}; the gate's prompt {text.name} has {len(tokens)} "
                "tokens in this model's vocabulary, and one more is decoded after it: export with "
                f"--max-context {enough} or more, which the model's positions must allow"
            )
        prompts.append(
            _prompt(text, tokenizer, tokens, min(plan.decode_steps, max_context - len(tokens)))
        )
    return tuple(prompts)


def _prompt(text: PromptText, tokenizer: Tokenizer, tokens: tuple[int, ...], steps: int) -> Prompt:
    return Prompt(
        name=text.name,
        language=text.language,
        tokens=tokens,
        continuation=_continuation(text, tokenizer, steps),
    )


def _spare_sentences(text: PromptText) -> list[str]:
    """More real text for a tokenizer that makes few tokens, the same language first."""
    others = [other for other in (*GATE_TEXTS, *MORE_TEXTS) if other is not text]
    others.sort(key=lambda other: other.language != text.language)
    return [sentence for other in others for sentence in (*other.request, other.answer)]


def _shortest_request(text: PromptText, tokenizer: Tokenizer, minimum: int) -> tuple[int, ...]:
    """As few sentences as reach `minimum` tokens with the template around them."""
    sentences = [*text.request, *_spare_sentences(text)]
    tokens: tuple[int, ...] = ()
    for count in range(1, len(sentences) + 1):
        tokens = _encode(text.system, " ".join(sentences[:count]), tokenizer)
        if len(tokens) >= minimum:
            return tokens
    raise TokenizerError(
        f"prompt {text.name}: all the text there is makes {len(tokens)} tokens, {minimum} are "
        "needed; the tokenizer is damaged or of another kind"
    )


def _encode(system: str, request: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    if not tokenizer.has_chat_template:
        return tuple(tokenizer.encode(f"{system}\n\n{request}\n\n".lstrip()))
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": request})
    return tuple(tokenizer.encode_chat(tokenizer.form.accepted(messages)))


def _continuation(text: PromptText, tokenizer: Tokenizer, steps: int) -> tuple[int, ...]:
    tokens = tuple(tokenizer.encode(text.answer, add_bos=False))
    if len(tokens) < steps:
        longer = " ".join([text.answer, *_spare_sentences(text)])
        tokens = tuple(tokenizer.encode(longer, add_bos=False))
    return tokens[:steps]
