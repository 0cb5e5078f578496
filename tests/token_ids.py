# ruff: noqa: RUF001 (the letters are what tokenizers get wrong)
"""Our ids of many texts and dialogs next to those of Meta's own tokenizer and `ChatFormat`.

    python -m tests.token_ids [--count 1000000] [--seed 0]

The texts are random: words of Llama 3.2's eight languages, emoji, combining marks, control
characters, white space, digits, code points from all of Unicode, long lines, and control tokens
that are spelled out, whole and damaged. Each is encoded as text; where it spells a control token,
also with control tokens asked for. One in fifty becomes a dialog as well.

Dialogs go through `Tokenizer` and its child processes; texts through the code that the child runs,
in this process, which takes a tenth of the time.

Where the two differ on purpose, and what is random here avoids:

- Meta's `Tokenizer` cuts a run of more than 25,000 characters that are all white space, or none of
  them, in two before it splits, for a limit of tiktoken's; ours does not.
- `ChatFormat` encodes the two line feeds after a header apart from the message. A template is one
  text, in transformers and here, so line feeds at the start of a message are merged with them.
- U+FDD0 in a message becomes U+FFFD, because we mark with it what was typed. In other texts it is
  a character like any other.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Final

from llama_models.datatypes import RawMessage, StopReason
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from llama_edge.checkpoints.tiktoken import LLAMA3_SPECIALS
from llama_edge.text import tokenizer_child
from llama_edge.text.contract import GOLDEN_TEXTS
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import llama3_text, meta_tokenizer_path

Encode = Callable[[str], Sequence[int]]
Message = dict[str, Any]

_LINE_FEEDS: Final = "\n\r"
_SPACES: Final = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\ufeff"
_MARKS: Final = (
    "\u0300\u0301\u0308\u0327\u0903\u093c\u093f\u094d\u0e31\u0e34\u0e47\u200d\u20e3\ufe0f"
)
_EMOJI: Final = ("👩‍👩‍👧‍👦", "🇩🇪", "🇹🇭", "👍🏽", "👩‍🚀", "☃️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️‍🔥")
_ENDINGS: Final = ("'s", "'S", "'\u017f", "'t", "'RE", "'ve", "'m", "'Ll", "'d", "’s", "'x")
#: Code points by first and last: control characters, Latin to Greek, combining marks, Devanagari,
#: Thai, punctuation, CJK, emoji, private use and noncharacters, all of Unicode.
_BLOCKS: Final = (
    *((0x00, 0x20), (0x7F, 0xA0), (0x20, 0x7E), (0xA0, 0x3FF), (0x300, 0x36F), (0x900, 0x97F)),
    *((0xE00, 0xE5B), (0x2000, 0x206F), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0xFDD0, 0xFFFF)),
    (0x00, 0x10FFFF),
)
_PUNCTUATION: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»¿¡…–—€£。，।॥ฯ"
_DIGITS: Final = "0123456789०१२३४५६७८९๐๑๒๓๔๕๖๗๘๙½²Ⅷ٣"
_WORDS: Final = tuple(word for _, text in GOLDEN_TEXTS for word in text.split())


def random_text(random: Random) -> str:
    """A text of a few pieces; one in five hundred is a line of thousands of characters."""
    count = random.randint(1, 12) if random.random() > 0.002 else random.randint(500, 4000)
    return "".join(_piece(random) for _ in range(count))


def _piece(random: Random) -> str:
    kind = random.random()
    if kind < 0.40:
        return random.choice(("", " ", " ", " ")) + _cased(random, random.choice(_WORDS))
    if kind < 0.50:
        return _run(random, _SPACES if random.random() < 0.3 else " \n\t")
    if kind < 0.58:
        return _run(random, _DIGITS if random.random() < 0.3 else _DIGITS[:10])
    if kind < 0.66:
        return _run(random, _PUNCTUATION)
    if kind < 0.72:
        return _control(random)
    if kind < 0.80:
        return random.choice(_EMOJI) + random.choice(("", random.choice(_MARKS)))
    if kind < 0.85:
        return random.choice(_ENDINGS)
    if kind < 0.90:
        return random.choice(_MARKS) * random.randint(1, 4)
    first, last = random.choice(_BLOCKS)
    points = (random.randint(first, last) for _ in range(random.randint(1, 8)))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def _cased(random: Random, word: str) -> str:
    kind = random.random()
    if kind < 0.1:
        return word.upper()
    if kind < 0.2:
        return word[: random.randint(0, len(word))]
    return word[::-1] if kind < 0.25 else word


def _run(random: Random, letters: str) -> str:
    """One letter repeated, or several in turn."""
    length = random.randint(1, 9) if random.random() > 0.02 else random.randint(10, 200)
    if random.random() < 0.4:
        return random.choice(letters) * length
    return "".join(random.choices(letters, k=length))


def _control(random: Random) -> str:
    """A control token as a person may spell it: whole, cut, in another case, with a gap."""
    token = random.choice(LLAMA3_SPECIALS[:12] if random.random() < 0.8 else LLAMA3_SPECIALS)
    kind = random.random()
    if kind < 0.6:
        return token
    place = random.randint(1, len(token) - 1)
    if kind < 0.8:
        return random.choice((token[:place], token[place:]))
    return token.upper() if kind < 0.9 else f"{token[:place]} {token[place:]}"


def random_dialog(random: Random, content: str) -> list[Message]:
    """A dialog with `content` somewhere in it, and calls of tools with their results."""
    roles = ["user"]
    if random.random() < 0.4:
        roles.insert(0, "system")
    for _ in range(random.randint(0, 3)):
        roles += random.choice((["assistant", "user"], ["assistant", "tool"], ["tool"]))
    messages = [{"role": role, "content": _message(random_text(random))} for role in roles]
    random.choice(messages)["content"] = _message(content)
    return messages


def _message(text: str) -> str:
    """See the module: no line feeds in the white space at the start, and no mark of ours."""
    rest = text.lstrip()
    start = text[: len(text) - len(rest)]
    return start.translate(dict.fromkeys(map(ord, _LINE_FEEDS))) + rest.replace("\ufdd0", "\ufdd1")


def chat_format_ids(meta: MetaTokenizer, messages: Iterable[Message]) -> list[int]:
    """What `ChatFormat` makes of a dialog; a pending answer's header is last."""
    raw = [
        RawMessage(
            role=message["role"],
            content=message["content"],
            stop_reason=StopReason.end_of_turn if message["role"] == "assistant" else None,
        )
        for message in messages
    ]
    ids: list[int] = ChatFormat(meta).encode_dialog_prompt(raw).tokens
    return ids


