"""Hidden states on disk: one file per boundary between layers, so that memory does not grow with the data.

Boundary i lies before layer i. It is deleted only when boundary i+1 is committed, so a crash costs one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.files.storage import DurableFile, RegularFile, atomic_write, write_into
from compress.kernels.laps import lap


class HiddenStates:
    """The hidden states [sequences, length, width] fp32 of one model on its way through the layers."""

    def __init__(self, directory: Path, length: int, width: int, sequences: int) -> None:
        self.directory = directory
        self._shape = (length, width)
        self._sequence_bytes = length * width * 4
        self._nbytes = sequences * self._sequence_bytes

    def read(self, boundary: int, start: int, stop: int) -> Tensor:
        """Sequences `start` to `stop`: [stop − start, length, width] fp32."""
        hidden = torch.empty(stop - start, *self._shape)
        with lap("read", nbytes=4 * hidden.numel()), RegularFile(self._path(boundary)) as file:
            file.read_at(start * self._sequence_bytes, hidden.numpy().data.cast("B"))
        return hidden

    @contextmanager
    def write(self, boundary: int) -> Iterator[DurableFile]:
        """A file that takes the sequences in order (see `append`) and gets its name once it is complete."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._path(boundary), self._nbytes) as file:
            yield file

    def place(self, boundary: int, start: int, hidden: Tensor, file: DurableFile | None) -> None:
        """Write the sequences from `start` on into `file` (see `write`); None: into that of the process that has it."""
        data = hidden.detach().float().contiguous().cpu().numpy().data.cast("B")
        with lap("write", nbytes=len(data)):
            if file is None:
                write_into(self._path(boundary), data, start * self._sequence_bytes)
            else:
                file.write_at(data, start * self._sequence_bytes)

    @staticmethod
    def append(file: DurableFile, hidden: Tensor) -> None:
        """Write the next sequences: [sequences, length, width]."""
        with lap("write", nbytes=4 * hidden.numel()):
            file.write(hidden.detach().float().contiguous().cpu().numpy().data.cast("B"))

    def keep_only(self, boundary: int) -> None:
        """Delete every other boundary."""
        for path in self.directory.glob("boundary-*"):
            if path != self._path(boundary):
                path.unlink()

    def _path(self, boundary: int) -> Path:
        return self.directory / f"boundary-{boundary:04d}.bin"
