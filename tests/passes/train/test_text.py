"""What passes that train read: answers where they are asked for, and enough beside what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import UsageError
from compress.passes.forward.texts.blend import Part
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.train.examples import Examples
from compress.passes.train.options import HeldOut
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


@pytest.fixture
def other(step: TrainText, tmp_path: Path) -> TrainText:
    """`step`, with three sequences of another text held out."""
    (tmp_path / "other.txt").write_text("something else altogether, of another domain. " * 40)
    held_out = {"data": "other.txt", "samples": 3}
    return TrainText.model_validate({**step.model_dump(), "pack": True, "answers_only": True, "held_out": held_out})


def test_another_text_is_held_out_whole_and_all_of_the_first_is_learned(
    other: TrainText, tiny_llama: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(tiny_llama)
    alone = other.model_copy(update={"held_out": 1}).read_text(source, tmp_path, print)
    found = other.read_text(source, tmp_path, print)
    tokens = load_tokenizer(source)((tmp_path / "other.txt").read_text(), add_special_tokens=False).input_ids
    learned, held_out = Examples.of(found).parted(found.apart)
    assert found.apart == 3 and held_out.sequences.ids.flatten().tolist() == tokens[: 3 * 32]
    assert learned.sequences.ids.equal(alone.ids) and bool(held_out.scored().all()) and not learned.scored().all()
    assert other.extent() == (19, 32) and other.looked_at == 3


def test_it_depends_on_the_other_text_and_not_on_where_it_lies(
    other: TrainText, tiny_llama: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(tiny_llama)
    first, basis = other.read_text(source, tmp_path, print).sha256(), other.basis(source, tmp_path)
    path = (tmp_path / "other.txt").rename(tmp_path / "moved.txt")
    moved = other.model_copy(update={"held_out": HeldOut(data="moved.txt", samples=3)})
    assert moved.read_text(source, tmp_path, print).sha256() == first and moved.learns_by() == other.learns_by()
    path.write_text("and now for something completely different. " * 40)
    assert moved.read_text(source, tmp_path, print).sha256() != first and moved.basis(source, tmp_path) != basis


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "missing": ({"data": "absent.txt"}, ("held_out", "data"), "not there"),
    "empty": ({"data": "empty.txt"}, ("held_out", "data"), "has no text"),
    "what is learned": ({"data": "./rows.jsonl"}, ("held_out", "data"), "is what is learned"),
    "the model's own": ({"data": "self"}, ("held_out", "data"), "flatters"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_text_that_cannot_be_held_out_is_refused(
    case: str, other: TrainText, tiny_llama: Path, tmp_path: Path
) -> None:
    given, place, said = BAD[case]
    (tmp_path / "empty.txt").write_text("")
    step = other.model_copy(update={"held_out": HeldOut(**given)})
    with pytest.raises(UsageError, match=said) as caught:
        step.read_text(open_checkpoint(tiny_llama), tmp_path, print)
    assert caught.value.at == place and caught.value.hint


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
