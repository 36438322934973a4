"""Texts that are too long for the model are refused, texts that are too short are told: by plan, run and eval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from told import Notes

from compress.formats import open_checkpoint
from compress.formats.errors import InputError, RefusedError, UsageError
from compress.passes.calibrate import Calibrate
from compress.passes.evaluate import Evaluate
from compress.passes.model.skeleton import Skeleton
from compress.recipes.jobs.evaluate import evaluate
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, build, from_data
from compress.recipes.run import run
from compress.recipes.texts import read_texts
from compress.recipes.yaml import parse

EXPORT = {"export": {"dialect": "dense", "requantize": True}}


def recipe(model: Path, *steps: dict[str, Any]) -> Recipe:
    return from_data({"model": str(model), "passes": [*steps, {"gptq": {"bits": 4}}, EXPORT]})


@pytest.fixture
def tiny_gpt2(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    return make_model(tmp_path / "gpt2", "gpt2")


@pytest.mark.parametrize("step", [{"calibrate": {}}, {"calibrate": {"data": "self"}}, {"evaluate": {}}])
def test_more_tokens_than_the_model_has_positions_are_refused(
    step: dict[str, Any], tiny_gpt2: Path, tmp_path: Path
) -> None:
    work = recipe(tiny_gpt2, *([] if "calibrate" in step else [{"calibrate": {"seq_len": 64}}]), step)
    for attempt in (lambda: plan(work), lambda: run(work, tmp_path / "out")):
        with pytest.raises(RefusedError, match="and the model has 256 positions"):
            attempt()
    assert not (tmp_path / "out").exists()


def test_eval_refuses_them_too(tiny_gpt2: Path) -> None:
    with pytest.raises(RefusedError, match="sequences of 1,024 tokens, and the model has 256 positions"):
        evaluate([str(tiny_gpt2)], windows=1)
    (row,) = evaluate([str(tiny_gpt2)], windows=1, seq_len=256)
    assert row.tokens == 255


def test_a_model_that_can_go_on_does_and_it_is_said(tiny_llama: Path) -> None:
    notes = Notes()
    plan(recipe(tiny_llama, {"calibrate": {"samples": 16, "seq_len": 300}}), reporter=notes)
    assert [note for note in notes.said if "sequences of 300 tokens, and the model was made for 256" in note]


def test_a_text_that_is_shorter_than_one_sequence_says_how_long_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("ten words " * 5)
    with pytest.raises(InputError, match=r"words\.txt has (\d+) tokens, and one sequence takes 256") as caught:
        plan(recipe(tiny_llama, {"calibrate": {"data": str(path), "seq_len": 256}}))
    words = caught.value.hint.rpartition(" ")[2]
    assert plan(recipe(tiny_llama, {"calibrate": {"data": str(path), "seq_len": int(words)}})).verdict == "fits"


def test_fewer_sequences_than_were_asked_for_and_few_tokens_are_told(
    tiny_llama: Path, corpus: Path, held_out: Path
) -> None:
    notes = Notes()
    steps = [
        {"calibrate": {"data": str(corpus), "samples": 1000, "seq_len": 64}},
        {"evaluate": {"data": str(held_out), "samples": 1000, "seq_len": 64}},
    ]
    plan(recipe(tiny_llama, *steps), reporter=notes)
    short = [note for note in notes.said if "of 64 tokens, 1,000 were asked for" in note]
    assert [note.partition(":")[0] for note in short] == ["calibrate", "evaluate"]
    assert not [note for note in notes.said if "few to go by" in note]
    plan(recipe(tiny_llama, {"calibrate": {"data": str(corpus), "samples": 2, "seq_len": 64}}), reporter=notes)
    assert "calibrate: 128 tokens are few to go by; 4,096 are the least that make sense here" in notes.said


def test_a_text_that_is_long_enough_is_nothing_to_speak_of(tiny_llama: Path) -> None:
    notes = Notes()
    plan(recipe(tiny_llama, {"calibrate": {"samples": 32, "seq_len": 128}}), reporter=notes)
    assert not [note for note in notes.said if "calibrate" in note]


class Steps(Notes):
    """Keeps which steps were told of, too."""

    def advance(self, label: str = "", **figures: float) -> None:
        self.said.append(label)


def test_only_passes_that_read_have_a_text_and_each_is_told(tiny_llama: Path, corpus: Path) -> None:
    steps = Steps()
    calibrate = {"calibrate": {"data": str(corpus), "samples": 32, "seq_len": 128}}
    source, skeleton = Skeleton.open(open_checkpoint(tiny_llama), torch.device("cpu"))
    texts = read_texts(recipe(tiny_llama, calibrate), source, skeleton, steps)
    assert {number: (text.count, text.length) for number, text in texts.items()} == {0: (32, 128)}
    assert steps.said == ["calibrate", "gptq", "export"]


def test_a_plan_that_was_made_before_reads_no_text_again(
    tiny_llama: Path, corpus: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says the same, notes included."""
    steps = {"calibrate": {"data": str(corpus), "samples": 64, "seq_len": 32}}, {"evaluate": {"data": str(held_out)}}
    work, said = recipe(tiny_llama, *steps), [Notes() for _ in range(4)]
    plans = [plan(work, reporter=said[0]), plan(work, reporter=said[1], cache=tmp_path / "kept")]
    with monkeypatch.context() as patch:
        for step in (Calibrate, Evaluate):
            patch.setattr(step, "read", lambda *_: pytest.fail("read again"))
        patch.setattr("compress.passes.model.skeleton.Skeleton.open", lambda *_: pytest.fail("built again"))
        plans.append(plan(work, reporter=said[2], cache=tmp_path / "kept"))
    told = [(found.artifacts, [stage.forwards for stage in found.stages], found.memory_bytes) for found in plans]
    assert told[0] == told[1] == told[2] and said[0].said == said[1].said == said[2].said != []
    corpus.write_text("short")
    with pytest.raises(InputError, match="tokens, and one sequence takes 32"):
        plan(work, cache=tmp_path / "kept")


