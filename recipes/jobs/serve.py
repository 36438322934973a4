"""An engine's server as a child of ours: started, watched until it answers, told to end, never started again."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from compress.formats.errors import CompressError, RefusedError

_KEPT = 20
"""Lines of an engine that are shown when it ends."""
_POLL_SECONDS = 0.1
_SAY_SECONDS = 2.0
_REPLY_SECONDS = 5.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is behind no proxy
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_ERROR = re.compile(r"\b[A-Z]\w*(Error|Exception): .*\S")
"""The last line of a traceback of Python's."""
_ENDS_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def free_port(host: str, port: int) -> int:
    """`port` if nothing listens there on `host`, and one that is free for 0. Raises RefusedError if it is taken."""
    with bound(host, port) as probe:
        return int(probe.getsockname()[1])


def bound(host: str, port: int) -> socket.socket:
    """A socket that has `port` on `host`, and does not listen yet. Raises RefusedError if it cannot be had."""
    with ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            found = stack.enter_context(socket.socket(family, kind, protocol))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError as error:
            hint = "--port 0 takes one that is free; --host is an address of this machine"
            raise RefusedError(f"cannot listen on {host}, port {port}: {error.strerror}", hint) from error
        stack.pop_all()
    return found


def address_of(host: str, port: int) -> str:
    """The URL at which this machine reaches a server that listens on `host`."""
    host = _EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """The `command` of an `engine`, in a process group of its own, so that a terminal's signals reach it through us.

    `tell` hears how it is while one waits, `heard` each of its lines once it answers.
    """

    def __init__(
        self, engine: str, command: Sequence[str], *, tell: Callable[[str], None], heard: Callable[[str], None]
    ) -> None:
        self.engine, self.command, self._tell, self._heard = engine, command, tell, heard
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._cause = ""
        self._asked = 0
        self._answers = False
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """Its process, once it was started."""
        return self._process.pid if self._process else None

    def stop(self, number: int) -> None:
        """Pass a signal on; at the second one it is killed. Safe within a handler of signals."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if self._asked else number)
        self._asked = number

    def start(self, address: str, timeout: float) -> bool:
        """Start it and wait until it answers at `address`; False if it was told to stop meanwhile.

        `timeout` is in seconds. Raises CompressError with its last lines if it ends, or takes longer: it is killed.
        """
        if self._told():
            return False
        began = said = time.monotonic()
        process = self._process = self._started()
        if self._told():  # while it was being started
            process.send_signal(self._asked)
        while not self._told() and process.poll() is None:
            if _answers(address):
                self._answers = True
                return True
            now = time.monotonic()
            if now - began > timeout:
                self._end()
                raise self._error(f"{self.engine} did not answer within {timeout:.0f} s", "give it a longer --timeout")
            if now - said >= _SAY_SECONDS:
                said = now
                last = f": {self._lines[-1]}" if self._lines else ""
                self._tell(f"waiting for {self.engine}, {now - began:.0f} s{last}")
            time.sleep(_POLL_SECONDS)
        if self._told():
            return False
        self._end()
        raise self._error(f"{self.engine} {_how(process.returncode)} before it answered")

    def wait(self) -> int:
        """Wait until it has ended; its exit status, as a shell tells it.

        Raises CompressError with its last lines if nobody told it to.
        """
        process, said = self._process, time.monotonic()
        if process is None:
            return 128 + self._asked
        while process.poll() is None:
            if self._told() and time.monotonic() - said >= _SAY_SECONDS:
                said = time.monotonic()
                self._tell(f"waiting for {self.engine} to finish what it answers; the second signal kills it")
            time.sleep(_POLL_SECONDS)
        self._end()
        if not self._told():
            raise self._error(f"{self.engine} {_how(process.returncode)}; it is not started again")
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def ended(self) -> CompressError | None:
        """How it has ended, with its last lines; None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        self._end()
        return self._error(f"{self.engine} {_how(self._process.returncode)}")

    def close(self) -> None:
        """Nothing of it runs when this returns."""
        if self._process is not None:
            self._end()

    def _told(self) -> bool:
        """Whether a signal has come; a call, for it comes at any time."""
        return bool(self._asked)

    def _started(self) -> subprocess.Popen[str]:
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                process_group=0,
                preexec_fn=_with_parent(),
            )
        except OSError as error:
            raise CompressError(f"{self.command[0]} does not start: {error.strerror}") from error
        self._reader = threading.Thread(target=self._read, args=(process,), name="engine", daemon=True)
        self._reader.start()
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        with process.stdout as said:
            for line in said:
                self._lines.append(line.rstrip())
                if not (self._answers or self._cause) and (found := _ERROR.search(line)):
                    self._cause = found[0]
                if self._answers:
                    self._heard(line.rstrip())

    def _end(self) -> None:
        """End what is left of its group, and read what it still said."""
        assert self._process
        with suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies is not to be told
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(_REPLY_SECONDS)

    def _error(self, message: str, hint: str = "") -> CompressError:
        lines = "\n".join(f"    {line}" for line in self._lines)
        # Of several processes, one ends because of another, and says more of it than that one did.
        hidden = self._cause and not self._answers and self._cause not in lines
        cause = f"; its first error: {self._cause}" if hidden else ""
        told = f"{message}{cause}; its last lines:\n{lines}" if lines else f"{message}, without a word"
        return CompressError(told, hint)


def _how(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _answers(address: str) -> bool:
    """Whether it says that it is well, or, without a `/health`, which models it has."""
    status = _status(f"{address}/health")
    return (_status(f"{address}/v1/models") if status == 404 else status) == 200


def _status(url: str) -> int:
    """What a server replies to a GET; 0 if it does not."""
    try:
        with _DIRECT.open(url, timeout=_REPLY_SECONDS) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):  # it does not listen yet, or speaks something else
        return 0


def _with_parent() -> Callable[[], Any] | None:
    """What makes a child end when this process is killed, where the system has that."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be
    return lambda: library.prctl(_ENDS_WITH_PARENT, int(signal.SIGTERM))
