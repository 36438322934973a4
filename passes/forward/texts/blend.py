"""Blends: several texts, each with its share of the sequences."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from os.path import exists, isfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

BUILTIN = "builtin"
OWN = "self"
MADE = frozenset({BUILTIN, OWN})
"""Data that is no file and no dataset, and of which evaluation gets a part of its own."""
_TEXT_FILES = {".jsonl", ".txt", ".md", ".raw", ".text"}


class Part(BaseModel):
    """One text of a blend, and how much of the blend it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="a file, `builtin`, or the name of a dataset")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="its share of the sequences, beside the others'")
    split: str = Field("train", description="of a dataset")
    column: str = Field("text", description="of a dataset or a .jsonl file")

    def file(self, folder: Path) -> Path | None:
        """The file that `path` names, in `folder` or where the shell stands; None if it names no file."""
        if self.path in MADE:
            return None
        path = beside(folder, self.path)
        return path if path.suffix in _TEXT_FILES or isfile(path) else None

    def text(self, folder: Path) -> str | None:
        """Which text it is, by a name that is the same for the same text; None for one made for the purpose."""
        if self.path in MADE:
            return None
        file = self.file(folder)
        return f"{self.path} ({self.split})" if file is None else str(file.resolve() if isfile(file) else file)


def beside(folder: Path, name: str) -> Path:
    """What lies under that name in `folder`; where nothing does, what the name means where the shell stands."""
    path = folder / name
    return path if exists(path) else Path(name)  # not Path.exists: it raises for names that no file can have


def shares(samples: int, weights: Sequence[float]) -> list[int]:
    """`samples` in proportion to `weights`, whole, with that sum: what is left over goes to the largest remainders."""
    whole = sum(map(Fraction, weights))
    exact = [samples * Fraction(weight) / whole for weight in weights]
    counts = [int(share) for share in exact]
    most = sorted(range(len(weights)), key=lambda number: counts[number] - exact[number])
    for number in most[: samples - sum(counts)]:
        counts[number] += 1
    return counts
