"""Fills the conformance table of docs/ENGINES.md, and its short form in the README; no cell by hand.

    python tests/conformance/table/environments.py .engines   # once
    python tests/conformance/table                            # fills what is missing
    python tests/conformance/table --engine vllm --again      # asks one engine anew

A cell is an engine's next-token log-probabilities for the same token rows, compared with those of our own
reader's weights in fp32. Answers are kept in results.json; a cell is asked anew when its artifact changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from artifacts import Artifact, combinations, make
from cells import cell, inputs_of, is_green, ours
from environments import DIRECTORY, interpreters
from matrix import matrix
from render import NAMES, insert, render

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
_RESULTS = _HERE / "results.json"
# The model's own likeliest continuations are short; any rows serve, as long as they are real tokens.
_ROWS = [[504, 3575, 282, 4649, 314], list(range(1000, 1040)), [28, 198, 1788, 260, 3044, 18, 504, 253, 1400, 30]]


def main() -> None:
    options = parse()
    wanted = combinations(options.model)
    results = json.loads(options.results.read_text()) if options.results.is_file() else {"rows": {}}
    results |= {"model": wanted["model"], "rows": dict(results["rows"])}
    for artifact in make(_selected(wanted, options), options.work):
        if artifact.refused is None and artifact.container in (options.container or wanted["containers"]):
            fill(results["rows"], artifact, options)
            results["rows"] = _listed(results["rows"], wanted)
            options.results.write_text(json.dumps(results, indent=1) + "\n")
    if options.model is None:
        for path, table in (
            (_ROOT / "docs/ENGINES.md", render(results)),
            (_ROOT / "README.md", matrix(results, wanted["containers"])),
        ):
            path.write_text(insert(path.read_text(), table))
    print(render(results))


def fill(rows: dict[str, Any], artifact: Artifact, options: argparse.Namespace) -> None:
    """The cells of one row that are missing, or asked for again."""
    digest = artifact.sha256()
    row = rows.setdefault(artifact.key, {})
    if row.get("sha256") != digest:
        row |= {"sha256": digest, "cells": {}}
    missing = [engine for engine in options.engine if options.again or engine not in row["cells"]]
    if not missing:
        return
    python = interpreters(options.engines)
    inputs = {engine: inputs_of(engine, artifact.path) for engine in missing}
    expected = {kind: ours(artifact.path, _ROWS, kind) for kind in set(inputs.values())}
    for engine in missing:
        if python[engine].exists():
            wanted = expected[inputs[engine]]
            found = cell(engine, python[engine], artifact.path, _ROWS, wanted, options.timeout)
            if "not_here" not in found or engine not in row["cells"]:  # what another machine found out stays
                row["cells"][engine] = {**found, "commit": _commit()}
            verdict = f"within {found['difference']:.3g}" if is_green(found) else found
            print(f"{artifact.key} | {engine}: {verdict}", file=sys.stderr, flush=True)


def _listed(rows: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The rows that stand on the list, in its order."""
    keys = [f"{method} | {container}" for method in wanted["methods"] for container in wanted["containers"]]
    return {key: rows[key] for key in keys if key in rows}


def _selected(wanted: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The list with only the methods that were asked for."""
    return {**wanted, "methods": {name: wanted["methods"][name] for name in options.method or wanted["methods"]}}


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=_HERE)
    return done.stdout.strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=DIRECTORY, help="where environments.py put them")
    parser.add_argument("--work", type=Path, default=Path(".conformance"), help="where the artifacts go")
    parser.add_argument("--engine", nargs="+", choices=sorted(NAMES), default=list(NAMES), help="these engines only")
    parser.add_argument("--method", nargs="+", help="these methods only")
    parser.add_argument("--container", nargs="+", help="ask for these containers only")
    parser.add_argument("--again", action="store_true", help="ask also where there is an answer")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that an engine may take")
    parser.add_argument("--model", help="another model than the list's; the documents stay as they are")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="where answers are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
