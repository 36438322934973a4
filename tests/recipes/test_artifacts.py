"""A run's folder stands for its only artifact; several are named, each with the command to give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.cli.app import main
from compress.formats.errors import InputError, UsageError
from compress.recipes.artifacts import artifact_at
from compress.recipes.jobs.inspect import inspect
from compress.recipes.jobs.verify import verify
from compress.recipes.recipe import from_data
from compress.recipes.run import run

Made = Callable[..., Path]


@pytest.fixture
def made(tiny_llama: Path, tmp_path: Path) -> Made:
    """made(*dialects, **head) → the folder of a run that wrote them."""

    def make(*names: str, **head: Any) -> Path:
        steps: list[dict[str, Any]] = [{"rtn": {"group_size": 32}}, {"evaluate": {"samples": 1, "seq_len": 32}}]
        steps += [{"export": {"dialect": name}} for name in names]
        run(from_data({"model": str(tiny_llama), "passes": steps, **head}), tmp_path / "out")
        return tmp_path / "out"

    return make


def test_the_only_artifact_is_meant(made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    out = made("gptq")
    assert artifact_at(out) == artifact_at(out / "gptq") == out / "gptq"
    assert inspect(out).path == str(out / "gptq") and verify(out).path == str(out / "gptq")
    assert main(["eval", str(out), "--windows", "1", "--seq-len", "32", "-q"]) == 0
    assert main(["generate", str(out), "-p", "The", "--max-tokens", "1"]) == 0
    steps = [{"export": {"dialect": "dense"}}]
    report = run(from_data({"model": str(out), "passes": steps}), out.parent / "again")
    assert report.artifacts[0].dialect == "dense"


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_several_are_named(command: str, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made("gptq", "awq")
    assert main([command, str(out), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"] == f"{out} is the folder of a run that wrote 2 artifacts"
    assert error["hint"] == f"say which: compress {command} {out}/gptq, or compress {command} {out}/awq"


def test_a_run_that_wrote_none_says_so(made: Made) -> None:
    with pytest.raises(UsageError, match="wrote no artifact") as caught:
        artifact_at(made())
    assert "export" in caught.value.hint


def test_other_folders_are_what_they_are(tiny_llama: Path, tmp_path: Path) -> None:
    assert artifact_at(tiny_llama) == tiny_llama and artifact_at(tmp_path / "nothing") == tmp_path / "nothing"
    (tmp_path / "compress.json").write_text("[1]")
    assert artifact_at(tmp_path) == tmp_path


@pytest.mark.parametrize("artifacts", [[{"path": "../elsewhere"}], [{"path": "/etc"}], [{"path": ".."}], [{}], [1], 1])
def test_a_manifest_leads_nowhere_but_beside_itself(artifacts: object, tmp_path: Path) -> None:
    (tmp_path / "compress.json").write_text(json.dumps({"report": {"artifacts": artifacts}}))
    with pytest.raises(InputError, match=r"compress\.json"):
        artifact_at(tmp_path)


def test_a_missed_gate_is_shown_wherever_the_artifact_is_looked_at(
    made: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    artifact = made("gptq", gates={"max_kl": 1e-9}) / "gptq"
    said = "max_kl: "
    assert f"**It misses what it was to reach:** {said}" in (artifact / "README.md").read_text()
    found = verify(artifact)
    assert found.passed and found.missed_gates and found.missed_gates[0].startswith(said)
    assert inspect(artifact).missed_gates == tuple(found.missed_gates)
    for command in ("verify", "inspect"):
        assert main([command, str(artifact)]) == 0
        assert f"missed gates: {said}" in capfd.readouterr().out
    made("gptq", gates={"max_kl": 100})
    assert "misses" not in (artifact / "README.md").read_text()
    assert verify(artifact).passed and verify(artifact).missed_gates == [] == list(inspect(artifact).missed_gates)
