"""Layer by layer: what comes nearer to what, what learns, kills, memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.formats.errors import UsageError
from compress.kernels.qtensor import QTensor
from compress.passes.core.base import LayerPass
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.scores import Scores
from compress.passes.model.sequences import Sequences
from compress.passes.model.whole.loading import load_model
from compress.passes.rtn import RTN
from compress.passes.teach import layerwise
from compress.passes.teach.layerwise import train_layers
from compress.passes.train.commit import Learned, Trained
from compress.passes.train.examples import Examples
from compress.passes.train.options import TrainOptions

Begin = Callable[..., Run]
KilledAt = Callable[[int], AbstractContextManager[None]]
Measure = Callable[..., Scores]
IDS = torch.randint(0, 320, (28, 24), generator=torch.Generator().manual_seed(11))
SEQUENCES = Sequences(IDS)
FAST: dict[str, Any] = {
    "steps": 24, "batch": 6, "held_out": 4, "precision": "fp32", "lr": 1e-3, "lr_scales": 3e-3, "lr_codes": 2e-2,
}  # fmt: skip
ROUGH = RTN(bits=3, group_size=32)


@pytest.fixture
def rounded(tmp_path: Path, begin: Begin, carry_out: Callable[..., Run]) -> Callable[..., Run]:
    """rounded(source, folder, passes) → a run whose linears have 3 bits."""

    def make(source: Path, folder: str, passes: Sequence[LayerPass] = (ROUGH,)) -> Run:
        return carry_out(begin(source, tmp_path / folder), *passes)

    return make


def learn(run: Run, sequences: Sequences = SEQUENCES, **options: Any) -> Run:
    settings = TrainOptions.model_validate({**FAST, **options})
    run.left = run.left.then(train_layers(run, stage_of(run, sequences), settings))
    return run


def stage_of(run: Run, sequences: Sequences | None = None) -> Stage:
    return Stage((ROUGH,), {"layers": 1}, run.work, sequences=sequences)


def parts(tensor: Tensor | QTensor) -> list[Tensor]:
    return [tensor.codes, *tensor.params.values()] if isinstance(tensor, QTensor) else [tensor]


def changed(before: Run, after: Run) -> set[str]:
    """The names of the tensors that differ."""
    names = before.model.spec.tensors
    pairs = {name: [parts(run.model.read(name)) for run in (before, after)] for name in names}
    return {name for name, (old, new) in pairs.items() if not all(map(torch.equal, old, new))}


@pytest.mark.parametrize(("train", "gain"), [("all", 0.8), ("scales", 0.98)])
def test_the_model_comes_nearer_to_the_untouched_one(
    tiny_llama: Path, rounded: Callable[..., Run], scores: Measure, train: str, gain: float
) -> None:
    before, after = rounded(tiny_llama, "before"), learn(rounded(tiny_llama, "after"), train=train)
    lost, left = (scores(run, run.model, run.source).kl_divergence for run in (before, after))
    assert lost is not None and left is not None and left < gain * lost
    trained = after.journal.of(Trained)
    assert [record.unit for record in trained] == ["model.layers.0", "model.layers.1"]
    assert all(min(loss for _, loss in record.measured) < 0.97 * record.measured[0][1] for record in trained)
    (training,) = after.left.manifest["training"]
    assert training["tokens"] == 2 * 24 * 6 * 24 and len(training["losses"]) == 24
    assert training["measured"][0] == [0, pytest.approx(sum(record.measured[0][1] for record in trained) / 2)]
    assert [(each["unit"], each["best"]) for each in training["units"]] == [(each.unit, each.best) for each in trained]


def test_a_layer_learns_on_what_the_layers_before_it_give(tiny_llama: Path, rounded: Callable[..., Run]) -> None:
    """Its first held-out loss is that of whole models whose layers before it are as they were trained."""
    run, mixed = learn(rounded(tiny_llama, "run")), rounded(tiny_llama, "mixed")
    mixed.model.overlay(stage_of(run).file(run.journal.of(Learned)[0].file))
    _, held_out = Examples(SEQUENCES).split(FAST["held_out"], 0)
    found, wanted = (behind_layer(load_model(model, run.device), 1, held_out) for model in (mixed.model, run.source))
    expected = (found - wanted).square().sum(-1) / wanted.square().sum(-1)
    assert run.journal.of(Trained)[1].measured[0][1] == pytest.approx(float(expected[:, :-1].mean()), rel=1e-4)


def behind_layer(model: Any, index: int, examples: Examples) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor | tuple[Tensor]) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    model.model.layers[index].register_forward_hook(keep)
    with torch.no_grad():
        model(examples.sequences.ids)
    return kept[0]


def test_scales_learn_and_no_code_moves(tiny_llama: Path, rounded: Callable[..., Run]) -> None:
    before, after = rounded(tiny_llama, "before"), learn(rounded(tiny_llama, "after"), train="scales")
    within = {name for name in before.model.spec.tensors if ".layers." in name}
    assert changed(before, after) == within
    for name in within:
        one, other = before.model.read(name), after.model.read(name)
        assert isinstance(one, QTensor) == isinstance(other, QTensor) == (not name.endswith("norm.weight"))
        assert not (isinstance(one, QTensor) and isinstance(other, QTensor)) or torch.equal(one.codes, other.codes)


def test_with_all_of_a_layer_codes_move(tiny_llama: Path, rounded: Callable[..., Run]) -> None:
    before, after = rounded(tiny_llama, "before"), learn(rounded(tiny_llama, "after"))
    one, other = (run.model.read("model.layers.1.mlp.up_proj.weight") for run in (before, after))
    assert isinstance(one, QTensor) and isinstance(other, QTensor)
    assert 0 < float((one.codes != other.codes).float().mean()) < 0.5


@pytest.mark.parametrize("pattern", ["*.layers.1.mlp.*", "down_proj"])
def test_nothing_learns_but_what_is_named(tiny_llama: Path, rounded: Callable[..., Run], pattern: str) -> None:
    before, after = rounded(tiny_llama, "before"), learn(rounded(tiny_llama, "after"), train=[pattern])
    named = {name for name in before.model.spec.tensors if pattern.strip("*") in name}
    assert changed(before, after) == named
    assert {name for record in after.journal.of(Learned) for name in record.tensors} == named
    assert len(after.journal.of(Trained)) == 2


def test_what_lies_outside_the_layers_alone_is_refused(tiny_llama: Path, rounded: Callable[..., Run]) -> None:
    with pytest.raises(UsageError, match=r"nothing within a decoder layer.*model\.norm\.weight is outside"):
        learn(rounded(tiny_llama, "run"), train=["model.norm"])


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "granitemoe", "gpt2", "gptj", "falcon, old", "gemma3_text"])
def test_experts_tuples_and_windows(
    family: str, tmp_path: Path, make_model: Callable[..., Path], rounded: Callable[..., Run], scores: Measure
) -> None:
    run = rounded(make_model(tmp_path / "model", family), "run")
    lost = scores(run, run.model, run.source).kl_divergence
    learned = learn(run, steps=12)
    left = scores(learned, learned.model, learned.source).kl_divergence
    assert lost is not None and left is not None and left < 0.98 * lost


def test_padding_teaches_nothing(tiny_llama: Path, rounded: Callable[..., Run]) -> None:
    """Whatever tokens it consists of."""
    mask = torch.arange(24) < torch.randint(6, 25, (28, 1), generator=torch.Generator().manual_seed(3))
    runs = [
        learn(rounded(tiny_llama, f"padded-{token}"), Sequences(torch.where(mask, IDS, token), mask), steps=4)
        for token in (0, 7)
    ]
    assert not changed(*runs)
    assert runs[0].journal.of(Trained) == runs[1].journal.of(Trained)


def test_held_in_memory_or_read_from_disk_it_is_the_same(
    tiny_llama: Path, rounded: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = learn(rounded(tiny_llama, "held"), steps=4)
    monkeypatch.setattr(layerwise, "may_keep", lambda *_: False)
    assert not changed(held, learn(rounded(tiny_llama, "read"), steps=4))


def test_killed_at_any_commit_it_ends_in_the_same_bytes(
    tiny_llama: Path, rounded: Callable[..., Run], killed_at: KilledAt
) -> None:
    """Killed before the record of a commit is there, when its files are: at each commit in turn."""
    whole = learn(rounded(tiny_llama, "whole"), steps=6)
    for committed in range(4):
        cut = rounded(tiny_llama, "cut")
        with killed_at(2 if committed else 1):
            learn(cut, steps=6)
        assert [len(cut.journal.of(kind)) for kind in (Learned, Trained)] == [(committed + 1) // 2, committed // 2]
    resumed = learn(rounded(tiny_llama, "cut"), steps=6)
    assert resumed.journal.of(Trained) == whole.journal.of(Trained)
    assert resumed.journal.of(Learned) == whole.journal.of(Learned)  # their digests among it
    assert not changed(whole, resumed)


def test_memory_does_not_grow_with_layers(
    tmp_path: Path,
    make_model: Callable[..., Path],
    rounded: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The tensors that are alive at any step of the optimizer, with 2 layers and with 7."""
    most = []
    request.addfinalizer(gc.unfreeze)
    gc.freeze()  # what there is already need not be looked through at every step
    for layers in (2, 7):
        run, alive = rounded(make_model(tmp_path / f"of-{layers}", "qwen3", layers=layers), f"run-{layers}"), [0]
        step = torch.optim.AdamW.step

        def look(*arguments: Any, alive: list[int] = alive, step: Any = step, **named: Any) -> Any:
            alive.append(living())
            return step(*arguments, **named)

        before = living()
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", look)
            learn(run, steps=2)
        most.append(max(alive) - before)
    assert most[0] > 1 << 20  # of a layer's weights there are at least six copies in fp32
    assert most[1] < 1.1 * most[0]


def living() -> int:
    """The bytes of all tensors that there are on the CPU; other tests may have left some of a pretended GPU."""
    gc.collect()
    found = (each for each in gc.get_objects() if issubclass(type(each), Tensor))
    tensors = [each for each in found if each.device.type == "cpu"]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
