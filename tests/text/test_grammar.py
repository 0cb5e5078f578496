"""What a grammar allows is what it says, and nothing else; on real tokenizers too."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import TokenizerError, UsageError
from llama_edge.core.session import FloatArray
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.generate import Constraint, Generation, StopReason
from llama_edge.text.grammar import (
    MAX_PATTERN_CHARACTERS,
    Grammar,
    JsonSchema,
    Regex,
    ToolCalls,
    check_grammar,
    constraint_for,
)
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_calls import CallFormat, parse_tool_calls
from llama_edge.text.tools import Tool, ToolChoice, parse_tools
from tests.checkpoint_writers import llama3_text
from tests.text.families import FAMILIES

#: Rows of an embedding that was padded to a round number.
PADDING: Final = 40
PERSON: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "é"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Model:
    """A tokenizer and what a constraint needs of it."""

    def __init__(self, text: TextAssets) -> None:
        self.tokenizer = Tokenizer(text)
        self.ends = text.eos_token_ids
        self.size = self.tokenizer.vocab_size + PADDING

    def constraint(self, grammar: Grammar) -> Constraint:
        return constraint_for(grammar, self.tokenizer, self.ends, self.size)

    def sample(self, grammar: Grammar, seed: int, budget: int = 120) -> str:
        """A random answer, each allowed token as likely as another: whole within the budget.

        Of 128,000 tokens a string hardly ever ends by itself, or a number.
        """
        text, is_whole = self.cut(grammar, seed, budget)
        assert is_whole, text
        return text

    def cut(self, grammar: Grammar, seed: int, budget: int) -> tuple[str, bool]:
        """A random answer, and whether it is whole."""
        constraint = self.constraint(grammar)
        generation = Generation(
            RandomCache(self.size, seed),
            [0],
            eos_token_ids=self.ends,
            max_new_tokens=budget,
            constraint=constraint,
        )
        tokens = list(generation)
        # Text that may go on for ever is whole wherever it is cut.
        is_whole = generation.stop_reason is StopReason.EOS or constraint.allowed()[self.ends[0]]
        assert max(tokens, default=0) < self.tokenizer.vocab_size
        return self.tokenizer.decode(tokens), bool(is_whole)


class RandomCache:
    """Any token is as likely as another."""

    max_context = 100_000

    def __init__(self, size: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._size = size

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        del tokens
        return self._random.random(self._size, np.float32)

    def decode(self, token: int) -> FloatArray:
        return self.prefill([token])


@pytest.fixture(scope="module")
def llama3() -> Model:
    return Model(llama3_text())


@pytest.fixture(scope="module")
def smol(smollm2: Checkpoint) -> Model:
    return Model(smollm2.text)


@pytest.fixture(scope="module")
def models(llama3: Model, smol: Model) -> Sequence[Model]:
    return (llama3, smol)


def spelled(model: Model, text: str) -> list[int]:
    """Tokens of a text, one for each byte where the tokenizer has it."""
    table = {token: n for n, token in enumerate(model.tokenizer.token_bytes) if len(token) == 1}
    return [table[bytes([byte])] for byte in text.encode()]


def accepts(model: Model, grammar: Grammar, text: str) -> bool:
    """Whether the text, byte by byte, is allowed and may end."""
    constraint = model.constraint(grammar)
    for token in spelled(model, text):
        if not constraint.allowed()[token]:
            # A run without a choice has one tokenization only; see whether this is one.
            return accepts_tokens(model, grammar, model.tokenizer.encode(text, add_bos=False))
        constraint.push(token)
    return bool(constraint.allowed()[list(model.ends)].all())


def accepts_tokens(model: Model, grammar: Grammar, tokens: Sequence[int]) -> bool:
    constraint = model.constraint(grammar)
    for token in tokens:
        if not constraint.allowed()[token]:
            return False
        constraint.push(token)
    return bool(constraint.allowed()[list(model.ends)].all())


@pytest.mark.parametrize("seed", range(6))
def test_random_json_is_valid(models: Sequence[Model], seed: int) -> None:
    for model in models:
        jsonschema.validate(json.loads(model.sample(JsonSchema(PERSON), seed)), PERSON)


@pytest.mark.parametrize("pattern", [r"[0-9]{4}-[0-9]{2}", r"(ja|nein|größer)!?", r"\p{Thai}{1,5}"])
def test_random_matches_match(models: Sequence[Model], pattern: str) -> None:
    python = pattern.replace(r"\p{Thai}", r"[\u0e00-\u0e7f]")
    for model in models:
        for seed in range(4):
            text = model.sample(Regex(pattern), seed)
            assert re.fullmatch(python, text), text


def test_the_end_is_allowed_where_the_grammar_is_complete(llama3: Model) -> None:
    constraint = llama3.constraint(Regex("ab*"))
    assert not constraint.allowed()[list(llama3.ends)].any()
    (a,) = llama3.tokenizer.encode("a", add_bos=False)
    constraint.push(a)
    assert constraint.allowed()[list(llama3.ends)].all()
    assert constraint.allowed().sum() > len(llama3.ends)
    done = llama3.constraint(Regex("a"))
    done.push(a)
    assert np.flatnonzero(done.allowed()).tolist() == sorted(llama3.ends)


def test_control_tokens_and_padding_are_never_text(llama3: Model) -> None:
    mask = llama3.constraint(Regex(r"(.|\n)*")).allowed()
    assert mask.shape == (llama3.size,)
    added = set(llama3.tokenizer._tokenizer.added)
    assert set(np.flatnonzero(mask)) & added == set(llama3.ends)
    assert not mask[llama3.tokenizer.vocab_size :].any()
    assert mask.sum() > 120_000


def test_a_head_that_was_cut_has_a_short_mask(llama3: Model) -> None:
    mask = constraint_for(Regex("a|!"), llama3.tokenizer, llama3.ends, 20).allowed()
    assert mask.shape == (20,)
    assert np.flatnonzero(mask).tolist() == [0]  # "!"


def test_a_character_of_several_tokens_is_finished(smol: Model) -> None:
    """No token may end, or follow on, a part of a character in another way."""
    constraint = smol.constraint(Regex("[𝄞𝄢]+"))
    first, *others = spelled(smol, "𝄞")
    constraint.push(first)
    assert not constraint.allowed()[list(smol.ends)].any()
    for token in others:
        assert constraint.allowed()[token]
        constraint.push(token)
    assert constraint.allowed()[list(smol.ends)].all()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Byte-level or metaspace, with or without a space that the decoder drops."""
    folder = tmp_path_factory.mktemp("family") / "model"
    FAMILIES[name].write(folder)
    model = Model(read_text_assets(folder))
    for seed in range(3):
        text = model.sample(Regex(r"(x |y)[a-c ]{1,6}é?"), seed)
        assert re.fullmatch(r"(x |y)[a-c ]{1,6}é?", text), text
    # What is allowed can be written whatever stands in front.
    assert model.sample(Regex(r" ?[ab]+"), 1)


