"""The energy of every linear layer's inputs on the calibration sequences: one forward, layer by layer, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compress.formats.files.native import NativeFile, save_tensors
from compress.formats.gguf.importance import modules
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.pauses import Pause
from compress.passes.forward.statistics import Energy, Statistic
from compress.passes.forward.walk import Walk
from compress.passes.sweep.calibrated import calibration_walk

_KINDS: frozenset[type[Statistic]] = frozenset({Energy})


class Gathered(Committed):
    """The energies of a layer's inputs lie in `file`, by module; `tokens` are those that came to each."""

    file: str
    tokens: Mapping[str, int]


def gathered_energies(run: Run, stage: Stage) -> dict[str, modules.Energy]:
    """Those of all linear layers of the model as it stands, by module; what an earlier call began is gone on with."""
    layers, done = run.skeleton.anatomy.layers, run.journal.of(Gathered, stage.key)
    if len(done) < len(layers):
        run.reporter.start("gather the energy of inputs", len(layers), "layer", done=len(done))
        with torch.no_grad():
            _gather(run, stage, calibration_walk(run, stage, _KINDS), len(done))
        run.reporter.finish()
    found: dict[str, modules.Energy] = {}
    for record in run.journal.of(Gathered, stage.key):
        file = NativeFile(stage.folder / record.file)
        for name, tokens in record.tokens.items():
            sums = file.read(name)
            assert isinstance(sums, Tensor)
            found[name] = modules.Energy(sums, float(tokens))
    return found


def _gather(run: Run, stage: Stage, walk: Walk, done: int) -> None:
    layers = run.skeleton.anatomy.layers
    sums, tokens = dict[str, Tensor](), dict[str, int]()

    def keep(names: tuple[str, ...], stats: LinearStats) -> None:
        for name in names:
            sums[name], tokens[name] = stats[Energy].total.to("cpu", torch.float32), stats.tokens

    def pauses(index: int, module: nn.Module) -> list[Pause]:
        layer = layers[index]
        firsts = {names: layer.modules[names[0]] for names in layer.siblings}
        widths = {first: module.get_submodule(first).get_parameter("weight").shape[1] for first in firsts.values()}
        return [Pause(first, widths[first], _KINDS, partial(keep, names)) for names, first in firsts.items()]

    def commit(boundary: int) -> None:
        path = stage.file(f"energies-{boundary:04d}.safetensors")
        save_tensors(path, sums)
        run.journal.append(Gathered(stage=stage.key, file=path.name, tokens=tokens))
        run.reporter.advance(layers[boundary - 1].name)
        sums.clear()
        tokens.clear()

    walk.carry(done, commit, pauses, hold=walk.flow.hold)
