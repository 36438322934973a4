"""How much the model has lost: perplexity, KL divergence and top-1 agreement against the untouched one."""

from __future__ import annotations

from dataclasses import asdict

import torch
from pydantic import Field

from compress.kernels.numbers.activations import Grid
from compress.passes.core.base import ModelPass
from compress.passes.core.run import Run
from compress.passes.forward.scores import Scores, score
from compress.passes.forward.text import TextOptions, sequences_of
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.model.weights import Weights, cached_as, dense


class Evaluate(TextOptions, ModelPass):
    """Measure the model as it stands against the untouched one, on text that calibration has not seen."""

    samples: int = Field(10, ge=1, le=1 << 20, description="windows of text, from its beginning")
    seq_len: int = Field(1024, ge=2, le=1 << 20, description="tokens per window")

    kv_cache: Grid | None = Field(
        None, description="measure with a key/value cache of `int8` or `fp8`, scales per token and head"
    )

    def prepare(self, run: Run) -> None:
        run.sequences[run.stage] = sequences_of(self, load_tokenizer(run.source), held_out=True)

    def model(self, run: Run) -> None:
        sequences = run.sequences[run.stage]
        done = run.journal.of(stage=run.stage, kind="scores")
        if not done:
            run.journal.append({"stage": run.stage, "kind": "scores", "scores": asdict(self._measure(run, sequences))})
        run.scores = Scores(**run.journal.of(stage=run.stage, kind="scores")[0]["scores"])
        run.manifest["evaluation"] = {"sha256": sequences.sha256(), "tokens": sequences.tokens}

    def _measure(self, run: Run, sequences: Sequences) -> Scores:
        done = run.journal.of(stage=run.stage, kind="boundary")
        run.reporter.start("evaluate", 2 * len(run.skeleton.anatomy.layers), "layer", done=len(done))
        with torch.no_grad():
            reference = self._carry(run, sequences, "reference", dense(run.source))
            candidate = self._carry(run, sequences, "candidate", cached_as(self.kv_cache, dense(run.model)))
            scores = score(candidate, reference)
        run.reporter.finish()
        return scores

    def _carry(self, run: Run, sequences: Sequences, name: str, weights: Weights) -> Walk:
        hidden = run.hidden_states(f"stage-{run.stage}-{name}", sequences)
        walk = Walk(run.skeleton, sequences, [Stream(weights, hidden)])
        done = len(run.journal.of(stage=run.stage, kind="boundary", walk=name))

        def commit(boundary: int) -> None:
            run.journal.append({"stage": run.stage, "kind": "boundary", "walk": name, "boundary": boundary})
            run.reporter.advance(name)

        walk.carry(done, commit)
        return walk
