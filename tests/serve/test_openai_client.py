"""OpenAI's own Python client against a server of the debug model."""

from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from llama_edge.generate.assistant import AnswerConfig, Assistant
from llama_edge.generate.bundle_model import BundleModel
from tests.serve.conftest import CONTEXT, NAME

pytestmark = pytest.mark.onnx

DIALOG: list[Any] = [
    {"role": "system", "content": "an in"},
    {"role": "user", "content": "the on"},
]
GREEDY: dict[str, Any] = {"model": NAME, "messages": DIALOG, "temperature": 0}


@pytest.fixture(scope="module")
def alone(model: BundleModel) -> str:
    """Twelve tokens without a server."""
    with Assistant(model) as assistant:
        prompt = model.tokenizer.encode_chat(DIALOG)
        return "".join(assistant.answer(prompt, AnswerConfig(max_new_tokens=12)))


def test_a_completion(client: OpenAI, model: BundleModel, alone: str) -> None:
    done = client.chat.completions.create(**GREEDY, max_completion_tokens=12)
    assert done.object == "chat.completion"
    assert done.model == NAME
    (choice,) = done.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == alone
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert done.usage is not None
    prompt = len(model.tokenizer.encode_chat(DIALOG))
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (prompt, 12)
    assert done.usage.total_tokens == prompt + 12
    again = client.chat.completions.create(**GREEDY, max_tokens=12)
    assert again.choices == done.choices
    assert again.id != done.id
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == prompt - 1


def test_a_stream(client: OpenAI, alone: str) -> None:
    chunks = list(
        client.chat.completions.create(
            **GREEDY, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    first, *middle, last, numbers = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == alone
    assert len(middle) > 1
    assert all(chunk.choices[0].finish_reason is None for chunk in (first, *middle))
    assert last.choices[0].finish_reason == "length"
    assert last.choices[0].delta.content is None
    assert numbers.choices == []
    assert numbers.usage is not None
    assert numbers.usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_without_usage_has_none(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(**GREEDY, max_tokens=2, stream=True))
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_ends_the_answer_before_it(
    client: OpenAI, alone: str, stream: bool
) -> None:
    stop = alone[4:6]
    reply: Any = client.chat.completions.create(
        **GREEDY, max_tokens=12, stop=[stop, "never"], stream=stream
    )
    if stream:
        choices = [chunk.choices[0] for chunk in reply]
        text = "".join(choice.delta.content or "" for choice in choices)
        assert choices[-1].finish_reason == "stop"
    else:
        text = reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"
    assert text == alone[: alone.index(stop)]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_models_logits(
    client: OpenAI, model: BundleModel, stream: bool
) -> None:
    reply: Any = client.chat.completions.create(
        **{**GREEDY, "temperature": 1.5},
        seed=5,
        max_tokens=8,
        logprobs=True,
        top_logprobs=3,
        stream=stream,
    )
    if stream:
        found = [
            entry
            for chunk in reply
            if chunk.choices[0].logprobs is not None
            for entry in chunk.choices[0].logprobs.content
        ]
    else:
        found = reply.choices[0].logprobs.content
    assert len(found) == 8
    with model.open() as session:
        logits = session.prefill(model.tokenizer.encode_chat(DIALOG))
        for entry in found:
            expected = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
            order = np.argsort(-expected, kind="stable")[:3]
            tops = [
                model.tokenizer.decode([int(token)], skip_special_tokens=False) for token in order
            ]
            assert [top.token for top in entry.top_logprobs] == tops
            np.testing.assert_allclose(
                [top.logprob for top in entry.top_logprobs], expected[order], atol=1e-4
            )
            (token,) = np.flatnonzero(np.isclose(expected, entry.logprob, atol=1e-6))
            text = model.tokenizer.decode([int(token)], skip_special_tokens=False)
            assert entry.token == text
            assert entry.bytes == (None if "\ufffd" in text else list(text.encode()))
            logits = session.decode(int(token))


def test_a_seed_samples_the_same_text(client: OpenAI) -> None:
    asked: dict[str, Any] = {**GREEDY, "temperature": 2.0, "max_tokens": 12}
    texts = [
        client.chat.completions.create(**asked, seed=seed).choices[0].message.content
        for seed in (-1, -1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    free = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}
    assert len(free) > 1
    certain = client.chat.completions.create(**{**asked, "top_p": 0})
    greedy = client.chat.completions.create(**{**asked, "temperature": 0})
    assert certain.choices == greedy.choices


def test_models(client: OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.id == NAME
    assert client.models.retrieve(NAME) == card
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="'debug' is"):
        client.chat.completions.create(**{**GREEDY, "model": "gpt-4o"})


def test_parts_and_the_developers_role(client: OpenAI, alone: str) -> None:
    parts: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "an in"}]},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "the"}]},
    ]
    parts[1]["content"].append({"type": "text", "text": " on"})
    done = client.chat.completions.create(model=NAME, messages=parts, temperature=0, max_tokens=12)
    assert done.choices[0].message.content == alone