@dataclass(slots=True)
class Comparison:
    """What was compared, and the texts and dialogs whose ids differ."""

    texts: int = 0
    characters: int = 0
    tokens: int = 0
    with_control_tokens: int = 0
    dialogs: int = 0
    different: list[str] = field(default_factory=list)


def in_this_process(tokenizer_json: str) -> tuple[Encode, Encode]:
    """What `Tokenizer` asks its child for: ids of plain text, and with control tokens asked for."""
    opening: dict[str, Any] = {"added": [], "removed": [], "begin": None, "canonical": False}
    tokenizer_child.answer({"operation": "open", "text": tokenizer_json, **opening})
    plain = {"operation": "encode_plain", "control_tokens": [], "after_control": False}

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer_child.answer({**plain, "text": text})
        return ids

    def encode_rendered(text: str) -> list[int]:
        ids: list[int] = tokenizer_child.answer({"operation": "encode", "text": text})
        return ids

    return encode, encode_rendered


def random_texts(seed: int) -> Iterator[str]:
    """Without end."""
    random = Random(seed)
    while True:
        yield random_text(random)


def compare(
    count: int,
    seed: int,
    encode: Encode,
    encode_rendered: Encode,
    encode_chat: Callable[[list[Message]], Sequence[int]],
) -> Comparison:
    """Encode `count` random texts twice.

    Args:
        count: Texts.
        seed: Of the texts.
        encode: Ours, of a text without BOS, in which control tokens are text.
        encode_rendered: Ours, in which they are control tokens.
        encode_chat: Ours, of a dialog.
    """
    meta = MetaTokenizer(meta_tokenizer_path())
    dialogs = Random(seed)
    found = Comparison()
    for number, text in enumerate(islice(random_texts(seed), count)):
        theirs = meta.encode(text, bos=False, eos=False)
        same = encode(text) == theirs
        found.texts += 1
        found.characters += len(text)
        found.tokens += len(theirs)
        if "<|" in text:
            asked_for = meta.encode(text, bos=False, eos=False, allowed_special="all")
            same = same and encode_rendered(text) == asked_for
            found.with_control_tokens += asked_for != theirs
        if not same:
            found.different.append(repr(text))
        if number % 50 == 0:
            dialog = random_dialog(dialogs, text)
            found.dialogs += 1
            if encode_chat(dialog) != chat_format_ids(meta, dialog):
                found.different.append(repr(dialog))
    return found


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = Tokenizer(llama3_text())
    began = time.time()
    encode, encode_rendered = in_this_process(llama3_text().tokenizer_json)
    found = compare(arguments.count, arguments.seed, encode, encode_rendered, tokenizer.encode_chat)
    print(  # noqa: T201
        f"{found.texts} texts ({found.characters} characters, {found.tokens} tokens; "
        f"{found.with_control_tokens} spell a control token), {found.dialogs} dialogs, "
        f"{time.time() - began:.0f} s: {len(found.different)} differ"
    )
    for text in found.different[:20]:
        print(f"  {text[:300]}")  # noqa: T201
    raise SystemExit(1 if found.different else 0)


if __name__ == "__main__":
    main()
