"""Requests through a gateway: as they are, within limits, and never left hanging."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the gateway's packages are missing: pip install compress-llm[gateway]")
import httpx

from compress.recipes.gateway import proxy
from compress.recipes.gateway.figures import Figures
from compress.recipes.gateway.rules import Rules, State

Make = Callable[..., Any]
COMPLETIONS = "/v1/completions"


def asked(tokens: int = 3, **more: object) -> dict[str, object]:
    return {"model": "m", "prompt": "p", "max_tokens": tokens, **more}


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_answer_comes_as_the_engine_gave_it_and_the_key_stays_here(stand: Make) -> None:
    here = stand(Rules(key=b"secret"))
    with httpx.Client(base_url=here.url, timeout=30) as client:
        refused = client.post(COMPLETIONS, json=asked())
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        reply = client.post(COMPLETIONS, json=asked(), headers={"Authorization": "Bearer secret", "X-Mine": "1"})
        assert reply.status_code == 200 and reply.json()["choices"][0]["text"] == "all"
        seen = {name.lower(): value for name, value in reply.json()["seen"].items()}
        assert seen["x-mine"] == "1" and "authorization" not in seen
        assert client.get("/v1/none", headers={"Authorization": "Bearer secret"}).status_code == 404


def test_a_stream_is_passed_on_as_it_comes(stand: Make) -> None:
    here = stand()
    arrivals = []
    with httpx.stream("POST", here.url + COMPLETIONS, json=asked(3, pause=0.3, stream=True), timeout=30) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        for line in reply.iter_lines():
            if line:
                arrivals.append((time.monotonic(), line))
    assert arrivals[-1][1] == "data: [DONE]" and len(arrivals) == 4
    assert arrivals[2][0] - arrivals[0][0] > 0.3  # two pauses apart at the engine


@pytest.mark.skipif(find_spec("openai") is None, reason="the client openai is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_client_of_openai_streams(stand: Make) -> None:
    from openai import OpenAI, RateLimitError

    here = stand()
    with OpenAI(base_url=f"{here.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="m", messages=[], max_tokens=3, stream=True)
        assert [event.choices[0].delta.content for event in stream] == ["0 ", "1 ", "2 "]
    full = stand(Rules(queue=0))
    with OpenAI(base_url=f"{full.url}/v1", api_key="none", max_retries=0) as client, pytest.raises(RateLimitError):
        client.completions.create(model="m", prompt="p", max_tokens=3)


def test_of_two_hundred_at_once_none_hangs_and_none_fails_but_for_want_of_room(stand: Make) -> None:
    here = stand(Rules(queue=60, parallel=16))

    async def ask(client: httpx.AsyncClient) -> tuple[int, bytes]:
        reply = await client.post(COMPLETIONS, json=asked(2, pause=0.01, stream=True))
        return reply.status_code, reply.content

    async def all_at_once() -> list[tuple[int, bytes]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=here.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(ask(client) for _ in range(200)))

    found = asyncio.run(all_at_once())
    codes = Counter(code for code, _ in found)
    assert set(codes) <= {200, 429} and codes[200] >= 60
    assert all(body.endswith(b"data: [DONE]\n\n") for code, body in found if code == 200)
    assert all(json.loads(body)["error"]["type"] == "rate_limit_error" for code, body in found if code == 429)
    counted = httpx.get(f"{here.url}/metrics").text
    for code, count in codes.items():
        assert f'compress_gateway_requests_total{{code="{code}",path="{COMPLETIONS}"}} {count}.0' in counted
    assert "compress_gateway_held 0.0" in counted and "compress_gateway_waiting 0.0" in counted
    assert httpx.post(here.url + COMPLETIONS, json=asked()).status_code == 200


def test_one_that_is_refused_may_say_all_that_it_has_to_say_first() -> None:
    """Else its connection would be reset before it has read why: an error that is no 429."""
    state = State("engine", down="")
    here = proxy.Proxy("http://127.0.0.1:9", Rules(queue=0), state, Figures(state))
    coming = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.request", "body": b"whole"}]
    events: list[object] = []

    async def receive() -> dict[str, Any]:
        events.append(coming[0]["body"])
        return coming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        events.append(message.get("status"))

    asyncio.run(here({"path": COMPLETIONS, "headers": []}, receive, send))
    assert events == [b"half", b"whole", 429, None]


def test_one_that_finds_no_room_is_told_to_come_again(stand: Make) -> None:
    here = stand(Rules(queue=0))
    reply = httpx.post(here.url + COMPLETIONS, json=asked())
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize("parallel", [None, 1])
def test_who_leaves_is_not_written_for_any_more(parallel: int | None, stand: Make) -> None:
    here = stand(Rules(parallel=parallel))
    url, slow = here.url + COMPLETIONS, asked(1000, pause=0.02, stream=True)
    with httpx.stream("POST", url, json=slow) as reply:
        lines = reply.iter_lines()  # which closes the stream when it is dropped
        next(lines)
        if parallel:  # one that waits leaves, too
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=slow, timeout=0.3)
    until(lambda: "the client left" in here.heard)
    until(lambda: "compress_gateway_held 0.0" in httpx.get(f"{here.url}/metrics").text)
    left = f'compress_gateway_requests_total{{code="499",path="{COMPLETIONS}"}} {1 + bool(parallel)}.0'
    assert left in httpx.get(f"{here.url}/metrics").text
    assert httpx.post(url, json=asked()).status_code == 200


def test_what_takes_too_long_ends(stand: Make) -> None:
    """With 504, and where an answer has begun with an event that says so."""
    here = stand(Rules(seconds=1, parallel=1))
    url, slow = here.url + COMPLETIONS, asked(1000, pause=0.05, stream=True)

    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30) as client:
            return await asyncio.gather(client.post(url, json=slow), client.post(url, json=slow))

    for reply in asyncio.run(both()):
        text = reply.text.strip().rpartition("data: ")[2]
        error = json.loads(text)["error"]
        assert error["code"] == 504 and "longer than 1 s" in error["message"]
        assert reply.status_code in (200, 504)


def test_an_engine_that_dies_is_told_of_and_the_gateway_lives(stand: Make) -> None:
    here = stand()
    url = here.url + COMPLETIONS
    with httpx.stream("POST", url, json=asked(1000, pause=0.02, stream=True), timeout=30) as reply:
        lines = reply.iter_lines()
        next(lines)
        os.kill(here.engine.pid, signal.SIGKILL)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == 502 and "engine broke off" in last
    gone = httpx.post(url, json=asked(), timeout=30)
    assert gone.status_code == 502 and "engine broke off (ConnectError)" in gone.json()["error"]["message"]
    here.state.down = "it was ended by SIGKILL"  # as whoever watches it says
    down = httpx.post(url, json=asked(), timeout=30)
    assert (down.status_code, down.headers["retry-after"]) == (503, "1")
    assert down.json()["error"]["message"] == "engine does not answer: it was ended by SIGKILL"


def test_a_piece_of_an_answer_that_is_broken_off_is_not_taken_for_the_whole(stand: Make) -> None:
    here = stand(Rules(seconds=0.3))
    with pytest.raises(httpx.HTTPError):
        # its headers come at once, its text would later
        httpx.post(here.url + COMPLETIONS, json=asked(2, pause=30), timeout=30)


def test_a_request_beyond_all_measure_is_refused(stand: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "_LARGEST", 1 << 20)
    here = stand()
    assert httpx.post(here.url + COMPLETIONS, content=b"x" * (3 << 20), timeout=30).status_code == 413


def raw(url: str, request: str) -> socket.socket:
    """The connection of a request as no client would write it, which takes in little."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.sendall(request.encode())
    return client


