"""Errors of the HTTP interface, in the shape that OpenAI's clients read.

Source: https://platform.openai.com/docs/guides/error-codes and the client's `_exceptions.py`.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.responses import Response

JSON_TYPE: Final = "application/json"


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every response that is an error."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        message: What, the value found, the limit and the remedy.
        status: The response's.
        param: The field of the request that is to blame.
        code: For programs.
        headers: More of them for the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> bytes:
        """JSON."""
        detail = ErrorDetail(
            message=str(self), type=_kind(self.status), param=self.param, code=self.code
        )
        return msgspec.json.encode(ErrorBody(error=detail))

    def response(self) -> Response:
        """The whole response."""
        return Response(self.body, self.status, self.headers, JSON_TYPE)


def _kind(status: HTTPStatus) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def unsupported(param: str, message: str) -> ApiError:
    """A field that would change the answer, and cannot be followed."""
    return ApiError(message, param=param, code="unsupported_parameter")


def invalid(param: str, message: str) -> ApiError:
    """A value that a field cannot have."""
    return ApiError(message, param=param, code="invalid_value")
