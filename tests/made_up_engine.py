"""An engine's server made up of Python's own library: what `compress serve` starts, and what may go wrong with it.

It is run as a program, `llama-server` or another, and behaves as the variables of its environment say:

    LOADS=seconds     it listens at once, and is well (`/health`) after so long: 503 before
    PATHS=/v1/models  what it answers beside that, instead of `/health`
    DIES=seconds      after so long it ends, with exit status 7
    DRAINS=seconds    so long it goes on after SIGTERM or SIGINT, and then ends with exit status 5
    MUTE=1            it listens nowhere
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEGAN = time.monotonic()


def install(program: Path) -> Path:
    """Make it a program at `program`, which is returned."""
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


class Handler(BaseHTTPRequestHandler):
    """Well once it has loaded."""

    def do_GET(self) -> None:
        known = self.path in os.environ.get("PATHS", "/health").split()
        loaded = time.monotonic() - BEGAN >= float(os.environ.get("LOADS", 0))
        body = b'{"status": "ok"}'
        self.send_response((200 if loaded else 503) if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        print("asked for", self.path, flush=True)


def stop(number: int, frame: object) -> None:
    """Drain, and end."""
    print("draining after", signal.Signals(number).name, flush=True)
    threading.Timer(float(os.environ.get("DRAINS", 0)), os._exit, [5]).start()


def main() -> None:
    """Serve on the `--host` and `--port` of the command line."""
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    print("loading", *sys.argv[1:], flush=True)
    if "DIES" in os.environ:
        threading.Timer(float(os.environ["DIES"]), os._exit, [7]).start()
    if "MUTE" in os.environ:
        threading.Event().wait()
    ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
