"""What is counted of requests, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the gateway's packages are missing: pip install compress-llm[gateway]")
from prometheus_client.parser import text_string_to_metric_families

from compress.recipes.gateway.figures import Figures
from compress.recipes.gateway.reply import Reply
from compress.recipes.gateway.rules import State


async def send(message: MutableMapping[str, Any]) -> None:
    pytest.fail("nothing is to be sent")


def values(figures: Figures) -> dict[tuple[str, str, str], float]:
    """By name, path and status."""
    return {
        (sample.name.removeprefix("compress_gateway_"), sample.labels.get("path", ""), sample.labels.get("code", "")): (
            sample.value
        )
        for family in text_string_to_metric_families(figures.text().decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_path_and_status_and_timed_to_the_first_byte_and_the_last() -> None:
    figures, reply = Figures(State("engine", down="")), Reply(send)
    with figures.counted("/v1/completions", reply):
        reply.code, reply.began = 200, time.perf_counter() + 100
    found = values(figures)
    assert found["requests_total", "/v1/completions", "200"] == 1
    assert 100 <= found["first_byte_seconds_sum", "/v1/completions", ""] < 101
    assert found["request_seconds_count", "/v1/completions", ""] == 1


def test_paths_that_clients_make_up_make_no_figures_of_their_own() -> None:
    figures = Figures(State("engine"))
    for path in ("/v1/a", "/v1/b"):
        reply = Reply(send)
        with pytest.raises(RuntimeError), figures.counted(path, reply):
            reply.code = 404
            raise RuntimeError
    found = values(figures)
    assert found["requests_total", "other", "404"] == 2
    assert ("first_byte_seconds_count", "other", "") not in found


def test_the_engine_is_up_or_down_and_was_started_so_often() -> None:
    state = State("engine")
    figures = Figures(state)
    assert values(figures)["engine_up", "", ""] == 0
    state.down, state.restarts = "", 2
    found = values(figures)
    assert (found["engine_up", "", ""], found["engine_restarts", "", ""]) == (1, 2)
