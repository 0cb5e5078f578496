"""A server of one bundle, from the socket to the last answer."""

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama_edge.core.errors import LlamaEdgeError, UsageError
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.serve.access import OPEN, AccessConfig, is_loopback
from llama_edge.serve.answers import Answers
from llama_edge.serve.app import AnswersRequests, Endpoint, Served, http_app
from llama_edge.serve.turns import DEFAULT_MAX_WAITING, Turns

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8080
#: For the lines of a request before its body.
HEADERS_S: Final = 10.0
#: What runs when the server is asked to end has so long.
GRACE_S: Final = 10
#: Each has a descriptor, of which a process has 1,024 on most systems.
MAX_CONNECTIONS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where a server listens, and whom it answers.

    Raises:
        UsageError: The host is reached from other machines, and `expose` does not say so.
    """

    #: by which requests ask for the model
    model_name: str
    host: str = DEFAULT_HOST
    #: 0: one that is free
    port: int = DEFAULT_PORT
    #: other machines may ask
    expose: bool = False
    access: AccessConfig = OPEN
    max_waiting: int = DEFAULT_MAX_WAITING

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"the port is {self.port}; it must be between 0 and 65535")
        if not self.is_local and not self.expose:
            raise UsageError(
                f"the host {self.host!r} is reached from other machines, where everybody could use "
                "the model: add --expose if that is meant, and --api-key"
            )

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can ask."""
        return is_loopback(self.host)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; clients wait until the model is loaded.

    Raises:
        UsageError: The host is none of this machine's, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"the host {host!r} is not known: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        remedy = "; choose another --port" if error.errno == errno.EADDRINUSE else ""
        raise UsageError(f"{host}, port {port}: {error.strerror}{remedy}") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """What a client is told."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve_http(
    opens: Callable[[], Answers],
    model: BundleModel,
    config: ServerConfig,
    *,
    ready: Callable[[str], None],
    told: Callable[[LlamaEdgeError], None],
) -> None:
    """Answer requests until SIGINT or SIGTERM; a second one ends it at once.

    Args:
        opens: Loads what answers, once the address is known to be free.
        model: Of which it answers.
        config: Where, and whom.
        ready: Called with the address when requests are answered.
        told: Hears errors that are the server's own.

    Raises:
        UsageError: The address cannot be had.
        SessionError: The runtime refuses the artifact.
        RuntimeCrashError: It died or hung while it opened.
    """
    with closing(bind(config.host, config.port)) as listener, opens() as answers:
        server = BundleServer(model, answers, config, told)
        ready(address_of(listener))
        server.run([listener])


class BundleServer(Server):
    """uvicorn's server, which ends when it is asked to, and in good order."""

    def __init__(
        self,
        model: BundleModel,
        answers: AnswersRequests,
        config: ServerConfig,
        told: Callable[[LlamaEdgeError], None],
    ) -> None:
        self._turns = Turns(config.max_waiting)
        served = Served.of(model.manifest, config.model_name)
        endpoint = Endpoint(served, answers, self._turns, told)
        access = config.access
        if not config.is_local and config.host:
            access = AccessConfig(
                hosts=(*access.hosts, config.host),
                origins=access.origins,
                api_key=access.api_key,
            )
        super().__init__(
            Config(
                http_app(endpoint, access),
                http=_Protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=GRACE_S,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends it in good order, and is not raised again after that."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The turn that runs has some seconds; those that wait are sent away."""
        self._turns.stop()
        await super().shutdown(sockets)
        if not self.force_exit:
            await asyncio.to_thread(self._turns.close)


class _Protocol(H11Protocol):
    """Closes a connection whose request does not come: uvicorn itself would wait for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Whether a whole head has come."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._wait_no_longer()

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self.transport.close)

    def _wait_no_longer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
