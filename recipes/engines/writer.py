"""An engine that writes for us again and again: its script's `writer` (see scripts/) in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from typing import Any

from compress.formats.errors import CompressError
from compress.recipes.engines.ask import LAUNCH, ended

Arrivals = Sequence[tuple[float, int]]
"""Of one conversation: seconds since it was asked, and how many tokens had come by then."""


@dataclass(frozen=True)
class Writing:
    """What came of prompts that were asked at once, in their order, and the most that the process had in memory."""

    arrivals: Sequence[Arrivals]
    peak_bytes: int


class Writer:
    """`engine`, as it is installed for `python`, with the artifact at `path` loaded; the process ends at `close`.

    `options` are keywords of the script's `writer`; `timeout` is that of every answer, in seconds. Raises
    CompressError, with the engine's own last words, if it does not load.
    """

    def __init__(self, engine: str, python: Path, path: Path, options: Mapping[str, Any], timeout: float = 600) -> None:
        self._engine, self._timeout = engine, timeout
        self._said = TemporaryFile("w+", errors="replace")  # noqa: SIM115 (`close` closes it)
        try:
            self._process = subprocess.Popen(
                [str(python), "-P", str(LAUNCH), engine],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self._said.close()
            raise CompressError(f"{engine}: {python} does not start: {error.strerror}") from error
        try:
            self.versions: Mapping[str, str] = self._reply(path=str(path.absolute()), writer=dict(options))["versions"]
        except BaseException:
            self.close()
            raise

    def write(self, prompts: Sequence[Sequence[int]], tokens: int) -> Writing:
        """Let it write `tokens` tokens after each prompt (token ids), all at once.

        Raises CompressError if it ends meanwhile, or takes longer than the timeout: it is killed.
        """
        found = self._reply(prompts=list(map(list, prompts)), tokens=tokens)
        return Writing(found["arrivals"], found["peak_bytes"])

    def close(self) -> None:
        """Nothing of it runs when this returns."""
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            with suppress(BrokenPipeError):  # what it did not read any more
                stream and stream.close()

    def _reply(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        late = Timer(self._timeout, self._kill)
        late.start()
        try:
            with suppress(BrokenPipeError):  # it has ended: its last words say why
                print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        finally:
            in_time = late.is_alive()
            late.cancel()
        if not line:
            raise self._ended() if in_time else self._late()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _late(self) -> CompressError:
        return CompressError(f"{self._engine}: did not answer within {self._timeout:.0f} s")

    def _ended(self) -> CompressError:
        status = self._process.wait()
        self._said.seek(0)
        return ended(self._engine, status, self._said.read())

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
