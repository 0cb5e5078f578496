"""A guard: a bundle that says of a message whether it is safe, and of which kind it is if not."""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_edge.core.errors import GuardError, UsageError
from llama_edge.core.session import ClosesOnExit
from llama_edge.generate.assistant import AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.text.dialog import Message, trim_dialog
from llama_edge.text.guard_answer import (
    SAFE,
    UNSAFE,
    AnswerGrammar,
    parse_guard_answer,
    possible_answers,
)
from llama_edge.text.guard_prompt import Category, GuardPrompt, Side, conversation, side_of

#: From this probability on a message is unsafe; at one half it is the model's own choice.
DEFAULT_THRESHOLD = 0.5
#: Least probability that a guard gives to its two verdicts together. One that would rather say
#: something else has no verdict: a chat model, or a guard that the message has talked out of it.
LEAST_DECIDED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardVerdict:
    """What a guard says of the last message of a conversation."""

    safe: bool
    #: codes of the categories that an unsafe message belongs to
    codes: tuple[str, ...]
    #: of the token `unsafe`, where the guard says `safe` or `unsafe`
    unsafe_probability: float
    side: Side
    #: messages at the beginning that did not fit the guard's context
    dropped: int


class Guard(ClosesOnExit):
    """Judges messages, one conversation after another.

    Use it as a context manager: the runtime is a child process. Whoever passes messages on asks
    `check` first and passes nothing on when it raises.

    Args:
        model: The bundle.
        categories: None asks for those of the bundle's template, or for the published ones.
        threshold: From this probability on a message is unsafe.

    Raises:
        GuardError: The bundle is no guard, or cannot write a category's code.
        UsageError: The threshold or the list of categories cannot be used.
    """

    def __init__(
        self,
        model: BundleModel,
        categories: Sequence[Category] | None = None,
        threshold: float = DEFAULT_THRESHOLD,
    ) -> None:
        if not 0 < threshold <= 1:
            raise UsageError(f"threshold is {threshold}; it must be above 0 and at most 1")
        self.model = model
        self.threshold = threshold
        self._prompt = GuardPrompt(model.text, categories)
        codes = [each.code for each in self.categories]
        computed = model.config.output_rows
        self._tokens = {
            token: text
            for token, text in model.tokenizer.tokens_within(possible_answers(codes)).items()
            if computed is None or token in computed
        }
        self._check_writable(codes)
        # One character at least is a token.
        self._config = AnswerConfig(max_new_tokens=len(f"\n\n{UNSAFE}\n{','.join(codes)}") + 1)
        if self._config.max_new_tokens >= model.max_context:
            raise UsageError(
                f"the codes of {len(codes)} categories do not fit the context of "
                f"{model.max_context} tokens; name fewer"
            )
        self._assistant = Assistant(model)

    @property
    def categories(self) -> tuple[Category, ...]:
        """What the guard looks for."""
        return self._prompt.categories

    @property
    def own_template(self) -> bool:
        """Whether the bundle's template writes the prompt, and not the published one."""
        return self._prompt.own_template

    def name_of(self, code: str) -> str:
        """The name of a category."""
        return next(each.name for each in self.categories if each.code == code)

    def check(self, messages: Sequence[Message]) -> GuardVerdict:
        """Judge the last message of a conversation.

        The oldest exchanges are left out where the conversation does not fit the context; the
        message that is judged never is. System messages are not shown to the guard.

        Args:
            messages: `role` and `content` each; user and assistant in turns, the user first.

        Raises:
            UsageError: The messages are no conversation.
            GuardError: The guard says neither safe nor unsafe.
            SessionError: The last exchange does not fit the context.
            RuntimeCrashError: The runtime died or hung.
        """
        shown = conversation(messages)
        limit = self.model.max_context - self._config.max_new_tokens
        kept = trim_dialog(shown, lambda some: len(self._prompt.encode(some)), limit)
        prompt = self._prompt.encode(kept)
        probability = self._unsafe_probability(prompt)
        safe = probability < self.threshold
        return GuardVerdict(
            safe=safe,
            codes=() if safe else self._codes(prompt),
            unsafe_probability=probability,
            side=side_of(shown),
            dropped=len(shown) - len(kept),
        )

    def close(self) -> None:
        """End the child process."""
        self._assistant.close()

    def _grammar(self, *verdicts: str) -> AnswerGrammar:
        return AnswerGrammar(
            self._tokens,
            [each.code for each in self.categories],
            ends=self.model.text.eos_token_ids,
            vocab_size=self.model.config.vocab_size,
            verdicts=verdicts,
        )

    def _check_writable(self, codes: Sequence[str]) -> None:
        grammar = self._grammar(SAFE, UNSAFE)
        for answer in (SAFE, *(f"{UNSAFE}\n{code}" for code in codes)):
            if not grammar.can_write(answer):
                raise GuardError(
                    f"the bundle cannot answer {answer!r}: its head or its vocabulary lacks the "
                    "tokens; take a bundle of a Llama Guard, or codes that it has tokens for, as "
                    "S1"
                )

    def _unsafe_probability(self, prompt: Sequence[int]) -> float:
        """As Meta's validation has it, from the token that begins the verdict."""
        grammar = self._grammar(SAFE, UNSAFE)
        answer = self._assistant.answer(prompt, self._config, grammar)
        shares = dict[str, float]()
        for _ in answer:
            if grammar.decided:
                shares = grammar.first_shares(answer.logits)
                break
        decided = sum(shares.values())
        if decided < LEAST_DECIDED:
            raise GuardError(
                f"the guard's answer is none: it gives safe and unsafe a probability of "
                f"{decided:.3f} together, and at least {LEAST_DECIDED} is needed; take a bundle of "
                "a Llama Guard"
            )
        return shares[UNSAFE] / decided

    def _codes(self, prompt: Sequence[int]) -> tuple[str, ...]:
        grammar = self._grammar(UNSAFE)
        for _ in self._assistant.answer(prompt, self._config, grammar):
            pass
        return parse_guard_answer(grammar.text) or ()
