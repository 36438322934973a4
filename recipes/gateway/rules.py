"""What a gateway lets in: how many, for how long, and with which key."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from compress.formats.errors import InputError, RefusedError
from compress.formats.files.storage import read_bytes

_NEEDS = ("fastapi", "httpx", "prometheus_client", "uvicorn")
_LONGEST_KEY = 4096


@dataclass(frozen=True)
class Rules:
    """`parallel` requests are with the engine at once (None: as many as come), `queue` more may wait.

    Each may take `seconds`, waiting included. `key` is what clients must show; none if it is empty. `idle` connections
    may be open beside those of the requests.
    """

    queue: int = 64
    seconds: float = 600.0
    parallel: int | None = None
    idle: int = 448
    key: bytes = field(default=b"", repr=False)

    @property
    def room(self) -> int:
        """How many requests may be here at once."""
        return self.queue + (self.parallel or 0)

    @property
    def connections(self) -> int:
        """How many clients' connections may be open at once."""
        return self.room + self.idle

    def admits(self, authorization: bytes) -> bool:
        """Whether an `Authorization` header shows the key. Takes as long for any that has the key's length."""
        scheme, _, shown = authorization.partition(b" ")
        return not self.key or (scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), self.key))


@dataclass
class State:
    """How the engine is: `down` says why it does not answer, and is empty while it does. Set by whoever watches it."""

    engine: str
    down: str = "it is being started"
    restarts: int = 0


def check_installed() -> None:
    """Raise RefusedError if a package of the extra is missing."""
    if missing := [name for name in _NEEDS if find_spec(name) is None]:
        names = ", ".join(missing).replace("_", "-")
        raise RefusedError(f"the gateway needs {names}, which is not installed", "pip install 'compress-llm[gateway]'")


def key_in(file: Path) -> bytes:
    """The key in a file, without what is around it. Raises InputError for none, or for one of several lines."""
    key = read_bytes(file, _LONGEST_KEY).strip()
    if not key or len(key.split()) > 1:
        raise InputError(f"{file} holds no key", "write one word into it: openssl rand -hex 32 > FILE")
    return key
