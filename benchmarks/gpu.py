"""What a GPU makes of it: does it compute what the CPU does, how long does a layer take, and where does time go?

    python benchmarks/gpu.py [--minutes 8.5] [--device cuda] [--commit …]
    python benchmarks/gpu.py --device cpu --small         # does this script still run?

Prints a report, and keeps it in benchmarks/RESULTS-gpu.md as it grows. Needs no network: models are random.
Each section is guarded, the most valuable come first. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from device_agreement import agreement
from device_attention import attention
from device_codes import codes
from device_experts import experts
from device_hessian import hessians
from device_layer import layers, traced
from device_prefill import prefill
from device_report import Bench, Report
from device_solve import solves

HERE = Path(__file__).parent
PACKAGES = ("compress-llm", "torch", "triton", "transformers", "tokenizers", "safetensors", "numpy")
TUNED = {"correct": True, "tune": True}


def main() -> int:
    """Run all sections."""
    given = _arguments()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory(prefix="compress-gpu-", dir=given.work) as folder:
        bench = Bench(torch.device(given.device), given.small, Path(folder))
        report = Report(given.output, 60 * given.minutes)
        report.add(
            f"# On {_device_name(bench.device)}", "", f"Commit {given.commit or _commit()}; by benchmarks/gpu.py."
        )
        report.section("The machine", partial(machine, bench), 60)
        report.section("Few inputs times codes", partial(codes, bench), 90)
        report.section("Many inputs times codes", partial(prefill, bench), 45)
        report.section("Experts of a layer", partial(experts, bench), 30)
        report.section("A token's attention over a cache of 8 bits", partial(attention, bench), 25)
        report.section("GPTQ of one matrix", partial(solves, bench), 40)
        report.section("A layer of an 8B model", partial(layers, bench, {}), 100)
        report.section("CPU and GPU agree", partial(agreement, bench), 100)
        report.section("XᵀX", partial(hessians, bench), 60)
        report.section("A layer of an 8B model, corrected and tuned", partial(layers, bench, TUNED), 140)
        report.section("Tests", partial(tests, report), 120)
        report.section("Kernels and host syncs", partial(traced, bench), 60)
    report.add("", f"Failed: {', '.join(report.failed)}" if report.failed else "All sections ran.")
    return 1 if report.failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does the script run?")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--commit", default="", help="what to call the commit where there is no git")
    parser.add_argument("--work", type=Path, help="where files may lie, 25 GB of them; else the system's place")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS-gpu.md")
    return parser.parse_args()


def machine(bench: Bench) -> Iterator[str]:
    """Versions, and the ceilings: what one large product of each type, and a copy, reach."""
    yield f"{platform.platform()}, {os.cpu_count()} CPUs; Python {platform.python_version()}, "
    yield ", ".join(f"{name} {_version(name)}" for name in PACKAGES) + "."
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        yield f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}; "
        yield f"TF32 in torch's products: {torch.backends.cuda.matmul.allow_tf32}."
    yield from ("", "| ceiling | |", "|---|---|")
    side = 256 if bench.small else 8192
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(side, side, device=bench.device, dtype=dtype)
        rate = 2 * side**3 / bench.seconds(partial(torch.mm, x, x))
        bench.ceilings[str(dtype).removeprefix("torch.")] = rate
        yield f"| {dtype} product of {side}² | {rate / 1e12:.1f} TFLOP/s |"
    x = torch.empty(1 << (20 if bench.small else 30), dtype=torch.uint8, device=bench.device)
    bench.ceilings["copy"] = 2 * x.numel() / bench.seconds(x.clone)
    yield f"| copy, read and written | {bench.ceilings['copy'] / 1e12:.2f} TB/s |"


def tests(report: Report) -> Iterator[str]:
    """Tests of kernels and methods, on the CPU and on the GPU."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "--maxfail=20"),
        *("-n", str(min(8, os.cpu_count() or 1)), "-k", "not pretended"),
        *("tests/kernels", "tests/passes/test_devices.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, capture_output=True, timeout=min(140, report.left())
        )
        output, ending = done.stdout, f"ended with {done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, ending = late.stdout or b"", f"cut off after {late.timeout:.0f} s"
    lines = output.decode(errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  ")) and "Path(" not in line]
    yield from (f"pytest {ending}:", "", "```", *told[:60], *lines[-3:], "```")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "–"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU ({platform.machine()})"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
