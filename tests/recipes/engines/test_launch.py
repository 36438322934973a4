"""What an engine's interpreter runs, tried with engines made up here: it needs nothing of ours but scripts/."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.recipes.engines import launch, scripts

SCRIPTS = Path(scripts.__file__).parent
ENGINE = """
import os, numpy
from . import HOST
PACKAGES = ("numpy", "not_installed")
print("hello of an import")
def answer(path, sequences):
    os.system("echo hello of a child")
    return [[path, numpy.array(sequence).tolist()] for sequence in sequences]
def command(path, port):
    return [HOST, path, str(port)]
"""


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """launch.py where nothing else of ours is, with an engine that is named like the package that it imports."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(launch.__file__, tmp_path / "launch.py")
    shutil.copy(SCRIPTS / "__init__.py", tmp_path / "scripts")
    (tmp_path / "scripts" / "numpy.py").write_text(ENGINE)
    return tmp_path / "launch.py"


def run(file: Path, *arguments: str, **request: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(file), *arguments]
    return subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, cwd=file.parent)


def test_only_the_reply_is_on_standard_output(alone: Path) -> None:
    done = run(alone, "numpy", path="x", sequences=[[1, 2], [3]])
    reply = json.loads(done.stdout)
    assert reply["log_probs"] == [["x", [1, 2]], ["x", [3]]]
    assert set(reply["versions"]) == {"numpy"}
    assert done.stderr.split("\n")[:2] == ["hello of an import", "hello of a child"]


def test_a_port_asks_for_the_command_that_serves(alone: Path) -> None:
    done = run(alone, "numpy", path="x", port=8123)
    assert json.loads(done.stdout) == {"command": ["127.0.0.1", "x", "8123"], "model": "x"}


def test_options_that_its_command_has_reach_it_and_others_are_named(alone: Path) -> None:
    more = "def command(path, port, *, host, cache=None): return [path, str(port), host, cache]\n"
    more += "def model(path): return f'the {path}'\n"
    (alone.parent / "scripts" / "other.py").write_text(f"PACKAGES = ()\n{more}")
    done = run(alone, "other", path="x", port=8123, options={"host": "::1", "cache": "q8_0"})
    assert json.loads(done.stdout) == {"command": ["x", "8123", "::1", "q8_0"], "model": "the x"}
    done = run(alone, "other", path="x", port=8123, options={"host": "::1", "parallel": 2, "context": 9})
    assert json.loads(done.stdout) == {"lacks": ["context", "parallel"]}


def test_an_engine_without_a_command_has_no_server(alone: Path) -> None:
    (alone.parent / "scripts" / "other.py").write_text("PACKAGES = ()\n")
    done = run(alone, "other", path="x", port=8123)
    assert done.returncode == 1 and done.stdout == "" and "LookupError: it has no server" in done.stderr


def test_a_script_serves_where_no_package_does(alone: Path) -> None:
    (alone.parent / "scripts" / "other.py").write_text(
        "def serve(path, port, *, host=0): print(path, port + 1, host)\n"
    )
    assert run(alone, "other", "x", "8123").stdout == "x 8124 0\n"
    assert run(alone, "other", "x", "8123", '{"host": "::1"}').stdout == "x 8124 ::1\n"


@pytest.mark.parametrize("file", sorted(SCRIPTS.glob("[a-z]*.py")), ids=lambda file: file.stem)
def test_every_script_holds_what_is_asked_of_it(file: Path) -> None:
    """Read, not imported: its engine need not be there."""
    tree = ast.parse(file.read_text())
    names = {node.name: [argument.arg for argument in node.args.args] for node in tree.body if is_function(node)}
    assert names["answer"] == ["path", "sequences"]
    assert names.get("command", ["path", "port"]) == names.get("serve", ["path", "port"]) == ["path", "port"]
    assert any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES" for node in tree.body)
    modules = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("compress." in ast.unparse(node) for node in modules)


def is_function(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef)


WRITER = """
PACKAGES = ("numpy",)
def writer(path, *, threads):
    loaded = bytearray(200 << 20)
    asked = []
    def write(prompts, tokens):
        asked.append(tokens)
        return [[[len(loaded), number] for number in asked] for _ in prompts]
    return write
"""


def test_a_writer_stays_loaded_and_its_memory_is_told(alone: Path) -> None:
    (alone.parent / "scripts" / "other.py").write_text(WRITER)
    opening = {"path": "x", "writer": {"threads": 1}}
    requests = [opening, {"prompts": [[1], [2]], "tokens": 5}, {"prompts": [[1]], "tokens": 6}]
    command = [sys.executable, "-P", str(alone), "other"]
    done = subprocess.run(command, input="\n".join(map(json.dumps, requests)), capture_output=True, text=True)
    opened, first, second = map(json.loads, done.stdout.splitlines())
    size = 200 << 20
    assert set(opened["versions"]) == {"numpy"}
    assert first["arrivals"] == [[[size, 5]], [[size, 5]]] and second["arrivals"] == [[[size, 5], [size, 6]]]
    # Its own, and not what this process had when it started that one: torch and more.
    assert size < first["peak_bytes"] < size + (100 << 20)
