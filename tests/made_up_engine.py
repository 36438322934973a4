"""An engine's server made up of Python's own library: what `compress serve` starts, and what may go wrong with it.

It is run as a program, `llama-server` or another, and behaves as the variables of its environment say:

    LOADS=seconds     it listens at once, and is well (`/health`) after so long: 503 before
    PATHS=/v1/models  what it answers beside that, instead of `/health`
    DIES=seconds      after so long it ends, with exit status 7
    DRAINS=seconds    so long it goes on after SIGTERM or SIGINT, and then ends with exit status 5
    MUTE=1            it listens nowhere

To a POST it replies as OpenAI's completions do, with as many tokens as `max_tokens` says, `pause` seconds before each:
as events if `stream` is asked for, else in one piece, each `size` times as long. It says who did not wait for them.
"""

from __future__ import annotations

import json
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
    """Well once it has loaded, and glad to write."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known = self.path in os.environ.get("PATHS", "/health").split()
        loaded = time.monotonic() - BEGAN >= float(os.environ.get("LOADS", 0))
        body = b'{"status": "ok"}'
        self.send_response((200 if loaded else 503) if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stream = bool(asked.get("stream"))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if stream else "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number in range(asked["max_tokens"]):
                time.sleep(asked.get("pause", 0))
                if stream:
                    self.chunk(f"data: {json.dumps(piece(f'{number} ' * asked.get('size', 1)))}\n\n")
            self.chunk("data: [DONE]\n\n" if stream else json.dumps(piece("all", seen=dict(self.headers))))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            print("the client left", flush=True)

    def chunk(self, text: str) -> None:
        self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        print("asked for", self.path, flush=True)


def piece(text: str, **more: object) -> dict[str, object]:
    """A completion, or a part of one."""
    choice = {"index": 0, "text": text, "delta": {"content": text}, "finish_reason": None}
    return {"id": "1", "object": "text_completion", "created": 0, "model": "made up", "choices": [choice], **more}


class Listening(ThreadingHTTPServer):
    """As many may call at once as like to."""

    request_queue_size = 512
    daemon_threads = True


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
    Listening((options["--host"], int(options["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
