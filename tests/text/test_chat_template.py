import time
from datetime import date

import pytest

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import TokenizerError
from llama_edge.text.chat_template import (
    MAX_TEMPLATE_CHARACTERS,
    ChatTemplate,
    TemplateStoppedError,
)
from llama_edge.text.dialog_form import dialog_form

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(MESSAGES)


def test_the_real_template(smollm2: Checkpoint) -> None:
    assert smollm2.text.chat_template is not None
    template = ChatTemplate(smollm2.text.chat_template, {})
    assert template.render([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    closed = template.render(MESSAGES, add_generation_prompt=False)
    assert closed.endswith("<|im_start|>assistant\nHello<|im_end|>\n")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}", "x\nx\n"),
        ("{% for m in messages %}{{ loop.index }}{% break %}{% endfor %}", "1"),
        ("{{ bos_token }}{{ eos_token }}{{ messages[1]['content'] | trim }}", "<s></s>Hello"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ tools is none }}{{ add_generation_prompt }}{{ nothing }}", "TrueTrue"),
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}"
         "{{ ns.n }}", "3"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') ~ m('b') }}", "[a][b]"),
        ("{% set x %}in{% endset %}{% filter upper %}{{ x }}{% endfilter %}", "IN"),
        ("{% set x | upper %}in{% endset %}{{ x * 2 }}", "ININ"),
        ("{% set ns = namespace(a='') %}{% set ns.a %}k{% endset %}{{ ns.a }}", "k"),
        ("{% for i in [1, 2] if i > 1 %}{{ i }}{{ loop.last }}{% else %}no{% endfor %}", "2True"),
    ],
)  # fmt: skip
def test_what_published_templates_use(source: str, expected: str) -> None:
    assert render(source) == expected


def test_the_day_is_given(smollm2: Checkpoint) -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", {})
    assert template.render([], today=date(2031, 1, 1)) == "2031"


def test_rendering_leaves_the_messages_alone() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(TokenizerError):
        ChatTemplate("{{ messages.append(1) }}", {}).render(messages)
    assert messages == [{"role": "user", "content": "Hi"}]


def test_the_template_s_own_refusal_is_shown() -> None:
    with pytest.raises(TokenizerError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ environment }}{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x }}",
        "{{ 'a' + 1 }}",
        "{% for x in 3 %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        " " * (MAX_TEMPLATE_CHARACTERS + 1),
    ],
)
def test_hostile_and_broken_templates_are_refused(source: str) -> None:
    with pytest.raises(TokenizerError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999999999) %}{% endfor %}",
        "{% for a in 'x' * 99999 %}{% for b in 'x' * 99999 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(99) }}",
        "{{ 'x' * 99999999999 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}"
        "{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}"
        "{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}"
        "{% set n.x = [n.x, n.x] | join %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}"
        "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}"
        "{% set n.x = n.x.replace('x', 'xxxx') %}{% endfor %}",
        "{% set x = 'x' * 999999 %}{% for a in range(99999) %}{{ x }}{% endfor %}",
    ],
)
def test_a_template_that_would_never_end_is_stopped(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(TokenizerError):
        render(source)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_template_that_is_stopped_on_some_dialogs_is_refused(role: str) -> None:
    """It is not one that leaves such messages out: each would cost the whole limit."""
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    source = (
        "{% for message in messages %}{% if message.role == '"
        + role
        + "' %}"
        + loop
        + "{% endif %}"
        "{{ message.content }}{% endfor %}"
    )
    with pytest.raises(TemplateStoppedError, match="processor time"):
        dialog_form(ChatTemplate(source, {}))


def test_a_rendering_is_no_longer_than_a_context_can_be() -> None:
    """A tokenizer that is given more takes gigabytes."""
    assert len(render("{{ 'x' * 4000000 }}")) == 4_000_000
    with pytest.raises(TokenizerError, match="writes over"):
        render("{{ 'x' * 4200000 }}")
