"""A recipe on a GPU beside the same on the CPU: codes, KL divergence, and whether the GPU repeats itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from device_report import Bench
from random_models import SMOLLM2, TINY, make_model, words

from compress.formats import open_checkpoint
from compress.formats.files.storage import sha256_file
from compress.kernels.qtensor import QTensor
from compress.recipes.jobs.evaluate import evaluate
from compress.recipes.recipe import build
from compress.recipes.report import RunReport
from compress.recipes.run import run
from compress.recipes.yaml import Document

Steps = list[dict[str, dict[str, Any]]]


def recipes(group: int) -> dict[str, tuple[Steps, str]]:
    """Passes and the container, by a name for the table."""
    grouped = {"group_size": group}
    return {
        "gptq": ([{"gptq": grouped}], "gptq"),
        "gptq, correct and tune": ([{"gptq": {**grouped, "correct": True, "tune": True}}], "gptq"),
        "awq": ([{"awq": grouped}], "awq"),
        "int8, static inputs": ([{"int8": {"activations": "static"}}], "compressed-tensors"),
        "nf4, double": ([{"nf4": {"double_quant": True, "search": "inputs"}}], "bitsandbytes"),
        "nvfp4": ([{"nvfp4": {"search": "inputs"}}], "modelopt"),
    }


def agreement(bench: Bench) -> Iterator[str]:
    """A row a recipe: KL is each artifact's from the source, and that of the GPU's artifact from the CPU's."""
    source = bench.work / "smollm2-shaped"
    make_model(source, TINY if bench.small else SMOLLM2, torch.bfloat16, torch.device("cpu"))
    corpus = bench.work / "corpus.txt"
    corpus.write_text(words(2000 if bench.small else 20000))
    held_out = bench.work / "held-out.txt"
    held_out.write_text(words(2000, seed=1))
    yield "| recipe | codes equal | KL, CPU | KL, GPU | KL between | same bytes twice | s, CPU | s, GPU |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, (steps, dialect) in recipes(32 if bench.small else 64).items():
        text = {"samples": 4, "seq_len": 64} if bench.small else {"samples": 16, "seq_len": 256}
        passes = [
            {"calibrate": {**text, "data": str(corpus)}},
            *steps,
            {"evaluate": {**text, "samples": 4, "data": str(held_out)}},
            {"export": {"dialect": dialect}},
        ]
        yield _compared(bench, name, {"model": str(source), "passes": passes}, held_out)
    yield from _by_command(bench, source, corpus)


def _compared(bench: Bench, name: str, recipe: dict[str, Any], held_out: Path) -> str:
    places = {"cpu": "cpu", "gpu": str(bench.device), "again": str(bench.device)}
    reports, seconds = dict[str, RunReport](), dict[str, float]()
    for place, device in places.items():
        started = time.perf_counter()
        made = build(Document("recipe", recipe, {}))
        reports[place] = run(made, bench.work / f"{name}-{place}".replace(" ", "-"), device=device)
        seconds[place] = time.perf_counter() - started
    paths = {place: Path(report.artifacts[0].path) for place, report in reports.items()}
    between = evaluate([str(paths["gpu"])], reference=str(paths["cpu"]), data=str(held_out), windows=4, seq_len=64)
    kl = {place: report.metrics.kl_divergence or 0.0 for place, report in reports.items()}
    return (
        f"| {name} | {100 * equal_codes(paths['cpu'], paths['gpu']):.3f} % | {kl['cpu']:.6f} | {kl['gpu']:.6f} "
        f"| {between[-1].kl_divergence or 0.0:.2e} | {'yes' if _same(paths['gpu'], paths['again']) else '**no**'} "
        f"| {seconds['cpu']:.1f} | {seconds['again']:.1f} |"
    )


def equal_codes(one: Path, other: Path) -> float:
    """The share of codes that two artifacts have in common."""
    first, second = open_checkpoint(one), open_checkpoint(other)
    equal = count = 0
    for name in first.spec.tensors:
        mine, theirs = first.read(name), second.read(name)
        if isinstance(mine, QTensor) and isinstance(theirs, QTensor):
            equal += int((mine.codes == theirs.codes).sum())
            count += mine.codes.numel()
    return equal / max(count, 1)


def _same(one: Path, other: Path) -> bool:
    files = [path.relative_to(one) for path in one.rglob("*.safetensors")]
    return all(sha256_file(one / name) == sha256_file(other / name) for name in files)


def _by_command(bench: Bench, source: Path, corpus: Path) -> Iterator[str]:
    """`compress run --device` as a user calls it."""
    recipe = bench.work / "recipe.yaml"
    steps = [
        {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 64}},
        {"gptq": {"group_size": 32}},
        {"export": {"dialect": "gguf"}},
    ]
    recipe.write_text(json.dumps({"model": str(source), "passes": steps}))
    command = [sys.executable, "-m", "compress.cli", "run", str(recipe), "-o", str(bench.work / "by-command")]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--device", bench.device.type, "--json"], capture_output=True, text=True, timeout=120
    )
    ending = done.stdout[-200:] if done.returncode == 0 else done.stderr[-1500:]
    yield ""
    yield f"`compress run --device {bench.device.type}` ended with {done.returncode} in "
    yield f"{time.perf_counter() - started:.1f} s: {' '.join(ending.split())}"
