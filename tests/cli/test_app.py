"""The command line as its users meet it: exit codes, one JSON object, no traceback, no torch in `--help`."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.cli.app import entry, main

COMMANDS = [
    *("run", "quantize", "plan", "inspect", "export", "eval", "verify", "diff", "replay", "sign"),
    *("generate", "serve", "bench", "deploy", "doctor", "passes", "dialects", "recipes", "schema", "init"),
]

IMPORTING = """\
import sys
from compress.cli.app import entry, main
code = main(sys.argv[2:])
print("heavy:", [name for name in sys.argv[1].split() if name in sys.modules])
sys.exit(code)
"""

Python = Callable[..., subprocess.CompletedProcess[str]]
Failure = Callable[[], dict[str, Any]]


@pytest.fixture
def imported(python: Python) -> Callable[..., str]:
    """imported(arguments, *modules) → what a command prints, and then which of `modules` it has imported."""

    def ask(arguments: list[str], *modules: str) -> str:
        done = python(IMPORTING, " ".join(modules), *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return ask


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["init", "-"]], ids=" ".join)
def test_help_needs_no_torch(arguments: list[str], imported: Callable[..., str]) -> None:
    assert "heavy: []" in imported(arguments, "torch", "transformers", "numpy", "rich.table")


@pytest.mark.parametrize("arguments", [["passes"], ["dialects"], ["recipes"], ["passes", "--json"]], ids=" ".join)
def test_a_listing_needs_no_torch(arguments: list[str], imported: Callable[..., str]) -> None:
    assert "heavy: []" in imported(arguments, "torch", "transformers", "numpy")


def test_passes_and_headers_are_read_without_transformers(tiny_llama: Path, imported: Callable[..., str]) -> None:
    """It takes as long to import as all the rest of a plan together."""
    for arguments in (["schema"], ["plan", str(tiny_llama), "--quiet"]):
        assert "heavy: []" in imported(arguments, "transformers", "accelerate", "huggingface_hub")


def test_a_plan_that_was_made_before_needs_no_transformers(recipe: Path, imported: Callable[..., str]) -> None:
    assert main(["plan", str(recipe), "--quiet"]) == 0
    assert "heavy: []" in imported(["plan", str(recipe), "--quiet"], "transformers")


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


def test_a_bug_is_one_line(
    failure: Failure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("compress.recipes.jobs.inspect.open_checkpoint", broken)
    monkeypatch.delenv("COMPRESS_DEBUG", raising=False)
    assert main(["inspect", ".", "--json"]) == 1
    assert failure()["message"] == "RuntimeError: first second"
    monkeypatch.setenv("COMPRESS_DEBUG", "1")
    assert main(["inspect", "."]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "job", "threshold"), [("inspect", "inspect", 0), ("eval", "evaluate", 50_000)])
def test_garbage_is_seldom_collected_and_by_short_commands_never(
    command: str, job: str, threshold: int, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, before = list[int](), gc.get_threshold()

    def looking(*_: object) -> None:
        seen.append(gc.get_threshold()[0])
        raise RuntimeError

    monkeypatch.setattr(f"compress.recipes.jobs.{job}.open_checkpoint", looking)
    assert main([command, str(tiny_llama)]) == 1
    assert seen == [threshold] and gc.get_threshold() == before


def test_the_end_takes_no_collection_of_what_is_imported(python: Python) -> None:
    """What was registered first is called last."""
    code = "import atexit, gc; atexit.register(lambda: print('frozen:', gc.get_freeze_count() > 0))\n"
    assert python(code + "from compress.cli.app import main; main(['recipes', '--json'])").stdout.endswith(
        "frozen: True\n"
    )


@pytest.mark.parametrize(
    ("error", "option"),
    [(MemoryError(), "--max-ram"), (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "--max-vram")],
)
def test_no_memory_is_no_bug(error: Exception, option: str, failure: Failure, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("compress.recipes.jobs.inspect.open_checkpoint", full)
    assert main(["inspect", ".", "--json"]) == 1
    told = failure()
    assert told["message"] == "out of memory" and told["hint"].endswith(option)


def test_a_reader_that_goes_away_is_no_error(environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "compress.cli", "init", "-"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize(("asked", "policy"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_said_otherwise(asked: str | None, policy: str, python: Python) -> None:
    """What OpenMP itself says of it, once torch has loaded it."""
    forget = "" if asked else "import os; os.environ.pop('OMP_WAIT_POLICY', None); "  # a test before has set ours
    script = f"{forget}from compress.cli.app import main; main(['--version']); import torch"
    done = python(script, OMP_DISPLAY_ENV="true", **({"OMP_WAIT_POLICY": asked} if asked else {}))
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


@pytest.mark.parametrize(("asked", "kept"), [(None, "16"), ("64", "64")])
def test_few_products_are_kept_unless_the_user_said_otherwise(
    asked: str | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, asked) if asked else monkeypatch.delenv(name, raising=False)
    main(["--version"])
    assert os.environ[name] == kept


def test_one_that_has_served_ends_at_once_and_others_as_python_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It leaves what it holds of torch to the system; what was registered for the end is done, and said what was."""
    ended: list[tuple[str, object]] = []
    monkeypatch.setattr("os._exit", lambda code: ended.append(("at once", code)))
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: ended.append(("registered", None)))
    monkeypatch.setattr(sys, "argv", ["compress", "serve", str(tmp_path / "none")])
    entry()
    assert ended == [("registered", None), ("at once", 2)]
    monkeypatch.setattr(sys, "argv", ["compress", "inspect", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as caught:
        entry()
    assert caught.value.code == 2 and len(ended) == 2
