"""Gates that repair: what costs most is raised until they hold, or until the gate on size forbids it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.passes.choice.prices import Price, Priced, Prices
from compress.passes.core.journal import Journal
from compress.passes.core.report import Reporter
from compress.recipes.fitting.wish import Fit
from compress.recipes.jobs.evaluate import evaluate
from compress.recipes.jobs.repair import Repair, run
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.report import RunReport


@dataclass(frozen=True)
class Work:
    """recipe(pass, dialect, **gates) → a recipe that calibrates, does the pass, evaluates and exports."""

    folder: Path

    def recipe(self, step: dict[str, Any], dialect: str = "compressed-tensors", **gates: Any) -> Recipe:
        text = {"data": str(self.folder / "corpus.txt"), "samples": 8, "seq_len": 32}
        held = {"data": str(self.folder / "held_out.txt"), "samples": 4, "seq_len": 32}
        steps = [{"calibrate": text}, step, {"evaluate": held}, {"export": {"dialect": dialect}}]
        return from_data({"model": str(self.folder / "model"), "passes": steps, "gates": gates})

    def run(self, name: str, recipe: Recipe) -> RunReport:
        return run(recipe, self.folder / name)


RTN3: dict[str, Any] = {"rtn": {"bits": 3, "group_size": 32}}


@pytest.fixture(scope="module")
def work(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    make_model(folder / "model", "llama")
    lines = [f"{number} things happened, and the quick brown fox saw {number + 1} of them." for number in range(80)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "held_out.txt").write_text("\n".join(line[::-1] for line in lines))
    return Work(folder)


@pytest.fixture(scope="module")
def before(work: Work) -> RunReport:
    """The run without a gate."""
    return work.run("before", work.recipe(RTN3))


@pytest.fixture(scope="module")
def repaired(work: Work, before: RunReport) -> RunReport:
    assert before.metrics.kl_divergence
    return work.run("after", work.recipe(RTN3, max_kl=before.metrics.kl_divergence / 2, repair=True))


def bits_of(report: RunReport) -> dict[str, int]:
    spec = open_checkpoint(Path(report.artifacts[0].path)).spec
    return {name: tensor.format.bits for name, tensor in spec.tensors.items() if tensor.format}  # type: ignore[attr-defined]


def test_the_gate_holds_by_some_bits_more_in_some_places(work: Work, before: RunReport, repaired: RunReport) -> None:
    assert before.metrics.kl_divergence
    gate = before.metrics.kl_divergence / 2
    held_out = str(work.folder / "held_out.txt")
    path = repaired.artifacts[0].path
    rows = evaluate([path], reference=str(work.folder / "model"), data=held_out, windows=4, seq_len=32)
    assert rows[-1].kl_divergence is not None and rows[-1].kl_divergence <= gate * 1.01  # fp16 norms in the file
    assert repaired.missed == [] and [gate.holds for gate in repaired.gates] == [True]
    bits = bits_of(repaired)
    assert set(bits.values()) > {3} and 3 in bits.values()
    assert repaired.repairs and repaired.repairs[0].startswith("repair 1: max_kl: ")


def test_the_same_command_finds_all_done(work: Work, repaired: RunReport, before: RunReport) -> None:
    assert before.metrics.kl_divergence
    journal = (work.folder / "after" / ".compress" / "journal.jsonl").read_bytes()
    again = work.run("after", work.recipe(RTN3, max_kl=before.metrics.kl_divergence / 2, repair=True))
    assert again.artifacts == repaired.artifacts and again.repairs == repaired.repairs
    assert (work.folder / "after" / ".compress" / "journal.jsonl").read_bytes() == journal


def test_units_get_the_same_bits(repaired: RunReport) -> None:
    bits = bits_of(repaired)
    for layer in range(2):
        attention = {bits[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "qkv"}
        mlp = {bits[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up")}
        assert len(attention) == len(mlp) == 1


def test_prices_are_what_the_untouched_weights_of_a_sort_save(work: Work, repaired: RunReport) -> None:
    priced = Journal(work.folder / "after" / ".compress" / "journal.jsonl").of(Priced)
    assert repaired.prices == [] and Prices().alters is False
    modules = [name for price in priced[0].prices for name in price.modules]
    assert len(modules) == len(set(modules)) == 14
    assert all(price.cost > 0 for price in priced[0].prices)


def test_the_gate_on_size_forbids_more(work: Work, before: RunReport) -> None:
    size = before.artifacts[0].bytes
    report = work.run("before", work.recipe(RTN3, max_kl=1e-6, max_bytes=size + 2500, repair=True))
    assert size < report.artifacts[0].bytes <= size + 2500
    assert [gate.gate for gate in report.gates if not gate.holds] == ["max_kl"]
    assert report.repairs[-1].startswith("repair ends: max_kl: ") and "max_bytes allows no more" in report.repairs[-1]
    manifest = json.loads((Path(report.artifacts[0].path) / "compress.json").read_text())
    assert manifest["missed_gates"] == report.missed


def test_types_of_gguf_are_raised_where_most_is_gained_and_plans_say_how_far(work: Work) -> None:
    recipe = work.recipe({"gptq": {"format": "q4_0", "include": ["*.down_proj"]}}, "gguf", min_top1=1.0, repair=True)
    planned = plan(recipe)
    assert planned.repair and planned.repair.passes == ["gptq", "evaluate"]
    dear, cheap = (Price(modules={f"model.layers.{layer}.mlp.down_proj": (64, 128)}, cost=cost)
                   for layer, cost in ((1, 0.5), (0, 0.01)))  # fmt: skip
    repair = Repair.of(recipe, {}, 1 << 40, Reporter())
    found = repair.choose([dear, cheap], left=0.3)
    assert found and found.told.startswith("modules raised: 1 to q5_0; 4.500 → 5.000 bits per weight")
    step = found.recipe.passes[1].model_dump(mode="json", exclude_unset=True)
    assert step["format"] == [
        {"match": "model.layers.1.mlp.down_proj", "value": "q5_0"},
        {"value": "q4_0"},
    ]
    most = repair.choose([dear, cheap], left=0.0)
    assert most and plan(most.recipe).artifacts[0].bytes == planned.repair.bytes
    assert repair.choose([dear, cheap], left=1.0) is None


def test_what_cannot_be_repaired_is_said_beforehand(work: Work, before: RunReport) -> None:
    with pytest.raises(UsageError, match="no gate on quality"):
        plan(work.recipe(RTN3, repair=True))
    with pytest.raises(RefusedError, match="max_bytes"):
        plan(work.recipe(RTN3, max_bytes=before.artifacts[0].bytes - 1))
    full = plan(work.recipe({"rtn": {"bits": 8, "group_size": 32}}, max_kl=1, repair=True)).repair
    assert full and full.rounds == 0


def test_what_mixed_chose_is_raised_where_it_costs_most(work: Work) -> None:
    def recipe(**gates: Any) -> Recipe:
        written = work.recipe({"rtn": {"group_size": 32}}, **gates).model_dump(mode="json", exclude_unset=True)
        calibrate, *others = written["passes"]
        mixed = {"mixed": {"average_bits": 3.5, "bits": [2, 3, 4], "samples": 2}}
        return from_data({**written, "passes": [calibrate, mixed, {"rtn": {"group_size": 32}}, *others[1:]]})

    plain = work.run("mixed", recipe())
    assert plain.metrics.kl_divergence and set(plain.bits.values()) <= {2, 3, 4}
    wanted = recipe(max_kl=plain.metrics.kl_divergence / 2, repair=True)
    planned = plan(wanted).repair
    report = work.run("mixed", wanted)
    assert report.missed == [] and report.repairs
    bits = bits_of(report)
    raised = {name for name, chosen in plain.bits.items() if bits[f"{name}.weight"] != chosen}
    assert raised and all(bits[f"{name}.weight"] >= chosen for name, chosen in plain.bits.items())
    assert planned and planned.passes == ["rtn", "evaluate"] and report.artifacts[0].bytes <= planned.bytes
    assert "mixed" not in [step.name for step in report.passes]  # what it chose stands in the pass that follows


def test_fit_is_the_gate_on_size(work: Work) -> None:
    def recipe(vram: int, **gates: Any) -> Recipe:
        fit = Fit(vram=vram, context=64)
        return work.recipe({"rtn": {"group_size": 32}}, **gates).model_copy(update={"fit": fit})

    rows = {row.weights: row for row in plan(recipe(1 << 30)).fit.rows}  # type: ignore[union-attr]
    between = int((rows["3 bits"].bytes + rows["4 bits"].bytes) / 2 / 0.9)
    wanted = recipe(between, max_kl=1e-6, repair=True)
    planned = plan(wanted)
    assert planned.fit and planned.repair
    assert rows["3 bits"].weights_bytes < planned.repair.bytes == planned.fit.room < rows["4 bits"].weights_bytes
    report = work.run("fit", wanted)
    assert rows["3 bits"].weights_bytes < report.artifacts[0].bytes <= planned.fit.room
    assert report.missed and report.repairs[-1].endswith("no module can be raised: fit allows no more")
    assert min(bits_of(report).values()) == 3 < max(bits_of(report).values())
