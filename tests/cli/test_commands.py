"""The command line as its users meet it: exit codes, one JSON object, no traceback, no torch in `--help`."""

from __future__ import annotations

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

COMMANDS = ["run", "plan", "inspect", "export", "eval", "generate", "passes", "dialects", "schema", "init"]
RECIPE = """\
model: {model}
passes:
  - calibrate: {{data: {corpus}, samples: 8, seq_len: 32}}
  - gptq: {{bits: 8, group_size: 32}}
  - evaluate: {{data: {corpus}, samples: 2, seq_len: 32}}
  - export: {{dialect: gguf}}
gates: {{max_kl: {gate}}}
"""


def compress(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "compress.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_llama, corpus=corpus, gate=5))
    return path


def failure(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a failed command with --json printed: one object, and the same message for people."""
    shown = capsys.readouterr()
    error: dict[str, Any] = json.loads(shown.out)["error"]
    assert error["message"]
    assert error["message"].splitlines()[0] in shown.err
    assert "Traceback" not in shown.err
    return error


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from compress.cli.app import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numpy', 'rich.table'} & set(sys.modules); sys.exit(code or str(heavy or ''))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for arguments in (["--help"], ["run", "--help"], ["init", "-"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  (\w+)  ", capsys.readouterr().out.partition("Commands:")[2], re.MULTILINE)
    assert listed == COMMANDS
    assert main(["--version"]) == 0
    assert re.fullmatch(r"compress \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [
    ["nonsense"], ["run"], ["run", "quickstart", "--nonsense"], ["plan"], ["eval"], ["eval", "x", "--windows", "none"],
    ["export", "x"], ["generate", "x"], ["passes", "nonsense"], ["dialects", "nonsense"], ["inspect", "/no/where"],
    ["run", "/no/where.yaml"], ["plan", "nonsense"], ["eval", "nonsense"], ["generate", "nonsense", "-p", "x"],
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


def test_a_run_from_beginning_to_end(recipe: Path, tmp_path: Path, tiny_llama: Path) -> None:
    """In processes of their own: standard output holds one JSON object and nothing else."""
    out = tmp_path / "out"
    done = compress("run", str(recipe), "-o", str(out), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (artifact,) = report["artifacts"]
    assert {"dialect", "path", "bytes", "bits_per_weight"} <= set(artifact)
    assert set(report["metrics"]) == {"perplexity", "reference_perplexity", "kl_divergence", "top1_agreement"}
    assert {"passes", "seconds", "peak_ram_bytes", "peak_vram_bytes"} <= set(report)
    assert Path(artifact["path"], "model.gguf").stat().st_size == artifact["bytes"]
    assert "gptq: " in done.stderr and "\x1b" not in done.stderr
    planned = json.loads(compress("plan", str(recipe), "--json").stdout)
    assert [file["bytes"] for file in planned["artifacts"][0]["files"]] == [artifact["bytes"]]
    again = compress("run", str(recipe), "-o", str(out), "--quiet")
    assert (again.returncode, again.stderr) == (0, "")
    for word in ("original", "gguf", artifact["path"], "perplexity", "KL divergence", "llama"):
        assert word in again.stdout
    scores = compress("eval", artifact["path"], "--reference", str(tiny_llama), "--windows", "2", "--seq-len", "32", "--json")
    (row,) = json.loads(scores.stdout)["results"]
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
    for word in ("INT4", "GQA", "batch 32", "model.layers.*.mlp.up_proj.weight", "float32", "×2"):
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


def test_generate_prints_nothing_but_the_text(tiny_llama: Path) -> None:
    done = compress("generate", str(tiny_llama), "-p", "-", "--max-tokens", "5", "--raw", input="The quick brown")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")


def test_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == main(["dialects"]) == main(["passes", "gptq"]) == main(["dialects", "gguf"]) == 0
    shown = capsys.readouterr().out
    for word in ("calibrate", "rtn", "gguf", "dense", "group_size", "a list of {match, value}", "q8_0"):
        assert word in shown
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["passes"]
    assert main(["passes", "--json"]) == 0
    assert "gptq" in json.loads(capsys.readouterr().out)


def test_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert (tmp_path / "recipe.yaml").read_text().startswith("# A recipe to start from")
    assert main(["init"]) == 2
    assert main(["init", "no/where/recipe.yaml"]) == 1
    assert capsys.readouterr().out == ""


def test_a_bug_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("compress.recipes.inspect.open_checkpoint", broken)
    monkeypatch.delenv("COMPRESS_DEBUG", raising=False)
    assert main(["inspect", ".", "--json"]) == 1
    assert failure(capsys)["message"] == "RuntimeError: first second"
    monkeypatch.setenv("COMPRESS_DEBUG", "1")
    assert main(["inspect", "."]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command(number: int, code: int, tmp_path: Path) -> None:
    """`generate -p -` waits for its standard input."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    script = (
        "import os, signal, sys\nfrom compress.cli import look\nfrom compress.cli.app import main\n"
        f"look.bundled_text = None\nsignal.setitimer(signal.ITIMER_REAL, 1)\n"
        f"signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), {int(number)}))\n"
        "sys.exit(main(['run', '-', '--json']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate_after() if False else (process.stdout.read(), process.stderr.read())  # type: ignore
    assert process.wait() == code
    assert json.loads(out)["error"]["exit_code"] == code
    assert "the same command goes on" in err and "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(tiny_llama: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "compress.cli", "schema"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