def test_an_answer_can_be_sent_back(client: OpenAI) -> None:
    """As the client's own type has it, with all its empty fields."""
    first = client.chat.completions.create(**GREEDY, max_tokens=3)
    answer: Any = first.choices[0].message.model_dump()
    messages = [*DIALOG, answer, {"role": "user", "content": "in"}]
    second = client.chat.completions.create(model=NAME, messages=messages, max_tokens=3)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens


def test_harmless_options_are_taken(client: OpenAI) -> None:
    client.chat.completions.create(
        **GREEDY,
        max_tokens=1,
        n=1,
        user="me",
        presence_penalty=0,
        frequency_penalty=0,
        logit_bias={},
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=True,
        modalities=["text"],
        extra_body={"top_k": 3},
    )


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("n", {"n": 2}),
        ("presence_penalty", {"presence_penalty": 0.5}),
        ("frequency_penalty", {"frequency_penalty": -2}),
        ("logit_bias", {"logit_bias": {"5": 1}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("audio", {"audio": {"voice": "ash", "format": "wav"}}),
        ("functions", {"functions": [{"name": "f"}]}),
        ("function_call", {"function_call": "auto"}),
        ("reasoning_effort", {"reasoning_effort": "low"}),
        ("verbosity", {"verbosity": "low"}),
        ("web_search_options", {"web_search_options": {}}),
        ("min_p", {"extra_body": {"min_p": 0.1}}),
        ("temperature", {"temperature": 3}),
        ("temperature", {"temperature": "hot"}),
        ("top_p", {"top_p": 1.1}),
        ("seed", {"seed": 1 << 64}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
        ("stop", {"stop": ""}),
        ("stop[1]", {"stop": ["a", ""]}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1, "max_completion_tokens": 1}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("messages", {"messages": []}),
        ("messages[0].role", {"messages": [{"role": "king", "content": "x"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content", {"messages": [{"role": "assistant"}]}),
        (
            "messages[0].content[0].image_url",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://a"}}],
                    }
                ]
            },
        ),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    client: OpenAI, param: str, options: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**GREEDY, **options})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code
    assert param.rpartition(".")[2] in str(caught.value.body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_dialog_beyond_the_context_is_refused_with_the_limit(
    client: OpenAI, stream: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": "x" * CONTEXT}]
    with pytest.raises(openai.BadRequestError, match=f"room for {CONTEXT}") as caught:
        client.chat.completions.create(model=NAME, messages=messages, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_a_full_context_ends_the_answer(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "x" * (CONTEXT - 40)}]
    done = client.chat.completions.create(
        model=NAME, messages=messages, temperature=0, max_tokens=5000
    )
    assert done.usage is not None
    assert done.choices[0].finish_reason == "length"
    assert done.usage.total_tokens == CONTEXT + 1, "the last token is given out and never read"
