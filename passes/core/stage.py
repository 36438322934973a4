"""One stage of a run: its passes, and the key of what its bytes depend on.

A stage finds its committed work by that key, not by its place in the recipe. So what comes after it (gates,
exports, a changed late pass) does not touch it, and a recipe that was changed and changed back loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.passes.core.base import LayerPass, Pass
from compress.passes.forward.hidden import HiddenStates
from compress.passes.model.sequences import Sequences

_HIDDEN = "hidden-"


@dataclass(frozen=True)
class Stage:
    """`passes` is one whole-model pass, or layer-wise ones that share a sweep.

    `depends` says by name what the bytes depend on: source, versions, seed, options, tokens. `following` are the
    layer-wise passes of the next stage. `sequences` are those that the pass has read (`ModelPass.read`).
    """

    passes: tuple[Pass, ...]
    depends: Mapping[str, Any]
    work: Path
    following: tuple[LayerPass, ...] = ()
    sequences: Sequences | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps([self.title, dict(self.depends)], sort_keys=True)
        object.__setattr__(self, "key", hashlib.sha256(text.encode()).hexdigest()[:16])

    @property
    def title(self) -> str:
        """The names of its passes."""
        return " + ".join(step.name for step in self.passes)

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.work / f"stage-{self.key}"

    def file(self, name: str) -> Path:
        """A file of it; the folder is there then."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def hidden_states(self, name: str, sequences: Sequences, width: int) -> HiddenStates:
        """A place for the hidden states of `sequences`, named so that a resumed run finds it again."""
        return HiddenStates(self.folder / f"{_HIDDEN}{name}", sequences.length, width, sequences.count)

    def drop_hidden_states(self) -> None:
        """The stage is complete, and what it computed with is not needed again."""
        for path in self.folder.glob(f"{_HIDDEN}*"):
            shutil.rmtree(path)
