"""`diffuse serve-text`: the text encoder of a model as a service, for machines that have no room for it."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf

from diffuse.errors import ConfigError
from diffuse.run.text_encoder import open_text_encoder
from diffuse.schema import TextBackendConfig
from diffuse.service.settings import ServiceSettings
from diffuse.service.text_queue import TextQueue
from diffuse.terminal import say
from diffuse.text_backends.backend import TOKEN_VARIABLE, text_token
from diffuse.text_backends.embeddings import TextEncoder

if TYPE_CHECKING:
    import uvicorn

_BACKLOG = 128
_LIBRARIES = ("starlette", "uvicorn", "h11")
_MOST_CONNECTIONS = 2  # times the limit: those above it are told so, and those above this are closed unread
_GRACE_SECONDS = 600  # for what is being computed, and its way to the client


class TextServer:
    """A service that listens, and answers once `run` is called.

    Args:
        encoder: the text encoder.
        token: that requests must carry; None for none.
        bound: a socket with the address of `settings`; None for a new one.

    Raises:
        ConfigError: it cannot listen there.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        settings: ServiceSettings,
        token: str | None = None,
        bound: socket.socket | None = None,
    ) -> None:
        import uvicorn

        from diffuse.service.app import TextService
        from diffuse.service.connections import Connections

        self.socket = _bind(settings) if bound is None else bound
        try:
            self.socket.listen(_BACKLOG)
        except OSError as error:
            raise _unusable(settings, error) from None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self.socket.getsockname()[1]}"
        connections = Connections(settings.timeout, _MOST_CONNECTIONS * settings.max_connections)
        self.queue = TextQueue(
            lambda prompts, length: encoder.encode(prompts, length),
            capacity=settings.max_queue,
            batch_size=settings.batch_size,
        )
        self.service = TextService(self.queue, encoder.identity(), encoder.tokens, settings, token, connections)
        config = uvicorn.Config(
            self.service.app(),
            http=connections.protocol(),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self.server: uvicorn.Server = uvicorn.Server(config)
        self.queue.is_stopping = lambda: self.server.should_exit

    def run(self) -> None:
        """Answers requests until a signal, or `stop`; then finishes what is computed, and refuses what waits."""
        try:
            self.server.run(sockets=[self.socket])
        finally:
            self.socket.close()
            self.queue.close()

    def stop(self) -> None:
        """Ends `run`, which another thread has called."""
        self.server.should_exit = True


def serve_text(cfg: DictConfig, settings: ServiceSettings, show: Callable[[str], None]) -> None:
    """Serves the text encoder of the model of `cfg`, and shows the address. Ctrl-C and SIGTERM end it.

    Raises:
        ConfigError: a library is missing, others than this machine would reach it without a token, or it cannot listen.
        DiffuseError: the text encoder cannot be opened, or does not encode.
    """
    check_libraries()
    token = text_token(cast(TextBackendConfig, OmegaConf.to_object(cfg.text_backend)))
    if token is None and not settings.is_local:
        raise ConfigError(
            f"--host {settings.host}: other machines reach it, and would need no token; set {TOKEN_VARIABLE} to a "
            "secret, here and for them"
        )
    cfg.text_backend.token = None  # for the service and not for its model
    with _bind(settings) as bound:  # before the weights, which take minutes; clients are let in after them
        encoder = open_text_encoder(cfg)
        encoder.encode([""])  # loads the weights, and shows mistakes now
        server = TextServer(encoder, settings, token, bound)
        show(server.url)
        say(f"answers POST {server.url}/encode until Ctrl-C; prompts of {encoder.tokens} tokens with their padding")
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it is done
            server.run()
    say("stopped")


def check_libraries() -> None:
    """Raises ConfigError where a library of the service is missing."""
    for name in _LIBRARIES:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"diffuse serve-text: needs {name}; pip install 'diffuse[serve]'")


def _bind(settings: ServiceSettings) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise _unusable(settings, error) from None
    return listener


def _unusable(settings: ServiceSettings, error: OSError) -> ConfigError:
    reason = error.strerror or error
    return ConfigError(f"--host {settings.host} --port {settings.port}: cannot be used: {reason}; choose another")
