"""Plain training by transformers' Trainer: MODEL ROWS OUTPUT SETTINGS; with a `teacher` in SETTINGS, its KL.

ROWS are the tokens of every step, in order. Beside OUTPUT it leaves steps.json: seconds and loss of each step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from laps import Laps
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

IGNORED = -100


class Told(TrainerCallback):  # type: ignore[misc]
    """Times every step, from its batch on to the moved weights."""

    def __init__(self, laps: Laps) -> None:
        self.laps = laps

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.laps.begin()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.laps.end()


class Plain(Trainer):  # type: ignore[misc]
    """Trainer as it is, on cross entropy or on KL to a teacher; keeps the losses."""

    teacher: PreTrainedModel | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        if self.teacher is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        ids = inputs["input_ids"]
        with torch.no_grad():
            log_p = self.teacher(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        log_q = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        return functional.kl_div(log_q, log_p, log_target=True, reduction="sum") / log_q[..., 0].numel()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def main(source: str, rows: str, output: str, settings: str) -> None:
    """Train, and save."""
    asked = json.loads(settings)
    laps = Laps()
    trainer = Plain(
        AutoModelForCausalLM.from_pretrained(source),
        _arguments(output, asked),
        train_dataset=[_example(row) for row in json.loads(Path(rows).read_text())],
        callbacks=[Told(laps)],
    )
    if "teacher" in asked:
        trainer.teacher = AutoModelForCausalLM.from_pretrained(asked["teacher"]).eval()
    trainer.train()
    trainer.save_model(output)
    laps.write(Path(output).with_name("steps.json"), trainer.losses)


def _example(row: list[int]) -> dict[str, list[int]]:
    """Trainer divides by all labels there are, and nothing predicts the first."""
    return {"input_ids": row, "labels": [IGNORED, *row[1:]]}


def _arguments(output: str, asked: dict[str, Any]) -> TrainingArguments:
    """What ours does: AdamW of the same constants, a cosine without warm-up, clipping at 1, the data in its order."""
    return TrainingArguments(
        output_dir=output,
        use_cpu=True,
        bf16=asked["precision"] == "bf16",
        per_device_train_batch_size=asked["batch"],
        max_steps=asked["steps"],
        learning_rate=asked["lr"],
        lr_scheduler_type="cosine",
        adam_beta2=0.95,
        adam_epsilon=1e-15,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
