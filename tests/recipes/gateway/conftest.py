"""A gateway before an engine that is made up, both real processes or threads; ended whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_up_engine import install

from compress.recipes.gateway.rules import Rules, State
from compress.recipes.jobs.serve import Server, address_of, free_port

HOST = "127.0.0.1"


@dataclass
class Stand:
    """Where the gateway is, what it is told of the engine, the engine, and what that said."""

    url: str
    state: State
    gateway: Any
    engine: Server
    heard: list[str] = field(default_factory=list)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Callable[..., Stand]]:
    """stand(rules) → a gateway that runs before an engine that answers."""
    pytest.importorskip("fastapi", reason="the gateway's packages are missing: pip install compress-llm[gateway]")
    from compress.recipes.gateway.server import Gateway

    stands: list[Stand] = []

    def make(rules: Rules | None = None) -> Stand:
        ports = free_port(HOST, 0), free_port(HOST, 0)
        address, state, heard = address_of(HOST, ports[0]), State("engine"), []
        program = install(tmp_path / "engine")
        command = [str(program), "--host", HOST, "--port", str(ports[0])]
        engine = Server("engine", command, tell=heard.append, heard=heard.append)
        gateway = Gateway(address, HOST, ports[1], rules or Rules(), state)
        stands.append(Stand(address_of(HOST, ports[1]), state, gateway, engine, heard))
        gateway.start()
        assert engine.start(address, 60)
        state.down = ""
        return stands[-1]

    yield make
    for each in stands:
        each.gateway.close()
        each.engine.close()
