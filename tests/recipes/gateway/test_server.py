"""A gateway as a server: its health, its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the gateway's packages are missing: pip install compress-llm[gateway]")
import httpx

from compress.formats.errors import RefusedError
from compress.recipes.gateway.rules import Rules, State
from compress.recipes.gateway.server import Gateway

Make = Callable[..., Any]
SLOW = {"model": "m", "prompt": "p", "max_tokens": 10, "pause": 0.1, "stream": True}


def test_health_and_figures(stand: Make) -> None:
    here = stand(Rules(key="schlüssel".encode()))
    assert httpx.get(f"{here.url}/health").json() == {"status": "ok", "engine": "engine"}
    here.state.down = "it is gone"
    health = httpx.get(f"{here.url}/health")
    assert health.status_code == 503 and health.json()["reason"] == "it is gone"
    assert httpx.get(f"{here.url}/metrics").status_code == 401
    figures = httpx.get(f"{here.url}/metrics", headers={"Authorization": "Bearer schlüssel".encode()})
    assert figures.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "compress_gateway_engine_up 0.0" in figures.text
    assert httpx.get(f"{here.url}/docs").status_code == 404


def test_told_to_drain_it_answers_what_it_has_begun_and_ends(stand: Make) -> None:
    here = stand()
    with httpx.stream("POST", f"{here.url}/v1/completions", json=SLOW, timeout=30) as reply:
        lines = reply.iter_lines()
        next(lines)
        here.gateway.drain()
        time.sleep(0.4)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{here.url}/health")
        assert [line for line in lines if line][-1] == "data: [DONE]"
    here.gateway._thread.join(20)
    assert not here.gateway.runs


def test_told_twice_it_breaks_off(stand: Make) -> None:
    here = stand()
    threading.Timer(0.5, here.gateway.abandon).start()
    with (
        pytest.raises(httpx.HTTPError),
        httpx.stream("POST", f"{here.url}/v1/completions", json={**SLOW, "max_tokens": 1000}, timeout=30) as reply,
    ):
        reply.read()
    here.gateway._thread.join(20)
    assert not here.gateway.runs


def test_a_port_that_is_taken_is_refused(stand: Make) -> None:
    here = stand()
    with pytest.raises(RefusedError, match="cannot listen on 127"):
        Gateway("http://127.0.0.1:1", "127.0.0.1", int(here.url.rpartition(":")[2]), Rules(), State("engine"))


def test_a_host_that_there_is_not_is_refused() -> None:
    with pytest.raises(RefusedError, match="cannot listen on nowhere"):
        Gateway("http://127.0.0.1:1", "nowhere.invalid", 0, Rules(), State("engine"))
