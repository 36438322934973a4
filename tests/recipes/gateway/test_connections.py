"""Connections that lie idle: so many at most, and for so long; those that are busy are never closed for others."""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the gateway's packages are missing: pip install compress-llm[gateway]")
import httpx

from compress.formats.errors import RefusedError
from compress.recipes.gateway import server
from compress.recipes.gateway.connections import allow_files
from compress.recipes.gateway.rules import Rules

Make = Callable[..., Any]
Connect = Callable[[str], socket.socket]
SLOW = {"model": "m", "prompt": "p", "max_tokens": 10, "pause": 0.1, "stream": True}


@pytest.fixture
def connect() -> Iterator[Connect]:
    """connect(url) → a connection on which nothing was said yet."""
    with ExitStack() as stack:

        def made(url: str) -> socket.socket:
            host, _, port = url.removeprefix("http://").rpartition(":")
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=20))

        yield made


def closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it, without a word."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_those_that_say_nothing_the_oldest_make_room(stand: Make, connect: Connect) -> None:
    here = stand(Rules(queue=3, idle=5))
    with httpx.stream("POST", f"{here.url}/v1/completions", json=SLOW, timeout=30) as reply:
        lines = reply.iter_lines()
        next(lines)  # the eldest of all, and busy
        silent = [connect(here.url) for _ in range(40)]
        until(lambda: sum(map(closed, silent)) == 33)
        assert [closed(each) for each in silent] == [True] * 33 + [False] * 7
        assert httpx.get(f"{here.url}/health").status_code == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"
    until(lambda: "compress_gateway_connections 7.0" in httpx.get(f"{here.url}/metrics").text)  # that one, and six


def test_who_comes_when_all_are_busy_is_told_so(stand: Make, connect: Connect) -> None:
    here = stand(Rules(queue=1, idle=0))
    with httpx.stream("POST", f"{here.url}/v1/completions", json=SLOW, timeout=30) as reply:
        lines = reply.iter_lines()
        next(lines)
        told = connect(here.url).makefile("rb").read()
        assert told.startswith(b"HTTP/1.1 429 ") and told.endswith(b"try again later")
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert httpx.get(f"{here.url}/health").status_code == 200


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nhost: here\r\n\r\n"])
def test_one_that_never_ends_its_request_is_closed_like_one_that_says_nothing(
    stand: Make, connect: Connect, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(server, "_KEPT_SECONDS", 1)
    connection = connect(stand().url)
    if said:
        connection.sendall(said)
        assert connection.recv(12) == b"HTTP/1.1 200"
        until(lambda: connection.recv(4096).endswith(b"}"))
    began = time.monotonic()
    while not closed(connection):
        assert time.monotonic() - began < 20
        try:
            connection.sendall(b"G")  # begins a request, and goes on for ever
        except OSError:
            return  # closed
        time.sleep(0.05)


def test_files_are_allowed_as_far_as_the_system_lets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    allow_files(100)
    assert not asked
    allow_files(1000)
    assert asked == [(1064, 4096)]
    with pytest.raises(RefusedError, match=r"5,064 connections and files open, and 4,096") as caught:
        allow_files(5000)
    assert "--queue" in caught.value.hint
    assert asked == [(1064, 4096)]
