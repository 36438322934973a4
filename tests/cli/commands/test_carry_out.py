"""A recipe carried out for somebody who watches: what becomes of a result that nobody waits for, or that is too bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from compress.cli.commands.carry_out import Budgets, carry_out
from compress.formats.errors import RefusedError, UsageError
from compress.recipes.recipe import from_data

HERE = Budgets("cpu", None, None)
QUESTION = "What is the capital of France"


@pytest.fixture
def work(tiny_llama: Path) -> dict[str, Any]:
    """A recipe without calibration."""
    return {"model": str(tiny_llama), "passes": [{"rtn": {"group_size": 32}}, {"export": {"dialect": "gptq"}}]}


def carried(work: dict[str, Any], out: Path, **options: Any) -> None:
    settings = {"fresh": False, "json": False, "quiet": False, **options}
    carry_out(from_data(work), out, HERE, **settings)


def test_budgets_are_read_as_they_were_typed() -> None:
    assert Budgets.asked("cpu", "2GiB", None, "1GB") == Budgets("cpu", 1 << 31, None, 10**9)
    assert Budgets.asked("cpu", None, "1MB") == Budgets("cpu", None, 10**6)
    with pytest.raises(UsageError, match="much"):
        Budgets.asked("cpu", "much", None)
    with pytest.raises(RefusedError, match="cuda:99"):
        Budgets.asked("cuda:99", None, None)


def test_on_a_terminal_original_and_result_answer_a_question(
    work: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    carried(work, tmp_path / "out")
    question, original, result = capfd.readouterr().out.splitlines()[-3:]
    assert question.startswith(QUESTION) and original.startswith("  original  ") and result.startswith("  gptq  ")


@pytest.mark.parametrize("options", [{}, {"json": True, "first_look": True}, {"quiet": True, "first_look": True}])
def test_who_does_not_watch_is_shown_no_answers(
    options: dict[str, Any], work: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    carried(work, tmp_path / "out", **options)
    assert QUESTION not in capfd.readouterr().out


def test_a_large_model_is_not_asked(
    work: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compress.recipes.jobs.answers.LARGEST", 1000)
    carried(work, tmp_path / "out", first_look=True)
    assert QUESTION not in capfd.readouterr().out


def test_an_answer_that_fails_fails_no_run(
    work: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no words")

    monkeypatch.setattr("compress.recipes.jobs.answers.generate", broken)
    carried(work, tmp_path / "out", first_look=True)
    assert "note: no answer to show: RuntimeError: no words" in capfd.readouterr().err


def test_every_missed_gate_is_told_and_ends_the_command_with_their_exit_code(
    work: dict[str, Any], held_out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work["passes"].insert(1, {"evaluate": {"data": str(held_out), "samples": 2, "seq_len": 32}})
    with pytest.raises(typer.Exit) as ended:
        gates = {"max_kl": 0, "max_perplexity": 1}
        carried({**work, "gates": gates}, tmp_path / "out", junit=tmp_path / "gates.xml")
    assert 'failures="2"' in (tmp_path / "gates.xml").read_text()
    assert ended.value.exit_code == 4
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("gate missed: ")]
    assert [line.split()[2] for line in told] == ["max_kl:", "max_perplexity:"]
