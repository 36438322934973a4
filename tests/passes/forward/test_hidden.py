"""Hidden states on disk: read back as written, one boundary at a time, named only when whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.formats.errors import CompressError
from compress.passes.forward.hidden import HiddenStates

STATES = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))


def written(folder: Path, boundary: int) -> HiddenStates:
    hidden = HiddenStates(folder, length=3, width=4, sequences=5)
    with hidden.write(boundary) as file:
        hidden.append(file, STATES[:2])
        hidden.append(file, STATES[2:])
    return hidden


def test_any_range_of_sequences_comes_back_bit_for_bit(tmp_path: Path) -> None:
    hidden = written(tmp_path / "hidden", 0)
    for start, stop in ((0, 5), (1, 4), (4, 5)):
        assert torch.equal(hidden.read(0, start, stop), STATES[start:stop])


def test_another_process_finds_them(tmp_path: Path) -> None:
    written(tmp_path, 7)
    assert torch.equal(HiddenStates(tmp_path, 3, 4, 5).read(7, 0, 5), STATES)


def test_a_boundary_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    hidden = HiddenStates(tmp_path, 3, 4, 5)
    with pytest.raises(RuntimeError, match="killed"), hidden.write(1) as file:
        hidden.append(file, STATES[:2])
        raise RuntimeError("killed")
    with pytest.raises(CompressError):
        hidden.read(1, 0, 2)


def test_only_the_committed_boundary_is_kept(tmp_path: Path) -> None:
    hidden = written(tmp_path, 0)
    written(tmp_path, 1)
    hidden.keep_only(1)
    assert torch.equal(hidden.read(1, 0, 5), STATES)
    with pytest.raises(CompressError):
        hidden.read(0, 0, 5)
