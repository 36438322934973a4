"""RESULTS-gguf.md, from the rows of to_gguf.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]
PEER, TENSORS = "llama.cpp", "per tensor"
_INTRO = """# GGUF at llama.cpp's own bytes

Made by `python benchmarks/to_gguf.py`, which says how. A file of llama.cpp's has tensor for tensor the types of ours,
and an imatrix of the same calibration tokens. KL in nats per token from the model in fp32: its mean, and the value
that 99.9 % of the tokens stay below; × is by llama.cpp's at the same bytes. The other text is Python's documentation;
calibration is on WikiText-2. Seconds of ours are the whole process with calibration, of llama.cpp's its quantizer.

Without data errors count alike. llama.cpp weighs them by x² + σ² then; our search does no better with that. On
SmolLM2 (768 tokens of WikiText-2; K-quants on the 30 matrices that they divide), by plain rounding: q4_k 0.95 × the
KL, 1.05 × the error; iq4_nl 1.09 × the KL, 1.12 × the error; q3_k 0.98 × the KL, 1.04 × the error; q6_k 1.10 × the
KL, 1.07 × the error, the error being that of the outputs, tr(E·H·Eᵀ).

Solved is `gptq: {correct, tune, shrinkage: 0.3}`; without `shrinkage` SmolLM2's iq4_nl has KL 0.0459, and 0.0530 on the
other text (commit a4573b5, on another machine).
"""
_WHOLE = (
    "| | file | KL | × | 99.9 % | × | other text: KL | × | 99.9 % | × | llama.cpp answers: KL | × | top-1 | perplexity "
    "| seconds | of |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)
_EACH = (
    "| | matrices | solved, median | largest | searched, median | largest | rtn, × llama.cpp's seconds | of |\n"
    "|---|---|---|---|---|---|---|---|"
)


def report(results: Mapping[str, Mapping[str, Row]]) -> str:
    """The whole file; a section a model."""
    return "\n".join([_INTRO, *(line for name, rows in results.items() for line in _section(name, rows))])


def _section(name: str, rows: Mapping[str, Row]) -> Iterator[str]:
    whole = {row: found for row, found in rows.items() if "text" in found}
    each = {row: found for row, found in rows.items() if row.startswith(TENSORS)}
    yield f"## {name}\n"
    if whole:
        yield "\n".join([_WHOLE, *(f"| {' | '.join(_cells(row, whole))} |" for row in whole)]) + "\n"
        yield from _verdicts(whole)
    if each:
        yield f"tr(E·H·Eᵀ) by llama.cpp's with an imatrix, on matrices of {name} whose rows 256 divides; "
        yield "H is of the very tokens that both were made with.\n"
        yield "\n".join([_EACH, *(f"| {' | '.join(_ratios(row, found))} |" for row, found in each.items())]) + "\n"


def _cells(row: str, rows: Mapping[str, Row]) -> Iterator[str]:
    found, peer = rows[row], rows.get(f"{row.partition(' ')[0]} {PEER}")
    other = None if row.endswith(PEER) else peer
    yield row
    yield f"{found['file_bytes'] / 1e6:.1f} MB"
    for text in ("text", "other"):
        for figure in ("kl", "kl_tail"):
            yield f"{found[text][figure]:.4f}"
            yield f"{found[text][figure] / other[text][figure]:.2f}" if other and other[text][figure] else ""
    asked, others = (each.get("engine", {}).get("kl_engine") if each else None for each in (found, other))
    yield f"{asked:.4f}" if asked is not None else ""
    yield f"{asked / others:.2f}" if asked is not None and others else ""
    yield f"{100 * found['text']['top1']:.1f} %"
    yield f"{found['text']['perplexity']:.2f}"
    yield f"{found.get('seconds', found.get('quantize_seconds')):.0f}" if found["quiet"] else "busy"
    yield found["of"]


def _verdicts(rows: Mapping[str, Row]) -> Iterator[str]:
    """What does not beat llama.cpp, and files that are not of its size, are said."""
    for row, found in rows.items():
        peer = rows.get(f"{row.partition(' ')[0]} {PEER}")
        if peer is None or row.endswith(PEER):
            continue
        if found["file_bytes"] != peer["file_bytes"]:
            yield f"**{row}: {found['file_bytes']:,} bytes, llama.cpp's has {peer['file_bytes']:,}.**\n"
        if found["text"]["kl"] >= peer["text"]["kl"]:
            yield f"**{row} is not better than llama.cpp with an imatrix.**\n"


def _ratios(row: str, found: Row) -> Iterator[str]:
    yield row.removeprefix(TENSORS).strip()
    yield str(found["matrices"])
    if not found["matrices"]:
        yield from ("none that 256 divides, or all lie on the type already", "", "", "", "", found["of"])
        return
    for how in ("solved", "searched"):
        yield f"{found[f'{how}_median']:.3f}"
        yield f"{found[f'{how}_max']:.3f}"
    yield f"{found['rtn_seconds'] / found['their_seconds']:.1f}" if found["quiet"] else "busy"
    yield found["of"]
