"""What tokens count for in each linear, from the end loss: one walk to the end and back, before the sweep.

Hidden states lie on disk at every boundary meanwhile, (layers + 2)·tokens·width·4 bytes in all; what is kept are the
weights of tokens, a file for each layer. Every boundary is journalled, there and back.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from compress.formats.files.native import NativeFile, save_tensors
from compress.passes.core.base import LayerPass
from compress.passes.core.carry import carry
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.backward import WayBack
from compress.passes.forward.heap import return_freed_memory
from compress.passes.forward.linear_stats import Guide
from compress.passes.forward.statistics import Statistic
from compress.passes.model.weights import decoded, dense

_ALIKE = torch.ones(())
_WALK, _BACK = "guide", "guide-back"


class WalkedBack(Committed):
    """Gradients have come to a boundary; `file`, in the stage's folder, has the token weights of the layer after it."""

    boundary: int
    file: str = ""


class Guidance:
    """Token weights for a stage, of the modules in `guided`, each with the pass that wants them for it."""

    def __init__(self, run: Run, stage: Stage, guided: Mapping[str, LayerPass]) -> None:
        self._run, self._stage = run, stage
        rows = {name: run.model.spec.tensors[f"{name}.weight"].shape[0] for name in guided}
        self._parts = {name: min(step.row_parts(), rows[name]) for name, step in guided.items()}
        self._shares = {name: step.token_share() for name, step in guided.items()}

    def gather(self) -> None:
        """Walk to the end of the untouched model and back, or what is left of that."""
        run, stage, layers = self._run, self._stage, self._run.skeleton.anatomy.layers
        done = run.journal.of(WalkedBack, stage.key)
        if len(done) > len(layers):
            return
        sequences = run.left.calibration
        assert sequences is not None  # the sweep refuses a run without
        # A grid for inputs has no gradient: what a source rounds there counts as if it were not rounded.
        weights = replace(dense(run.untouched), activations={}, kv_cache=None)
        walk = carry(run, stage, _WALK, "run to the end loss", sequences, run.skeleton, weights, keep=True)
        gradients = stage.hidden_states(_BACK, sequences, run.skeleton.width)
        back = WayBack(walk, gradients, run.seed)
        run.reporter.start("weigh tokens by the end loss", len(layers) + 1, "boundary", done=len(done))
        for boundary in reversed(range(len(layers) + 1 - len(done))):
            run.journal.append(self._step(back, boundary))
            gradients.keep_only(boundary)
            return_freed_memory()
            run.reporter.advance()
        run.reporter.finish()
        for hidden in (walk.streams[0].hidden, gradients):
            shutil.rmtree(hidden.directory)

    def guide(self, index: int, names: Iterable[str], kinds: frozenset[type[Statistic]]) -> Guide | None:
        """For those of the linears `names` in layer `index` that are guided; None if none is."""
        guided = [name for name in names if name in self._parts]
        if not guided:
            return None
        file = NativeFile(self._stage.file(_file(index)))
        return Guide(kinds, {name: torch.lerp(_ALIKE, decoded(file.read(name)), self._shares[name]) for name in guided})

    def _step(self, back: WayBack, boundary: int) -> WalkedBack:
        layers = self._run.skeleton.anatomy.layers
        if boundary == len(layers):
            back.start()
            return WalkedBack(stage=self._stage.key, boundary=boundary)
        local = layers[boundary].modules
        guided = [name for name in local if name in self._parts]
        weights = back.layer(boundary, {local[name]: self._parts[name] for name in guided})
        path = self._stage.file(_file(boundary))
        save_tensors(path, {name: weights[local[name]] for name in guided})
        return WalkedBack(stage=self._stage.key, boundary=boundary, file=path.name)


def _file(index: int) -> str:
    return f"tokens-{index:04d}.safetensors"
