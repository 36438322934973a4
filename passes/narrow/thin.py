"""A narrower residual stream: statistics of all layers first, then the same channels go everywhere.

A norm whose inputs have the part s of their energy in the n' channels kept of n gives, of these, what it gave if its
weight is multiplied by √(s·n/n'). What reads it is repaired by least squares; an embedding that is the head is not.
Channels that are always 0 (s = 1) go and no other tensor changes; but √(n/n') is rounded where n/n' is no power of 4,
and sums over fewer channels are rounded elsewhere, so logits are the same to rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.formats.files.native import NativeFile, save_tensors
from compress.formats.files.storage import sha256_file
from compress.kernels.effort import Effort
from compress.kernels.measure.channels import energies, magnitudes
from compress.kernels.measure.error import relative_error
from compress.kernels.measure.hessian import shrunk
from compress.kernels.solve.repair import repair, repair_effort
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.pauses import Pause
from compress.passes.forward.statistics import Hessian, Statistic
from compress.passes.forward.walk import Walk
from compress.passes.narrow.choice import Choice
from compress.passes.narrow.inner import ascending
from compress.passes.narrow.stream import ResidualStream, StreamLayer
from compress.passes.sweep.calibrated import calibration_walk

_SCORES, _GATHERED, _ERROR = "scores", "gathered", 1e-3


class Gathered(Committed):
    """Statistics of a layer, or of the end after the last, lie in `file`."""

    boundary: int
    file: str
    sha256: str


class Thinned(Committed):
    """The tensors of a layer, or of both ends, have fewer channels: they lie in `file`; `errors` are of linears."""

    file: str
    sha256: str
    errors: Mapping[str, float]


class Shares(Statistic):
    """Σ x²/‖x‖² [in] fp64: which part of a token's energy each channel has."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.total = torch.zeros(in_features, dtype=torch.float64, device=device)

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.tokens, 1)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        squares = x.double().square()
        self.total += (squares / squares.sum(1, keepdim=True).clamp(min=1e-300)).sum(0)

    def merge(self, other: Self) -> None:
        self.total += other.total

    def divide(self, scale: Tensor) -> None:
        raise RuntimeError("of what is normed no scale is folded")  # only inputs of linears are divided


