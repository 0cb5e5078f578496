"""Who may ask: names in `Host`, pages of other origins, keys."""

import json
from collections.abc import Iterator

import pytest

from llama_edge.core.errors import UsageError
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.serve.access import AccessConfig, is_loopback
from llama_edge.serve.server import ServerConfig
from tests.serve.conftest import NAME, Running, Scripted, asking, exchange, posted, running

pytestmark = pytest.mark.onnx

PAGE = "http://localhost:5173"


@pytest.fixture(scope="module")
def guarded(model: BundleModel) -> Iterator[Running]:
    """With a key, one name more, and one page that may ask."""
    access = AccessConfig(hosts=("Box.local",), origins=(PAGE,), api_key="s3cret")
    with running(model, Scripted(), ServerConfig(model_name=NAME, port=0, access=access)) as found:
        yield found


@pytest.fixture(scope="module")
def plain(model: BundleModel) -> Iterator[Running]:
    with running(model, Scripted()) as found:
        yield found


def status_of(server: Running, *lines: str) -> tuple[int, str | None]:
    with server.connect() as connection:
        status, _, body = exchange(connection, posted(asking("a"), *lines))
    return status, json.loads(body)["error"]["code"] if status != 200 else None


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8080", "[::1]:9", "192.168.1.2"]
)
def test_addresses_and_localhost_are_names_of_the_server(plain: Running, host: str) -> None:
    assert status_of(plain, f"Host: {host}") == (200, None)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "box.local", "a@localhost",
     "localhost:x", "[::1", "localhost/", "x" * 5000],
)  # fmt: skip
def test_other_names_are_refused(plain: Running, host: str) -> None:
    """DNS rebinding: the name of a page's own server leads here."""
    assert status_of(plain, f"Host: {host}") == (403, "host_not_allowed")


def test_no_name_and_two_names(plain: Running) -> None:
    with plain.connect() as connection:
        assert exchange(connection, b"GET /health HTTP/1.0\r\n\r\n")[0] == 403
    for lines in ("Host:", "Host: localhost\r\nHost: localhost"):
        with plain.connect() as connection:
            assert exchange(connection, posted(b"{}", lines))[0] in (400, 403)


def test_a_name_that_was_allowed(guarded: Running) -> None:
    key = "Authorization: Bearer s3cret"
    assert status_of(guarded, "Host: box.LOCAL:1", key) == (200, None)
    assert status_of(guarded, "Host: evil.example", key) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "line",
    [
        "Origin: http://evil.example",
        "Origin: null",
        f"Origin: {PAGE}",
        "Origin: http://localhost",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ],
)
def test_pages_of_other_origins_are_refused(plain: Running, line: str) -> None:
    assert status_of(plain, "Host: localhost:8080", line) == (403, "origin_not_allowed")


def test_what_is_no_page_of_others(plain: Running) -> None:
    for line in ("Origin: http://localhost:8080", "Sec-Fetch-Site: none"):
        assert status_of(plain, "Host: localhost:8080", line) == (200, None)


def test_no_page_is_told_that_it_may_ask(plain: Running) -> None:
    with plain.connect() as connection:
        data = f"OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: {PAGE}\r\n\r\n"
        status, headers, _ = exchange(connection, data.encode())
    assert status == 403
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_page_that_was_allowed(guarded: Running) -> None:
    lines = [
        "OPTIONS /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        f"Origin: {PAGE}",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization, content-type",
    ]
    with guarded.connect() as connection:
        status, headers, _ = exchange(connection, "\r\n".join([*lines, "", ""]).encode())
        assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
        data = posted(asking("a"), f"Origin: {PAGE}", "Authorization: Bearer s3cret")
        status, headers, _ = exchange(connection, data)
        assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
    key = "Authorization: Bearer s3cret"
    assert status_of(guarded, "Origin: http://evil.example", key) == (403, "origin_not_allowed")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret",
                                   "Bearer s3cret2", "Bearer \xe9"])  # fmt: skip
def test_a_key_is_asked_for(guarded: Running, value: str) -> None:
    assert status_of(guarded, f"Authorization: {value}x"[:-1]) == (401, "invalid_api_key")


def test_the_key_and_what_needs_none(guarded: Running) -> None:
    assert status_of(guarded, "Authorization: bearer  s3cret") == (200, None)
    with guarded.connect() as connection:
        for path, status in (("/health", 200), ("/v1/models", 401), ("/openapi.json", 401)):
            data = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            assert exchange(connection, data.encode())[0] == status


@pytest.mark.parametrize("origin", ["*", "localhost", "http://a/", "http://a/b", "http://", ""])
def test_an_origin_that_is_none(origin: str) -> None:
    with pytest.raises(UsageError, match="give scheme, host and port"):
        AccessConfig(origins=(origin,))


@pytest.mark.parametrize("key", ["", "a b", "\n", "\xe9"])
def test_a_key_that_no_header_can_have(key: str) -> None:
    with pytest.raises(UsageError, match="API key"):
        AccessConfig(api_key=key)


def test_hosts_that_others_reach_have_to_be_meant() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        assert not is_loopback(host)
        with pytest.raises(UsageError, match="--expose"):
            ServerConfig(model_name=NAME, host=host)
        assert not ServerConfig(model_name=NAME, host=host, expose=True).is_local
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert ServerConfig(model_name=NAME, host=host).is_local
