"""Pruning on SmolLM2-135M-Instruct: ours beside llm-compressor's SparseGPT and Wanda, same tokens, in one table.

    python benchmarks/prune.py --calibration wt2_valid.txt --evaluation wiki.test.raw \
        --peer llmcompressor=.venv-llmc/bin/python

Texts, rows, scores and options are those of fixed work S (fixed_work.py); results are kept in prune.json. All decoder
linears lose the same part of their weights. What it costs is the increase of the logarithm of perplexity over that of
the untouched model. The table stands in RESULTS-prune.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from contestants import LLMC, Ours, Pass, Peer, ours
from fixed_work import FixedWork, Results

SHARES: Mapping[str, Mapping[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "2:4": {"pattern": "2:4"},
    "70 %": {"sparsity": 0.7},
    "4:8": {"pattern": "4:8"},
}
OURS: Mapping[str, Mapping[str, Any]] = {
    "sparsegpt": {"method": "sparsegpt", "solve": False},
    "alps": {},
    "alps correct": {"correct": True},
}
THEIRS = {"sparsegpt": "SparseGPT", "wanda": "Wanda"}
DENSE = "untouched"
_HEAD = (
    "| | perplexity | log-perplexity + | × SparseGPT | × Wanda | KL | top-1 | seconds | × SparseGPT | peak RSS | of |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def contestants() -> Iterator[Ours | Peer]:
    yield Ours(DENSE, "dense", ())
    for share, options in SHARES.items():
        for name, more in OURS.items():
            step: Pass = {"prune": {**options, **more}}
            yield ours(f"{share} {name}", "dense", step)
        for method, called in THEIRS.items():
            yield Peer(f"llm-compressor {share} {called}", LLMC, {"method": method, **options})


def table(results: Results) -> str:
    """Rows in the list's order, each beside the two of the peer that have as many zeros."""
    lines = [_HEAD]
    for contestant in contestants():
        if "kl" in results.get(contestant.name, {}):
            share = next((each for each in SHARES if each in contestant.name), None)
            peers = {called: results.get(f"llm-compressor {share} {called}", {}) for called in THEIRS.values()}
            cells = _cells(results[contestant.name], results[DENSE], peers)
            lines.append(f"| {' | '.join([contestant.name, *cells])} |")
    return "\n".join(lines)


def _cells(result: Mapping[str, Any], dense: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    def lost(row: Mapping[str, Any]) -> float:
        return math.log(row["perplexity"] / dense["perplexity"])

    theirs = peers["SparseGPT"]
    timed = result["quiet"] and theirs.get("quiet")
    return [
        f"{result['perplexity']:.2f}",
        f"{lost(result):.3f}",
        *(f"{lost(result) / lost(peer):.2f}" if "kl" in peer else "" for peer in peers.values()),
        f"{result['kl']:.3f}",
        f"{100 * result['top1']:.1f} %",
        f"{result['seconds']:.0f}" if result["quiet"] else "busy",
        f"{result['seconds'] / theirs['seconds']:.2f}" if timed else "",
        f"{result['peak'] / 1e9:.2f} GB",
        result["of"],
    ]


if __name__ == "__main__":
    print(table(FixedWork(tuple(contestants()), "prune.json", str(__doc__)).run()))
