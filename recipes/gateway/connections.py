"""Connections of a gateway's clients: so many at most, of which one that lies idle makes room for one that comes."""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

from compress.formats.errors import RefusedError

_OTHER_FILES = 64
"""Those of Python, of torch, of the engine's output."""
_REFUSAL = b"every connection is busy: try again later"
_FULL = (
    b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_REFUSAL), _REFUSAL)
)


class Connection(H11Protocol):  # type: ignore[misc]
    """One of `most`. It is idle while no request of it is being answered: at first, between requests, amid headers."""

    most: int

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Make room for it, or say that there is none."""
        super().connection_made(transport)
        self._rest()
        present = [each for each in self.connections if not each.transport.is_closing()]
        if len(present) <= self.most:
            return
        idle = [each for each in present if each is not self and each.idle]
        if idle:
            min(idle, key=lambda each: each.since).timeout_keep_alive_handler()
        else:
            transport.write(_FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Whoever sends half a request is waited for no longer than who sends nothing."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.idle and not self.transport.is_closing():
            self._close_later()

    def on_response_complete(self) -> None:
        """It is idle from now on, unless the next request has come already."""
        self.since = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether nothing of it is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _rest(self) -> None:
        self.since = self.loop.time()
        self._close_later()

    def _close_later(self) -> None:
        self._unset_keepalive_if_required()
        left = self.since + self.timeout_keep_alive - self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(max(0.0, left), self.timeout_keep_alive_handler)


def limited_to(most: int) -> type[Connection]:
    """What uvicorn makes of each of `most` connections."""
    return type("Limited", (Connection,), {"most": most})


def allow_files(needed: int) -> None:
    """Let this process open so many files beside its own. Raises RefusedError where the system does not."""
    needed += _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RefusedError(
            f"the gateway would have {needed:,} connections and files open, and {hard:,} are allowed",
            "a smaller --queue, or a higher limit: ulimit -n",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
