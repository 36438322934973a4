"""What cannot end well is said before anything is computed, by the plan and by the run alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from told import Notes

from compress.formats.errors import CompressError, UsageError
from compress.recipes.foresight import foresee
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, build
from compress.recipes.run import run
from compress.recipes.yaml import parse

Write = Callable[..., Recipe]
CALIBRATE = "calibrate: {data: corpus.txt, samples: 8, seq_len: 32}"
GPTQ = "gptq: {group_size: 32}"
EVALUATE = "evaluate: {data: held_out.txt, samples: 2, seq_len: 32}"
EXPORT = "export: {dialect: gptq}"


@pytest.fixture
def write(tmp_path: Path, tiny_llama: Path, corpus: Path, held_out: Path) -> Write:
    """write(*passes, **head) → the recipe, its passes from line 3 on, on the tiny Llama and texts beside it."""

    def make(*passes: str, gates: str = "", model: Path = tiny_llama) -> Recipe:
        lines = [f"model: {model}", "passes:", *(f"  - {step}" for step in passes)]
        lines += [f"gates: {{{gates}}}"] if gates else []
        return build(parse("\n".join(lines), "recipe.yaml"), tmp_path)

    return make


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Recipe], CompressError]:
    """refused(recipe) → what both plan and run raise, nothing having been made."""

    def refuse(recipe: Recipe) -> CompressError:
        with pytest.raises(CompressError) as planned:
            plan(recipe)
        with pytest.raises(CompressError) as ran:
            run(recipe, tmp_path / "out")
        assert (str(ran.value), ran.value.hint) == (str(planned.value), planned.value.hint)
        assert not (tmp_path / "out").exists()
        return planned.value

    return refuse


Refused = Callable[[Recipe], CompressError]

WITHOUT_RESULT: dict[str, tuple[list[str], str, str]] = {
    "nothing but text": ([CALIBRATE], "the recipe has no result", "add `- export: {dialect: …}`"),
    "no export": ([CALIBRATE, GPTQ], "the recipe has no result", "add `- export: {dialect: …}`"),
    "an export before the work": (
        [CALIBRATE, "export: {dialect: dense}", GPTQ],
        "recipe.yaml:5: what gptq makes of the model is lost", "move export (recipe.yaml:4) after gptq",
    ),
    "work after the last export": (
        [CALIBRATE, GPTQ, EXPORT, "kv_cache: {}"],
        "recipe.yaml:6: what kv_cache makes of the model is lost", "move export (recipe.yaml:5) after kv_cache",
    ),
    "work after the measuring": (
        [CALIBRATE, EVALUATE, GPTQ], "recipe.yaml:5: what gptq makes of the model is lost",
        "add `- export: {dialect: …}` (`compress dialects` lists them) after gptq",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT_RESULT)
def test_work_without_a_result_is_refused(case: str, write: Write, refused: Refused) -> None:
    steps, message, hint = WITHOUT_RESULT[case]
    error = refused(write(*steps))
    assert isinstance(error, UsageError) and str(error).startswith(message) and error.hint.startswith(hint)


def test_measuring_alone_is_a_result(write: Write) -> None:
    assert plan(write(EVALUATE)).verdict == "fits"
    notes = Notes()
    assert plan(write(CALIBRATE, GPTQ, EVALUATE), reporter=notes).verdict == "fits"
    assert "nothing is written: the recipe has no export" in notes.said


def test_an_export_before_and_after_the_work_is_fine(write: Write) -> None:
    assert len(plan(write("export: {dialect: gguf}", CALIBRATE, GPTQ, EXPORT)).artifacts) == 2


@pytest.mark.parametrize("gate", ["max_kl", "max_perplexity"])
def test_a_gate_that_nothing_measures_is_refused(gate: str, write: Write, refused: Refused) -> None:
    error = refused(write(CALIBRATE, GPTQ, EXPORT, gates=f"{gate}: 2"))
    assert str(error).startswith(f"recipe.yaml:6: gates.{gate}: no pass measures the ")
    assert error.hint == "add `- evaluate: {data: builtin}` after gptq"
    early = refused(write(EVALUATE, CALIBRATE, GPTQ, EXPORT, gates=f"{gate}: 2"))
    assert early.hint == "move evaluate (recipe.yaml:3) after gptq"
    assert plan(write(CALIBRATE, GPTQ, EVALUATE, EXPORT, gates=f"{gate}: 2")).verdict == "fits"
    assert plan(write(EVALUATE, gates=f"{gate}: 2")).verdict == "fits"


@pytest.mark.parametrize("spelling", ["corpus.txt", "./corpus.txt", "link.txt"])
def test_text_that_calibration_saw_does_not_measure(
    spelling: str, write: Write, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "link.txt").symlink_to(tmp_path / "corpus.txt")
    error = refused(write(CALIBRATE, GPTQ, f"evaluate: {{data: {spelling}}}", EXPORT))
    assert str(error).startswith("recipe.yaml:5: evaluate: ") and "corpus.txt" in str(error)
    assert "`data: builtin`" in error.hint


def test_a_part_of_a_dataset_that_calibration_saw_does_not_measure(write: Write, refused: Refused) -> None:
    error = refused(write("calibrate: {data: some/set}", GPTQ, "evaluate: {data: some/set}"))
    assert "some/set (train)" in str(error) and "split" in error.hint


def test_no_part_of_a_blend_that_was_seen_measures(write: Write, refused: Refused, corpus: Path) -> None:
    seen = "calibrate: {data: [{path: builtin}, {path: corpus.txt, weight: 3}], samples: 8, seq_len: 32}"
    error = refused(write(seen, GPTQ, f"evaluate: {{data: {corpus}, samples: 2, seq_len: 32}}"))
    assert str(error).startswith(f"recipe.yaml:5: evaluate: {corpus} is the text of calibrate")
    blend = "evaluate: {data: [{path: held_out.txt},\n      {path: corpus.txt}], samples: 2, seq_len: 32}"
    assert str(refused(write(CALIBRATE, GPTQ, blend))).startswith("recipe.yaml:6: evaluate: ")
    assert plan(write(seen, GPTQ, EVALUATE)).verdict == "fits"


def test_builtin_text_has_a_part_for_each(write: Write) -> None:
    small = "data: builtin, samples: 2, seq_len: 32"
    assert plan(write(f"calibrate: {{{small}}}", GPTQ, f"evaluate: {{{small}}}")).verdict == "fits"


@pytest.mark.parametrize("content", [None, "", "\n \n"])
@pytest.mark.parametrize("step", [CALIBRATE, EVALUATE])
def test_a_text_that_is_not_there_or_empty_is_refused(
    content: str | None, step: str, write: Write, refused: Refused, tmp_path: Path
) -> None:
    name = "corpus.txt" if step is CALIBRATE else "held_out.txt"
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    error: Any = refused(write(CALIBRATE, GPTQ, EVALUATE, EXPORT))
    assert str(error).startswith(f"recipe.yaml:{3 if step is CALIBRATE else 5}: ") and name in str(error)


def test_a_word_of_another_tool_is_taken_and_its_name_here_said(write: Write) -> None:
    notes = Notes()
    plan(write("rtn: {group_size: 32, ignore: [down_proj]}", EXPORT), reporter=notes)
    assert "recipe.yaml:3: rtn: `ignore` is called `skip` here, and taken for it" in notes.said
    notes = Notes()
    plan(write("rtn: {group_size: 32, skip: [down_proj]}", "export: {dialect: gptq}"), reporter=notes)
    assert not any("skip" in said for said in notes.said)


BITS = "gptq: {{group_size: 32, bits: [{}]}}"
IDLE: dict[str, tuple[str, str]] = {
    "a typo": ('{match: "*.down_porj", value: 8}, {value: 4}', "; did you mean 'down_proj'?"),
    "a layer that there is not": ('{match: "model.layers.9.*", value: 8}, {value: 4}', "no layer is named so; valid: "),
    "one that comes too late": ('{value: 4}, {match: "*.down_proj", value: 8}', "rules before it do"),
    "a layer that is not included": ('{match: "*embed*", value: 8}, {value: 4}', "model.embed_tokens is not among"),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_rule_that_decides_for_nothing_is_refused(case: str, write: Write, refused: Refused) -> None:
    rules, reason = IDLE[case]
    error = refused(write(CALIBRATE, BITS.format(rules), EXPORT))
    assert isinstance(error, UsageError) and str(error).startswith("recipe.yaml:4: gptq: bits: the rule for '")
    assert reason in str(error) and error.hint


@pytest.mark.parametrize("option", ["damp: [{match: '*.nothing', value: 0.1}]", "act_order: [{match: x, value: true}]"])
def test_so_it_is_with_every_option(option: str, write: Write, refused: Refused) -> None:
    assert "decides for nothing" in str(refused(write(CALIBRATE, f"gptq: {{group_size: 32, {option}}}", EXPORT)))


def test_so_it_is_with_the_options_of_a_container(write: Write, refused: Refused) -> None:
    rules = 'type: [{match: "*.down_porj", value: q8_0}, {value: f16}]'
    error = refused(write(f"export: {{dialect: gguf, {rules}}}"))
    assert str(error).startswith("recipe.yaml:3: gguf: type: the rule for '*.down_porj' decides for nothing")
    assert "did you mean 'down_proj'?" in str(error)
    done = rules.replace("porj", "proj")
    assert plan(write(f"export: {{dialect: gguf, {done}}}")).verdict == "fits"
    assert "is not among what it is to change" in str(
        refused(write(CALIBRATE, GPTQ, f"export: {{dialect: gguf, {done}}}"))
    )


@pytest.mark.parametrize(
    ("step", "option"),
    [
        ('gptq: {group_size: 32, bits: [{match: "*.down_proj", value: 8}]}', "bits"),
        (
            'gptq: {group_size: [{match: "*.down_proj", value: 32}], damp: [{match: "*.q_proj", value: 0.1}]}',
            "group_size",
        ),
        ('nf4: {block_size: [{match: "*.q_proj", value: 32}]}', "block_size"),
    ],
)
def test_layers_that_no_rule_speaks_of_do_not_stay_dense_in_silence(
    step: str, option: str, write: Write, refused: Refused
) -> None:
    error = refused(write(CALIBRATE, step, EVALUATE))
    assert str(error).startswith("recipe.yaml:4: ") and f"no rule of {option} speaks of model.layers.0." in str(error)
    assert "{value: 4}" in error.hint and "skip" in error.hint


def test_rules_that_speak_of_all_layers_or_of_all_but_the_skipped_are_fine(write: Write) -> None:
    two = BITS.format('{match: "*.mlp.*", value: 8}, {match: "*.self_attn.*", value: 4}')
    skipped = 'gptq: {group_size: 32, bits: [{match: "*.mlp.*", value: 8}], skip: ["*.self_attn.*"]}'
    for step in (two, skipped):
        assert plan(write(CALIBRATE, step, EXPORT)).verdict == "fits"


def test_mixed_fills_in_what_rules_leave_open(write: Write) -> None:
    step = BITS.format('{match: "*.down_proj", value: 8}')
    assert plan(write(CALIBRATE, "mixed: {average_bits: 6, bits: [4, 8]}", step, EXPORT)).verdict == "fits"


@pytest.mark.parametrize(
    ("family", "size", "said"),
    [
        ("llama", 64, "groups of 64: 128 does not divide 64 columns"),
        ("qwen3", 32, "groups of 32: 128 does not divide 64"),
    ],
)
def test_groups_are_the_largest_usual_size_that_divides(
    family: str, size: int, said: str, write: Write, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    asked = write("rtn: {bits: 4}", EXPORT, model=make_model(tmp_path / family, family))
    notes, again = Notes(), Notes()
    planned = plan(asked, reporter=notes)
    report = run(asked, tmp_path / "out", reporter=again)
    assert any(said in note for note in notes.said) and any(said in note for note in again.said)
    assert report.artifacts[0].bytes == planned.artifacts[0].bytes
    artifact = Path(report.artifacts[0].path)
    assert json.loads((artifact / "quantize_config.json").read_text())["group_size"] == size
    recipe = json.loads((artifact / "compress.json").read_text())["recipe"]
    assert recipe["passes"][0]["rtn"]["group_size"] == size


def test_groups_may_be_left_open_for_some_layers(write: Write) -> None:
    rules = 'rtn: {group_size: [{match: "*.down_proj", value: 16}, {value: auto}]}'
    notes = Notes()
    assert plan(write(rules, EXPORT), reporter=notes).verdict == "fits"
    assert "rtn: groups of 64: 128 does not divide 64 columns" in notes.said


def test_an_export_that_stands_before_the_quantizing_pass_is_to_be_moved(write: Write, refused: Refused) -> None:
    error = refused(write(CALIBRATE, EXPORT, GPTQ, "export: {dialect: awq}"))
    assert str(error).startswith("recipe.yaml:4: export stands before gptq: no tensor is quantized")
    assert error.hint == "move export after gptq"


def test_a_refusal_names_a_container_that_holds_it(write: Write, refused: Refused) -> None:
    error = refused(write(CALIBRATE, "gptq: {bits: 5, group_size: 32}", EXPORT))
    assert "not 5" in str(error)
    assert error.hint.startswith("`dialect: compressed-tensors` holds it exactly") or "`dialect: gguf`" in error.hint
    assert "`requantize: true`" in error.hint
    named = error.hint.partition("`dialect: ")[2].partition("`")[0]
    assert plan(write(CALIBRATE, "gptq: {bits: 5, group_size: 32}", f"export: {{dialect: {named}}}")).verdict == "fits"


def test_what_was_measured_before_the_work_is_not_said_of_the_result(write: Write, tmp_path: Path) -> None:
    report = run(write(EVALUATE, CALIBRATE, GPTQ, EXPORT), tmp_path / "out")
    assert report.metrics.kl_divergence is None
    assert "KL divergence" not in (tmp_path / "out" / "gptq" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "gptq" / "compress.json").read_text())["scores"] is None


def test_it_needs_no_model(write: Write, tmp_path: Path) -> None:
    """What is wrong with the recipe is said before anything is downloaded."""
    nowhere, notes = tmp_path / "nowhere", Notes()
    foresee(write(CALIBRATE, GPTQ, EVALUATE, EXPORT, model=nowhere), notes.note)
    assert notes.said == []
    with pytest.raises(UsageError, match="what gptq makes of the model is lost"):
        foresee(write(EXPORT, CALIBRATE, GPTQ, model=nowhere), notes.note)
