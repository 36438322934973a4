"""What a gateway counts, in the form that Prometheus scrapes (its text exposition format)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from compress.recipes.gateway.rules import State

if TYPE_CHECKING:
    from compress.recipes.gateway.reply import Reply

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses")
"""Those with a figure of their own: a client could make any number up."""
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Figures:
    """Requests by path and status (499: the client left), seconds to the first byte and the last, and how many wait."""

    def __init__(self, state: State) -> None:
        self._registry = CollectorRegistry()
        labels = {"registry": self._registry, "namespace": "compress_gateway"}
        self._requests = Counter("requests", "Requests answered.", ["path", "code"], **labels)
        self._first = Histogram("first_byte_seconds", "Until an answer began.", ["path"], buckets=_SECONDS, **labels)
        self._whole = Histogram("request_seconds", "Until an answer ended.", ["path"], buckets=_SECONDS, **labels)
        self.held = Gauge("held", "Requests that wait or are being answered.", **labels)
        self.waiting = Gauge("waiting", "Requests that wait for the engine.", **labels)
        self.connections = Gauge("connections", "Connections that clients have open.", **labels)
        Gauge("engine_up", "Whether the engine answers.", **labels).set_function(lambda: float(not state.down))
        Gauge("engine_restarts", "How often it was started again.", **labels).set_function(lambda: state.restarts)

    @contextmanager
    def counted(self, path: str, reply: Reply) -> Iterator[None]:
        """Time and count what is replied within."""
        path, began = path if path in _PATHS else "other", time.perf_counter()
        try:
            yield
        finally:
            if reply.began is not None:
                self._first.labels(path).observe(reply.began - began)
            self._whole.labels(path).observe(time.perf_counter() - began)
            self._requests.labels(path, str(reply.code)).inc()

    def text(self) -> bytes:
        """All of them."""
        found: bytes = generate_latest(self._registry)
        return found
