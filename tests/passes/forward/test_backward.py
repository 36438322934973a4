"""Gradients walked back layer by layer are those of the whole model: autograd on transformers' own is the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.passes.forward import backward
from compress.passes.forward.backward import WayBack, draw
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import dense

LAYERS, ROWS, LENGTH, PARTS = 3, 5, 24, 2
MakeModel = Callable[..., Path]


def random_rows(padded: bool) -> Sequences:
    torch.manual_seed(1)
    ids = torch.randint(1, 320, (ROWS, LENGTH))
    lengths = torch.tensor([24, 3, 17, 24, 9])
    return Sequences(ids, torch.arange(LENGTH) < lengths[:, None] if padded else None)


def walked_back(path: Path, rows: Sequences, seed: int) -> tuple[Skeleton, dict[str, Tensor], Tensor]:
    """Token weights by module, and the gradient at the first boundary."""
    checkpoint, skeleton = Skeleton.open(open_checkpoint(path), torch.device("cpu"))
    hidden, gradients = (HiddenStates(path / name, LENGTH, skeleton.width, ROWS) for name in ("there", "back"))
    walk = Walk(skeleton, rows, [Stream(dense(checkpoint), hidden)])
    walk.batches = [(0, 2), (2, 5)]
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        walk.carry(0, lambda boundary: None, keep=True)
        back = WayBack(walk, gradients, seed)
        back.start()
        for index in reversed(range(LAYERS)):
            names = {local: name for name, local in skeleton.anatomy.layers[index].modules.items()}
            weights = back.layer(index, dict.fromkeys(names, PARTS))
            found |= {names[local]: weight for local, weight in weights.items()}
    return skeleton, found, gradients.read(0, 0, ROWS)


@pytest.mark.parametrize("padded", [False, True])
def test_weights_and_gradients_are_those_of_the_whole_model(
    tmp_path: Path, family: str, make_model: MakeModel, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "_CHUNK", 7)
    path, rows = make_model(tmp_path / family, family, layers=LAYERS), random_rows(padded)
    labels: list[Tensor] = []
    monkeypatch.setattr(backward, "draw", lambda logits, uniform: labels.append(draw(logits, uniform)) or labels[-1])
    _, weights, gradient = walked_back(path, rows, seed=3)
    judge = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    outputs: dict[str, Tensor] = {}
    for name in weights:
        judge.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: (output.retain_grad(), outputs.update({name: output}))[0]
        )
    embeds = judge.get_input_embeddings()(rows.ids).detach().requires_grad_()
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool) if rows.mask is None else rows.mask
    log_p = judge(inputs_embeds=embeds, attention_mask=mask.long()).logits[mask].log_softmax(-1)
    (-log_p.gather(1, torch.cat(labels)[:, None]).sum()).backward()
    torch.testing.assert_close(gradient[mask], embeds.grad[mask], rtol=1e-3, atol=1e-5)
    for name, output in outputs.items():
        squares = torch.stack([part.square().mean(-1) for part in output.grad.tensor_split(PARTS, -1)], -1)
        expected = squares / squares[mask].mean(0)
        torch.testing.assert_close(weights[name][mask].float(), expected[mask], rtol=5e-3, atol=1e-5)
    assert bool((gradient[~mask] == 0).all())


def test_each_expert_has_the_gradients_of_its_tokens(tmp_path: Path, make_model: MakeModel) -> None:
    """An expert's output is weighed by the router, and few tokens come: all others weigh 1."""
    path, rows = make_model(tmp_path / "moe", "qwen3_moe", layers=LAYERS), random_rows(False)
    _, weights, _ = walked_back(path, rows, seed=3)
    downs = [weight for name, weight in weights.items() if ".1.mlp.experts." in name and name.endswith("down_proj")]
    assert len(downs) == 8
    reached = torch.stack([(weight != 1).any(-1) for weight in downs])
    assert bool((reached.sum(0) == 2).all())
    for weight, tokens in zip(downs, reached):
        torch.testing.assert_close(weight[tokens].float().mean(0), torch.ones(PARTS), rtol=1e-2, atol=0)


def test_the_seed_decides(tmp_path: Path, make_model: MakeModel) -> None:
    path, rows = make_model(tmp_path / "llama", "llama", layers=LAYERS), random_rows(False)
    first, again, other = (walked_back(path, rows, seed)[2] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_drawn_tokens_have_the_models_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log().expand(20_000, 4)
    drawn = draw(logits, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(
        drawn.bincount(minlength=4) / 20_000, torch.tensor([0.1, 0.2, 0, 0.7]), rtol=0, atol=0.01
    )
    assert int(drawn.bincount(minlength=4)[2]) == 0


def test_squared_gradients_are_on_average_the_fisher_information() -> None:
    """At logits: E[(p − e_y)²] = p·(1 − p), the diagonal of the KL divergence's Hessian."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = draw(p.log().expand(50_000, 4), torch.rand(50_000, generator=torch.Generator().manual_seed(0)))
    gradients = p - torch.nn.functional.one_hot(drawn, 4)
    torch.testing.assert_close(gradients.square().mean(0), p * (1 - p), rtol=0.03, atol=0)
