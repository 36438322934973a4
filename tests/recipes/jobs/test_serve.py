"""An engine's server as our child: started, watched, told to end, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from made_up_engine import install

from compress.formats.errors import CompressError, RefusedError
from compress.recipes.jobs.serve import Server, address_of, free_port

HOST = "127.0.0.1"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return install(tmp_path / "engine")


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
def made(
    program: Path, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Server, str]]]:
    """made(VARIABLE=…) → a server that behaves so, not started, and its address; ended whatever happens."""
    servers = []

    def make(**variables: str) -> tuple[Server, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        port = free_port(HOST, 0)
        command = [str(program), "--host", HOST, "--port", str(port)]
        servers.append(Server("engine", command, tell=heard.append, heard=heard.append))
        return servers[-1], address_of(HOST, port)

    yield make
    for server in servers:
        server.close()


def test_it_is_waited_for_until_it_is_well(made: Callable[..., tuple[Server, str]], heard: list[str]) -> None:
    server, address = made(LOADS="2.5")
    began = time.monotonic()
    assert server.start(address, timeout=60)
    assert time.monotonic() - began > 2.5 - 0.1
    assert any(line.startswith("waiting for engine, 2 s: asked for /health") for line in heard)
    server.stop(signal.SIGTERM)
    assert server.wait() == 5


def test_without_a_health_it_is_asked_for_its_models(made: Callable[..., tuple[Server, str]]) -> None:
    server, address = made(PATHS="/v1/models")
    assert server.start(address, timeout=60)
    server.stop(signal.SIGINT)
    assert server.wait() == 5


def test_one_that_dies_before_it_answers_is_told_of_with_its_last_lines(
    made: Callable[..., tuple[Server, str]],
) -> None:
    server, address = made(MUTE="1", DIES="0.2")
    with pytest.raises(CompressError, match=r"engine ended with exit status 7 before it answered.*\n    loading"):
        server.start(address, timeout=60)


def test_the_first_error_is_told_where_many_lines_follow_it() -> None:
    said = "print('  ValueError: no memory'); [print('RuntimeError: another', n) for n in range(30)]; exit(1)"
    server = Server("engine", [sys.executable, "-c", said], tell=print, heard=print)
    with pytest.raises(CompressError, match="before it answered; its first error: ValueError: no memory; its last"):
        server.start(address_of(HOST, free_port(HOST, 0)), timeout=60)


def test_one_that_dies_later_is_not_started_again(made: Callable[..., tuple[Server, str]], heard: list[str]) -> None:
    server, address = made()
    assert server.start(address, timeout=60)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(CompressError, match="engine was ended by SIGKILL; it is not started again; its last lines"):
        server.wait()
    with pytest.raises(OSError):
        socket.create_connection((HOST, int(address.rpartition(":")[2]))).close()


def test_one_that_takes_too_long_is_ended(made: Callable[..., tuple[Server, str]]) -> None:
    server, address = made(MUTE="1")
    with pytest.raises(CompressError, match="did not answer within 1 s") as caught:
        server.start(address, timeout=1)
    assert "--timeout" in caught.value.hint
    assert server.pid is not None and not alive(server.pid)


def test_it_drains_and_a_second_signal_kills_it(made: Callable[..., tuple[Server, str]], heard: list[str]) -> None:
    server, address = made(DRAINS="100")
    assert server.start(address, timeout=60)
    server.stop(signal.SIGTERM)
    again = threading.Timer(2.5, server.stop, [signal.SIGTERM])
    again.start()
    assert server.wait() == 128 + signal.SIGKILL
    assert "draining after SIGTERM" in heard
    assert any("to finish what it answers" in line for line in heard)


def test_a_signal_while_it_loads_ends_it_without_an_error(made: Callable[..., tuple[Server, str]]) -> None:
    server, address = made(LOADS="100")
    threading.Timer(1.5, server.stop, [signal.SIGTERM]).start()
    assert not server.start(address, timeout=60)
    assert server.wait() in (5, 128 + signal.SIGTERM)  # the latter where Python itself was still loading


def test_a_signal_before_it_is_started_starts_nothing(made: Callable[..., tuple[Server, str]]) -> None:
    server, address = made()
    server.stop(signal.SIGINT)
    assert not server.start(address, timeout=60)
    assert (server.pid, server.wait()) == (None, 130)


def test_what_it_says_is_heard_once_it_answers(made: Callable[..., tuple[Server, str]], heard: list[str]) -> None:
    server, address = made()
    assert server.start(address, timeout=60)
    server.stop(signal.SIGTERM)
    server.wait()
    assert "draining after SIGTERM" in heard and not any(line.startswith("loading") for line in heard)


def test_a_program_that_does_not_start() -> None:
    server = Server("engine", ["/nowhere/engine"], tell=print, heard=print)
    with pytest.raises(CompressError, match="/nowhere/engine does not start: No such file"):
        server.start("http://127.0.0.1:1", timeout=1)


WATCHING = """
import sys
from compress.recipes.jobs.serve import Server
server = Server("engine", sys.argv[2:], tell=lambda line: None, heard=print)
assert server.start(sys.argv[1], timeout=60)
print(server.pid, flush=True)
server.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_it_ends_when_we_are_killed(program: Path, environment: Mapping[str, str]) -> None:
    port = free_port(HOST, 0)
    command = [str(program), "--host", HOST, "--port", str(port)]
    watching = [sys.executable, "-c", WATCHING, address_of(HOST, port), *command]
    with subprocess.Popen(watching, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        process.kill()
        process.stdout.read()  # until the engine, too, has closed it
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(RefusedError, match=r"cannot listen on 127\.0\.0\.1, port \d+: Address already in use"):
            free_port(HOST, taken.getsockname()[1])
    assert free_port(HOST, 0) > 0


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"192\.0\.2\.1"):  # RFC 5737: nobody's
        free_port("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (HOST, "http://127.0.0.1:8"),
        ("0.0.0.0", "http://127.0.0.1:8"),
        ("::", "http://[::1]:8"),
        ("a.b", "http://a.b:8"),
    ],
)
def test_where_it_is_reached(host: str, url: str) -> None:
    assert address_of(host, 8) == url


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
