"""A model walked layer by layer is the model: transformers' own forward is the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.formats import open_checkpoint
from compress.kernels import half
from compress.passes.forward import pauses
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.linear_stats import Guide, LinearStats
from compress.passes.forward.pauses import Pause
from compress.passes.forward.scores import score
from compress.passes.forward.statistics import Hessian, Statistic
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import dense

ROWS, LENGTH = 5, 24
WEIGHTS = torch.rand(ROWS, LENGTH, 2, generator=torch.Generator().manual_seed(2)).half()
MakeModel = Callable[..., Path]


@pytest.fixture
def path(tmp_path: Path, family: str, make_model: MakeModel) -> Path:
    return make_model(tmp_path / family, family, layers=3)


@pytest.fixture
def judge(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def make_walk(path: Path, rows: Sequences, folder: str = "hidden", half: bool = False) -> Walk:
    checkpoint, skeleton = Skeleton.open(open_checkpoint(path), torch.device("cpu"))
    hidden = HiddenStates(path / folder, rows.length, skeleton.width, rows.count)
    return Walk(skeleton, rows, [Stream(dense(checkpoint), hidden)], half=half)


def random_rows(padded: bool) -> Sequences:
    torch.manual_seed(1)
    ids = torch.randint(1, 320, (ROWS, LENGTH))
    lengths = torch.tensor([24, 3, 17, 24, 9])
    return Sequences(ids, torch.arange(LENGTH) < lengths[:, None] if padded else None)


@pytest.mark.parametrize("padded", [False, True])
def test_logits_equal_the_whole_model(path: Path, judge: PreTrainedModel, padded: bool) -> None:
    rows = random_rows(padded)
    walk = make_walk(path, rows)
    with torch.no_grad():
        walk.carry(0, lambda boundary: None)
        project, _ = walk.skeleton.back(walk.streams[0].weights)
        ours = project(walk.streams[0].hidden.read(3, 0, ROWS))
        mask = torch.ones(ROWS, LENGTH, dtype=torch.bool) if rows.mask is None else rows.mask
        theirs = judge(rows.ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-5, atol=1e-5)


def test_groups_share_their_input(path: Path, judge: PreTrainedModel) -> None:
    """The linears of a group saw one tensor, and every linear of the layers is in exactly one group."""
    anatomy = make_walk(path, random_rows(False)).skeleton.anatomy
    linears = [n for n, m in judge.named_modules() if isinstance(m, torch.nn.Linear) and ".layers." in n]
    assert sorted(anatomy.linears) == sorted(linears)
    seen: dict[str, torch.Tensor] = {}
    for name in linears:
        judge.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    judge(torch.randint(1, 320, (1, 7)))
    for layer in anatomy.layers:
        pointers = [{seen[name].data_ptr() for name in group} for group in layer.siblings]
        assert all(len(pointer) == 1 for pointer in pointers)


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_statistics_equal_a_hook_on_the_whole_model(
    path: Path, judge: PreTrainedModel, hold: bool, padded: bool
) -> None:
    rows = random_rows(padded)
    walk = make_walk(path, rows)
    layer = walk.skeleton.anatomy.layers[0]
    gathered: list[LinearStats] = []
    inputs: dict[str, torch.Tensor] = {}
    plans = []
    for group in layer.siblings:
        name = group[0]
        judge.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        width = judge.get_submodule(name).in_features
        kinds = frozenset[type[Statistic]]({Hessian})
        guide = Guide(kinds, {name: WEIGHTS, "other": WEIGHTS[..., :1]})
        plans.append(Pause(layer.modules[name], width, kinds, gathered.append, guide=guide))
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool) if rows.mask is None else rows.mask
    with torch.no_grad():
        judge(rows.ids, attention_mask=mask.long())
        walk.start()
        walk.layer(0, [walk.skeleton.layer(0, walk.streams[0].weights)], plans, hold=hold)
    for group, stats in zip(layer.siblings, gathered):
        x = inputs[group[0]][mask].double()
        assert stats[Hessian].tokens == int(mask.sum())
        torch.testing.assert_close(stats[Hessian].matrix.double(), x.T @ x, rtol=1e-4, atol=1e-3)
        assert_weighted(stats.parts[group[0]], x, WEIGHTS[mask])
        assert_weighted(stats.parts["other"], x, WEIGHTS[mask][:, :1])


def assert_weighted(parts: Sequence[LinearStats], x: torch.Tensor, weights: torch.Tensor) -> None:
    """The Hessian of each part is the sum over `x` [tokens, in] as the part's `weights` [tokens, parts] count them."""
    assert len(parts) == weights.shape[1]
    for part, counts in zip(parts, weights.double().unbind(1)):
        expected = torch.einsum("t,ti,tj->ij", counts, x, x)
        torch.testing.assert_close(part[Hessian].matrix.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("padded", [False, True])
def test_scores_equal_their_definitions(
    path: Path, tmp_path: Path, judge: PreTrainedModel, make_model: MakeModel, padded: bool
) -> None:
    rows = random_rows(padded)
    other = make_model(tmp_path / "other", judge.config.model_type, layers=3, seed=7)
    other_judge = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).eval()
    walks = [make_walk(path, rows), make_walk(other, rows)]
    with torch.no_grad():
        for walk in walks:
            walk.carry(0, lambda boundary: None)
        scores = score(walks[1], walks[0])
        mask = torch.ones(ROWS, LENGTH, dtype=torch.bool) if rows.mask is None else rows.mask
        logits = [m(rows.ids, attention_mask=mask.long()).logits[:, :-1].double() for m in (judge, other_judge)]
    scored, targets = mask[:, 1:], rows.ids[:, 1:]
    reference, candidate = (value[scored].log_softmax(-1) for value in logits)
    loss = functional.nll_loss(candidate, targets[scored])
    divergence = functional.kl_div(candidate, reference, log_target=True, reduction="batchmean")
    assert scores.tokens == int(scored.sum())
    assert scores.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    assert scores.kl_divergence == pytest.approx(float(divergence), rel=1e-3)
    agreement = (reference.argmax(-1) == candidate.argmax(-1)).double().mean()
    assert scores.top1_agreement == pytest.approx(float(agreement), abs=1e-9)


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_each_expert_sees_the_tokens_routed_to_it(path: Path, judge: PreTrainedModel, hold: bool, padded: bool) -> None:
    """Hooks on transformers' own router and stacked experts say what each expert must have seen."""
    rows = random_rows(padded)
    checkpoint, skeleton = Skeleton.open(open_checkpoint(path), torch.device("cpu"))
    read, layer = dense(checkpoint), skeleton.anatomy.layers[0]
    walk = Walk(skeleton, rows, [Stream(read, HiddenStates(path / "hidden", rows.length, skeleton.width, rows.count))])
    gathered: dict[str, LinearStats] = {}
    plans = [
        Pause(
            layer.modules[group[0]],
            checkpoint.spec.tensors[f"{group[0]}.weight"].shape[1],
            frozenset({Hessian}),
            lambda stats, name=group[0]: gathered.update({name: stats}),
            guide=Guide(frozenset({Hessian}), {"": WEIGHTS}),
        )
        for group in layer.siblings
    ]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    judge.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool) if rows.mask is None else rows.mask
    with torch.no_grad():
        judge(rows.ids, attention_mask=mask.long())
        walk.start()
        walk.layer(0, [skeleton.layer(0, read)], plans, hold=hold)
    ((hidden, index),) = seen
    firsts = [name for name in gathered if ".experts." in name and "down_proj" not in name]
    assert len(firsts) == judge.config.num_local_experts
    for number, name in enumerate(firsts):
        mine = (index == number).any(-1) & mask.flatten()
        x = hidden[mine].double()
        assert gathered[name][Hessian].tokens == len(x)
        torch.testing.assert_close(gathered[name][Hessian].matrix.double(), x.T @ x, rtol=1e-4, atol=1e-3)
        assert_weighted(gathered[name].parts[""], x, WEIGHTS.flatten(0, 1)[mine])