@pytest.mark.parametrize("path", ["/v1/../health", "/v1/a/%2e%2e/%2e%2e/health", "/v1/./models", "/v1/models#all"])
def test_nothing_of_the_engine_is_reached_but_what_lies_below_v1(path: str, stand: Make) -> None:
    here = stand()
    with raw(here.url, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as client:
        reply = client.makefile("rb").read()
        assert reply.startswith(b"HTTP/1.1 400 ") and b"invalid_request_error" in reply
    assert not [line for line in here.heard if line.startswith("asked for /") and line != "asked for /health"]
    assert httpx.get(f"{here.url}/health").status_code == 200


def test_who_never_reads_keeps_no_other_from_being_answered(stand: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.recipes.gateway.reply.LAST_SECONDS", 0.2)
    here = stand(Rules(queue=0, parallel=1, seconds=3))
    body = json.dumps(asked(1000, size=1 << 20, stream=True))
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with raw(here.url, head) as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: 'code="504"' in httpx.get(f"{here.url}/metrics").text)
        until(lambda: httpx.post(here.url + COMPLETIONS, json=asked()).status_code == 200)
        here.gateway.drain()  # nor does it hold up the end
        until(lambda: not here.gateway.runs)


def test_headers_of_one_connection_are_not_passed_on_and_none_comes_twice(stand: Make) -> None:
    here = stand()
    sent = {"Connection": "keep-alive, X-Here", "X-Here": "1", "X-There": "1"}
    answer = httpx.post(here.url + COMPLETIONS, json=asked(), headers=sent)
    seen = {name.lower() for name in answer.json()["seen"]}
    assert "x-there" in seen and "x-here" not in seen
    names = [name.lower() for name, _ in answer.headers.raw]
    assert len(names) == len(set(names))
