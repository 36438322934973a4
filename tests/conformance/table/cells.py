"""One cell of the conformance table: an engine's answers for an artifact, beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.formats import open_checkpoint
from compress.formats.errors import CompressError
from compress.formats.views.fit import Decoded, without_runtime
from compress.passes.model.whole.loading import load_model
from compress.recipes.engines.ask import ask
from compress.recipes.engines.here import unable_here
from compress.recipes.engines.machine import Machine

ALIKE = 0.05
"""Nats of KL divergence, ours ‖ the engine's, in the mean of all rows: above it an engine computes something else."""
DECODERS = ("bitsandbytes", "compressed_tensors")
"""Engines whose scripts decode weights and compute in fp32."""
Inputs = Literal["kept", "as written", "in blocks"]
_TWICE = 4
"""Where inputs are rounded, sums in another order fall on other steps: two right answers are up to twice as far apart
as one is from that of the weights alone, and KL grows with the square."""
_SILENT = 0.01
"""The part of the probability whose tokens an engine may leave out."""
_LONGEST = 300


def inputs_of(engine: str, path: Path) -> Inputs:
    """What an engine does to the inputs of an artifact's linears."""
    if engine in DECODERS:
        return "kept"
    return "in blocks" if engine == "llama_cpp" and list(path.glob("*.gguf")) else "as written"


@torch.no_grad()
def ours(path: Path, rows: Sequence[Sequence[int]], inputs: Inputs) -> tuple[Tensor, float]:
    """Log-probabilities [rows, vocabulary] of the token after each row, and the KL up to which an engine's are alike.

    They are those of our reader's weights in fp32, with `inputs` rounded as the artifact says or the engine does.
    """
    checkpoint = open_checkpoint(path)
    weights = Decoded(checkpoint, without_runtime(checkpoint.spec))
    plain = _answers(load_model(weights, torch.device("cpu")), rows)
    if inputs == "kept" or (inputs == "as written" and not checkpoint.spec.activations):
        return plain, ALIKE
    model = load_model(checkpoint, torch.device("cpu"))
    if inputs == "in blocks":
        for linear in (module for module in model.modules() if isinstance(module, nn.Linear)):
            linear.register_forward_pre_hook(lambda _, given: rounded_in_blocks(given[0]))
    rounded = _answers(model, rows)
    return rounded, max(ALIKE, _TWICE * compared(plain, rounded)["kl"])


def _answers(model: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([model(torch.tensor([list(row)])).logits[0, -1].log_softmax(-1) for row in rows])


def rounded_in_blocks(x: Tensor, block: int = 32) -> Tensor:
    """x [..., in] as GGML's Q8_0: what llama.cpp on a CPU multiplies weights in blocks with, whatever the file says.

    With blocks of 256 it is Q8_K, for weights in super-blocks: its scale is float32.
    """
    blocks = x.unflatten(-1, (-1, block))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    held = scale.half().float() if block == 32 else scale
    return (blocks / torch.where(scale > 0, scale, 1.0)).round().mul(held).flatten(-2)


def cell(
    engine: str,
    python: Path,
    path: Path,
    rows: Sequence[Sequence[int]],
    expected: tuple[Tensor, float],
    timeout: float,
    machine: Machine | None = None,
) -> Any:
    """What to keep of an engine's answer: how far it is from `expected`, or its message.

    Or why `machine`, by default this one, cannot tell: `not_here`, neither green nor red.
    """
    try:
        if told := unable_here(engine, python, open_checkpoint(path), machine):
            return {"not_here": told}
        answer = ask(engine, python, path, rows, timeout)
    except CompressError as error:
        return {"message": str(error).removeprefix(f"{engine}: ").replace(str(path.absolute()), path.name)[:_LONGEST]}
    wanted, limit = expected
    if (part := silent(answer.log_probs, wanted)) > _SILENT:
        return {"message": f"it says nothing (NaN) of tokens that {100 * part:.0f} % of the probability is on"}
    return {"versions": dict(answer.versions), **compared(answer.log_probs, wanted), "limit": round(limit, 4)}


def silent(found: Tensor, expected: Tensor) -> float:
    """The part of the probability, 0 … 1, that is on tokens of which `found` says nothing."""
    width = min(found.shape[1], expected.shape[1])
    said = found[:, :width].isfinite()
    return 1 - float((expected[:, :width].exp() * said).sum(-1).mean())


def compared(found: Tensor, expected: Tensor) -> Mapping[str, float]:
    """Largest difference of any token's log-probability, and mean KL divergence; in nats.

    Tokens that the engine keeps quiet about are left out; an embedding may have more rows than there are tokens.
    """
    width = min(found.shape[1], expected.shape[1])
    found, expected = found[:, :width], expected[:, :width]
    difference = (found - expected).nan_to_num(0)
    divergence = (expected.exp() * -difference).sum(-1).mean()
    return {"difference": float(difference.abs().max()), "kl": float(divergence)}


def is_green(found: Mapping[str, Any]) -> bool:
    """Whether the engine computes the model that we wrote."""
    return "kl" in found and found["kl"] <= found["limit"]
