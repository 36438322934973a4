"""Calibration text into rows: every source of text, packed and padded; the tokenizer itself is the judge."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from compress.formats import open_checkpoint
from compress.formats.errors import InputError, UsageError
from compress.passes.forward.texts.blend import Part
from compress.passes.forward.texts.rows import Document
from compress.passes.forward.texts.text import TextOptions, sequences_of
from compress.passes.model.tokenizer import load_tokenizer

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(open_checkpoint(tiny_llama))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_held_out_windows_are_the_first_of_the_text(tokenizer: PreTrainedTokenizerBase, corpus: Path) -> None:
    rows = sequences_of(TextOptions(data=str(corpus), samples=3, seq_len=32), tokenizer, held_out=True)
    assert rows.ids.flatten().tolist() == encode(tokenizer, corpus.read_text())[: 3 * 32]


def test_calibration_windows_are_spread_over_the_text(tokenizer: PreTrainedTokenizerBase, corpus: Path) -> None:
    tokens = encode(tokenizer, corpus.read_text())
    windows = [tokens[start : start + 32] for start in range(0, len(tokens) - 31, 32)]
    rows = sequences_of(TextOptions(data=str(corpus), samples=4, seq_len=32), tokenizer, held_out=False)
    assert rows.ids.tolist() == [windows[number * len(windows) // 4] for number in range(4)]


def test_padded_rows_keep_texts_apart(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    texts = ["a fox", "the quick brown fox jumps over the lazy dog", "42"]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"body": text}) for text in texts))
    options = TextOptions(data=str(path), samples=8, seq_len=12, pack=False, column="body")
    rows = sequences_of(options, tokenizer, held_out=False)
    assert rows.mask is not None and rows.count == 3
    for row, mask, text in zip(rows.ids, rows.mask, texts):
        assert row[mask].tolist() == encode(tokenizer, text)[:12]
    assert rows.tokens == int(rows.mask.sum())


def test_chats_go_through_the_template(tokenizer: PreTrainedTokenizerBase, chat_corpus: Path) -> None:
    options = TextOptions(data=str(chat_corpus), samples=1, seq_len=16)
    with pytest.raises(InputError, match="chat template"):
        sequences_of(options, tokenizer, held_out=True)
    tokenizer.chat_template = TEMPLATE
    content = json.loads(chat_corpus.read_text().splitlines()[0])["messages"][0]["content"]
    rows = sequences_of(options, tokenizer, held_out=True)
    assert rows.ids[0].tolist() == encode(tokenizer, f"<user>{content}")[:16]


def test_builtin_text_is_held_out_by_document(tokenizer: PreTrainedTokenizerBase) -> None:
    calibration, evaluation = (
        sequences_of(TextOptions(samples=64, seq_len=64), tokenizer, held_out=held_out) for held_out in (False, True)
    )
    assert calibration.count == evaluation.count == 64
    assert not {tuple(row) for row in calibration.ids.tolist()} & {tuple(row) for row in evaluation.ids.tolist()}


@pytest.mark.parametrize("line", ["not json", "[]", '{"other": "text"}', '{"text": 3}'])
def test_bad_lines_are_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n' + line)
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        sequences_of(TextOptions(data=str(path)), tokenizer, held_out=False)


def blend(**weights: float) -> tuple[Part, ...]:
    """Files beside the recipe, by their stems."""
    return tuple(Part(path=f"{name}.txt", weight=weight) for name, weight in weights.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name} and more. " * 200)
    (tmp_path / "short.txt").write_text("few words " * 20)
    return tmp_path


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("held_out", [True, False])
def test_each_part_of_a_blend_has_its_share(
    tokenizer: PreTrainedTokenizerBase, folder: Path, pack: bool, held_out: bool
) -> None:
    for name in ("one", "two"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"body": f"{name} {row}"}) for row in range(99)))
    parts = tuple(Part(path=f"{name}.jsonl", weight=weight, column="body") for name, weight in (("one", 3), ("two", 1)))
    found = sequences_of(TextOptions(data=parts, samples=10, seq_len=8, pack=pack), tokenizer, held_out, folder)
    alone = [
        sequences_of(
            TextOptions(data=part.path, column="body", samples=count, seq_len=8, pack=pack), tokenizer, held_out, folder
        )
        for part, count in zip(parts, (8, 2))  # 7.5 and 2.5: the first of equals is rounded up
    ]
    assert found.ids.tolist() == [row for part in alone for row in part.ids.tolist()]
    assert (found.mask is None) == pack
    if found.mask is not None:
        assert found.mask.tolist() == [row for part in alone if part.mask is not None for row in part.mask.tolist()]


def test_a_part_that_has_less_than_its_share_is_told(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    notes = list[str]()
    options = TextOptions(data=blend(one=1, short=1), samples=20, seq_len=32)
    found = sequences_of(options, tokenizer, False, folder, notes.append)
    few = found.count - 10
    assert 0 < few < 10
    assert notes == [f"short.txt has text for {few} sequences, its share is 10: it weighs less than it should"]


BAD_BLENDS = {
    "a part that has no share": (blend(one=1000, two=1), 4, "two.txt has no share of 4 sequences"),
    "a text twice": ((*blend(one=1), Part(path="./one.txt")), 4, "./one.txt is two parts of the blend"),
    "a part that is not there": (blend(one=1, absent=1), 4, "absent.txt is not there"),
    "a part that is too short": (blend(one=1, short=1), 2, "short.txt has 181 tokens, and one sequence takes 256"),
}


@pytest.mark.parametrize("case", BAD_BLENDS)
def test_the_part_of_a_blend_that_is_no_good_is_named(
    case: str, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    parts, samples, said = BAD_BLENDS[case]
    with pytest.raises(UsageError) as caught:
        sequences_of(TextOptions(data=parts, samples=samples, seq_len=256), tokenizer, False, folder)
    assert said in str(caught.value) and caught.value.at == ("data", 1) and caught.value.hint


@pytest.mark.parametrize("pack", [True, False])
def test_what_the_model_is_to_write_begins_as_the_other_texts_of_the_blend(
    tokenizer: PreTrainedTokenizerBase, folder: Path, pack: bool
) -> None:
    parts = (Part(path="self", weight=2), *blend(one=1, two=1))
    options = TextOptions(data=parts, samples=8, seq_len=32, pack=pack)
    found = sequences_of(options, tokenizer, False, folder)
    others = sequences_of(options.model_copy(update={"data": parts[1:]}), tokenizer, False, folder)
    assert found.begun is not None and found.count == (8 if pack else 6) and options.own == 4
    assert found.begun.tolist()[:4] == [8] * 4 and set(found.begun.tolist()[4:]) == {32}
    assert {tuple(row) for row in found.ids[:4, :8].tolist()} <= {tuple(row) for row in others.ids[:, :8].tolist()}
    assert (found.mask is None) == pack
    with pytest.raises(UsageError, match="flatters") as caught:
        sequences_of(options, tokenizer, True, folder)
    assert caught.value.at == ("data", 0)


def test_two_columns_of_a_file_are_two_texts(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text("\n".join(json.dumps({"q": "why " * 9, "a": "so " * 9}) for _ in range(9)))
    parts = tuple(Part(path="qa.jsonl", column=column) for column in "qa")
    assert sequences_of(TextOptions(data=parts, samples=4, seq_len=8), tokenizer, False, tmp_path).count == 4


@pytest.mark.parametrize("name", ["n" * 5000, "nul\0.txt", "nul\0"])
def test_a_name_that_no_file_can_have_is_refused(
    tokenizer: PreTrainedTokenizerBase, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"not there or is not a file|the hub cannot be reached"):
        sequences_of(TextOptions(data=name), tokenizer, held_out=False)


def test_what_sequences_depend_on_changes_with_it(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """Options, bytes of the text, the tokenizer's files: the same of the same, another of any other."""
    source = open_checkpoint(tiny_llama)

    def basis(folder: Path = tmp_path, **options: Any) -> object:
        return TextOptions(**{"data": str(corpus), "samples": 4, **options}).basis(source, folder)

    same = basis()
    assert basis() == basis(Path("/")) == same and basis(data="builtin") == basis(data="builtin")
    others = [basis(samples=5), basis(pack=False), basis(column="body"), basis(data="builtin"), basis(data="self")]
    for weight in (1, 2):
        others.append(basis(data=[{"path": str(corpus), "weight": weight}, {"path": "builtin"}]))
    corpus.write_text("other text")
    others.append(basis())
    (tiny_llama / "tokenizer.json").write_bytes((tiny_llama / "tokenizer.json").read_bytes() + b" ")
    source = open_checkpoint(tiny_llama)
    others.append(basis())
    assert all(other != another for at, other in enumerate(others) for another in [same, *others[:at]])


def test_of_a_dataset_no_more_is_read_than_is_wanted(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = (Document("word " * 8, "set") for _ in count())
    monkeypatch.setattr("compress.passes.forward.texts.documents.dataset", lambda *_: endless)
    found = sequences_of(TextOptions(data="some/set", samples=5, seq_len=16), tokenizer, held_out=False)
    assert found.ids.shape == (5, 16)


def test_nothing_tells_what_a_dataset_depends_on(tiny_llama: Path) -> None:
    source = open_checkpoint(tiny_llama)
    for data in ("wikitext:wikitext-2-raw-v1", "none.txt", (Part(path="builtin"), Part(path="some/set"))):
        assert TextOptions(data=data).basis(source, Path()) is None
