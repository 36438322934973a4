"""How much the model has lost: perplexity, KL divergence and top-1 agreement against the untouched one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from compress.formats.base import Checkpoint
from compress.kernels.numbers.activations import Grid
from compress.kernels.share import ALONE, WHOLE, Share
from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.carry import carry
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.logits import score_bytes, score_effort
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.scores import Scores, score
from compress.passes.forward.texts.text import TextOptions, sequences_of
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.model.weights import cached_as, dense


class Measured(Committed):
    """The scores are known."""

    scores: Scores


class Evaluate(TextOptions, ModelPass):
    """Measure the model as it stands against the untouched one, on text that calibration has not seen."""

    alters: ClassVar[bool] = False
    measures: ClassVar[frozenset[str]] = frozenset(field.name for field in fields(Scores))
    together: ClassVar[bool] = True

    samples: int = Field(10, ge=1, le=1 << 20, description="windows of text, from its beginning")
    seq_len: int = Field(1024, ge=2, le=1 << 20, description="tokens per window")

    kv_cache: Grid | None = Field(
        None, description="measure with a key/value cache of `int8` or `fp8`, scales per token and head"
    )

    def read(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Sequences | None:
        return sequences_of(self, load_tokenizer(source), True, folder, note)

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        assert sequences is not None  # `read` gave them
        return {"tokens": sequences.sha256(), "kv_cache": self.kv_cache}

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences, budget = setting.model, setting.anatomy, setting.sequences, setting.budget
        once = Passage(model, anatomy, sequences).cost(budget, crew=setting.crew)
        effort = once.effort * 2 + score_effort(model, anatomy, sequences, 2)
        memory = max(once.memory, score_bytes(model, anatomy, 2))
        if once.shared and memory * once.processes > budget:
            return self.cost(replace(setting, crew=ALONE))
        return replace(once, effort=effort, memory=memory, disk=3 * once.disk // 2)  # a last boundary stays

    def model(self, run: Run, stage: Stage) -> Outcome:
        sequences = stage.sequences
        assert sequences is not None  # `read` gave them
        extent = sequences.count, sequences.length
        cost = self.cost(Setting(run.model.spec, run.skeleton.anatomy, extent, run.max_ram, crew=run.crew))
        if cost.shared:
            measured = self._measured(run, stage, sequences, run.share(cost))
        else:
            measured = run.first(lambda: self._measured(run, stage, sequences, WHOLE))
        figures = {"sha256": sequences.sha256(), "tokens": sequences.tokens}
        return Outcome(scores=measured.scores, manifest={"evaluation": figures})

    def _measured(self, run: Run, stage: Stage, sequences: Sequences, share: Share) -> Measured:
        """The scores, once they are committed."""
        if not share.given(run.journal.of(Measured, stage.key)):
            scores = self._measure(run, stage, sequences, share)
            if share.main:
                run.journal.append(Measured(stage=stage.key, scores=scores))
        (measured,) = share.given(run.journal.of(Measured, stage.key))
        return measured

    def _measure(self, run: Run, stage: Stage, sequences: Sequences, share: Share) -> Scores:
        untouched = run.skeleton.of(run.source)
        with torch.no_grad():
            title = "evaluate the original"
            before = carry(run, stage, "reference", title, sequences, untouched, dense(run.source), share=share)
            candidate = cached_as(self.kv_cache, dense(run.model))
            after = carry(run, stage, "candidate", "evaluate", sequences, run.skeleton, candidate, share=share)
            run.reporter.start("evaluate: scores", -(-sequences.count // share.count), "sequence")
            scores = score(after, before, run.reporter.advance)
        run.reporter.finish()
        return scores
