"""Which version of an op runs: by device, by file, by what the kernel takes."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from compress.kernels import gpu
from compress.kernels.fallbacks import counting
from compress.kernels.measure.hessian import add_hessian
from compress.kernels.op import force, op, ops


class OnGPU(Tensor):
    """A tensor in the computer's memory that says it is on a GPU."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def on_gpu(*values):
    return torch.tensor(values).as_subclass(OnGPU)


@pytest.fixture
def doubled(tmp_path, monkeypatch):
    """An op with a kernel file; the kernel marks what it did by one more, and takes no more than two values."""
    source = "def doubled(x):\n    return x * 2 + 1\n\ndef takes(x):\n    return len(x) <= 2\n"
    (tmp_path / "doubled.py").write_text(source)
    monkeypatch.setattr(gpu, "__path__", [*gpu.__path__, str(tmp_path)])
    monkeypatch.setattr(gpu, "lacking", lambda: "")
    yield op(_named("doubled"))
    sys.modules.pop("compress.kernels.gpu.doubled", None)


def _named(name):
    def reference(x: Tensor) -> Tensor:
        """x + x."""
        return x + x

    reference.__name__ = name
    return reference


def test_on_a_cpu_the_reference_runs_and_no_kernel_is_looked_for(doubled):
    assert doubled(torch.tensor([1.0, 2.0])).tolist() == [2, 4]
    assert "compress.kernels.gpu.doubled" not in sys.modules
    assert not doubled.counts
    assert doubled.__doc__ == "x + x."


def test_a_kernel_is_found_by_its_file_and_runs_on_cuda_tensors(doubled):
    assert doubled(on_gpu(1.0, 2.0)).tolist() == [3, 5]
    assert doubled(x=on_gpu(1.0)).tolist() == [3]
    assert doubled.counts == {"kernel": 2}


def test_what_a_kernel_does_not_take_the_reference_computes_and_that_is_counted(doubled):
    with counting() as told:
        assert doubled(on_gpu(1.0, 2.0, 3.0)).tolist() == [2, 4, 6]
        assert doubled(on_gpu(1.0)).tolist() == [3]
    assert doubled.counts == {"reference": 1, "kernel": 1}
    assert told == {"doubled ran as plain torch on the GPU: its kernel does not take the case": 1}


def test_an_op_without_a_kernel_runs_as_plain_torch_on_a_gpu():
    plain = op(_named("plain"))
    assert plain.kernel is None
    with counting() as told:
        assert plain(on_gpu(1.0)).tolist() == [2]
    assert plain.counts == {"reference": 1}
    assert told == {"plain ran as plain torch on the GPU: there is no kernel of it": 1}


def test_the_reference_can_be_forced(doubled):
    with force("reference"):
        assert doubled(on_gpu(1.0, 2.0)).tolist() == [2, 4]
    assert doubled(on_gpu(1.0, 2.0)).tolist() == [3, 5]


def test_a_machine_that_cannot_build_kernels_is_told_once_what_it_lacks(doubled, monkeypatch):
    monkeypatch.setattr(gpu, "lacking", lambda: "a C compiler")
    with pytest.warns(UserWarning, match="doubled runs as plain torch: its kernel needs a C compiler") as warned:
        assert doubled(on_gpu(1.0)).tolist() == [2]
        assert doubled(on_gpu(1.0)).tolist() == [2]
    assert len(warned) == 1


def test_what_is_lacking_is_named(monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert gpu.lacking() == "the package triton"
    monkeypatch.setattr(gpu, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert gpu.lacking() == "a C compiler (gcc or clang)"
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(gpu.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert gpu.lacking() == "Python's C headers (python3-dev)"


def test_ops_are_found_by_name():
    found = {each.name: each for each in ops()}
    assert found["add_hessian"] is add_hessian
    assert list(found) == sorted(found)


def test_looking_for_ops_asks_for_no_triton(python):
    """In a process of its own: here another test may have imported it."""
    code = "import sys; from compress.kernels.op import ops; ops(); assert 'triton' not in sys.modules"
    done = python(code)
    assert done.returncode == 0, done.stderr
