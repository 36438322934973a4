"""A teacher that was asked once says what the whole model says: transformers' own forward is the judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.loss.losses import LogitLoss
from compress.passes.teach.cached import Asked, HiddenAnswers, disk_bytes, top_k_bytes
from compress.passes.teach.lesson import TopK
from compress.passes.teach.teacher import Teacher


def judged(path: Path, asked: Asked) -> Tensor:
    """The whole model's logits [scored positions, vocabulary]."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    assert asked.sequences.mask is not None
    with torch.no_grad():
        return model(asked.sequences.ids, attention_mask=asked.sequences.mask.long()).logits[:, :-1][asked.scored]


def test_hidden_states_give_the_logits_of_the_whole_model(
    run: Run, stage: Stage, teacher: Teacher, asked: Asked
) -> None:
    loss = LogitLoss(temperature=2.0, vocabulary=300)
    answers = HiddenAnswers(run, stage, teacher, asked, loss)
    targets = answers.targets(asked.scored, asked.rows)
    found = torch.cat([targets(slice(start, start + 50)).log_p for start in range(0, asked.positions, 50)])
    torch.testing.assert_close(found, loss.target(judged(teacher.checkpoint.path, asked)).log_p, rtol=1e-4, atol=1e-4)
    assert not found.requires_grad


def test_it_answers_in_the_precision_of_its_student(run: Run, stage: Stage, teacher: Teacher, asked: Asked) -> None:
    loss, asked = LogitLoss(), replace(asked, precision="bf16")
    answers = HiddenAnswers(run, stage, teacher, asked, loss)
    exact = loss.target(judged(teacher.checkpoint.path, asked)).log_p
    with torch.autocast("cpu", torch.bfloat16):
        found = answers.targets(asked.scored, asked.rows)(slice(None)).log_p
        expected = loss.target(judged(teacher.checkpoint.path, asked)).log_p
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.2 * (exact - expected).abs().mean()


def test_rows_are_asked_for_by_number_in_any_order(run: Run, stage: Stage, teacher: Teacher, asked: Asked) -> None:
    answers = HiddenAnswers(run, stage, teacher, asked, LogitLoss())
    everything = answers.targets(asked.scored, asked.rows)(slice(None)).log_p
    of_each = everything.split(asked.scored.sum(1).tolist())
    rows, places = torch.tensor([-3, 8, 5, 0]), [32, 8, 5, 0]
    found = answers.targets(asked.scored[places], rows)(slice(None)).log_p
    torch.testing.assert_close(found, torch.cat([of_each[place] for place in places]))
    with pytest.raises(KeyError):
        answers.targets(asked.scored[:1], torch.tensor([30]))


def test_what_was_asked_is_not_asked_again(run: Run, stage: Stage, teacher: Teacher, asked: Asked) -> None:
    first = HiddenAnswers(run, stage, teacher, asked, LogitLoss()).targets(asked.scored, asked.rows)
    records = list(run.journal.records)
    again = HiddenAnswers(run, stage, teacher, asked, LogitLoss()).targets(asked.scored, asked.rows)
    assert run.journal.records == records
    assert torch.equal(first(slice(None)).log_p, again(slice(None)).log_p)


def test_the_disk_that_it_takes_is_what_lies_there(run: Run, stage: Stage, teacher: Teacher, asked: Asked) -> None:
    HiddenAnswers(run, stage, teacher, asked, LogitLoss())
    lies = sum(path.stat().st_size for path in stage.folder.rglob("*.bin"))
    extent, width = (asked.sequences.count, asked.sequences.length), teacher.skeleton.width
    assert disk_bytes("hidden", width, extent, asked.positions) == 2 * lies  # the boundary before it lay beside it
    most = disk_bytes(TopK(top_k=512), width, extent, asked.positions)
    assert most == lies + asked.positions * top_k_bytes(512)
    assert disk_bytes(TopK(top_k=1), width, extent, asked.positions) == 2 * lies
