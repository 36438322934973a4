"""A run without a recipe: passes are swept over a tiny model, and the result is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.core.journal import Committed, Journal
from compress.passes.core.outcome import Outcome
from compress.passes.core.report import Reporter
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.evaluate import Evaluate
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.scores import Scores, score
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import dense
from compress.passes.sweep.sweep import sweep
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run as run_recipe

ROWS = Sequences(torch.randint(0, 320, (6, 24), generator=torch.Generator().manual_seed(5)))


def begin(source: Path, work: Path, max_ram: int = 1 << 34) -> Run:
    """A run on the model at `source`, calibrated on ROWS; one that was begun in `work` goes on."""
    checkpoint, skeleton = Skeleton.open(open_checkpoint(source), torch.device("cpu"))
    work.mkdir(exist_ok=True)
    run = Run(checkpoint, skeleton, work, work, Journal(work / "journal.jsonl"), Reporter(), max_ram, 0)
    run.left = Outcome(calibration=ROWS)
    return run


def carry_out(run: Run, *steps: Pass, following: Sequence[LayerPass] = ()) -> Run:
    """One stage of `steps` on `run`, which then has what it leaves."""
    first = steps[0]
    read = first.read(run.source, run.work, run.reporter.note) if isinstance(first, ModelPass) else None
    stage = Stage(steps, {"steps": [repr(step) for step in (*steps, *following)]}, run.work, tuple(following), read)
    passes = [step for step in steps if isinstance(step, LayerPass)]
    run.left = run.left.then(first.model(run, stage) if isinstance(first, ModelPass) else sweep(run, stage, passes))
    return run


def swept(source: Path, work: Path, passes: Sequence[LayerPass]) -> Run:
    """`begin`, and one stage of `passes`."""
    return carry_out(begin(source, work), *passes)


def scores(run: Run, model: Checkpoint, reference: Checkpoint) -> Scores:
    """`model` against `reference` over ROWS."""
    walks = []
    for name, each in (("candidate", model), ("reference", reference)):
        hidden = HiddenStates(run.work / name, ROWS.length, run.skeleton.width, ROWS.count)
        walks.append(Walk(run.skeleton, ROWS, [Stream(dense(each), hidden)]))
        with torch.no_grad():
            walks[-1].carry(0, lambda boundary: None)
    return score(*walks)


@pytest.fixture(name="begin")
def begin_fixture() -> Callable[..., Run]:
    return begin


@pytest.fixture(name="carry_out")
def carry_out_fixture() -> Callable[..., Run]:
    return carry_out


@pytest.fixture(name="swept")
def swept_fixture() -> Callable[..., Run]:
    return swept


@pytest.fixture(name="scores")
def scores_fixture() -> Callable[..., Scores]:
    return scores


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """killed_at(n): what runs within is killed at its nth commit, when files are written and their record is not."""

    @contextmanager
    def kill(at: int) -> Iterator[None]:
        append, count = Journal.append, 0

        def fail(self: Journal, record: Committed) -> None:
            nonlocal count
            count += 1
            if count == at:
                raise KeyboardInterrupt
            append(self, record)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Journal, "append", fail)
            yield

    return kill


@pytest.fixture
def lost(held_out: Path) -> Callable[[Run], float]:
    """The KL divergence of a run's model from the untouched one, on text that training has not seen."""

    def measure(run: Run) -> float:
        scores = carry_out(run, Evaluate(data=str(held_out), samples=4, seq_len=32)).left.scores
        assert scores is not None and scores.kl_divergence is not None
        return scores.kl_divergence

    return measure


@pytest.fixture
def rows() -> Sequences:
    return ROWS


@pytest.fixture
def written_as_gptq(tiny_llama: Path, tmp_path: Path) -> Path:
    """An artifact of the tiny llama in int4."""
    steps = [{"rtn": {"group_size": 32}}, {"export": {"dialect": "gptq"}}]
    report = run_recipe(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "gptq-out")
    return Path(report.artifacts[0].path)


@pytest.fixture
def recipe(corpus: Path) -> Callable[..., Recipe]:
    """recipe(model, *steps) → one that calibrates before."""
    calibrate = {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}}
    return lambda model, *steps: from_data({"model": str(model), "passes": [calibrate, *steps]})
