"""What long work tells on its way: no layer, no scoring goes by in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.passes.core.report import Reporter
from compress.recipes.recipe import from_data
from compress.recipes.run import run


class Diary(Reporter):
    """Remembers all in order: `start …`, `tell …`, `step …`, `finish`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.lines.append(f"start {title}: {total} {unit}s")

    def tell(self, label: str) -> None:
        self.lines.append(f"tell {label}")

    def advance(self, label: str = "", **figures: float) -> None:
        self.lines.append(f"step {label}")

    def finish(self) -> None:
        self.lines.append("finish")

    def work(self, title: str) -> list[str]:
        """What was told of one piece of work."""
        begin = next(at for at, line in enumerate(self.lines) if line.startswith(f"start {title}"))
        return self.lines[begin : self.lines.index("finish", begin)]


@pytest.fixture
def diary(make_model: Callable[..., Path], tmp_path: Path) -> Diary:
    kept = Diary()
    steps: list[dict[str, Any]] = [
        {"calibrate": {"data": "builtin", "samples": 200, "seq_len": 32}},
        {"gptq": {"bits": 4, "group_size": 32}},
        {"evaluate": {"data": "builtin", "samples": 3, "seq_len": 32}},
        {"export": {"dialect": "gptq"}},
    ]
    model = make_model(tmp_path / "model", "llama", layers=3)
    run(from_data({"model": str(model), "passes": steps}), tmp_path / "out", reporter=kept)
    return kept


def test_the_first_layer_tells_what_it_is_at_before_it_is_done(diary: Diary) -> None:
    told = diary.work("gptq")
    first = told[: next(at for at, line in enumerate(told) if line.startswith("step"))]
    assert first[0] == "start gptq: 3 layers"
    assert "tell embedding the sequences, batch 7 of 7" in first
    for linear in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        batches = [f"tell running to {linear}, batch {number} of 7" for number in range(1, 8)]
        at = first.index(batches[0])
        assert first[at : at + 8] == [*batches, f"tell rewriting {linear}"]
    # It is done once it is on the disk, and the next one begins meanwhile.
    assert first.index("tell running the layer, batch 7 of 7") < first.index("tell loading model.layers.1")
    assert not any(
        line.startswith("tell running the layer") for line in first[first.index("tell loading model.layers.1") :]
    )


def test_an_evaluation_counts_the_layers_of_each_model_and_then_sequences(diary: Diary) -> None:
    for title in ("evaluate the original: ", "evaluate: "):
        told = diary.work(title)
        assert told[0] == f"start {title}3 layers"
        assert sum(line.startswith("step") for line in told) == 3
    assert diary.work("evaluate: scores") == ["start evaluate: scores: 3 sequences", "step ", "step ", "step "]


def test_what_comes_before_any_work_is_told(diary: Diary) -> None:
    before = diary.lines[: diary.lines.index("start gptq: 3 layers")]
    for label in ("opening and tracing the model", "planning", "hashing model.safetensors"):
        assert f"tell {label}" in before
    assert "tell reading and tokenizing the text of calibrate" in before


def test_an_export_tells_of_opening_comparing_and_hashing(diary: Diary) -> None:
    assert diary.work("export gptq")[-1] == "tell opening what was written"
    assert diary.work("verify gptq")[-1] == "tell hashing tokenizer_config.json"
