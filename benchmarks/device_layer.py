"""A layer of an 8B model through the real sweep: seconds a layer, and where they go."""

from __future__ import annotations

import gc
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from device_report import Bench
from random_models import LLAMA_8B, TINY, make_model
from stopwatch import Place, Stopwatch
from torch.profiler import ProfilerActivity, profile

from compress.formats import open_checkpoint
from compress.kernels.numbers.int import IntFormat
from compress.kernels.solve import gptq as solve
from compress.kernels.solve import tune as tuning
from compress.passes import gptq as gptq_pass
from compress.passes.core.journal import Journal
from compress.passes.core.outcome import Outcome
from compress.passes.core.report import Reporter
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward import statistics
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.walk import Walk
from compress.passes.gptq import GPTQ
from compress.passes.model.config import load_config
from compress.passes.model.flight import Flight
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.sweep import rewriting, units
from compress.passes.sweep import sweep as sweeping

PLACES: list[Place] = [
    ("hidden states, from disk", HiddenStates, "read"),
    ("hidden states, to disk", HiddenStates, "append"),
    ("hidden states, waiting for the disk", Walk, "_land"),
    ("weights, from disk to the device", Skeleton, "layer"),
    ("forward", Flight, "next"),
    ("XᵀX", statistics, "add_hessian"),
    ("XᵀX, the other triangle", statistics, "fill_lower"),
    ("(X − X̂)ᵀX̂", statistics, "add_cross"),
    ("gap of the residual stream", statistics.Drift, "add_gap"),
    ("corrected targets", gptq_pass, "corrected_target"),
    ("GPTQ, but for what follows", gptq_pass, "gptq_solve"),
    ("GPTQ: Cholesky", solve, "_factorize"),
    ("GPTQ: columns", solve, "visit_block"),
    ("scale search", IntFormat, "fit"),
    ("tuning, but for what follows", gptq_pass, "tune"),
    ("tuning: scales", tuning, "fit_scales"),
    ("tuning: codes", tuning, "revisit_codes"),
    ("errors for the report", rewriting, "tensor_report"),
    ("commit to disk", units, "save_tensors"),
    ("commit: digest", units, "sha256_file"),
]


def layers(bench: Bench, options: dict[str, Any], count: int = 128, length: int = 2048) -> Iterator[str]:
    """Sweep `gptq` with `options` over a random model of two layers, calibrated on `count` × `length` tokens."""
    source = model(bench)
    if bench.small:
        count, length, options = 4, 32, {**options, "group_size": 32}
    watch = Stopwatch(bench.device)
    run, stage, steps = _prepared(bench, source, options, count, length)
    started = time.perf_counter()
    with watch.watching(PLACES):
        sweeping.sweep(run, stage, steps)
    total = time.perf_counter() - started
    committed = run.journal.of(units.Unit, stage.key)
    seconds = [unit.seconds for unit in committed]
    peak = torch.cuda.max_memory_allocated(bench.device) / 1e9 if bench.device.type == "cuda" else 0.0
    errors = [report.relative_error for unit in committed for report in unit.tensors.values()]
    yield f"{count} × {length} tokens, `gptq: {options}`, {source.name}: "
    yield f"**seconds a layer: {', '.join(f'{each:.1f}' for each in seconds)}** (the first warms up), "
    yield f"{total:.1f} s in all; "
    yield f"{peak:.1f} GB of the device at most; relative errors {min(errors):.4f} … {max(errors):.4f}."
    yield from ("", "| both layers | calls | s | |", "|---|---|---|---|")
    yield from watch.rows(total)
    shutil.rmtree(run.work)


def model(bench: Bench) -> Path:
    """The model, made once."""
    path = bench.work / ("tiny" if bench.small else "8B-shaped")
    if not path.exists():
        make_model(path, TINY if bench.small else LLAMA_8B, torch.bfloat16, bench.device)
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    return path


def _prepared(
    bench: Bench, source: Path, options: dict[str, Any], count: int, length: int
) -> tuple[Run, Stage, list[GPTQ]]:
    checkpoint = open_checkpoint(source)
    skeleton = Skeleton(load_config(checkpoint), checkpoint.spec, bench.device)
    work = bench.work / "run"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    memory = torch.cuda.get_device_properties(bench.device).total_memory if bench.device.type == "cuda" else 1 << 34
    run = Run(checkpoint, skeleton, work, work, Journal(work / "journal.jsonl"), Reporter(), memory, 0)
    ids = torch.randint(0, skeleton.vocabulary, (count, length), generator=torch.Generator().manual_seed(0))
    run.left = Outcome(calibration=Sequences(ids))
    step = GPTQ.model_validate(options)
    return run, Stage((step,), {"options": repr(options)}, work), [step]


def traced(bench: Bench) -> Iterator[str]:
    """Kernels and host syncs of a small model's sweep: a line of the program that waits for the GPU is a sync."""
    path = bench.work / "tiny"
    if not path.exists():
        make_model(path, TINY, torch.bfloat16, bench.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    options = {"group_size": 32, "correct": True, "tune": True}
    prepared = _prepared(bench, path, options, 8, 64)
    with profile(activities=activities) as trace:
        sweeping.sweep(*prepared)
    kind = "device" if bench.device.type == "cuda" else "cpu"
    # A GPU's time stands beside its kernels, and once more beside the ops that launch them.
    told = [each for each in trace.key_averages() if (each.device_type.name == "CUDA") == (kind == "device")]
    spent = {each.key: getattr(each, f"self_{kind}_time_total") for each in told}
    calls = {each.key: each.count for each in told}
    total = sum(spent.values())
    yield from (f"{total / 1e6:.2f} s of the {kind} in all.", "", "| kernel or op | calls | ms |", "|---|---|---|")
    for name in sorted(spent, key=lambda name: -spent[name])[:15]:
        yield f"| {name[:90]} | {calls[name]} | {spent[name] / 1e3:.1f} |"
    if bench.device.type == "cuda":
        prepared = _prepared(bench, path, options, 8, 64)
        with _syncs() as found:
            sweeping.sweep(*prepared)
        yield from ("", "| host syncs of two layers | line |", "|---|---|")
        yield from (f"| {times} | {line} |" for line, times in found.most_common(25))
    shutil.rmtree(prepared[0].work)


@contextmanager
def _syncs() -> Iterator[Counter[str]]:
    found: Counter[str] = Counter()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
        for warning in caught:
            if "synchron" in str(warning.message):
                found[f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"] += 1
