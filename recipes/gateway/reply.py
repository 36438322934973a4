"""One answer as it goes out, and what becomes of it when something fails half way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Headers = Iterable[tuple[bytes, bytes]]

LEFT = 499
"""What is counted where the client did not wait: nginx's number for it."""
LAST_SECONDS = 5.0
"""So long a client may take to read why it gets no more."""
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_AGAIN = (429, 503)
_STREAM = b"text/event-stream"


class Reply:
    """An answer over ASGI. `code` is its status, 0 before there is one; `began` when its first byte went out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streams = False
        self.code = 0
        self.began: float | None = None

    async def start(self, code: int, headers: Headers) -> None:
        """Its status and headers."""
        headers = list(headers)
        self.code, self.began = code, time.perf_counter()
        self._streams = any(name == b"content-type" and value.startswith(_STREAM) for name, value in headers)
        await self._send({"type": "http.response.start", "status": code, "headers": headers})

    async def body(self, data: bytes, more: bool = True) -> None:
        """A piece of it, as it came."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def fail(self, code: int, message: str) -> None:
        """An error in the form of OpenAI's API: the answer itself, or the last event of a stream that has begun.

        Another answer that has begun is broken off: the client sees that it is not whole. So does one that reads
        nothing any more, and would not be told.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self._tell(code, message)

    async def _tell(self, code: int, message: str) -> None:
        error = {"message": message, "type": _KINDS.get(code, "server_error"), "param": None, "code": code}
        data = json.dumps({"error": error}).encode()
        if self.began is None:
            again = [(b"retry-after", b"1")] if code in _AGAIN else []
            await self.start(code, [(b"content-type", b"application/json"), *again])
            await self.body(data, more=False)
        else:
            self.code = code
            if self._streams:
                await self.body(b"data: " + data + b"\n\n", more=False)
