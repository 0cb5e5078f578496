"""In a child process: llguidance, which compiles a grammar of outside for the first time.

The engine limits its work for each token and most of its work on a grammar, but not all: sixteen
patterns that a string must match at once keep it busy for hours.
"""

from typing import Any, Final

import llguidance

#: Of what is compiled here and, if that went well, by the process that generates: some tens of
#: milliseconds for a mask, and a second and 0.1 GiB for a grammar.
LIMITS: Final = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


def answer(request: dict[str, Any]) -> str:
    """What is wrong with the grammar `source`; nothing: an empty text."""
    is_error, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
        request["source"], limits=LIMITS
    )
    return messages[0] if is_error else ""