def test_a_first_space_that_would_be_lost_is_not_allowed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("family") / "model"
    FAMILIES["mistral"].write(folder)
    model = Model(read_text_assets(folder))
    assert model.tokenizer.drops_first_space
    assert not model.constraint(Regex(" a")).allowed().any()
    for seed in range(8):
        text = model.sample(Regex(r"( a|b c)"), seed)
        assert text == "b c"


def test_a_decoder_of_another_kind_is_refused(smollm2: Checkpoint) -> None:
    value = json.loads(smollm2.text.tokenizer_json)
    value["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    model = Model(replace(smollm2.text, tokenizer_json=json.dumps(value)))
    with pytest.raises(TokenizerError, match="the decoder is WordPiece"):
        model.constraint(Regex("a"))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Regex("(unclosed"), "the regex: .*unclosed group"),
        (Regex(""), "has 0 characters"),
        (Regex("a" * (MAX_PATTERN_CHARACTERS + 1)), "1 to 4096 are possible"),
        (Regex(r"a(?=b)"), "look-around"),
        (Regex("a\\"), "ends inside an escape"),
        (JsonSchema(nested(40)), "nested more than 32 deep"),
        (JsonSchema({"enum": list(range(5000))}), "more than 4096 values"),
        (JsonSchema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (JsonSchema({"type": "strung"}), "strung"),
        (
            JsonSchema(
                {"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}b"} for n in range(20)]}
            ),
            "too complex, and was stopped: .*3 s",
        ),
        (JsonSchema({"$ref": "http://example.com/x"}), "example.com"),
        (JsonSchema({"type": "integer", "minimum": 5, "maximum": 3}), "the JSON schema: "),
    ],
)
def test_what_cannot_be_kept_is_refused(smol: Model, grammar: Grammar, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        smol.constraint(grammar)
    with pytest.raises(UsageError, match=message):
        check_grammar(grammar)


@pytest.mark.parametrize(
    "pattern",
    [r"(a|b)*a(a|b){60}", r"((a{1000}){1000}){1000}", r"(.{1,1000}){1,1000}", r"(x+x+)+y"],
)
def test_hostile_patterns_are_slow_for_nobody(smol: Model, pattern: str) -> None:
    """Followed, or refused by the engine's limits; the suite would hang otherwise."""
    try:
        smol.cut(Regex(pattern), 0, budget=60)
    except UsageError as error:
        assert "cannot be followed further" in str(error)


# Tools.

WEATHER: Final = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 10},
            "unit": {"enum": ["c", "f", None, "it's", 'a"b\\']},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
            "place": {
                "type": "object",
                "properties": {"lat": {"type": "number"}, "old": {"type": "boolean"}},
                "required": ["lat"],
            },
        },
        "required": ["city"],
    },
}
TOOLS: Final = parse_tools([WEATHER, {"type": "function", "function": {"name": "noop"}}])


