"""What is shown of two checkpoints: layers that changed alike on one line, and the verdict."""

from __future__ import annotations

from collections.abc import Callable

from compress.cli.views.diff import diff
from compress.passes.artifact.differences import Distance, Held, TensorDifference
from compress.recipes.jobs.diff import AnswerDifference, Diff, SettingDifference, Side

SIDE = Side(path="one", dialect="gptq", bytes=1000, bits_per_weight=4.25)


def test_layers_that_changed_alike_share_a_line(shown: Callable[..., list[str]]) -> None:
    four, five = Held(shape=(8, 4), format="int4", bits=4.25), Held(shape=(8, 4), format="int5", bits=5.25)
    apart = [Distance(largest=number, mean=0.5, relative=0.25) for number in range(3)]
    tensors = [
        TensorDifference(name=f"layers.{number}.up", a=four, b=five, values=values)
        for number, values in enumerate(apart)
    ]
    tensors += [TensorDifference(name="head", a=None, b=four.model_copy(update={"shape": (2, 4)}))]
    found = Diff(
        a=SIDE, b=SIDE.model_copy(update={"path": "other"}), differ=True, alike=7, tensors=tensors,
        settings=[SettingDifference(where="recipe: seed", a="0", b="1")],
        answers=AnswerDifference(kl_divergence=0.125, top1_agreement=0.75, perplexity=(10, 11), tokens=99),
    )  # fmt: skip
    lines = shown(diff(found))
    assert lines[0] == "a: one (gptq, 1.00 kB, 4.25 bits per weight)"
    assert "layers.*.up ×3 int4, 4.25 bits int5, 5.25 bits 2 0.5 25.00 % –" in lines
    assert "head not there int4, 4.25 bits, 2 × 4 – – – –" in lines
    assert "recipe: seed 0 1" in lines
    assert lines[-2:] == [
        "answers: KL divergence 0.125 nats per token, top-1 agreement 75.0 %, perplexity 10.00 and 11.00",
        "4 tensors differ, 7 are alike; 1 settings differ",
    ]


def test_that_there_is_none_is_said(shown: Callable[..., list[str]]) -> None:
    same = Diff(a=SIDE, b=SIDE, differ=False, alike=7, tensors=[], settings=[])
    assert shown(diff(same))[-1] == "no difference in 7 tensors and their settings"
