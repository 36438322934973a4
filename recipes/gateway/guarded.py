"""An engine behind its gateway: the gateway stays when the engine dies, says so, and ends only when it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable

from compress.formats.errors import CompressError
from compress.recipes.gateway.server import Gateway
from compress.recipes.jobs.serve import Server

_POLL_SECONDS = 0.1


class Guarded:
    """The engine that `made` makes, started again `restarts` times at most if it dies, and never without a word."""

    def __init__(
        self, gateway: Gateway, made: Callable[[], Server], restarts: int, tell: Callable[[str], None]
    ) -> None:
        self._gateway, self._made, self._left, self._tell = gateway, made, restarts, tell
        self._server = made()
        self._asked = 0
        self._died = self._engine_told = False

    @property
    def pid(self) -> int | None:
        """The engine's process, once it was started."""
        return self._server.pid

    def stop(self, number: int) -> None:
        """At the first signal the gateway drains, and then the engine is told; the second breaks off what is answered.

        Safe within a handler of signals.
        """
        if self._asked:
            self._gateway.abandon()
        self._gateway.drain()
        if self._asked or self._gateway.state.down:
            self._tell_engine(number)
        self._asked = number

    def start(self, address: str, timeout: float) -> bool:
        """Listen, and start the engine, which will answer at `address`; False if it was told to stop meanwhile.

        Raises CompressError as the engine's `Server` does.
        """
        self._where = address, timeout
        self._gateway.start()
        answers = self._server.start(address, timeout)
        self._gateway.state.down = "" if answers else "it was told to stop"
        return answers

    def wait(self) -> int:
        """Wait until all has ended; the engine's exit status, 1 if it had died before.

        Raises CompressError if the gateway ends and nobody told it to.
        """
        while not self._told():
            if not self._gateway.runs and not self._told():
                raise CompressError("the gateway has ended by itself", "COMPRESS_DEBUG=1 shows why")
            if not self._died and (error := self._server.ended()):
                self._start_again(error)
            time.sleep(_POLL_SECONDS)
        while self._gateway.runs:
            time.sleep(_POLL_SECONDS)
        if self._died or (not self._engine_told and self._server.ended()):
            return CompressError.exit_code
        if not self._engine_told:
            self._tell_engine(self._asked)
        return self._server.wait()

    def close(self) -> None:
        """Nothing of either runs when this returns."""
        self._gateway.close()
        self._server.close()

    def _tell_engine(self, number: int) -> None:
        self._engine_told = True
        self._server.stop(number)

    def _told(self) -> bool:
        """Whether a signal has come; a call, for it comes at any time."""
        return bool(self._asked)

    def _start_again(self, error: CompressError) -> None:
        """As often as is left; then it stays down."""
        state = self._gateway.state
        while not self._told():
            state.down = str(error).partition("; its last lines")[0]
            self._died = not self._left
            after = "is started again" if self._left else "is not started again: requests are answered with 503"
            self._tell(f"error: {error}\n{state.engine} {after}")
            if self._died:
                return
            self._left -= 1
            state.restarts += 1
            self._server = self._made()
            if self._told():  # meanwhile
                self._server.stop(self._asked)
            try:
                if self._server.start(*self._where):
                    state.down = ""
                    self._tell(f"{state.engine} answers again")
                return
            except CompressError as again:
                error = again
