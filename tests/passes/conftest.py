"""A run without a recipe: passes are swept over a tiny model, and the result is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.core.journal import Journal
from compress.passes.core.outcome import Outcome
from compress.passes.core.report import Reporter
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.scores import Scores, score
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import dense
from compress.passes.sweep.sweep import sweep
from compress.recipes.recipe import from_data
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
def rows() -> Sequences:
    return ROWS


@pytest.fixture
def written_as_gptq(tiny_llama: Path, tmp_path: Path) -> Path:
    """An artifact of the tiny llama in int4."""
    steps = [{"rtn": {"group_size": 32}}, {"export": {"dialect": "gptq"}}]
    report = run_recipe(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "gptq-out")
    return Path(report.artifacts[0].path)
