"""Requests on their way to an engine and back: as they are, if the rules let them in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx

from compress.recipes.gateway.figures import Figures
from compress.recipes.gateway.reply import LEFT, Headers, Receive, Reply, Send
from compress.recipes.gateway.rules import Rules, State

_LARGEST = 32 << 20
"""Bytes of a request: pictures travel in them."""
_REFUSED_SECONDS = 5.0
_HOP = (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
"""Headers of one connection only, as are those that `connection` names (RFC 9110, section 7.6.1)."""
_OURS = (b"host", b"content-length", b"authorization", b"accept-encoding")
"""Headers of a request that are another's towards the engine."""
_DATE = b"date"
"""A header of an answer that the gateway's server writes itself."""


class _Left(Exception):
    """The client did not wait."""


class _TooLarge(Exception):
    """Nobody asks so much."""


class Proxy:
    """An ASGI application that asks the engine at `upstream`, over connections of one request each."""

    def __init__(self, upstream: str, rules: Rules, state: State, figures: Figures) -> None:
        self._upstream, self._rules, self._state, self._figures = upstream, rules, state, figures
        self._held = 0
        self._slots = asyncio.Semaphore(rules.parallel) if rules.parallel else None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Requests are passed on within."""
        # An engine may close a connection that is kept just as it is used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self._upstream, timeout=None, limits=limits, trust_env=False) as client:
            self._client = client
            yield

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = Reply(send)
        with self._figures.counted(scope["path"], reply):
            if refusal := self._refusal(dict(scope["headers"])):
                await _read_past(receive)
                await reply.fail(*refusal)
            else:
                with self._holding():
                    await self._within_limits(scope, receive, reply)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> tuple[int, str] | None:
        """Why nobody is let in, or not with these headers, or not now."""
        if not self._rules.admits(headers.get(b"authorization", b"")):
            return 401, "this server wants a key: Authorization: Bearer KEY"
        if self._state.down:
            return 503, f"{self._state.engine} does not answer: {self._state.down}"
        if self._held >= self._rules.room:
            return 429, f"{self._held} requests are being answered or wait: try again later"
        return None

    @contextmanager
    def _holding(self) -> Iterator[None]:
        self._held += 1
        self._figures.held.set(self._held)
        try:
            yield
        finally:
            self._held -= 1
            self._figures.held.set(self._held)

    async def _within_limits(self, scope: Mapping[str, Any], receive: Receive, reply: Reply) -> None:
        try:
            async with asyncio.timeout(self._rules.seconds):
                body = await _body(receive)
                await _unless_left(self._pass(scope, body, reply), receive)
        except TimeoutError:
            await reply.fail(504, f"the answer took longer than {self._rules.seconds:g} s")
        except _Left:
            reply.code = LEFT
        except _TooLarge:
            await reply.fail(413, f"the request is larger than {_LARGEST >> 20} MiB")
        except httpx.InvalidURL as error:
            await reply.fail(400, f"there is no such path: {error}")
        except httpx.HTTPError as error:
            told = f": {error}" if str(error) else ""
            await reply.fail(502, f"{self._state.engine} broke off ({type(error).__name__}){told}")

    async def _pass(self, scope: Mapping[str, Any], body: bytes, reply: Reply) -> None:
        """Ask, and hand on what comes, as it comes. Whoever cancels this closes the engine's connection."""
        headers = _passed(scope["headers"], _OURS)
        request = self._client.build_request(scope["method"], _target(scope), headers=headers, content=body)
        async with self._slot():
            response = await self._client.send(request, stream=True)
            try:
                found = [(name.lower(), value) for name, value in response.headers.raw]
                await reply.start(response.status_code, _passed(found, (_DATE,)))
                async for piece in response.aiter_raw():
                    await reply.body(piece)
                await reply.body(b"", more=False)
            finally:
                await response.aclose()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """One of those that the engine answers at once."""
        if self._slots is None:
            yield
            return
        with self._figures.waiting.track_inprogress():
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()


def _target(scope: Mapping[str, Any]) -> httpx.URL:
    """What a request asks for, as it was sent. Raises httpx.InvalidURL.

    Dots for parts would lead out of what is asked through the gateway: httpx resolves them, engines may.
    """
    if {".", ".."} & set(scope["path"].split("/")):
        raise httpx.InvalidURL("its parts are names, not dots")
    return httpx.URL(raw_path=scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b""))


def _passed(headers: Headers, ours: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers, named in small letters, that are neither of one connection nor `ours`."""
    headers = list(headers)
    named = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    stay = {*_HOP, *ours, *(name.strip() for name in named)}
    return [(name, value) for name, value in headers if name not in stay]


async def _read_past(receive: Receive) -> None:
    """Let a request that is refused be sent: to close on one that is not resets the connection, refusal and all."""
    with suppress(TimeoutError, _Left, _TooLarge):
        async with asyncio.timeout(_REFUSED_SECONDS):
            async for _ in _pieces(receive):
                pass


async def _body(receive: Receive) -> bytes:
    """All of a request's. Raises _Left and _TooLarge."""
    return b"".join([piece async for piece in _pieces(receive)])


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > _LARGEST:
            raise _TooLarge
        yield piece


async def _unless_left(answer: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Carry `answer` out. Raises _Left, and it is cancelled, as soon as the client is gone."""
    answering, leaving = asyncio.create_task(answer), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise _Left
        await answering
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
