"""Tokenizers and chat templates in the forms of published families, written for the tests.

The vocabularies are tiny and trained on the spot; control tokens, their flags, what is put in front
of a text, and what the templates do with a dialog are each family's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

_TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "What is the capital of France? Paris. Answer in one sentence.",
    "Wie heißt der höchste Berg der Alpen? Der Mont Blanc.",
    "def add(a, b):\n    return a + b\n",
)


def byte_level(control: Sequence[AddedToken], begin: str | None) -> Tokenizer:
    """As GPT-2, Llama 3, Qwen: bytes as letters; control tokens after the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    return _finished(tokenizer, trainer, control, begin)


def metaspace(control: Sequence[AddedToken], begin: str | None) -> Tokenizer:
    """As Llama 2, Mistral: a space in front of the first word, and tokens of single bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return _finished(tokenizer, _bytes_trainer(), control, begin)


def legacy_metaspace(control: Sequence[AddedToken], begin: str | None) -> Tokenizer:
    """As the first Llama and Zephyr: a space also after each control token."""
    tokenizer = metaspace(control, begin)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def gemma_like(control: Sequence[AddedToken], begin: str | None) -> Tokenizer:
    """As Gemma: spaces are kept as they are, and nothing is put in front of a word."""
    tokenizer = metaspace(control, begin)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _bytes_trainer() -> trainers.BpeTrainer:
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    return trainers.BpeTrainer(
        vocab_size=560, show_progress=False, special_tokens=["<unk>", *letters]
    )


def _finished(
    tokenizer: Tokenizer,
    trainer: trainers.BpeTrainer,
    control: Sequence[AddedToken],
    begin: str | None,
) -> Tokenizer:
    tokenizer.train_from_iterator(_TEXTS * 4, trainer)
    # The trainer makes the tokens of bytes special, which they are not.
    value = json.loads(tokenizer.to_str())
    value["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(value))
    for token in control:
        tokenizer.add_tokens([token])
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[f"{begin}:0", "$A:0"],
            pair=[f"{begin}:0", "$A:0", "$B:0"],
            special_tokens=[(begin, tokenizer.token_to_id(begin))],
        )
    return tokenizer


def special(*contents: str, **flags: bool) -> list[AddedToken]:
    return [AddedToken(content, special=True, normalized=False, **flags) for content in contents]


def plain(*contents: str) -> list[AddedToken]:
    return [AddedToken(content, special=False, normalized=False) for content in contents]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a folder of this family has."""

    control: Sequence[AddedToken]
    template: str
    ends: Sequence[str]
    config: Mapping[str, Any]
    tokenizer: Callable[[Sequence[AddedToken], str | None], Tokenizer] = byte_level
    begin: str | None = None
    parts: bool = False
    system: bool = True
    #: ends that no file names
    unlisted: Sequence[str] = field(default=())

    def write(self, folder: Path) -> None:
        """The text files, as published: the template in the config or in a file of its own."""
        folder.mkdir(exist_ok=True)
        tokenizer = self.tokenizer(self.control, self.begin)
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").write_text(self.template)
        ends = [tokenizer.token_to_id(end) for end in self.ends]
        generation = {"eos_token_id": ends[0] if len(ends) == 1 else ends}
        (folder / "generation_config.json").write_text(json.dumps(generation))
        (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')


_CHATML: Final = """\
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

_CHATML_WITH_DEFAULT: Final = """\
{% if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nBe of help.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

_LLAMA3: Final = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- set first = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n\\n' }}
{{- first + '<|eot_id|>' }}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (m.content | tojson) }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}
        {{- m['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

_GUARD: Final = """\
{% if messages|length % 2 == 0 %}{% set role = 'Agent' %}{% else %}{% set role = 'User' %}\
{% endif %}{{ '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\nTask: is the last \
message of ' + role + ' safe by the categories below?\\n\\nS1: Crime.\\nS2: Harm.\\n\\n' }}\
{% for m in messages %}{% if not (m['role'] == 'user') == (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{{ m['role'].title() + ': ' }}{% for part in m['content'] %}\
{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '\\n\\n' }}\
{% endfor %}{{ 'First line: safe or unsafe.<|eot_id|><|start_header_id|>assistant\
<|end_header_id|>\\n\\n' }}"""

_MISTRAL: Final = """\
{{ bos_token }}{% for m in messages %}\
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}\
{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}\
{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

_ZEPHYR: Final = """\
{% for m in messages %}\n{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token }}\n\
{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"""

_GEMMA: Final = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}\
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate') }}{% endif %}\
{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}\
{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

_QWEN3: Final = """\
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last and m.reasoning_content is defined %}
            {{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

_PHI: Final = """\
{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

_LLAMA2: Final = """\
{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}\
{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}\
{% for m in rest %}{% if m['role'] == 'user' %}{% set before = '<<SYS>>\\n' + system + \
'\\n<</SYS>>\\n\\n' if loop.first and system else '' %}{{ bos_token + '[INST] ' + before + \
m['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}\
{% endif %}{% endfor %}"""

_WITH_GENERATION: Final = """\
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
<|im_start|>assistant
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}
{% else -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""

_LLAMA3_TOKENS: Final = special(
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
_CHATML_TOKENS: Final = special("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_IM_END: Final = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}

FAMILIES: Final[Mapping[str, Family]] = {
    "llama-3": Family(
        control=_LLAMA3_TOKENS,
        template=_LLAMA3,
        ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        config={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        begin="<|begin_of_text|>",
    ),
    "llama-guard": Family(
        control=_LLAMA3_TOKENS,
        template=_GUARD,
        ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        config={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        begin="<|begin_of_text|>",
        parts=True,
        system=False,
    ),
    "smollm2": Family(
        control=_CHATML_TOKENS,
        template=_CHATML_WITH_DEFAULT,
        ends=("<|im_end|>",),
        config={**_IM_END, "pad_token": "<|im_end|>", "add_prefix_space": False},
    ),
    "qwen-2.5": Family(
        control=[*_CHATML_TOKENS, *plain("<tool_call>", "</tool_call>")],
        template=_CHATML_WITH_DEFAULT,
        ends=("<|im_end|>", "<|endoftext|>"),
        config={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "qwen-3": Family(
        control=[*_CHATML_TOKENS, *plain("<think>", "</think>")],
        template=_QWEN3,
        ends=("<|im_end|>", "<|endoftext|>"),
        config={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "chatml": Family(
        control=_CHATML_TOKENS,
        template=_CHATML,
        ends=("<|im_end|>",),
        config={"eos_token": "<|im_end|>"},
    ),
    "chatml, not special": Family(
        control=[*special("<|endoftext|>"), *plain("<|im_start|>", "<|im_end|>")],
        template=_CHATML,
        ends=("<|endoftext|>",),
        config={"eos_token": "<|endoftext|>"},
        unlisted=("<|im_end|>",),
    ),
    "for training": Family(
        control=_CHATML_TOKENS,
        template=_WITH_GENERATION,
        ends=("<|im_end|>",),
        config={"eos_token": "<|im_end|>"},
    ),
    "mistral": Family(
        control=special("<s>", "</s>", "[INST]", "[/INST]"),
        template=_MISTRAL,
        ends=("</s>",),
        config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        tokenizer=metaspace,
        begin="<s>",
        system=False,
    ),
    "zephyr": Family(
        control=special("<s>", "</s>"),
        template=_ZEPHYR,
        ends=("</s>",),
        config={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
        tokenizer=legacy_metaspace,
        begin="<s>",
    ),
    "gemma": Family(
        control=[
            *special("<bos>", "<eos>"),
            *special("<start_of_turn>", "<end_of_turn>"),
            *plain("\n\n"),
        ],
        template=_GEMMA,
        ends=("<eos>", "<end_of_turn>"),
        config={"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        tokenizer=gemma_like,
        begin="<bos>",
        system=False,
    ),
    "phi-3": Family(
        control=[
            *special("<|endoftext|>"),
            *special("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", rstrip=True),
        ],
        template=_PHI,
        ends=("<|endoftext|>",),
        config={"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"},
        tokenizer=metaspace,
        unlisted=("<|end|>",),
    ),
    "llama-2": Family(
        control=special("<s>", "</s>"),
        template=_LLAMA2,
        ends=("</s>",),
        config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        tokenizer=legacy_metaspace,
        begin="<s>",
    ),
}
