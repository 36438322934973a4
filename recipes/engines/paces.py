"""How fast an engine wrote, from when its tokens came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

import numpy as np
from pydantic import BaseModel

from compress.recipes.engines.writer import Arrivals, Writing


class Spread(BaseModel):
    """The 50th, 95th and 99th percentile of seconds, interpolated."""

    p50: float
    p95: float
    p99: float


class Pace(BaseModel):
    """Tokens per second of all conversations together, medians over the rounds, and how long one waits for a token.

    `decode_rounds` are the rounds' own figures: tokens after the first ones, from the earliest of those to the last.
    `prefill` counts the prompts' tokens until every conversation has its first. `peak_bytes` of the whole process;
    None of a server elsewhere.
    """

    prefill: float
    decode: float
    decode_rounds: list[float]
    first_token: Spread
    token: Spread
    peak_bytes: int | None


def pace_of(rounds: Sequence[Writing], prompt_tokens: int) -> Pace:
    """Of rounds of the same prompts, each of so many tokens; two tokens at least were written."""
    streams = [stream for one in rounds for stream in one.arrivals]
    decoded = [_decode(one.arrivals) for one in rounds]
    return Pace(
        prefill=median(prompt_tokens * len(one.arrivals) / max(_firsts(one.arrivals)) for one in rounds),
        decode=median(decoded),
        decode_rounds=decoded,
        first_token=_spread(_firsts(streams)),
        token=_spread(gap for stream in streams for gap in _gaps(stream)),
        peak_bytes=max(one.peak_bytes for one in rounds),
    )


def ratio(rounds: Sequence[float], others: Sequence[float]) -> float:
    """How many times as fast: the median over rounds that stood side by side, so that what slows both cancels out."""
    return median(one / other for one, other in zip(rounds, others))


def _firsts(streams: Iterable[Arrivals]) -> list[float]:
    return [stream[0][0] for stream in streams]


def _decode(streams: Sequence[Arrivals]) -> float:
    written = sum(stream[-1][1] - stream[0][1] for stream in streams)
    return written / (max(stream[-1][0] for stream in streams) - min(_firsts(streams)))


def _gaps(stream: Arrivals) -> Iterable[float]:
    """Seconds between tokens; those that came together share the time since the last."""
    for (before, had), (now, has) in pairwise(stream):
        yield from [(now - before) / (has - had)] * (has - had)


def _spread(seconds: Iterable[float]) -> Spread:
    p50, p95, p99 = np.quantile(list(seconds), (0.5, 0.95, 0.99)).tolist()
    return Spread(p50=p50, p95=p95, p99=p99)
