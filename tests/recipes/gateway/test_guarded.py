"""An engine and its gateway, watched together: what dies, what stays, what is told, and how it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the gateway's packages are missing: pip install compress-llm[gateway]")
import httpx
from made_up_engine import install

from compress.formats.errors import CompressError
from compress.recipes.gateway.guarded import Guarded
from compress.recipes.gateway.rules import Rules, State
from compress.recipes.gateway.server import Gateway
from compress.recipes.jobs.serve import Server, address_of, free_port

HOST = "127.0.0.1"


class Watched:
    """A guarded engine; `serve` stays with it, as the command does, while a thread may `act`."""

    def __init__(self, program: Path, restarts: int) -> None:
        ports = free_port(HOST, 0), free_port(HOST, 0)
        self.url, self.engine = address_of(HOST, ports[1]), address_of(HOST, ports[0])
        command = [str(program), "--host", HOST, "--port", str(ports[0])]
        self.told: list[str] = []
        self.state = State("engine")

        def made() -> Server:
            return Server("engine", command, tell=self.told.append, heard=self.told.append)

        gateway = Gateway(self.engine, HOST, ports[1], Rules(), self.state)
        self.guarded = Guarded(gateway, made, restarts, self.told.append)

    def serve(self, act: Callable[[], None], before: bool = False) -> int:
        """Its exit status; `act` is called once it answers, or `before`."""
        acting = threading.Thread(target=act)
        if before:
            acting.start()
        answers = self.guarded.start(self.engine, 60)
        if not before:
            assert answers
            acting.start()
        try:
            return self.guarded.wait()
        finally:
            acting.join()

    def until(self, status: int) -> httpx.Response:
        """Its health, once it has that status."""
        deadline = time.monotonic() + 30
        while (found := health(self.url)) is None or found.status_code != status:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    def kill(self) -> None:
        assert self.guarded.pid is not None
        os.kill(self.guarded.pid, signal.SIGKILL)


def health(url: str) -> httpx.Response | None:
    try:
        return httpx.get(f"{url}/health")
    except httpx.ConnectError:
        return None


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """watched(restarts) → not started; ended whatever happens."""
    made: list[Watched] = []

    def make(restarts: int = 0) -> Watched:
        made.append(Watched(install(tmp_path / "engine"), restarts))
        return made[-1]

    yield make
    for each in made:
        each.guarded.close()


def test_told_to_stop_it_answers_what_it_has_begun_and_then_the_engine_is_told(watched: Callable[..., Watched]) -> None:
    here, found = watched(), []

    def act() -> None:
        body = {"model": "m", "prompt": "p", "max_tokens": 10, "pause": 0.1, "stream": True}
        with httpx.stream("POST", f"{here.url}/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            here.guarded.stop(signal.SIGTERM)
            found.extend(line for line in lines if line)

    assert here.serve(act) == 5  # the engine's own
    assert found[-1] == "data: [DONE]" and "draining after SIGTERM" in here.told


def test_when_the_engine_dies_the_gateway_says_so_until_it_is_told_to_stop(watched: Callable[..., Watched]) -> None:
    here, found = watched(), []

    def act() -> None:
        here.kill()
        found.append(here.until(503).json())
        found.append(httpx.post(f"{here.url}/v1/completions", json={}).status_code)
        here.guarded.stop(signal.SIGTERM)

    assert here.serve(act) == CompressError.exit_code
    assert found == [{"status": "down", "engine": "engine", "reason": "engine was ended by SIGKILL"}, 503]
    (said,) = [line for line in here.told if line.startswith("error:")]
    assert "is not started again: requests are answered with 503" in said and "loading" in said


def test_it_is_started_again_as_often_as_was_allowed_and_never_without_a_word(watched: Callable[..., Watched]) -> None:
    here, figures = watched(1), []

    def act() -> None:
        here.kill()
        here.until(503)
        here.until(200)
        figures.append(httpx.get(f"{here.url}/metrics").text)
        here.kill()
        here.until(503)
        here.guarded.stop(signal.SIGTERM)

    assert here.serve(act) == CompressError.exit_code
    assert "compress_gateway_engine_restarts 1.0" in figures[0]
    said = [line.splitlines()[-1] for line in here.told if line.startswith("error:")]
    assert said == ["engine is started again", "engine is not started again: requests are answered with 503"]
    assert "engine answers again" in here.told


def test_while_it_loads_the_gateway_says_so_and_one_signal_ends_both(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADS", "100")
    here, found = watched(), []

    def act() -> None:
        found.append(here.until(503).json()["reason"])
        while not any("loading" in line or "asked for" in line for line in here.told):
            time.sleep(0.05)  # it has its handlers of signals by now
        here.guarded.stop(signal.SIGTERM)

    assert here.serve(act, before=True) in (5, 128 + signal.SIGTERM)
    assert found == ["it is being started"]


def test_two_signals_break_off_what_is_answered(watched: Callable[..., Watched]) -> None:
    here, found = watched(), []

    def act() -> None:
        body = {"model": "m", "prompt": "p", "max_tokens": 1000, "pause": 0.1, "stream": True}
        with suppress(httpx.HTTPError), httpx.stream("POST", f"{here.url}/v1/completions", json=body) as reply:
            for line in reply.iter_lines():
                if not found:
                    here.guarded.stop(signal.SIGTERM)
                    here.guarded.stop(signal.SIGTERM)
                found.append(line)

    assert here.serve(act) == 5
    assert found and "data: [DONE]" not in found


def test_a_gateway_that_ends_by_itself_is_told_of(watched: Callable[..., Watched]) -> None:
    here = watched()
    with pytest.raises(CompressError, match="gateway has ended"):
        here.serve(here.guarded._gateway.abandon)