def check_calls(text: str, tools: Sequence[Tool], most: int) -> None:
    """They are read by the parser, and valid under the tools' own schemas."""
    calls = parse_tool_calls(text)
    assert 1 <= len(calls) <= most, text
    for call in calls:
        schema = next(tool.parameters for tool in tools if tool.name == call.name)
        jsonschema.Draft202012Validator(schema).validate(dict(call.arguments))


@pytest.mark.parametrize("form", CallFormat)
@pytest.mark.parametrize("seed", range(5))
def test_random_calls_are_valid(models: Sequence[Model], form: CallFormat, seed: int) -> None:
    grammar = ToolCalls(tools=TOOLS, format=form, choice=ToolChoice.REQUIRED, max_calls=2)
    for model in models:
        check_calls(model.sample(grammar, seed), TOOLS, 2)


@pytest.mark.parametrize("form", CallFormat)
def test_a_named_tool_is_called_once(smol: Model, form: CallFormat) -> None:
    grammar = ToolCalls(tools=TOOLS, format=form, choice=TOOLS[1], max_calls=3)
    text = smol.sample(grammar, 3)
    assert [call.name for call in parse_tool_calls(text)] == ["noop"]


CALL: Final = {
    CallFormat.JSON: '{"name": "noop", "parameters": {}}',
    CallFormat.PYTHONIC: "[noop()]",
}


@pytest.mark.parametrize("form", CallFormat)
@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("", {ToolChoice.AUTO, ToolChoice.NONE}),
        ("Hello {there}\n[f()]", {ToolChoice.AUTO, ToolChoice.NONE}),
        ("\u001c a < b", {ToolChoice.AUTO, ToolChoice.NONE}),
        ("call", {ToolChoice.AUTO, ToolChoice.REQUIRED}),
        (" call", set()),
        ("call.", set()),
        ("{", set()),
        ("\n[x]", set()),
        ("<|python_tag|>noop()", set()),
        ("\x1f{", set()),
    ],
)
def test_choices(smol: Model, form: CallFormat, text: str, choices: set[ToolChoice]) -> None:
    text = re.sub("^( ?)call", lambda found: found[1] + CALL[form], text)
    for choice in ToolChoice:
        grammar = ToolCalls(tools=TOOLS, format=form, choice=choice)
        assert accepts(smol, grammar, text) is (choice in choices), choice


@pytest.mark.parametrize("seed", range(30))
def test_an_answer_of_auto_is_text_or_a_valid_call(smol: Model, seed: int) -> None:
    """Text is never taken for a call, whatever white space or letters it begins with."""
    form = list(CallFormat)[seed % 2]
    text = smol.sample(ToolCalls(tools=TOOLS, format=form), seed, budget=40)
    if parse_tool_calls(text):
        check_calls(text, TOOLS, 1)


VALUES = st.recursive(
    st.sampled_from(
        [
            {"type": "string", "maxLength": 4},
            {"type": "string", "minLength": 1, "maxLength": 3},
            {"type": "string", "pattern": "^[a-c/'\"\\\\]{1,3}$"},
            {"type": "string", "format": "date"},
            {"type": "integer"},
            {"type": "integer", "minimum": -3, "exclusiveMaximum": 12},
            {"type": "integer", "multipleOf": 5, "maximum": 100},
            {"type": "number"},
            {"type": "number", "minimum": 0.5, "maximum": 3},
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["integer", "null"]},
            {"enum": ["a", "ab", "it's", 'q"', "\n", 1, 2.5, None, True, [1, "x"], {"k": "v'"}]},
            {"enum": [1, "x", None], "type": "string"},
            {"const": {"a": [None, False]}},
            {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "integer"}]},
            {"type": "array", "maxItems": 0},
            {"description": "anything"},
            {"type": "object"},
            {"$ref": "#/$defs/point"},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda items, least, more: {
                "type": "array",
                "items": items,
                "minItems": least,
                "maxItems": least + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(
            lambda properties, required: {
                "type": "object",
                "properties": properties,
                "required": sorted(set(properties) & required),
            },
            st.dictionaries(st.sampled_from(["a", "b c", "q\"'", "é"]), inner, max_size=3),
            st.sets(st.sampled_from(["a", "b c", "é"])),
        ),
        st.builds(lambda value: {"type": "object", "additionalProperties": value}, inner),
    ),
    max_leaves=4,
)
PARAMETERS = st.builds(
    lambda properties, required: {
        "type": "object",
        "properties": properties,
        "required": sorted(set(properties) & required),
        "additionalProperties": False,
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    },
    st.dictionaries(st.sampled_from(["a", "b", "city_1"]), VALUES, max_size=3),
    st.sets(st.sampled_from(["a", "b"])),
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["f", "get_x", "f.g"]), PARAMETERS, min_size=1, max_size=2),
    st.sampled_from(CallFormat),
    st.integers(0, 2**32),
)
def test_calls_of_any_tools_are_valid(
    smol: Model, schemas: Mapping[str, Any], form: CallFormat, seed: int
) -> None:
    tools = parse_tools([{"name": name, "parameters": found} for name, found in schemas.items()])
    grammar = ToolCalls(tools=tools, format=form, choice=ToolChoice.REQUIRED, max_calls=2)
    text = smol.sample(grammar, seed, budget=200)
    check_calls(text, tools, 2)


