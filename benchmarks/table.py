"""Results as a Markdown table: every row beside its peer's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from contestants import CONTESTANTS, Ours, Peer

Result = Mapping[str, Any]
_HEAD = (
    "| | bits | KL | × peer | perplexity | top-1 | linears | file | peak RSS | × peer | seconds | × peer | of |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(results: Mapping[str, Result]) -> str:
    """The rows in the list's order. Seconds stand there, and are compared, where the machine was quiet."""
    lines = [_HEAD]
    for contestant in CONTESTANTS:
        result = results.get(contestant.name)
        if result and "kl" in result:
            peer = results.get(contestant.peer or "", {}) if isinstance(contestant, Ours) else {}
            lines.append(f"| {' | '.join([contestant.name + _why(contestant, result, peer), *_cells(result, peer)])} |")
    return "\n".join(lines)


def _why(contestant: Ours | Peer, result: Result, peer: Result) -> str:
    """Why its KL is not lower than the peer's, if it is not."""
    if isinstance(contestant, Peer) or "kl" not in peer or result["kl"] < peer["kl"]:
        return ""
    return f" ({contestant.why or 'no reason known'})"


def _cells(result: Result, peer: Result) -> Iterator[str]:
    timed, compared = result["quiet"], result["quiet"] and peer.get("quiet")
    yield f"{result['bits']:.2f}" if result["bits"] else "–"
    yield f"{result['kl']:.5f}"
    yield _ratio(result, peer, "kl")
    yield f"{result['perplexity']:.2f}"
    yield f"{100 * result['top1']:.1f} %"
    yield _megabytes(result["linear_bytes"])
    yield _megabytes(result["file_bytes"])
    yield f"{result['peak'] / 1e9:.2f} GB"
    yield _ratio(result, peer, "peak")
    yield f"{result['seconds']:.0f}" if timed else "busy"
    yield _ratio(result, peer, "seconds") if compared else ""
    yield result["of"]


def _ratio(result: Result, peer: Result, key: str) -> str:
    return f"{result[key] / peer[key]:.2f}" if peer.get(key) else ""


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:.1f} MB" if size else "–"
