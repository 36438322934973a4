"""The command line as its users meet it: exit codes, one JSON object, no traceback, no torch in `--help`."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.cli.app import main

COMMANDS = [
    *("run", "quantize", "plan", "inspect", "export", "eval", "verify", "generate"),
    *("passes", "dialects", "recipes", "schema", "init"),
]
RECIPE = """\
model: {model}
passes:
  - calibrate: {{data: {corpus}, samples: 8, seq_len: 32}}
  - gptq: {{bits: 8, group_size: 32}}
  - evaluate: {{data: {held_out}, samples: 2, seq_len: 32}}
  - export: {{dialect: gguf}}
gates: {{max_kl: {gate}}}
"""


def environment() -> dict[str, str]:
    """Ours, with this process's way to the package."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def imported(arguments: list[str], *modules: str) -> str:
    """What a command prints, and then which of `modules` it has imported."""
    code = (
        "import sys; from compress.cli.app import main; code = main(sys.argv[2:]);"
        "print('heavy:', [name for name in sys.argv[1].split() if name in sys.modules]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, " ".join(modules), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path, held_out: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_llama, corpus=corpus, held_out=held_out, gate=5))
    return path


def failure(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a failed command with --json printed: one object, and the same message for people."""
    shown = capsys.readouterr()
    error: dict[str, Any] = json.loads(shown.out)["error"]
    assert error["message"]
    assert error["message"].splitlines()[0] in shown.err
    assert "Traceback" not in shown.err
    return error


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["init", "-"]], ids=" ".join)
def test_help_needs_no_torch(arguments: list[str]) -> None:
    assert "heavy: []" in imported(arguments, "torch", "transformers", "numpy", "rich.table")


@pytest.mark.parametrize("arguments", [["passes"], ["dialects"], ["recipes"], ["passes", "--json"]], ids=" ".join)
def test_a_listing_needs_no_torch(arguments: list[str]) -> None:
    assert "heavy: []" in imported(arguments, "torch", "transformers", "numpy")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  (\w+)  ", capsys.readouterr().out.partition("Commands:")[2], re.MULTILINE)
    assert listed == COMMANDS
    assert main(["--version"]) == 0
    assert re.fullmatch(r"compress \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [
    ["nonsense"], ["run"], ["run", "quickstart", "--nonsense"], ["plan"], ["eval"], ["export", "x"],
    ["eval", "x", "--windows", "none"], ["generate", "x"], ["passes", "nonsense"], ["dialects", "nonsense"],
    ["inspect", "/no/where"], ["run", "/no/where.yaml"], ["plan", "nonsense"], ["eval", "nonsense"],
    ["generate", "nonsense", "-p", "x"],
    ["run", "quickstart", "--set", "gptq.bits"], ["run", "quickstart", "--set", "gptq.bist=3"],
    ["run", "quickstart", "--max-ram", "much"], ["run", "quickstart", "--device", "tpu"],
    ["export", "x", "--dialect", "gguf", "-o", "y", "--set", "z"],
])  # fmt: skip
def test_bad_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err
    assert "Traceback" not in shown.err
    assert main([*arguments, "--json"]) == 2
    if arguments[0] != "generate":  # which has no --json
        assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_a_device_that_is_not_there_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--device", "cuda:99", "--json"]) == 3
    assert "cuda:99" in failure(capsys)["message"]


def test_a_wrong_key_is_named_by_its_line(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text().replace("group_size", "group_szie"))
    assert main(["plan", str(recipe), "--json"]) == 2
    message = "recipe.yaml:4: passes[1].gptq: unknown option 'group_szie'; did you mean 'group_size'?"
    assert failure(capsys) == {"message": message, "hint": "", "exit_code": 2}


def test_a_run_from_beginning_to_end(
    recipe: Path, tmp_path: Path, tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["run", str(recipe), "-o", out, "--json"]) == 0
    shown = capfd.readouterr()
    report = json.loads(shown.out)
    (artifact,) = report["artifacts"]
    assert {"dialect", "path", "bytes", "bits_per_weight"} <= set(artifact)
    assert 0 < artifact["ends"]["bytes"] < artifact["bytes"]
    assert set(report["metrics"]) == {"perplexity", "reference_perplexity", "kl_divergence", "top1_agreement"}
    assert {"passes", "seconds", "peak_ram_bytes", "peak_vram_bytes"} <= set(report)
    (file,) = Path(artifact["path"]).glob("*.gguf")
    assert file.stat().st_size == artifact["bytes"]
    assert "gptq" in shown.err and "\x1b" not in shown.err
    assert main(["plan", str(recipe), "--json"]) == 0
    planned = json.loads(capfd.readouterr().out)
    assert [file["bytes"] for file in planned["artifacts"][0]["files"]] == [artifact["bytes"]]
    assert main(["run", str(recipe), "-o", out, "--quiet"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    for word in ("original", "gguf", artifact["path"], "perplexity", "KL divergence", "llama"):
        assert word in shown.out
    measure = ["--reference", str(tiny_llama), "--windows", "2", "--seq-len", "32"]
    assert main(["eval", artifact["path"], *measure, "--json"]) == 0
    reference, row = json.loads(capfd.readouterr().out)["results"]
    assert reference["path"] == str(tiny_llama)
    assert set(row) == {"path", "perplexity", "kl_divergence", "top1_agreement", "bytes", "tokens"}
    assert 0 <= row["kl_divergence"] < 1


def test_a_missed_gate_exits_4(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "-o", str(tmp_path / "out"), "--set", "gates.max_kl=0", "--json"]) == 4
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert Path(report["artifacts"][0]["path"]).is_dir()
    assert "gate missed: max_kl" in shown.err


def test_a_plan_that_does_not_fit_exits_3(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "--max-ram", "1MiB", "--json"]) == 3
    assert failure(capsys)["exit_code"] == 3


def test_plan_of_a_model_and_inspect(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_llama), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(tiny_llama), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert table["parameters"] == found["parameters"]
    assert table["cache"]["kind"] == "GQA"
    assert main(["plan", str(tiny_llama)]) == main(["inspect", str(tiny_llama)]) == 0
    shown = capsys.readouterr().out
    for word in (
        "INT4",
        "GQA",
        "batch 32",
        "model.layers.*.mlp.up_proj.weight",
        "float32",
        "×2",
        "engine or container",
    ):
        assert word in shown
    assert main(["plan", str(tiny_llama), "--set", "seed=1"]) == 2


def test_export(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(tiny_llama), "--dialect", "gguf", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--set", "type=q8_0", "--json"]) == 0
    artifact = json.loads(capsys.readouterr().out)
    assert artifact["dialect"] == "gguf"
    assert main(["inspect", artifact["path"]]) == 0
    assert "int8" in capsys.readouterr().out
    assert main([*arguments[:-1], str(tmp_path / "other"), "--set", "tipe=q8_0", "--json"]) == 2
    assert "did you mean 'type'?" in failure(capsys)["message"]


def test_generate_prints_nothing_but_the_text(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The quick brown"))
    assert main(["generate", str(tiny_llama), "-p", "-", "--max-tokens", "5", "--raw"]) == 0
    shown = capfd.readouterr()
    assert shown.out.endswith("\n") and len(shown.out) > 1
    assert shown.err == ""


def test_a_bug_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("compress.recipes.jobs.inspect.open_checkpoint", broken)
    monkeypatch.delenv("COMPRESS_DEBUG", raising=False)
    assert main(["inspect", ".", "--json"]) == 1
    assert failure(capsys)["message"] == "RuntimeError: first second"
    monkeypatch.setenv("COMPRESS_DEBUG", "1")
    assert main(["inspect", "."]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("compress.recipes.jobs.inspect.open_checkpoint", full)
    assert main(["inspect", ".", "--json"]) == 1
    assert failure(capsys)["message"] == "out of memory"


WAITING = """
import sys, time
from compress.cli.app import app, main

@app.command("run")
def wait(json: bool = False) -> None:
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)

sys.exit(main(["run", "--json"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_no_error_and_says_how_to_go_on(number: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        error = json.loads(process.stdout.read())["error"]
        assert (process.wait(), error["exit_code"]) == (code, code)
        shown = process.stderr.read()
    assert shown == f"{error['message']}\n" == "interrupted; the same command goes on where it stopped\n"


def test_the_second_signal_ends_the_process_at_once() -> None:
    script = """
import os, signal, sys
from compress.cli.terminal.signals import Interrupted, interruptible
with interruptible():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except Interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("not reached")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


def test_signal_handlers_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "compress.cli", "init", "-"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize(("asked", "policy"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_said_otherwise(asked: str | None, policy: str) -> None:
    """What OpenMP itself says of it, once torch has loaded it."""
    script = "from compress.cli.app import main; main(['--version']); import torch"
    said = {**environment(), "OMP_DISPLAY_ENV": "true"}
    said.pop("OMP_WAIT_POLICY", None)
    if asked:
        said["OMP_WAIT_POLICY"] = asked
    done = subprocess.run([sys.executable, "-c", script], env=said, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
