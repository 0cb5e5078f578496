r"""Strings of others, as a person may see them on a terminal.

A file's name, a manifest or an answer may hold what moves the cursor, hides or reorders text, or
talks to the terminal. Such characters are shown as Python writes them in a string: `\x1b`.
"""

import re
import unicodedata
from typing import Final

#: Of `unicodedata.category`: controls, format characters, halves of surrogate pairs (bytes of a
#: name that are no UTF-8), and line and paragraph separators.
_UNSEEN: Final = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
#: Joiners and marks are letters to some languages and emoji; embeddings, overrides and isolates
#: also reorder what comes after the answer.
_ACTIVE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A string that stays on its line: of its characters, those that are not seen as escapes."""
    if text.isprintable():
        return text
    return "".join(
        _escape(character) if unicodedata.category(character) in _UNSEEN else character
        for character in text
    )


def visible_answer(text: str) -> str:
    """What a model says: its lines and tabs stay, and what its language needs to join letters."""
    return _ACTIVE.sub(lambda found: _escape(found.group()), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