@dataclass(frozen=True)
class Thinning:
    """One stage: `gather` first, then `thin` to `width` channels by what was gathered. Resumable at any layer."""

    run: Run
    stage: Stage
    stream: ResidualStream
    choice: Choice

    def gather(self) -> None:
        """Statistics of every layer, and of the end."""
        layers, done = self.run.skeleton.anatomy.layers, len(self.run.journal.of(Gathered, self.stage.key))
        self.run.reporter.start(self.stage.title, len(layers) + 1, "layer", done=done)
        if done <= len(layers):
            walk, found = calibration_walk(self.run, self.stage, ()), dict[str, Tensor]()

            def pauses(index: int, module: nn.Module) -> list[Pause]:
                found.clear()
                return list(self._pauses(walk, index, module, found))

            with torch.no_grad():
                walk.carry(done, lambda at: self._commit(at, found), pauses, hold=walk.flow.hold)
                self._commit(len(layers) + 1, self._end(walk))
        self.run.reporter.finish()

    def _pauses(self, walk: Walk, index: int, module: nn.Module, found: dict[str, Tensor]) -> Iterator[Pause]:
        """Before each norm and all siblings that read what is normed, in the order of the forward."""
        layer, own = self.run.skeleton.anatomy.layers[index], self.stream.layers[index]
        local = {stored: name for name, stored in self.run.skeleton.parameters(index).items()}
        places = []
        for name in own.norms:
            place = local[f"{name}.weight"].removesuffix(".weight")
            _refuse_offset(name, module.get_submodule(place))
            places.append((place, frozenset[type[Statistic]]({Shares}), self._take_shares(name, found)))
        for names in own.readers:
            weights = {name: module.get_submodule(layer.modules[name]).get_parameter("weight") for name in names}
            places.append((layer.modules[names[0]], frozenset({Hessian}), self._take_hessian(weights, found)))
        order = _called(self.run, walk, index, module, [place for place, *_ in places])
        for place, kinds, take in sorted(places, key=lambda each: order.index(each[0])):
            yield Pause(place, self.stream.width, kinds, take)

    def _take_shares(self, name: str, found: dict[str, Tensor]) -> Callable[[LinearStats], None]:
        def take(stats: LinearStats) -> None:
            found[f"{name}.shares"] = stats[Shares].mean.cpu()

        return take

    def _take_hessian(self, weights: Mapping[str, Tensor], found: dict[str, Tensor]) -> Callable[[LinearStats], None]:
        def take(stats: LinearStats) -> None:
            hessian = stats[Hessian].matrix
            for weight in weights.values():
                self._score(weight, hessian, found)
            found[f"{next(iter(weights))}.hessian"] = hessian.cpu()

        return take

    def _score(self, weight: Tensor, hessian: Tensor, found: dict[str, Tensor]) -> None:
        """What each channel adds to a linear's outputs, or its weights, as a part of all."""
        each = (magnitudes(weight) if self.choice.score == "l1" else energies(weight, hessian)).double().cpu()
        found[_SCORES] = found.get(_SCORES, 0) + each / each.sum().clamp(min=1e-300)

    def _end(self, walk: Walk) -> dict[str, Tensor]:
        """Of the last norm and the head."""
        found, head = dict[str, Tensor](), self.run.skeleton.anatomy.head
        shares, last = Shares(self.stream.width, torch.device("cpu")), len(self.stream.layers)
        for batch in walk.batches:
            states, mask = walk.streams[0].hidden.read(last, *batch).flatten(0, 1), walk.sequences.batch(*batch).mask
            real = states if mask is None else states[mask.flatten().bool()]
            shares.tokens += len(real)
            shares.add(real, None)
        found[f"{self.stream.norm}.shares"] = shares.mean
        project, module = self.run.skeleton.back(walk.streams[0].weights)
        take = self._take_hessian({head.removesuffix(".weight"): module.get_parameter("weight")}, found)
        walk.head(Pause("", self.stream.width, frozenset({Hessian}), take), module, project)
        return found

    def _commit(self, boundary: int, found: Mapping[str, Tensor]) -> None:
        path = self.stage.file(f"{_GATHERED}-{boundary:04d}.safetensors")
        save_tensors(path, found)
        self.run.journal.append(
            Gathered(stage=self.stage.key, boundary=boundary, file=path.name, sha256=sha256_file(path))
        )
        self.run.reporter.advance(path.stem)

    def thin(self, width: int) -> list[Thinned]:
        """Cut every tensor, layer by layer; `run.model` has them then, and its configuration is the caller's.

        What was gathered is dropped when all is cut.
        """
        done = len(self.run.journal.of(Thinned, self.stage.key))
        if done <= len(self.stream.layers):
            records = self.run.journal.of(Gathered, self.stage.key)
            gathered = [NativeFile(self.stage.file(record.file)) for record in records]
            scores = torch.stack([_read(file, _SCORES) for file in gathered]).sum(0)
            kept = ascending(scores.sort(stable=True).indices[: self.stream.width - width], self.stream.width)
            with torch.no_grad():
                for number, file in enumerate(gathered[done:], start=done):
                    self._thin(number, file, kept)
        for path in self.stage.folder.glob(f"{_GATHERED}-*"):
            path.unlink()
        thinned = self.run.journal.of(Thinned, self.stage.key)
        for record in thinned:
            self.run.model.overlay(self.stage.file(record.file))
        return thinned

    def _thin(self, number: int, file: NativeFile, kept: Tensor) -> None:
        """The layer of that number, or after the last one both ends."""
        spec, own = (
            self.run.model.spec,
            self._ends() if number == len(self.stream.layers) else self.stream.layers[number],
        )
        axes = self._axes(own)
        weights = {name: self._weight(name) for name in axes}
        tensors = {name: weight.index_select(axes[name], kept) for name, weight in weights.items()}
        for name in own.norms:
            share = 1 - float(_read(file, f"{name}.shares").index_fill(0, kept, 0.0).sum())
            factor = (share * self.stream.width / len(kept)) ** 0.5
            tensors[f"{name}.weight"] = (tensors[f"{name}.weight"].double() * factor).float()
        errors = dict(self._repaired(own.readers, file, kept, weights, tensors))
        path = self.stage.file(f"unit-{number:04d}.safetensors")
        dtypes = {name: getattr(torch, spec.tensors[name].dtype) for name in tensors}
        save_tensors(path, {name: tensor.to("cpu", dtypes[name]).contiguous() for name, tensor in tensors.items()})
        self.run.journal.append(Thinned(stage=self.stage.key, file=path.name, sha256=sha256_file(path), errors=errors))

    def _ends(self) -> StreamLayer:
        """What lies outside the layers, as if it were one: a head that is the embedding is not repaired."""
        anatomy = self.run.skeleton.anatomy
        readers = () if anatomy.tied else ((anatomy.head.removesuffix(".weight"),),)
        return StreamLayer(readers, (), (self.stream.norm,))

    def _axes(self, own: StreamLayer) -> dict[str, int]:
        if own in self.stream.layers:
            return own.axes(self.run.model.spec)
        inside = {name for layer in self.stream.layers for name in layer.axes(self.run.model.spec)}
        everything = self.stream.axes(self.run.model.spec, self.run.skeleton.anatomy)
        return {name: axis for name, axis in everything.items() if name not in inside}

    def _repaired(
        self,
        readers: Sequence[Sequence[str]],
        file: NativeFile,
        kept: Tensor,
        weights: Mapping[str, Tensor],
        tensors: dict[str, Tensor],
    ) -> Iterator[tuple[str, float]]:
        """What reads the stream, fitted to the channels kept; each with its error, as a part of its outputs' energy."""
        for names in readers:
            hessian = _read(file, f"{names[0]}.hessian").to(self.run.device)
            for name in names:
                weight = weights[f"{name}.weight"]
                if self.choice.repair:
                    tensors[f"{name}.weight"] = repair(weight, shrunk(hessian, self.choice.shrinkage), kept)
                wide = torch.zeros_like(weight).index_copy(1, kept, tensors[f"{name}.weight"])
                yield name, relative_error(weight, wide, hessian)

    def _weight(self, name: str) -> Tensor:
        tensor = self.run.model.read(name)
        assert isinstance(tensor, Tensor)  # the plan refuses what is quantized
        return tensor.to(self.run.device, torch.float32)


