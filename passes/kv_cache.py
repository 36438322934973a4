"""Scales for a key/value cache in FP8 or INT8, from what attention really keeps on the calibration sequences.

Keys are taken after the rotary embedding, as they lie in the cache. An engine that reads the artifact
(vLLM: `kv_cache_dtype`) halves its cache and rounds with these scales in place of a guess of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import CompressError, RefusedError
from compress.formats.files.native import save_tensors
from compress.kernels.numbers.activations import CacheFormat, Grid, grid_scale
from compress.passes.core.base import ModelPass
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.anatomy import Anatomy, Attention
from compress.passes.model.watch import Peaks
from compress.passes.model.weights import dense


class Scaled(Committed):
    """A boundary between layers was reached, and the layer before it has scales, by tensor name."""

    boundary: int
    scales: Mapping[str, list[float]]


class KVCache(ModelPass):
    """Calibrate the key/value cache: an engine then keeps it in 8 bits. Weights stay as they are."""

    calibrated: ClassVar[bool] = True

    dtype: Grid = Field("fp8", description="what keys and values are kept as: `fp8` (E4M3) or `int8`")
    per: Literal["tensor", "head"] = Field("tensor", description="what shares a scale: a layer's keys, or one head's")

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        attentions = [attention for attention in anatomy.attentions() if attention]
        if not attentions:
            raise RefusedError("no layer keeps keys and values: there is no cache to quantize", "leave kv_cache out")
        scales = {
            f"{attention.module}.{side}_scale": TensorSpec((self._count(attention),), "float32")
            for attention in attentions
            for side in ("k", "v")
        }
        return replace(model, tensors={**model.tensors, **scales}, kv_cache=CacheFormat(self.dtype, self.per))

    def model(self, run: Run, stage: Stage) -> Outcome:
        layers = run.skeleton.anatomy.layers
        done = run.journal.of(Scaled, stage.key)
        run.reporter.start(self.name, len(layers), "layer", done=len(done))
        with torch.no_grad():
            self._calibrate(run, stage, len(done))
        run.reporter.finish()
        path, records = stage.file("scales.safetensors"), run.journal.of(Scaled, stage.key)
        planned = self.plan(run.model.spec, run.skeleton.anatomy)
        scales = {name: torch.tensor(scale) for r in records for name, scale in r.scales.items()}
        run.processes.on_main(lambda: save_tensors(path, scales))
        run.model.overlay(path)
        run.model.become(planned)
        return Outcome()

    def _calibrate(self, run: Run, stage: Stage, done: int) -> None:
        """One forward of the calibration sequences; every layer's scales are committed with its boundary."""
        sequences = run.left.calibration
        assert sequences is not None  # the plan refuses a run without
        attentions = run.skeleton.anatomy.attentions()
        peaks = [Peaks() for _ in attentions]
        hidden = stage.hidden_states("cache", sequences, run.skeleton.width)
        stream = Stream(dense(run.model), hidden, lambda index, batch: peaks[index].watch(batch))
        walk = Walk(run.skeleton, sequences, [stream], run.reporter.tell, flow=run.flow(sequences))

        def commit(boundary: int) -> None:
            attention = attentions[boundary - 1]
            scales = self._scales(attention, peaks[boundary - 1]) if attention else {}
            run.journal.append(Scaled(stage=stage.key, boundary=boundary, scales=scales))
            run.reporter.advance(run.skeleton.anatomy.layers[boundary - 1].name)

        walk.carry(done, commit)

    def _scales(self, attention: Attention, peaks: Peaks) -> dict[str, list[float]]:
        scales = {}
        for side, largest in (("k", peaks.keys), ("v", peaks.values)):
            name = f"{attention.module}.{side}_scale"
            reach = largest if self.per == "head" else largest.amax().reshape(1)
            scales[name] = _checked(name, grid_scale(reach, self.dtype)).tolist()
        return scales

    def _count(self, attention: Attention) -> int:
        return attention.heads if self.per == "head" else 1


def _checked(name: str, scale: Tensor) -> Tensor:
    """`scale`; raises CompressError for one that was not measured: 0, NaN, or the 1 that stands for unknown."""
    if not bool((scale.isfinite() & (scale > 0) & (scale != 1)).all()):
        raise CompressError(
            f"{name} came out as {scale.tolist()}: calibration never reached it, or it is not finite",
            "calibrate on more text",
        )
    return scale
