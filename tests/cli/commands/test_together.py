"""One recipe in several processes: the result of one, kills, interruptions, errors that are told once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from compress.cli.commands.together import one_voice
from compress.formats.errors import RefusedError, UsageError
from compress.passes.core.journal import Followed
from compress.passes.core.processes import Processes
from compress.passes.sweep.units import Unit
from compress.passes.train.state import Checkpointed
from compress.recipes.recipe import load
from compress.recipes.run import run

RECIPE = """\
model: {model}
passes:
  - rtn: {{bits: 3, group_size: 32}}
  - distill:
      {{data: builtin, samples: 24, seq_len: 32, steps: 24, batch: 5, micro_batch: 2, held_out: 5, precision: fp32,
       train: scales, lr_scales: 3.0e-3, lr: 1.0e-3, measure_every: 2}}
  - export: {{dialect: {dialect}}}
"""
COMMAND = [sys.executable, "-m", "compress.cli", "run"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@pytest.fixture(scope="module")
def recipe(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    return written(folder, make_model(folder / "model", "llama"), "gptq")


def written(folder: Path, model: Path, dialect: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, dialect=dialect))
    return path


def start(*arguments: object, command: Sequence[str] = COMMAND, given: str | None = None) -> subprocess.Popen[str]:
    """A command on its way, with one thread a process."""
    path = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE if given else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if process.stdin is not None and given:
        process.stdin.write(given)
        process.stdin.close()
        process.stdin = None
    return process


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """What two processes make of the recipe, undisturbed."""
    output = recipe.parent / "whole"
    code, out, err = ended(start(recipe, "-o", output, "--processes", 2, "--json", "-q"))
    assert (code, err) == (0, "")
    assert Path(json.loads(out)["artifacts"][0]["path"]) == output / "gptq"
    return output


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def training_of(artifact: Path) -> dict[str, Any]:
    (training,) = json.loads((artifact / "compress.json").read_text())["training"]
    assert isinstance(training, dict)
    return training


def test_two_processes_give_the_result_of_one(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """A batch of 5, and 5 that are held out, part unevenly: one process has two forwards where the other has one."""
    run(load(str(recipe)), tmp_path / "one")
    one, two = (training_of(output / "gptq") for output in (tmp_path / "one", whole))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert [loss for _, loss in two["measured"]] == pytest.approx([loss for _, loss in one["measured"]], rel=1e-4)
    assert one["best"] == two["best"] > 0
    assert two["measured"][-1][1] < two["measured"][0][1]


@pytest.mark.timeout(900)  # ten times a process imports torch and transformers
def test_killed_and_interrupted_they_go_on_to_the_same_bytes(recipe: Path, whole: Path, tmp_path: Path) -> None:
    process = start(recipe, "-o", tmp_path, "--processes", 2, "-q")
    workers = working(process, tmp_path, steps=4)
    os.kill(workers[1], signal.SIGKILL)
    code, out, err = ended(process)
    assert (code, out, err.splitlines()[0]) == (1, "", "error: process 2 of 2 was ended by SIGKILL")
    assert err.count("\n") == 2 and left_of(workers) == []

    process = start(recipe, "-o", tmp_path, "--processes", 2, "--json")
    workers = working(process, tmp_path, steps=10)
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code == 130 and json.loads(out)["error"]["exit_code"] == 130
    assert err.count("interrupted; the same command goes on where it stopped") == 1 and "error" not in err
    assert left_of(workers) == [] and steps_of(tmp_path) < 24

    with pytest.raises(RefusedError, match="distill was begun by 2 processes, and now there are 1") as refused:
        run(load(str(recipe)), tmp_path)
    assert "--processes 2" in refused.value.hint

    assert ended(start(recipe, "-o", tmp_path, "--processes", 2, "-q"))[0] == 0
    for path in (whole / "gptq").iterdir():
        assert path.read_bytes() == (tmp_path / "gptq" / path.name).read_bytes(), path.name


def left_of(processes: Sequence[int]) -> list[int]:
    return [process for process in processes if Path(f"/proc/{process}").exists()]


def working(
    process: subprocess.Popen[str], output: Path, steps: int, done: Callable[[Path], int] | None = None
) -> list[int]:
    """The processes that `process` has started, when they have committed so many steps, or what is `done`."""
    while (done or steps_of)(output) < steps:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def steps_of(output: Path) -> int:
    committed = Followed(output / ".compress" / "journal.jsonl").of(Checkpointed)
    return committed[-1].step if committed else 0


def units_of(output: Path) -> int:
    return len(Followed(output / ".compress" / "journal.jsonl").of(Unit))


def test_a_sweep_that_two_began_one_ends_to_the_same_bytes(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Its 2,048 tokens are two batches, one for each of them."""
    model, recipe = make_model(tmp_path / "model", "llama", layers=24), tmp_path / "recipe.yaml"
    steps = "[calibrate: {data: builtin, samples: 64, seq_len: 32}, gptq: {group_size: 32}, export: {dialect: gptq}]"
    recipe.write_text(f"model: {model}\npasses: {steps}\n")
    process = start(recipe, "-o", tmp_path / "two", "--processes", 2)
    workers = working(process, tmp_path / "two", 2, units_of)
    os.kill(workers[1], signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 1 and err.count("error: ") == err.count("error: process 2 of 2 was ended by SIGKILL") == 1
    assert "2 processes share gptq; one of them does calibrate, export" in err
    assert left_of(workers) == [] and units_of(tmp_path / "two") < 24
    for name in ("one", "two"):
        run(load(str(recipe)), tmp_path / name)
    assert (tmp_path / "one/gptq/model.safetensors").read_bytes() == (
        tmp_path / "two/gptq/model.safetensors"
    ).read_bytes()


def test_torchrun_starts_them_as_well_and_experts_without_a_token_hold_up_nobody(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = written(tmp_path, make_model(tmp_path / "model", "qwen3_moe"), "dense")
    code, out, _ = ended(start("run", recipe, "-o", tmp_path / "out", "--json", command=[*TORCHRUN, "compress.cli"]))
    assert code == 0
    assert training_of(Path(json.loads(out)["artifacts"][0]["path"]))["processes"] == 2


def test_what_all_of_them_find_wrong_is_told_once(recipe: Path, tmp_path: Path) -> None:
    wrong = recipe.read_text().replace("bits: 3", "bits: 99")
    code, out, err = ended(start("-", "-o", tmp_path / "out", "--processes", 2, "--json", given=wrong))
    error = json.loads(out)["error"]
    assert (code, error["exit_code"], err.count(error["message"])) == (2, 2, 1)
    assert not (tmp_path / "out").exists()


class Crowd(Processes):
    """The main one of six, the others of which are not there."""

    count = 6


def test_a_batch_that_does_not_go_round_is_refused_before_anything_is_computed(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="distill: a batch of 5 is too small for 6 processes"):
        run(load(str(recipe)), tmp_path / "out", processes=Crowd())
    assert not (tmp_path / "out").exists()


def test_another_number_than_a_launcher_has_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="--processes 2: a launcher has started 3"), one_voice("cpu", 2):
        pytest.fail("begun")
