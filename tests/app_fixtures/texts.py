"""Small tokenizers, and templates of our own that use what Llama 3's and SmolLM2's use."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from llama_edge.checkpoints import load_checkpoint
from llama_edge.checkpoints.bpe import Vocabulary, llama3_tokenizer, smollm_tokenizer
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.native import open_tokenizer
from llama_edge.text.token_bytes import byte_letters
from tests.app_fixtures.files import compact_json
from tests.conftest import debug_text

#: The turns of Llama 3 and nothing else.
PLAIN_TEMPLATE: Final = (
    "{{- bos_token }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)

#: What is set between the marks for training is set there only, and a loop ends through them.
GENERATION_TEMPLATE: Final = """\
{%- set end = '<|eot_id|>' %}
{%- for message in messages %}
{{- message['role'] + ': ' }}
{%- generation %}{% set end = '!' %}{{ message['content'] + end }}
{%- for letter in 'abc' %}{% generation %}{% if letter == 'b' %}{% break %}{% endif %}{{ letter }}
{%- endgeneration %}{% endfor %}
{%- endgeneration %}
{{- end + '\n' }}
{%- endfor %}
"""

#: Tools, calls, results, a date and a system prompt that may be absent.
TOOL_TEMPLATE: Final = """\
{{- bos_token }}
{#- The same turns, with tools in front of the first question. #}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
    {%- set turns = messages %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " ~ date_string ~ "\\n\\n" }}
{%- if tools is not none and tools | length > 0 %}
    {{- "Answer with a call of one of these functions where it helps:\\n\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" if not loop.last else "\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- set state = namespace(calls=0) %}
{%- for message in turns %}
    {%- if message.role in ('tool', 'ipython') %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {%- set state.calls = state.calls + 1 %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
        {{- message["content"] | trim + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


#: Every field of a message, and the turns of ChatML.
_FIELDS_TEMPLATE: Final = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + (message.name | default('', true)) + '\\n' }}
    {%- if message.content is string %}
        {{- message.content | replace('[]', '') }}
    {%- endif %}
    {%- if message.tool_calls %}
        {{- message.tool_calls | tojson }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_PARTS_TEMPLATE: Final = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in message.content %}
        {%- if part.type == 'text' %}
            {{- part.text }}
        {%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

#: Special tokens by name, defined or not, and a turn that another token ends than `eos_token`.
_NAMES_TEMPLATE: Final = """\
{%- if pad_token is defined and sep_token is not defined and documents is none %}
    {{- pad_token + eos_token + image_token }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

#: A turn's end that nothing but the template tells, and thoughts that it leaves out.
_OWN_TEMPLATE: Final = """\
{%- for message in messages %}
    {%- set text = message['content'] %}
    {%- if message['role'] == 'assistant' and '</think>' in text %}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '字' + message['role'] + '\\n' + text + '<stop>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '字assistant\\n' }}
{%- endif %}
"""


#: Control tokens that begin with letters, and a template that changes the case.
_LETTERS_TEMPLATE: Final = """\
{%- for message in messages %}
    {{- 'STOP' + message['role'] + '\\n' }}
    {{- message.content + (message['content'] | upper) + message.content.lower() + '\\nk>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'STOPassistant\\n' }}
{%- endif %}
"""


def smollm2_template() -> str:
    """SmolLM2's own (Apache-2.0), out of the installed package."""
    template = load_checkpoint("smollm2-135m").text.chat_template
    assert template is not None
    return template


def chatml_text() -> TextAssets:
    """The debug model's: SmolLM's way to split, ChatML."""
    return debug_text()


def fields_text() -> TextAssets:
    """Turns of tokens that are not special by their flag."""
    text = replace(debug_text(), chat_template=_FIELDS_TEMPLATE)
    value = json.loads(text.tokenizer_json)
    for token in value["added_tokens"]:
        token["special"] = token["content"] == "<|endoftext|>"
    return replace(
        text,
        tokenizer_json=open_tokenizer(
            "tokenizer.json", compact_json(value).decode()
        ).tokenizer_json,
        special_tokens={"eos_token": "<|endoftext|>"},
        bos_token_id=None,
    )


def parts_text() -> TextAssets:
    """A template that reads a message's content as a list of parts."""
    return replace(debug_text(), chat_template=_PARTS_TEMPLATE)


def names_text() -> TextAssets:
    """A template that writes special tokens by their names."""
    named = {"pad_token": "<|begin|>", "image_token": "<|im_end|>", "eos_token": "<|endoftext|>"}
    return replace(debug_text(), chat_template=_NAMES_TEMPLATE, special_tokens=named)


def own_text() -> TextAssets:
    """Control tokens of no known name, one of a single character, and ordinary added ones."""
    ordinary = ("<stop>", "字", "</think>", "<tool>", "\n\n")
    return _text_of(_OWN_TEMPLATE, ordinary)


def letters_text() -> TextAssets:
    """Control tokens that begin with letters, names of a message's fields among them."""
    return _text_of(_LETTERS_TEMPLATE, ("k>", "STOP", "role", "content"))


def _text_of(template: str, ordinary: Sequence[str]) -> TextAssets:
    """A special end token; and tokens that are not special, the first of which ends a turn."""
    letters = list(byte_letters().values())
    added = {"<eos>": True, **dict.fromkeys(ordinary, False)}
    tokens = [*added, *letters, "th", "the"]
    vocabulary = Vocabulary(
        tokens=tokens,
        merges=[("t", "h"), ("th", "e")],
        added=dict(enumerate(added.values())),
    )
    return TextAssets(
        tokenizer_json=smollm_tokenizer(vocabulary, None).tokenizer_json,
        chat_template=template,
        special_tokens={"eos_token": "<eos>"},
        bos_token_id=None,
        eos_token_ids=(0, 1),
        add_bos=False,
        generation_defaults={},
    )


def llama_text() -> TextAssets:
    """Llama 3's way to split, whole words before merges, BOS added to raw prompts."""
    letters = list(byte_letters().values())
    merges = [("h", "e"), ("t", "he"), ("Ġ", "the"), ("1", "2"), ("12", "3"), ("a", "n")]
    merges += [("Ã", "¼"), ("i", "n"), ("in", "g")]
    #: a whole word that no merge makes
    words = ["Ġlighthouse"]
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    special += ["<|eot_id|>", "<|eom_id|>", "<|python_tag|>"]
    tokens = [*letters, *("".join(merge) for merge in merges), *words]
    first = len(tokens)
    vocabulary = Vocabulary(
        tokens=[*tokens, *special],
        merges=merges,
        added=dict.fromkeys(range(first, first + len(special)), True),
    )
    return TextAssets(
        tokenizer_json=llama3_tokenizer(vocabulary, special[0]).tokenizer_json,
        chat_template=PLAIN_TEMPLATE,
        special_tokens={"bos_token": special[0], "eos_token": "<|eot_id|>"},
        bos_token_id=first,
        eos_token_ids=(first + 1, first + 4, first + 5),
        add_bos=True,
        generation_defaults={"temperature": 0.6, "top_p": 0.9},
    )