BLEND = """
model: {model}
passes:
  - calibrate:
      samples: {samples}
      seq_len: 64
      data:
        - {{path: corpus.txt, weight: 3}}
        - path: {second}
          weight: {weight}
  - gptq: {{bits: 4, group_size: 32}}
  - export: {{dialect: gptq}}
"""


def blended(tmp_path: Path, model: Path, second: str = "held_out.txt", weight: str = "1", samples: int = 8) -> Recipe:
    text = BLEND.format(model=model, second=second, weight=weight, samples=samples)
    return build(parse(text.strip(), "recipe.yaml"), tmp_path)


def test_a_plan_that_was_made_before_says_what_there_was_to_say_of_its_texts(
    tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    said = [Notes(), Notes()]
    for notes in said:
        plan(blended(tmp_path, tiny_llama, samples=2000), reporter=notes, cache=tmp_path / "kept")
    assert said[0].said == said[1].said
    assert any("calibrate: corpus.txt has text for " in note and "its share is 1,500" in note for note in said[1].said)


def test_a_blend_is_read_from_beside_the_recipe_and_calibrates(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    found = plan(blended(tmp_path, tiny_llama))
    assert found.verdict == "fits"
    report = run(blended(tmp_path, tiny_llama), tmp_path / "out")
    assert report.artifacts[0].bytes == found.artifacts[0].bytes
    written = json.loads((Path(report.artifacts[0].path) / "compress.json").read_text())
    assert written["calibration"]["tokens"] == 8 * 64
    assert from_data(written["recipe"]).passes[0] == blended(tmp_path, tiny_llama).passes[0]


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        ({"second": "absent.txt"}, 8, "absent.txt is not there"),
        ({"second": "corpus.txt"}, 8, "corpus.txt is two parts of the blend"),
        ({"weight": "1e-9"}, 8, "held_out.txt has no share of 8 sequences"),
        ({"weight": "0"}, 9, "0 should be greater than 0"),
        ({"weight": "-1"}, 9, "-1 should be greater than 0"),
        ({"weight": ".nan"}, 9, "should be a finite number"),
        ({"weight": ".inf"}, 9, "should be a finite number"),
        ({"weight": "1\n          wieght: 2"}, 10, "unknown option 'wieght'; did you mean 'weight'?"),
    ],
)
def test_what_is_wrong_with_a_blend_is_said_with_the_line_of_its_part(
    change: dict[str, str], line: int, said: str, tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(blended(tmp_path, tiny_llama, **change))
    assert str(caught.value).startswith(f"recipe.yaml:{line}: ") and said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("data: []", "passes[0].calibrate.data: [] should "),
        ("data: [{weight: 1}]", "the option 'path' is missing"),
        ("data: {path: a.txt}", "passes[0].calibrate.data: {"),
        ("data: [{path: ''}]", "passes[0].calibrate.data[0].path: "),
        ("data: [{path: a.txt}], column: body", "in a blend each part says its own column"),
        ("data: [{path: a.txt}], split: test, column: body", "in a blend each part says its own split and column"),
    ],
)
def test_a_blend_that_is_none_is_refused_as_it_is_read(options: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(parse(f"model: none\npasses:\n  - calibrate: {{{options}}}\n", "recipe.yaml"))
    assert str(caught.value).startswith("recipe.yaml:3: ") and said in str(caught.value)
