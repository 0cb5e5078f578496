"""Who may ask: what stands before every request, against other users and against web pages.

A page that a person visits can send requests to this machine, and a name of its own that leads to
127.0.0.1 makes them its own origin (DNS rebinding). So names in `Host` are those that are known;
an address cannot be rebound. Requests of pages of other origins are refused unless allowed.
"""

import hmac
import ipaddress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_edge.core.errors import UsageError
from llama_edge.serve.errors import ApiError

_LOOPBACK_NAME: Final = "localhost"
#: Asked for by what watches a server, which has no key.
OPEN_PATHS: Final = ("/health",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessConfig:
    """Who may ask.

    Raises:
        UsageError: An origin or a key that no request can have.
    """

    #: names in `Host` besides addresses and localhost
    hosts: tuple[str, ...] = ()
    #: origins of web pages that may ask, such as http://localhost:5173
    origins: tuple[str, ...] = ()
    #: None: no key is asked for
    api_key: str | None = None

    def __post_init__(self) -> None:
        for origin in self.origins:
            parts = urlsplit(origin)
            if origin != f"{parts.scheme}://{parts.netloc}" or not parts.netloc:
                raise UsageError(
                    f"the origin {origin!r} is none; give scheme, host and port, as in "
                    "http://localhost:5173"
                )
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise UsageError("the API key is empty, or has other characters than visible ASCII")


OPEN: Final = AccessConfig()


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach it."""
    if host == _LOOPBACK_NAME:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Answers what may not ask, and passes on the rest.

    Args:
        app: What is asked.
        config: Who may ask it.
    """

    def __init__(self, app: ASGIApp, config: AccessConfig) -> None:
        self._app = app
        self._config = config
        self._hosts = {_LOOPBACK_NAME, *(name.lower() for name in config.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Access`."""
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or not (name in self._hosts or _is_address(name)):
            raise ApiError(
                f"the request is for the host {', '.join(hosts)[:100]!r}, which is not this "
                "server's name; use its address, or start it with --allow-host",
                status=HTTPStatus.FORBIDDEN,
                code="host_not_allowed",
            )
        self._check_origin(hosts[0], headers)
        if self._config.api_key is not None and path not in OPEN_PATHS:
            self._check_key(headers.get("authorization", ""), self._config.api_key)

    def _check_origin(self, host: str, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None:
            is_foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        else:
            is_foreign = origin not in (*self._config.origins, f"http://{host}", f"https://{host}")
        if is_foreign:
            raise ApiError(
                f"pages of {(origin or 'another site')[:100]!r} may not ask this server; start it "
                "with --allow-origin if they should",
                status=HTTPStatus.FORBIDDEN,
                code="origin_not_allowed",
            )

    def _check_key(self, authorization: str, key: str) -> None:
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), key.encode())
        if scheme.lower() != "bearer" or not same:
            raise ApiError(
                "the API key is missing or wrong; send the server's as `Authorization: Bearer KEY`",
                status=HTTPStatus.UNAUTHORIZED,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _host_name(host: str) -> str | None:
    """Without the port; None: it is no host."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