def thin_effort(model: ModelSpec, stream: ResidualStream, choice: Choice, width: int, tokens: int) -> Effort:
    """What it takes beside the walk: statistics of all that reads the stream, and its repair."""
    effort = Effort()
    for names in (names for layer in stream.layers for names in layer.readers):
        effort += Hessian.effort(tokens, stream.width, None)
        shapes = (model.tensors[f"{name}.weight"].shape for name in names)
        effort = sum((repair_effort(shape, width) for shape in shapes if choice.repair), effort)
    return effort


def thin_disk(stream: ResidualStream) -> int:
    """Bytes that the statistics of all layers take on disk meanwhile."""
    return sum(len(layer.readers) for layer in stream.layers) * 4 * stream.width**2


def _read(file: NativeFile, name: str) -> Tensor:
    tensor = file.read(name)
    assert isinstance(tensor, Tensor)
    return tensor


def _refuse_offset(name: str, norm: nn.Module) -> None:
    """Raise RefusedError for a norm that does more than to multiply what is normed by its weight."""
    weight = norm.get_parameter("weight")
    if not torch.allclose(norm(torch.ones_like(weight)), weight, rtol=_ERROR, atol=_ERROR):
        raise RefusedError(f"{name} is no plain root mean square norm", "leave hidden out")


def _called(run: Run, walk: Walk, index: int, layer: nn.Module, places: Sequence[str]) -> list[str]:
    """The modules `places`, in the order in which the layer calls them: it is run on nothing."""
    called = list[str]()

    def note(place: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: called.append(place)

    hooks = [layer.get_submodule(place).register_forward_pre_hook(note(place)) for place in places]
    first = walk.sequences.batch(0, 1)
    nothing = torch.zeros(1, first.length, run.skeleton.width, device=run.device)
    run.skeleton.run(layer, nothing, run.skeleton.call(index, first))
    for hook in hooks:
        hook.remove()
    return called
