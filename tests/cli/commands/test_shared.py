"""What commands share: progress beside the work and nothing on standard output, a device that is there."""

from __future__ import annotations

import sys

import pytest
import torch

from compress.cli.commands.shared import device_here, working
from compress.formats.errors import RefusedError, UsageError


@pytest.mark.parametrize(("quiet", "heard"), [(False, "printed\nsaid\n"), (True, "")])
def test_what_libraries_print_is_no_result(quiet: bool, heard: str, capfd: pytest.CaptureFixture[str]) -> None:
    with working(quiet):
        print("printed")
        print("said", file=sys.stderr)
    print("the result")
    assert capfd.readouterr() == ("the result\n", heard)


def test_a_failure_within_leaves_the_streams_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), working(quiet=True):
        raise RuntimeError
    print("out")
    print("err", file=sys.stderr)
    assert capfd.readouterr() == ("out\n", "err\n")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "CPU", "cuda:", "cuda:-1", ""])
def test_what_is_no_device_is_bad_usage(name: str) -> None:
    with pytest.raises(UsageError, match="there are cpu, cuda and cuda:N"):
        device_here(name)


def test_only_a_device_that_torch_sees_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_here(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(RefusedError, match="torch sees 2 CUDA devices here"):
        device_here("cuda:2")