@pytest.mark.parametrize("family", ["llama"])
def test_what_was_read_ahead_is_not_read_again_where_a_layer_is_done_again(path: Path) -> None:
    walk, filled = make_walk(path, random_rows(False)), list[int]()
    fill = walk.skeleton.layer
    walk.skeleton.layer = lambda index, weights: (filled.append(index), fill(index, weights))[1]  # type: ignore[method-assign]
    for index, ahead in ((0, True), (0, True), (1, False)):
        walk.modules(index, ahead)
    assert sorted(filled) == [0, 0, 1]


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize("models, linears", [(1, 7), (2, 0)])
def test_with_half_statistics_round_their_inputs_and_so_do_linears_of_a_model_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, models: int, linears: int
) -> None:
    """On any processor: what the products are is tests/kernels/test_half.py's to say."""
    inside: list[str] = []
    monkeypatch.setattr(half, "half_products", lambda columns: _noted(inside, "linear"))
    monkeypatch.setattr(pauses, "half_products", lambda columns, wanted: _noted(inside, "statistic", wanted))
    for wanted in (False, True):
        walk = make_walk(path, random_rows(False), half=wanted)
        others = [make_walk(path, random_rows(False), f"beside{number}") for number in range(1, models)]
        walk.streams = [*walk.streams, *(stream for other in others for stream in other.streams)]
        with torch.no_grad():
            walk.start()
            modules = walk.modules(0)
            first = next(iter(walk.skeleton.anatomy.layers[0].modules.values()))
            walk.layer(0, modules, [Pause(first, 64, frozenset({Hessian}), lambda stats: None)], hold=True)
        assert inside == (["statistic", *["linear"] * linears] if wanted else [])


@contextmanager
def _noted(inside: list[str], what: str, wanted: bool = True) -> Iterator[None]:
    if wanted:
        inside.append(what)
    yield
