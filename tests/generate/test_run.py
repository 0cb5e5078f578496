from collections.abc import Mapping

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import UsageError
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.run import PromptRequest, Run
from llama_edge.text.generate import SamplingConfig, StopReason


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_streams_as_many_tokens_as_asked(debug_bundles: Mapping[str, Bundle], target: str) -> None:
    request = PromptRequest(prompt="the rain", config=AnswerConfig(max_new_tokens=12))
    answer = Run(debug_bundles[target].root, request)
    text = "".join(answer)
    assert text
    assert answer.new_tokens <= 12
    assert answer.stop_reason in (StopReason.MAX_NEW_TOKENS, StopReason.EOS)


def test_greedy_is_repeatable_and_seeds_differ(debug_bundles: Mapping[str, Bundle]) -> None:
    def text(sampling: SamplingConfig) -> str:
        request = PromptRequest(
            prompt="the rain", config=AnswerConfig(max_new_tokens=24, sampling=sampling)
        )
        return "".join(Run(debug_bundles["onnx"].root, request))

    greedy = SamplingConfig()
    assert text(greedy) == text(greedy)
    warm = SamplingConfig(temperature=1.0, seed=1)
    assert text(warm) == text(warm)
    assert text(warm) != text(SamplingConfig(temperature=1.0, seed=2))


def test_raw_leaves_the_template_out(debug_bundles: Mapping[str, Bundle]) -> None:
    root = debug_bundles["onnx"].root
    raw = Run(root, PromptRequest(prompt="the rain", raw=True))
    chat = Run(root, PromptRequest(prompt="the rain"))
    system = Run(root, PromptRequest(prompt="the rain", system="Be brief."))
    assert raw.prompt_tokens < chat.prompt_tokens < system.prompt_tokens


def test_a_system_prompt_needs_the_template() -> None:
    with pytest.raises(UsageError, match="leave out --raw or --system"):
        PromptRequest(prompt="a", raw=True, system="b")


def test_at_least_one_token_is_asked_for() -> None:
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        AnswerConfig(max_new_tokens=0)


def test_an_empty_stop_sequence_is_refused() -> None:
    with pytest.raises(UsageError, match="a stop sequence is empty"):
        AnswerConfig(stops=("a", ""))
