"""What the benchmarks reach into is there: they are run by hand, long after what they name was renamed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import stopwatch
import timed_training
from device_layer import PLACES
from peers.laps import Laps
from stopwatch import Stopwatch
from to_gguf_table import report
from train_table import section, table
from trainings import Lap


def test_every_function_that_is_timed_is_found_timed_and_put_back() -> None:
    before = [getattr(owner, name) for _, owner, name in PLACES]
    with Stopwatch(torch.device("cpu")).watching(PLACES):
        assert all(getattr(owner, name) != old for (_, owner, name), old in zip(PLACES, before))
    assert [getattr(owner, name) for _, owner, name in PLACES] == before


def test_a_function_is_charged_with_what_it_does_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])

    class Work:
        @staticmethod
        def inner() -> None:
            now[0] += 3

        def outer(self) -> None:
            self.inner()
            now[0] += 1
            self.inner()

    watch = Stopwatch(torch.device("cpu"))
    with watch.watching([("outer", Work, "outer"), ("inner", Work, "inner")]):
        Work().outer()
        Work.inner()
    assert watch.calls == {"outer": 1, "inner": 3}
    assert watch.seconds == {"outer": 1, "inner": 9}
    assert watch.rows(20)[-1] == "| everything else | 1 | 10.00 | 50 % |"


def test_a_step_bears_its_part_of_what_was_done_for_all(tmp_path: Path) -> None:
    steps, before = Laps(), Laps()
    steps.seconds, steps.cpu = [1.0, 2.0], [3.0, 4.0]
    before.seconds, before.cpu = [6.0], [8.0]
    steps.write(tmp_path / "steps.json", [0.5, 0.25], before)
    expected = {"seconds": [4.0, 5.0], "cpu": [7.0, 8.0], "losses": [0.5, 0.25]}
    assert json.loads((tmp_path / "steps.json").read_text()) == expected


def test_what_a_training_is_timed_by_is_there() -> None:
    assert callable(timed_training.Training._learn) and callable(timed_training.cached.ask)


def test_ratios_are_those_of_rounds_and_a_section_takes_the_place_of_the_one_before() -> None:
    own = [Lap([9, s, s], [9, 1, 1], [4.0, 3.0, 2.0], 1 << 30, 9.0) for s in (1.0, 2.0, 4.0)]
    peer = [Lap([9, s, s], [9, 4, 4], [4.0, 3.5, 2.0], 1 << 31, 9.0) for s in (2.0, 2.0, 2.0)]
    found = table({"compress finetune, bf16": own, "Trainer finetune, bf16": peer}, 100)
    assert "| 50 | 1.00 (0.50 … 2.00) | 1.00 | 0.25 (0.25 … 0.25) | 1.07 GB | 0.50 (" in found
    assert "| 0.5000 |" in found
    common = {"batch": 1, "seq_len": 100, "steps": 3}
    first = section("# R\n\n## B\n\nold\n\n## C\n\nkept\n", "## B", found, common, "abc")
    assert "old" not in first and first.endswith("\n\n## C\n\nkept\n") and "Commit abc." in first
    assert section(first, "## B", found, common, "abc") == first


def test_a_row_stands_beside_its_peer_and_says_where_it_loses() -> None:
    figures = {"kl": 0.1, "kl_tail": 2.0, "top1": 0.8, "perplexity": 30.0}
    peer = {"of": "x 1", "quantize_seconds": 1.0, "file_bytes": 10, "quiet": True, "text": figures, "other": figures}
    better = {**peer, "text": {**figures, "kl": 0.04}}
    found = report({"M": {"q4_0 rounded": peer, "q4_0 solved": better, "q4_0 llama.cpp": peer}})
    assert "| q4_0 solved | 0.0 MB | 0.0400 | 0.40 | 2.0000 | 1.00 |" in found
    assert "**q4_0 rounded is not better than llama.cpp with an imatrix.**" in found and "**q4_0 solved" not in found
    asked = {"kl_engine": 0.3, "kl_decoder": 0.1, "places": 40}
    engine = report({"M": {"q4_0 solved": {**better, "engine": {**asked, "kl_engine": 0.15}},
                           "q4_0 llama.cpp": {**peer, "engine": asked}}})  # fmt: skip
    assert "| 0.1500 | 0.50 | 80.0 % |" in engine and "| 0.3000 |  | 80.0 % |" in engine
    assert "bytes, llama.cpp's has" in report(
        {"M": {"q8_0 solved": {**better, "file_bytes": 9}, "q8_0 llama.cpp": peer}}
    )
    assert "## M" in report({"M": {"per tensor q4_k": {"of": "a", "matrices": 0, "quiet": True}}})