def parameters(**properties: object) -> dict[str, Any]:
    return {"name": "f", "parameters": {"type": "object", "properties": properties}}


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (parameters(a={"not": {}}), r"tool f: parameters.properties.a.not: this keyword cannot"),
        (parameters(a={"oneOf": [{}]}), "properties.a.oneOf"),
        (parameters(a={"type": "x"}), "properties.a.type is 'x'"),
        (parameters(a={"minLength": 1}), "properties.a.minLength: the type is missing"),
        (parameters(a={"$ref": "#/$defs/no"}), "which is not there"),
        (parameters(a={"$ref": "#/properties/a"}), "refers to itself|which is not there"),
        (parameters(a={"type": "integer", "minimum": 1e30}), "at most 10\\^18"),
        (parameters(a={"type": "string", "maxLength": 10**9}), "integer of 0 to 65536"),
        (parameters(a={"type": "array", "minItems": 3, "maxItems": 1}), "below minItems"),
        (parameters(a={"enum": [10**30]}), "64 bits"),
        (parameters(a={"enum": []}), "no value of the type"),
        (parameters(a={"type": "string", "pattern": "("}), "the tools: "),
        (parameters(a=nested(20)), "nested more than 16 deep"),
        (parameters(a=3), "properties.a is '3'"),
        ({"name": "f", "parameters": {"type": "array"}}, "the arguments of a call are an object"),
        ({"name": "f", "parameters": {"required": ["x"]}}, "'x', which is not in properties"),
        ({"name": "f", "parameters": {"anyOf": []}}, "parameters.anyOf: not possible here"),
    ],
)
@pytest.mark.parametrize("form", CallFormat)
def test_a_schema_that_cannot_be_kept_is_refused_by_its_place(
    smol: Model, tool: Mapping[str, Any], form: CallFormat, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        smol.constraint(ToolCalls(tools=parse_tools([tool]), format=form))


def test_references_that_double_are_refused(smol: Model) -> None:
    names = [f"a{number}" for number in range(30)]
    pair = {
        name: {"type": "object", "properties": {key: {"$ref": f"#/$defs/{after}"} for key in "xy"}}
        for name, after in zip(names, [*names[1:], names[-1]], strict=True)
    }
    tool = parameters(a={"$ref": "#/$defs/a16"})
    tool["parameters"]["$defs"] = {**pair, "a29": {"type": "null"}}
    grammar = ToolCalls(tools=parse_tools([tool]), format=CallFormat.JSON)
    with pytest.raises(UsageError, match="more than 4096 values"):
        smol.constraint(grammar)


@pytest.mark.parametrize("name", ["class", "a-b", "1a", "f.call", "ä"])
def test_a_name_that_python_cannot_call(smol: Model, name: str) -> None:
    if name not in ("1a", "ä"):
        tools = (Tool(name=name),)
        with pytest.raises(UsageError, match="cannot be the name of a function"):
            smol.constraint(ToolCalls(tools=tools, format=CallFormat.PYTHONIC))
        smol.constraint(ToolCalls(tools=tools, format=CallFormat.JSON))
    argument = (Tool(name="f", parameters={"properties": {name: {"type": "null"}}}),)
    if name == "f.call" or not name.isidentifier() or name in ("class", "ä"):
        with pytest.raises(UsageError, match="cannot be the name of an argument"):
            smol.constraint(ToolCalls(tools=argument, format=CallFormat.PYTHONIC))


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("abc()|*+?.{}\\d1,2-é\u0301 "), max_size=12))
def test_any_pattern_is_followed_or_refused(smol: Model, pattern: str) -> None:
    try:
        text, is_whole = smol.cut(Regex(pattern), 0, budget=30)
    except UsageError:
        return
    if is_whole and not re.search(r"[*+?}]\+", pattern):  # possessive in Python only
        with contextlib.suppress(re.error):  # Python refuses `a**`, which Rust has
            assert re.fullmatch(pattern, text), text
