"""What is installed here, as the packages themselves and the system say it."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path

import pytest
import torch

from compress.recipes.engines.machine import Machine
from compress.recipes.engines.verdicts import readable
from compress.recipes.jobs import doctor
from compress.recipes.jobs.doctor import Engine, examine

NO_DEVICE = "torch was built for CUDA and sees no device"
WRONG = [NO_DEVICE] * (torch.version.cuda is not None and not torch.cuda.is_available())


@pytest.fixture(scope="module")
def found() -> doctor.Doctor:
    return examine(Path("not", "yet", "there"), Machine("x86_64", frozenset({"avx2", "sse"})))


def test_versions_room_and_machine(found: doctor.Doctor) -> None:
    assert found.versions["torch"] == importlib.metadata.version("torch") and found.versions["compress-llm"]
    assert found.machine.features == ["avx2"] and found.machine.architecture == "x86_64"
    assert 0 < found.machine.available_bytes <= found.machine.memory_bytes
    free = shutil.disk_usage(Path()).free
    assert found.disks[0].free_bytes == pytest.approx(free, rel=0.2)
    assert len(found.gpus) == torch.cuda.device_count()
    assert [line.partition(":")[0] for line in found.wrong] == WRONG


def test_engines_are_found_with_what_they_load(found: doctor.Doctor) -> None:
    engines = {engine.engine: engine for engine in found.engines}
    assert engines["transformers"].versions["transformers"] == importlib.metadata.version("transformers")
    assert engines["transformers"].python == sys.executable and engines["transformers"].serves
    assert "gptq" in engines["transformers"].loads and "gguf" in engines["llama.cpp"].loads
    for engine in found.engines:
        assert engine.loads == sorted(readable(engine.engine))
        assert (engine.python is None) == (engine.versions == {})


def test_what_is_not_there_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "places", lambda target: iter([Path("/no/such/python")]))
    engine: Engine = doctor._engine("vllm")
    assert engine.python is None and engine.missing == f"{sys.executable} -m pip install vllm"
    monkeypatch.setattr(doctor, "_requirements", lambda: [doctor.Requirement("torch<1"), doctor.Requirement("none>2")])
    told = [line.partition(":")[0] for line in doctor._wrong({"torch": "2.0", "none": ""})]
    assert told[:2] == ["torch is 2.0", "none is not installed"]
    assert told[2:] == WRONG
