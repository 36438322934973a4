"""What was written is compared with what was meant: everything, once, and what differs is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from compress.formats import dialects, open_checkpoint
from compress.formats.errors import CompressError
from compress.passes.core.report import Reporter
from compress.recipes.jobs.verify import verify
from compress.recipes.recipe import from_data
from compress.recipes.run import run

LAYER = "model.layers.1.mlp.up_proj.weight"


class Told(Reporter):
    """Remembers the pieces of work, and how many steps each took."""

    def __init__(self) -> None:
        self.work: list[tuple[str, int]] = []
        self.steps: Counter[str] = Counter()

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.work.append((title, total))

    def advance(self, label: str = "", **figures: float) -> None:
        self.steps[self.work[-1][0]] += 1


def export(model: Path, out: Path, dialect: str, reporter: Reporter | None = None) -> Path:
    steps = [{"rtn": {"bits": 4, "group_size": 32}}, {"export": {"dialect": dialect}}]
    report = run(from_data({"model": str(model), "passes": steps}), out, reporter=reporter)
    return Path(report.artifacts[0].path)


@pytest.fixture(params=["gptq", "gguf", "dense"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reads(dialect: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[str]]:
    """How often each tensor of an artifact was read: by our reader (`ours`), and by the witness (`witness`)."""
    counts: dict[str, Counter[str]] = {"ours": Counter(), "witness": Counter()}
    kind = dialects()[dialect]
    opened, witness = kind.open, kind.witness

    def counting(read: Callable[[str], Any], reader: str) -> Callable[[str], Any]:
        def counted(name: str) -> Any:
            counts[reader][name] += 1
            return read(name)

        return counted

    def open_counted(path: Path) -> Any:
        checkpoint = opened(path)
        monkeypatch.setattr(checkpoint, "read", counting(checkpoint.read, "ours"), raising=False)
        return checkpoint

    monkeypatch.setattr(kind, "open", staticmethod(open_counted))
    monkeypatch.setattr(kind, "witness", staticmethod(lambda path: counting(witness(path), "witness")))
    return counts


def test_an_export_reads_each_tensor_once_by_each_reader(
    tiny_llama: Path, tmp_path: Path, dialect: str, reads: dict[str, Counter[str]]
) -> None:
    if dialect == "dense":
        pytest.skip("the source is dense, too: its own reads would be counted")
    artifact = export(tiny_llama, tmp_path / "out", dialect)
    once = dict.fromkeys(open_checkpoint(artifact).spec.tensors, 1)
    assert reads == {"ours": once, "witness": once}


def test_verify_reads_each_tensor_once_by_each_reader(
    tiny_llama: Path, tmp_path: Path, dialect: str, reads: dict[str, Counter[str]]
) -> None:
    artifact = export(tiny_llama, tmp_path / "out", dialect)
    for counted in reads.values():
        counted.clear()
    assert verify(artifact).passed
    once = dict.fromkeys(open_checkpoint(artifact).spec.tensors, 1)
    assert reads == {"ours": once, "witness": once}


def test_verification_is_a_piece_of_work_with_a_step_for_each_tensor(
    tiny_llama: Path, tmp_path: Path, dialect: str
) -> None:
    told = Told()
    artifact = export(tiny_llama, tmp_path / "out", dialect, told)
    tensors = len(open_checkpoint(artifact).spec.tensors)
    assert (f"verify {dialect}", tensors) in told.work
    assert told.steps[f"verify {dialect}"] == tensors
    told = Told()
    verify(artifact, reporter=told)
    assert told.steps["verify tensors"] == tensors


def spoil(dialect: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the witness of `dialect` read the tensor `name` otherwise than it is."""
    kind = dialects()[dialect]
    witness = kind.witness

    def spoiled(path: Path) -> Callable[[str], Tensor]:
        read = witness(path)
        return lambda asked: read(asked) * 3 if asked == name else read(asked)

    monkeypatch.setattr(kind, "witness", staticmethod(spoiled))


def test_a_tensor_that_the_witness_reads_otherwise_is_named(
    tiny_llama: Path, tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = export(tiny_llama, tmp_path / "out", dialect)
    spoil(dialect, LAYER, monkeypatch)
    found = verify(artifact)
    assert [problem.check for problem in found.problems] == ["logits"]
    assert LAYER in found.problems[0].what
    with pytest.raises(CompressError, match=LAYER):
        export(tiny_llama, tmp_path / "anew", dialect)
    assert not (tmp_path / "anew" / dialect).exists()


def test_experts_in_a_stack_are_compared_as_well(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both readers cut the experts out of a stack: each out of its own."""
    model = make_model(tmp_path / "model", "gpt_oss")
    report = run(from_data({"model": str(model), "passes": [{"export": {"dialect": "dense"}}]}), tmp_path / "out")
    artifact = Path(report.artifacts[0].path)
    stack = next(name for name in dialects()["dense"].open(artifact).spec.tensors if "gate_up_proj" in name)
    spoil("dense", stack, monkeypatch)
    (problem,) = verify(artifact).problems
    assert (problem.check, problem.where) == ("logits", "forward")
    assert "mlp.experts.0.gate_up_proj" in problem.what
