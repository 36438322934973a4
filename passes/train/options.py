"""The YAML options that every pass which trains has, and what follows from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.formats.errors import UsageError
from compress.passes.forward.cost.flow import BATCH_TOKENS

if TYPE_CHECKING:
    from compress.passes.core.run import Run
    from compress.passes.core.stage import Stage

Trained = Literal["all", "norms", "scales", "lora"]
Precision = Literal["bf16", "fp32"]


class LoraOptions(BaseModel):
    """Adapters of low rank: W + (alpha / rank)·B·A, of which B [out, rank] and A [rank, in] learn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1, le=1 << 12, description="of the change of each weight")
    alpha: float = Field(32.0, gt=0, description="the change counts alpha / rank times")
    targets: tuple[str, ...] | None = Field(
        None, description="patterns of linear layers that get one; by default all of the decoder layers"
    )


class HeldOut(BaseModel):
    """Another text, by which the best step is found: what was learned is to hold beyond its own text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(min_length=1, description="a text file, a .jsonl file, `builtin`, or the name of a dataset")
    samples: int = Field(16, ge=1, le=1 << 16, description="sequences of it, from its beginning")
    split: str = Field("train", description="of a dataset")
    column: str = Field("text", description="of a dataset or a .jsonl file")


class TrainOptions(BaseModel):
    """How a model learns: what of it, how long, how fast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Trained | tuple[str, ...] = Field(
        "all",
        description="what may learn: `all`; `scales` (and norms) of a quantized model, its codes as they are; `norms`; "
        "`lora`, adapters that are merged at the end; or patterns of parameters: [`*.mlp.*`, `lm_head`]",
    )
    lora: LoraOptions = Field(LoraOptions(), description="of `train: lora`: {rank, alpha, targets}")
    steps: int = Field(200, ge=1, le=1 << 24, description="steps of the optimizer")
    batch: int = Field(8, ge=1, le=1 << 16, description="sequences per step, over all processes")
    lr: float = Field(1e-5, gt=0, le=1, description="the largest step of dense weights (AdamW)")
    lr_scales: float = Field(1e-4, gt=0, le=1, description="of scales, as a part of each: 1e-4 is 0.01 % a step")
    lr_codes: float = Field(5e-3, gt=0, le=1, description="of quantized weights, in steps of their grid")
    lr_norms: float | None = Field(None, gt=0, le=1, description="of norms and biases; by default as `lr`")
    lr_lora: float = Field(2e-4, gt=0, le=1, description="of adapters")
    weight_decay: float = Field(0.0, ge=0, le=1, description="of dense weights, as a part of the step")
    warmup: float = Field(0.05, ge=0, le=1, description="part of the steps in which the rate rises; a cosine then")
    clip: float = Field(1.0, gt=0, description="the largest norm of all gradients together")
    precision: Precision = Field("bf16", description="of the forward; masters and the optimizer are fp32")
    checkpointing: bool = Field(False, description="compute activations twice rather than keep them: less memory")
    micro_batch: int | None = Field(
        None, ge=1, description="sequences per forward; by default some 4,096 tokens, and fewer where memory runs out"
    )
    shard: bool | Literal["auto"] = Field(
        "auto",
        description="of several processes each keeps a part of the parameters, gradients and moments (FSDP2): less "
        "memory; auto: if they would not fit else",
    )
    held_out: Annotated[int, Field(ge=1, le=1 << 16)] | HeldOut = Field(
        16,
        description="sequences that are kept out, to find the best step by; or those of another text: "
        "{data: chats.jsonl, samples: 16}",
    )
    measure_every: int | None = Field(
        None, ge=1, description="steps between two measurements of what is held out; by default a tenth of all"
    )

    @model_validator(mode="after")
    def _adapters_are_asked_for(self) -> Self:
        if self.lora != LoraOptions() and self.train != "lora":
            raise ValueError("`lora` says how adapters are made, and none are: say train: lora")
        return self

    @property
    def together(self) -> bool:
        """Whether all processes train."""
        return True

    def prepare(self, run: Run, stage: Stage) -> None:
        """Raises UsageError for a batch of which not every process gets a sequence."""
        if self.together and self.batch < run.processes.count:
            raise UsageError(
                f"{stage.title}: a batch of {self.batch} is too small for {run.processes.count} processes",
                f"say batch: {run.processes.count} or more, or start fewer processes",
            )

    @property
    def looked_at(self) -> int:
        """How many sequences are held out."""
        return self.held_out.samples if isinstance(self.held_out, HeldOut) else self.held_out

    @property
    def held_out_name(self) -> str | None:
        """The text that they are of, where it is another."""
        return self.held_out.data if isinstance(self.held_out, HeldOut) else None

    def at_once(self, length: int) -> int:
        """Sequences of `length` tokens in one forward."""
        return self.micro_batch or max(1, BATCH_TOKENS // length)

    @property
    def interval(self) -> int:
        """Steps between two measurements on the held-out sequences."""
        return self.measure_every or max(1, self.steps // 10)

    def rate(self, step: int) -> float:
        """The part of each largest rate at `step`: linear warm-up, then half a cosine down to nothing."""
        rising = self.warmup * self.steps
        if step + 1 < rising:
            return (step + 1) / rising
        done = (step - rising) / max(1.0, self.steps - rising)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
