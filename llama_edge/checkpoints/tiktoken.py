"""Meta's `tokenizer.model` (tiktoken ranks) as a `tokenizers` BPE, and its dialog format."""

import base64
import binascii
import re
from pathlib import Path
from typing import Final

from llama_edge.checkpoints.bpe import Vocabulary, llama3_tokenizer
from llama_edge.core.errors import TokenizerError
from llama_edge.core.regular import read_regular
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.text_assets import build_text_assets
from llama_edge.text.token_bytes import byte_letters

MAX_FILE_BYTES: Final = 32 << 20  # Llama 3's has 2 MB
_MAX_TOKEN_BYTES: Final = 256  # Llama 3's longest has 128; work grows with the square
_LINE: Final = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+")
LLAMA3_BEGIN: Final = "<|begin_of_text|>"

#: Llama 3's control tokens in id order, after the ranks. Source: llama_models' `tokenizer.py`.
_NAMED_SPECIALS: Final = (
    LLAMA3_BEGIN,
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
#: All 256, in id order.
LLAMA3_SPECIALS: Final = (
    *_NAMED_SPECIALS,
    *(f"<|reserved_special_token_{number}|>" for number in range(2, 256 - 10)),
)

#: Where generation ends: `stop_tokens` in llama_models' `tokenizer.py`, and a document's end.
LLAMA3_ENDS: Final = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
#: As in the tokenizer_config.json of the published instruct models.
LLAMA3_NAMED: Final = {"bos_token": LLAMA3_BEGIN, "eos_token": "<|eot_id|>"}

#: Llama 3's dialog format, which Meta ships as code (`ChatFormat` in llama_models) and as examples
#: (`llama3_1/prompt_format.md` and `llama3_2/text_prompt_format.md` there). Functions to call are
#: described in a message's own text. Calls of them are JSON, as `ChatFormat` writes it by default;
#: calls of the built-in tools have a tag in front and <|eom_id|> at the end, as in the examples.
LLAMA3_TEMPLATE: Final = """\
{{- bos_token }}
{%- if tools %}
    {{- raise_exception('this dialog format has no place for tools; describe them in a message') }}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'ipython' if message['role'] == 'tool' else message['role'] %}
    {%- if role not in ['system', 'user', 'assistant', 'ipython'] %}
        {{- raise_exception('there is no role ' ~ role) }}
    {%- endif %}
    {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}
    {%- set calls = message['tool_calls'] if message['tool_calls'] else [] %}
    {%- set names = ['brave_search', 'wolfram_alpha', 'photogen', 'code_interpreter'] %}
    {%- set builtin = false %}
    {%- if calls %}
        {%- set builtin = calls[0]['function']['name'] in names %}
    {%- endif %}
    {%- if builtin %}
        {{- '<|python_tag|>' }}
    {%- endif %}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- elif message['content'] is mapping %}
        {{- message['content'] | tojson }}
    {%- elif message['content'] %}
        {%- for part in message['content'] %}
            {%- if part['type'] != 'text' %}
                {{- raise_exception('a message has a part that is not text') }}
            {%- endif %}
            {{- part['text'] }}
        {%- endfor %}
    {%- endif %}
    {%- for call in calls %}
        {%- set name = call['function']['name'] %}
        {%- set arguments = call['function']['arguments'] %}
        {%- if name is not string or (name in names and arguments is not mapping) %}
            {{- raise_exception('a tool call has no name, or arguments that are not an object') }}
        {%- elif name == 'code_interpreter' %}
            {{- arguments['code'] }}
        {%- elif name in names %}
            {{- name ~ '.call(query="' ~ arguments['query'] ~ '")' }}
        {%- else %}
            {{- '{"type": "function", "name": ' ~ (name | tojson) ~ ', "parameters": ' }}
            {{- arguments if arguments is string else (arguments | tojson) }}
            {{- '}' }}
        {%- endif %}
    {%- endfor %}
    {{- '<|eom_id|>' if builtin else '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def is_tiktoken(data: bytes) -> bool:
    """Whether a `tokenizer.model` begins with a line of base64 and a rank."""
    line, _, _ = data[:1024].partition(b"\n")
    return _LINE.fullmatch(line.strip()) is not None


def read_tiktoken(path: Path) -> TextAssets:
    """Llama 3's tokenizer and dialog format.

    Raises:
        TokenizerError: The file is absent, damaged or of another kind.
    """
    ranks = _read_ranks(path)
    letters = byte_letters()
    spelled = ["".join(letters[byte] for byte in token) for token in ranks]
    vocabulary = Vocabulary(
        tokens=[*spelled, *LLAMA3_SPECIALS],
        merges=_merges(spelled),
        added={len(ranks) + place: True for place in range(len(LLAMA3_SPECIALS))},
    )
    return build_text_assets(
        llama3_tokenizer(vocabulary, LLAMA3_BEGIN),
        LLAMA3_TEMPLATE,
        named=LLAMA3_NAMED,
        ends=[len(ranks) + LLAMA3_SPECIALS.index(end) for end in LLAMA3_ENDS],
    )


def _read_ranks(path: Path) -> list[bytes]:
    """Tokens in rank order, from lines of base64 and rank."""
    lines = read_regular(path, MAX_FILE_BYTES, TokenizerError).splitlines()
    tokens = []
    for number, line in enumerate(filter(None, lines)):
        try:
            spelled, rank = line.split()
            tokens.append(base64.b64decode(spelled, validate=True))
            in_order = int(rank) == number
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{path}: line {number + 1} is not a base64 token and its rank; Llama 3's "
                "tiktoken file is needed, not a SentencePiece model"
            ) from error
        if len(tokens[-1]) > _MAX_TOKEN_BYTES:
            raise TokenizerError(
                f"{path}: line {number + 1} has a token of {len(tokens[-1])} bytes; at most "
                f"{_MAX_TOKEN_BYTES} are read"
            )
        if not in_order or not tokens[-1]:
            raise TokenizerError(f"{path}: line {number + 1} has rank {rank!r}, not {number}")
    missing = 256 - len({token for token in tokens if len(token) == 1})
    if missing:
        raise TokenizerError(f"{path}: {missing} of the 256 single bytes have no token")
    return tokens


def _merges(tokens: list[str]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of what it makes.

    tiktoken merges any two neighbours whose concatenation has a rank, so a token may have several
    ways to come about, and all of them are merges.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for token in tokens:
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges
