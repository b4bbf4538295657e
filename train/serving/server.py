"""Listen at an address until Ctrl-C."""

import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from .answers import Answers


class Server(uvicorn.Server):
    """Says when it is ready, and ends answers when it is stopped instead of waiting for them."""

    def __init__(self, config: uvicorn.Config, answers: Answers, when_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.answers, self.when_ready = answers, when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        self.when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all answers and close all connections."""
        for answer in list(self.answers.running):
            answer.cancel()
            answer.finish(error="the server was stopped")
        await super().shutdown(sockets)


def serve(app: Any, listener: socket.socket, answers: Answers, when_ready: Callable[[], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Server(config, answers, when_ready).run([listener])
    except KeyboardInterrupt:  # how uvicorn reports after its shutdown that it was stopped
        return
