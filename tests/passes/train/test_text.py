"""What passes that train read: answers where they are asked for, and enough beside what is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import UsageError
from compress.passes.forward.blend import Part
from compress.passes.train.text import TrainText

ROWS = [
    {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]},
    {"text": "plain words of text"},
]


@pytest.fixture
def step(tiny_llama: Path, tmp_path: Path) -> TrainText:
    (tiny_llama / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS * 8))
    return TrainText(data="rows.jsonl", samples=16, seq_len=32, pack=False, held_out=2)


def test_answers_of_chats_alone_or_everything(step: TrainText, tiny_llama: Path, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama)
    everything = step.read_text(source, tmp_path, print)
    assert everything.answers is None and everything.count == 16
    answers = step.model_copy(update={"answers_only": True}).read_text(source, tmp_path, print)
    assert answers.answers is not None and answers.mask is not None
    assert answers.ids.equal(everything.ids) and answers.answers[1].equal(answers.mask[1])  # text is learned whole
    assert 0 < int(answers.answers[0].sum()) < int(answers.mask[0].sum())


def test_something_is_left_to_learn_from(step: TrainText, tiny_llama: Path, tmp_path: Path) -> None:
    for held_out, enough in ((15, True), (16, False)):
        some = step.model_copy(update={"held_out": held_out})
        if enough:
            assert some.read_text(open_checkpoint(tiny_llama), tmp_path, print).count == 16
            continue
        with pytest.raises(UsageError, match="16 sequences are to be held out, and there are 16") as caught:
            some.read_text(open_checkpoint(tiny_llama), tmp_path, print)
        assert caught.value.at == ("held_out",)


def test_what_it_depends_on(step: TrainText, tiny_llama: Path, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama)
    same = step.basis(source, tmp_path)
    for change in ({"answers_only": True}, {"held_out": 3}, {"seq_len": 16}):
        assert step.model_copy(update=change).basis(source, tmp_path) != same
    assert step.model_copy(update={"lr": 1e-3}).basis(source, tmp_path) == same  # nothing of the text
    assert step.learns_by() != step.model_copy(update={"lr": 1e-3}).learns_by()
    assert step.learns_by() == step.model_copy(update={"micro_batch": 1}).learns_by()
    assert not {"data", "samples", "seq_len"} & set(step.learns_by())


def test_of_text_of_the_models_own_there_is_how_it_begins(step: TrainText, tiny_llama: Path, tmp_path: Path) -> None:
    """And what the model writes is to be learned: of chats, its answers."""
    parts = (Part(path="self", weight=1), Part(path="rows.jsonl", weight=3))
    some = step.model_copy(update={"data": parts, "answers_only": True})
    found = some.read_text(open_checkpoint(tiny_llama), tmp_path, print)
    assert found.begun is not None and found.answers is not None and found.count == 16
    assert (found.begun < 32).tolist() == [True] * 4 + [False] * 12
    for own in range(4):
        start = int(found.begun[own])
        assert found.answers[own].long().argmax() == start and bool(found.answers[own, start:].all())
        assert any(found.ids[own, :start].equal(other[:start]) for other in found.ids[4:])
