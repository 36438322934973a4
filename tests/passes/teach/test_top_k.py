"""A teacher's likeliest tokens on disk: the dense distribution where all are kept, never more than it where not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.formats.files.native import NativeFile
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.loss.losses import LogitLoss
from compress.passes.teach.cached import Asked, HiddenAnswers, top_k_bytes
from compress.passes.teach.lesson import TopK
from compress.passes.teach.teacher import Teacher
from compress.passes.teach.top_k import Answered, TopKAnswers, answers

VOCABULARY = 320


def student(asked: Asked) -> tuple[Tensor, Tensor]:
    """Some logits at the scored positions, and the tokens that follow."""
    logits = 3 * torch.randn(asked.positions, VOCABULARY, generator=torch.Generator().manual_seed(9))
    return logits, asked.sequences.ids[:, 1:][asked.scored]


def losses(answers: TopKAnswers | HiddenAnswers, asked: Asked, loss: LogitLoss) -> Tensor:
    logits, following = student(asked)
    return loss(logits, answers.targets(asked.scored, asked.rows)(slice(None)), following)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_are_the_dense_divergence(
    run: Run, stage: Stage, teacher: Teacher, asked: Asked, temperature: float
) -> None:
    loss = LogitLoss(temperature=temperature, alpha=0.1)
    expected = losses(HiddenAnswers(run, stage, teacher, asked, loss), asked, loss)
    kept = TopKAnswers(run, stage, teacher, asked, loss, VOCABULARY + 7)
    assert kept.left_out == 0
    # float16 holds log-probabilities to 1 part in 2,048.
    torch.testing.assert_close(losses(kept, asked, loss), expected, rtol=2e-3, atol=2e-3)


def test_fewer_tokens_never_show_more_and_say_what_is_left_out(
    run: Run, teacher: Teacher, asked: Asked, tmp_path: Path
) -> None:
    loss = LogitLoss()
    dense = HiddenAnswers(run, Stage((), {}, tmp_path / "dense"), teacher, asked, loss)
    log_p = dense.targets(asked.scored, asked.rows)(slice(None)).log_p
    found, notes = [], list[str]()
    run.reporter.note = notes.append  # type: ignore[method-assign]
    for k in (1, 16, 200):
        kept = TopKAnswers(run, Stage((), {"k": k}, tmp_path), teacher, asked, loss, k)
        rest = 1 - log_p.double().exp().topk(k).values.sum(1)
        assert kept.left_out == pytest.approx(float(rest.mean()), rel=1e-4)
        assert f"{k} likeliest tokens hold {1 - kept.left_out:.2%}" in notes[-1]
        found.append(losses(kept, asked, loss))
    found.append(losses(dense, asked, loss))
    assert all(bool((more >= less - 5e-3).all()) for less, more in itertools.pairwise(found))
    assert float(found[0].mean()) < float(found[-1].mean())


def test_a_target_is_a_distribution_and_its_tokens_are_the_likeliest(
    run: Run, stage: Stage, teacher: Teacher, asked: Asked
) -> None:
    loss = LogitLoss(vocabulary=300)
    target = TopKAnswers(run, stage, teacher, asked, loss, 8).targets(asked.scored, asked.rows)(slice(None))
    assert target.ids is not None and target.ids.dtype == torch.int64 and target.log_p.dtype == torch.float32
    assert target.log_p.shape == (asked.positions, 9)
    torch.testing.assert_close(target.log_p.exp().sum(1), torch.ones(asked.positions))
    assert int(target.ids.max()) < 300  # padding is masked before the likeliest are chosen
    dense = HiddenAnswers(run, Stage((), {"dense": 1}, run.work), teacher, asked, loss)
    log_p = dense.targets(asked.scored, asked.rows)(slice(None)).log_p
    assert torch.equal(target.ids, log_p.topk(8).indices)


def test_parts_of_rows_come_in_the_order_asked_for(run: Run, stage: Stage, teacher: Teacher, asked: Asked) -> None:
    answers = TopKAnswers(run, stage, teacher, asked, LogitLoss(), 8)
    of_each = answers.targets(asked.scored, asked.rows)(slice(None)).log_p.split(asked.scored.sum(1).tolist())
    places = [36, 17, 5, 2]
    expected = torch.cat([of_each[place] for place in places])
    targets = answers.targets(asked.scored[places], asked.rows[places])
    found = torch.cat([targets(part).log_p for part in (slice(0, 3), slice(3, len(expected)))])
    assert torch.equal(found, expected)


def test_the_files_are_as_large_as_planned_and_nothing_else_is_left(
    run: Run, stage: Stage, teacher: Teacher, asked: Asked
) -> None:
    TopKAnswers(run, stage, teacher, asked, LogitLoss(), 8)
    blocks = run.journal.of(Answered, stage.key)
    assert [(block.start, block.stop) for block in blocks] == [(0, 16), (16, 32), (32, 37)]
    files = [NativeFile(stage.file(block.file)) for block in blocks]
    data = sum(tensor.nbytes for file in files for name in file.specs if isinstance(tensor := file.read(name), Tensor))
    assert data == asked.positions * top_k_bytes(8)
    assert {path.name for path in stage.folder.iterdir()} == {block.file for block in blocks}


def test_a_killed_run_goes_on_at_the_block_and_writes_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], teacher: Teacher, asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def answered(folder: str, kill_after: int | None = None) -> list[Answered]:
        run = begin(tiny_llama, tmp_path / folder)
        steps = itertools.count(1)

        def advance(*_: object, **__: object) -> None:
            if next(steps) == kill_after:
                raise KeyboardInterrupt

        monkeypatch.setattr(run.reporter, "advance", advance)
        stage = Stage((), {}, run.work)
        TopKAnswers(run, stage, teacher, asked, LogitLoss(), 8)
        return run.journal.of(Answered, stage.key)

    whole = answered("whole")
    # Three layers, then sequences: in the walk, in the first block, in the second.
    for step in (2, 3 + 7, 16):
        with pytest.raises(KeyboardInterrupt):
            answered("killed", step)
    assert answered("killed") == whole


def test_what_is_kept_is_chosen_by_the_option(run: Run, stage: Stage, teacher: Teacher, asked: Asked) -> None:
    kept = answers(TopK(top_k=8), run, stage, teacher, asked, LogitLoss())
    assert isinstance(kept, TopKAnswers)
    target = kept.targets(asked.scored, asked.rows)(slice(None))
    assert target.log_p.shape == (asked.positions, 9)
    other = Stage((), {"other": 1}, run.work)
    assert isinstance(answers("hidden", run, other, teacher, asked, LogitLoss()), HiddenAnswers)
