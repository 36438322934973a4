"""Who trains in train.py: one list, a row of ours before the peer that it is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAINER = "Trainer "
G64: Mapping[str, Any] = {"bits": 4, "group_size": 64}


@dataclass(frozen=True)
class Training:
    """One way to train. `kind` is the pass of ours that does it, `settings` its options beside the common ones.

    `before` are passes of ours before it. `from_rounded`: the student is the model rounded to four bits, dense, and
    the teacher the model itself; else the model learns from the text, or from itself once `before` has changed it.
    """

    name: str
    kind: str
    precision: str = "bf16"
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[Mapping[str, Any], ...] = ()
    from_rounded: bool = False
    dense: bool = True
    peer: str | None = None

    @property
    def by_trainer(self) -> bool:
        return self.name.startswith(TRAINER)


@dataclass(frozen=True)
class Lap:
    """One process: of every step the seconds, the processor's seconds in user mode, and the loss in nats per token.

    `peak` resident bytes and `whole` seconds are those of the process.
    """

    seconds: list[float]
    cpu: list[float]
    losses: list[float]
    peak: int
    whole: float


def _pair(what: str, kind: str, precision: str = "bf16", **more: Any) -> tuple[Training, Training]:
    """Ours, and Trainer doing the same."""
    peer = f"{TRAINER}{what}"
    return Training(f"compress {what}", kind, precision, peer=peer, **more), Training(peer, kind, precision, **more)


_TAUGHT, _PLAIN = _pair("distill, bf16", "distill", from_rounded=True)

TRAININGS: tuple[Training, ...] = (
    *_pair("finetune, bf16", "finetune"),
    *_pair("finetune, fp32", "finetune", "fp32"),
    _TAUGHT,
    Training(
        "compress distill, bf16, teacher beside it",
        "distill",
        settings={"cache": "off"},
        from_rounded=True,
        peer=_PLAIN.name,
    ),
    _PLAIN,
    Training("compress qat 4-bit, bf16", "qat", settings=G64, dense=False),
    Training(
        "compress distill of 4-bit scales, bf16",
        "distill",
        settings={"train": "scales"},
        before=({"rtn": G64},),
        dense=False,
    ),
)
