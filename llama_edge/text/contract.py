# ruff: noqa: RUF001 (typographic marks are what the texts are for)
"""The text half of a manifest: what a tokenizer in another language must reproduce exactly."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from llama_edge.core.errors import TokenizerError
from llama_edge.core.json_files import canonical_json
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.dialog_form import missing_message
from llama_edge.text.tokenizer import Tokenizer

#: Llama 3.2's eight languages (BCP 47), with what tokenizers get wrong: digits, case, accents both
#: composed and not, scripts that join or do not space, emoji of several code points, white space.
GOLDEN_TEXTS: Final[tuple[tuple[str, str], ...]] = (
    ("en", "It's 1,234,567 steps to the lighthouse, isn't it?\n\n  def f(x):\n\treturn x**2  "),
    ("en", "Emoji: 👩‍🚀🇨🇭👍🏽 and a control token: <|eot_id|><|im_end|>"),
    ("de", "Die Straßenbahn fährt um 7:45 Uhr; Übergrößen gibt's für 19,99 €."),
    ("fr", "L’été dernier, où étais-tu ? « À Orléans », cafe\u0301 compris."),
    ("it", "Perché l'acqua è così fredda? Costò 3.500 lire, nel 1987."),
    ("pt", "Não, a reunião é às 10h30 – amanhã; traga o pão, por favor."),
    ("hi", "क्या आप मुझे २५ मिनट में स्टेशन पहुँचा सकते हैं?"),
    ("es", "¿Cuánto cuesta el billete de ida y vuelta? ¡Sólo 12 euros, señor Núñez!"),
    ("th", "พรุ่งนี้เช้าฝนจะตกไหม ฉันต้องไปทำงานที่กรุงเทพฯ ตอน 8 โมง"),
)

GOLDEN_CHATS: Final[tuple[tuple[Mapping[str, str], ...], ...]] = (
    ({"role": "user", "content": "What is the capital of France?"},),
    (
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "  Wie heißt der höchste Berg der Alpen?\n"},
        {"role": "assistant", "content": "Der Mont Blanc."},
        {"role": "user", "content": "และสูงกี่เมตร"},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenTokens:
    """What the tokenizer makes of one text, BOS left out."""

    language: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenChat:
    """What the chat template makes of one conversation, ready for the model to answer."""

    messages: tuple[Mapping[str, str], ...]
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextContract:
    """Everything between a person's text and token ids, with examples to test a port against."""

    tokenizer_sha256: str
    bos_token_id: int | None
    add_bos: bool
    #: every id that ends a turn
    eos_token_ids: tuple[int, ...]
    golden_tokens: tuple[GoldenTokens, ...]
    chat_template: str | None
    golden_chats: tuple[GoldenChat, ...]
    generation_defaults: Mapping[str, float | int | bool]
    #: the template wants content as `[{"type": "text", "text": ...}]`
    content_parts: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is usual is left out, as in manifests of before there was a choice."""
        value = asdict(self)
        if not self.content_parts:
            del value["content_parts"]
        return value

    def sha256(self) -> str:
        """Of the canonical JSON: what an artifact says of the text files next to it."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()


def build_text_contract(text: TextAssets) -> TextContract:
    """Run the tokenizer and the template over the golden texts; dates are the reference date.

    Of the golden dialogs, the template gets what it takes: a system message is left out where it
    refuses one.

    Raises:
        TokenizerError: The tokenizer or the template fails, or leaves out what a message says.
    """
    chats = list[Sequence[Mapping[str, str]]]()
    if text.chat_template is not None:
        form = Tokenizer(text).form
        chats = [form.accepted(messages) for messages in GOLDEN_CHATS]
    return _contract_over(text, GOLDEN_TEXTS, chats)


def rebuild_text_contract(text: TextAssets, written: TextContract) -> TextContract:
    """What these text files make of the very texts and dialogs that a manifest was written with.

    Raises:
        TokenizerError: The tokenizer or the template fails.
    """
    texts = [(golden.language, golden.text) for golden in written.golden_tokens]
    # A model that got a template since has golden dialogs to miss.
    chats = [golden.messages for golden in written.golden_chats] or GOLDEN_CHATS
    return _contract_over(text, texts, chats)


def _contract_over(
    text: TextAssets,
    texts: Sequence[tuple[str, str]],
    dialogs: Sequence[Sequence[Mapping[str, str]]],
) -> TextContract:
    tokenizer = Tokenizer(text)
    chats: tuple[GoldenChat, ...] = ()
    if tokenizer.has_chat_template:
        chats = tuple(_golden_chat(tokenizer, messages) for messages in dialogs)
    return TextContract(
        tokenizer_sha256=hashlib.sha256(text.tokenizer_json.encode()).hexdigest(),
        bos_token_id=text.bos_token_id,
        add_bos=text.add_bos,
        eos_token_ids=text.eos_token_ids,
        golden_tokens=tuple(
            GoldenTokens(
                language=language,
                text=golden,
                tokens=tuple(tokenizer.encode(golden, add_bos=False)),
            )
            for language, golden in texts
        ),
        chat_template=text.chat_template,
        golden_chats=chats,
        generation_defaults=dict(text.generation_defaults),
        content_parts=tokenizer.has_chat_template and tokenizer.form.parts,
    )


def _golden_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> GoldenChat:
    text = tokenizer.render_chat(messages)
    left_out = missing_message(messages, text)
    if left_out is not None:
        raise TokenizerError(
            f"the chat template leaves out the {left_out['role']} message "
            f"{left_out['content']!r} of a dialog of {len(messages)} messages; what is said there "
            "would not reach the model: take the template that came with the model"
        )
    return GoldenChat(
        messages=tuple(messages), text=text, tokens=tuple(tokenizer.encode_chat(messages))
    )
