"""What is shown of a replay, and of this machine."""

from __future__ import annotations

from collections.abc import Callable

from compress.cli.views.trust import doctor, replay
from compress.recipes.jobs.doctor import Disk, Doctor, Engine, Gpu, Processor
from compress.recipes.jobs.replay import Replay, Unlike

Shown = Callable[..., list[str]]


def test_a_replay_ends_with_its_verdict(shown: Shown) -> None:
    unlike = [Unlike(part="versions", where="torch", what="is 2, was 1")]
    good = Replay(path="a", output="b", reproduced=True, files=7, unlike=unlike)
    assert shown(replay(good)) == ["versions: torch is 2, was 1", "a: 7 files came out byte for byte, in b"]
    assert shown(replay(good.model_copy(update={"reproduced": False})))[-1] == "a was made anew in b, with other bytes"
    assert shown(replay(good.model_copy(update={"reproduced": False, "output": None})))[-1] == "a was not made anew"


def test_a_machine_with_its_engines(shown: Shown) -> None:
    machine = Processor(
        architecture="x86_64", system="Linux 6", cores=2, features=["avx2"], memory_bytes=1 << 30,
        available_bytes=1 << 20,
    )  # fmt: skip
    there = Engine(engine="vllm", python="/python", versions={"vllm": "1"}, loads=["gptq", "awq"], serves=True)
    nothing = {"python": None, "versions": {}, "missing": "pip install other", "serves": False}
    gone = there.model_copy(update={"engine": "other", **nothing})
    found = Doctor(
        versions={"python": "3", "torch": ""}, machine=machine, disks=[Disk(path="out", free_bytes=10**9)],
        gpus=[Gpu(device="cuda:0", name="H", memory_bytes=1 << 30, capability="9.0")],
        engines=[there, gone], wrong=["x"],
    )  # fmt: skip
    lines = shown(doctor(found))
    assert lines[0] == "Linux 6, x86_64, 2 cores (avx2), 1.00 GiB of memory, 1.00 MiB free"
    assert {"cuda:0: H, 1.00 GiB, 9.0", "out: 1.00 GB free", "python 3, torch (not installed)"} <= set(lines)
    assert "vllm vllm 1 in /python gptq, awq yes" in lines and "other no: pip install other gptq, awq no" in lines
    assert lines[-1] == "wrong: x"
    assert "no GPU that torch sees" in shown(doctor(found.model_copy(update={"gpus": []})))
