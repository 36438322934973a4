"""The gateway itself: a server in a thread of this process, which answers to the end what it has begun."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from compress.formats.errors import CompressError
from compress.recipes.gateway import reply
from compress.recipes.gateway.connections import allow_files, limited_to
from compress.recipes.gateway.figures import Figures
from compress.recipes.gateway.proxy import Proxy
from compress.recipes.gateway.rules import Rules, State
from compress.recipes.jobs.serve import bound

_POLL_SECONDS = 0.05
_KEPT_SECONDS = 75
"""As nginx keeps a connection: longer than clients do (httpx: 5 s), or some would use one just as it is closed."""
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus's text exposition format."""
_OPENAI = "/v1"


def application(proxy: Proxy, rules: Rules, state: State, figures: Figures) -> FastAPI:
    """`/health`, `/metrics`, and below `/v1` the engine behind `proxy`; all but the first want the key."""

    async def health() -> Response:
        if state.down:
            return JSONResponse({"status": "down", "engine": state.engine, "reason": state.down}, 503)
        return JSONResponse({"status": "ok", "engine": state.engine})

    async def metrics(request: Request) -> Response:
        if not rules.admits(dict(request.headers.raw).get(b"authorization", b"")):
            return JSONResponse({"error": "this server wants a key: Authorization: Bearer KEY"}, 401)
        return Response(figures.text(), media_type=_TEXT)

    # No pages of FastAPI's own: they would describe nothing.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", health, response_model=None)
    app.add_api_route("/metrics", metrics, response_model=None)
    app.router.add_route(_OPENAI + "/{path:path}", proxy, methods=None, include_in_schema=False)
    return app


class Gateway:
    """Listens on `host` and `port`, and passes on to `upstream` what `rules` let in, while it is not `down`.

    Raises RefusedError if it cannot listen there, or not open as many files as that takes.
    """

    def __init__(self, upstream: str, host: str, port: int, rules: Rules, state: State) -> None:
        self.state = state
        allow_files(rules.connections + rules.room)  # each request has one to its client, one to the engine
        self._socket = bound(host, port)
        figures = Figures(state)
        self._proxy = Proxy(upstream, rules, state, figures)
        app = application(self._proxy, rules, state, figures)
        # No answer takes longer; a client that does not read it would.
        seconds = {"timeout_graceful_shutdown": math.ceil(rules.seconds + reply.LAST_SECONDS)}
        kept = {"timeout_keep_alive": _KEPT_SECONDS, "server_header": False}
        options = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none"}
        limited = limited_to(rules.connections)
        self._server = uvicorn.Server(uvicorn.Config(app, http=limited, **seconds, **kept, **options))
        figures.connections.set_function(lambda: len(self._server.server_state.connections))
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    @property
    def runs(self) -> bool:
        """Whether it listens, or answers what it has begun."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to listen. Raises CompressError if that fails."""
        self._thread.start()
        while not self._server.started:
            if not self.runs:
                raise CompressError("the gateway did not start", "COMPRESS_DEBUG=1 shows why")
            time.sleep(_POLL_SECONDS)

    def drain(self) -> None:
        """Listen no more; it ends with the last answer. Safe within a handler of signals, as is `abandon`."""
        self._server.should_exit = True

    def abandon(self) -> None:
        """Break off what it answers."""
        self._server.should_exit = self._server.force_exit = True

    def close(self) -> None:
        """Nothing of it runs when this returns."""
        self.abandon()
        if self.runs:
            self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async with self._proxy.open():
            await self._server.serve([self._socket])
            for connection in list(self._server.server_state.connections):  # of who has not read his answer
                connection.transport.abort()
            await asyncio.sleep(0)  # and they are closed
