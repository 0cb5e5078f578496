"""Requests made out of the OpenAPI document: never a 500, never a hang."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from llama_edge.generate.bundle_model import BundleModel
from llama_edge.serve.answers import Answers
from llama_edge.serve.openapi import document
from llama_edge.serve.pieces import Item
from llama_edge.serve.requests import ChatCompletionRequest
from tests.serve.conftest import NAME, running

pytestmark = pytest.mark.onnx


class Short(Answers):
    """Real answers of two tokens at most."""

    def answer(self, request: ChatCompletionRequest) -> Iterator[Item]:
        return super().answer(
            msgspec.structs.replace(request, max_tokens=2, max_completion_tokens=None)
        )


@pytest.fixture(scope="module")
def url(model: BundleModel) -> Iterator[str]:
    with Short(model) as answers, running(model, answers) as server:
        yield server.url
        assert server.told == []


CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def operations(mode: GenerationMode) -> BaseSchema:
    config = schemathesis.Config()
    config.projects.default.generation.update(modes=[mode])
    return schemathesis.openapi.from_dict(msgspec.to_builtins(document()), config=config)


good = operations(GenerationMode.POSITIVE)
bad = operations(GenerationMode.NEGATIVE)


def is_asked(case: Case[Any], url: str) -> int:
    """A request with the name of the model that is there, so that it gets as far as it can."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = NAME
    response = case.call_and_validate(base_url=url, checks=CHECKS, timeout=20)
    return response.status_code


@good.parametrize()
@SETTINGS
def test_good_requests(case: Case[Any], url: str) -> None:
    assert is_asked(case, url) in (200, 400, 403, 404)


@bad.parametrize()
@SETTINGS
def test_bad_requests(case: Case[Any], url: str) -> None:
    assert is_asked(case, url) in (200, 400, 403, 404, 405, 415)
