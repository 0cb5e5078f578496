"""The OpenAPI document of the HTTP interface, made out of the types that it reads and writes."""

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from llama_edge import __version__
from llama_edge.serve.errors import JSON_TYPE, ErrorBody
from llama_edge.serve.replies import Chunk, Completion, Health, ModelCard, ModelList
from llama_edge.serve.requests import ChatCompletionRequest

_TYPES: Final = (
    ChatCompletionRequest,
    Completion,
    Chunk,
    ModelList,
    ModelCard,
    Health,
    ErrorBody,
)
_ALWAYS: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_OF_A_BODY: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)


@cache
def document() -> Mapping[str, Any]:
    """OpenAPI 3.1."""
    schemas, components = msgspec.json.schema_components(
        _TYPES, ref_template="#/components/schemas/{name}"
    )
    of = dict(zip(_TYPES, schemas, strict=True))

    def content(kind: type[msgspec.Struct]) -> dict[str, Any]:
        return {JSON_TYPE: {"schema": of[kind]}}

    def responses(
        good: dict[str, Any], statuses: tuple[HTTPStatus, ...] = ()
    ) -> dict[str, dict[str, Any]]:
        errors = {
            str(status.value): {"description": status.phrase, "content": content(ErrorBody)}
            for status in (*_ALWAYS, *statuses)
        }
        return {"200": {"description": "OK", "content": good}, **dict(sorted(errors.items()))}

    stream = {"schema": {"type": "string", "description": "Chunk objects, then [DONE]"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "llama-edge serve", "version": __version__},
        "paths": {
            "/v1/chat/completions": {
                "post": {
                    "operationId": "createChatCompletion",
                    "requestBody": {"required": True, "content": content(ChatCompletionRequest)},
                    "responses": responses(
                        {**content(Completion), "text/event-stream": stream}, _OF_A_BODY
                    ),
                }
            },
            "/v1/models": {
                "get": {"operationId": "listModels", "responses": responses(content(ModelList))}
            },
            "/v1/models/{model}": {
                "get": {
                    "operationId": "retrieveModel",
                    "parameters": [
                        {
                            "name": "model",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string"},
                        }
                    ],
                    "responses": responses(content(ModelCard), (HTTPStatus.NOT_FOUND,)),
                }
            },
            "/health": {"get": {"operationId": "health", "responses": responses(content(Health))}},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
