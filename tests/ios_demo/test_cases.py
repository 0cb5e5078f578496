"""What the app's core is compared with is what Hugging Face's libraries really give."""

import json
from pathlib import Path
from typing import Any, Final

import jinja2
import pytest
import torch
from tokenizers import Tokenizer
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils import chat_template_utils

CASES: Final = Path(__file__).parents[2] / "ios_demo/BundleCore/Tests/BundleCoreTests/Cases"


def cases(name: str) -> Any:  # noqa: ANN401
    return json.loads((CASES / f"{name}.json").read_text("utf-8"))


def rendered(template: str, messages: list[dict[str, Any]]) -> str | None:
    """The text, or None where the template is refused."""
    try:
        text: str = chat_template_utils._compile_jinja_template(template).render(
            messages=messages,
            tools=None,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    return text


def test_templates_render_so_in_transformers() -> None:
    every = cases("jinja")
    found = [rendered(case["template"], every["messages"]) for case in every["cases"]]
    assert found == [case["text"] for case in every["cases"]]
    assert found.count(None) > 20 and len(found) > 60


def test_pairs_merge_so_in_tokenizers() -> None:
    every = cases("bpe")
    tokenizer = Tokenizer.from_str(json.dumps(every["tokenizer"]))
    for case in every["cases"]:
        ids = tokenizer.encode(case["text"], add_special_tokens=False).ids
        assert ids == case["tokens"], case["text"]


@pytest.mark.parametrize("case", cases("sampling"), ids=lambda case: f"t{case['temperature']}")
def test_sampling_warps_so_in_transformers(case: dict[str, Any]) -> None:
    scores = torch.tensor(case["logits"])[None]
    prompt = torch.zeros((1, 1), dtype=torch.long)
    warpers: list[Any] = [TemperatureLogitsWarper(case["temperature"])]
    if case["top_k"]:
        warpers.append(TopKLogitsWarper(case["top_k"]))
    if case["top_p"] < 1:
        warpers.append(TopPLogitsWarper(case["top_p"]))
    for warper in warpers:
        scores = warper(prompt, scores)
    expected = torch.tensor(case["probabilities"], dtype=torch.double)
    assert torch.allclose(torch.softmax(scores[0].double(), -1), expected, atol=1e-6)
