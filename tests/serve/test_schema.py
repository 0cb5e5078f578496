"""Requests made out of the published OpenAPI document, and out of none: never a 500, never a hang."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from schemathesis.checks import CheckFunction
from schemathesis.generation import GenerationMode

from llama_edge.generate.bundle_model import BundleModel
from llama_edge.serve.answers import Answers, Ended, Piece
from llama_edge.serve.openapi import document
from llama_edge.serve.requests import ChatCompletionRequest
from tests.serve.conftest import running

pytestmark = [pytest.mark.executorch, pytest.mark.onnx]


class Short(Answers):
    """Real answers of two tokens at most."""

    def answer(self, request: ChatCompletionRequest) -> Iterator[Piece | Ended]:
        return super().answer(
            msgspec.structs.replace(request, max_tokens=2, max_completion_tokens=None)
        )


@pytest.fixture(scope="module")
def url(model: BundleModel) -> Iterator[str]:
    with Short(model) as answers, running(model, answers) as server:
        yield server.url
        assert server.told == []


def operations(mode: GenerationMode) -> Any:  # noqa: ANN401
    config = schemathesis.Config()
    config.projects.default.generation.update(modes=[mode])
    return schemathesis.openapi.from_dict(msgspec.to_builtins(document()), config=config)


CHECKS: list[CheckFunction] = [
    schemathesis.checks.not_a_server_error,
    schemathesis.openapi.checks.status_code_conformance,
    schemathesis.openapi.checks.content_type_conformance,
    schemathesis.openapi.checks.response_schema_conformance,
]
