"""A byte budget of the whole file: what is chosen keeps it, and the file holds what was chosen, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf.quants import dequantize

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.formats.gguf.file import gguf_file
from compress.kernels.qtensor import QTensor
from compress.passes.core.report import Reporter
from compress.passes.mixed import Mixed
from compress.recipes.fitting.budget import budgeted
from compress.recipes.opening import outline_recipe
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

TYPES = ["q4_0", "iq4_nl", "q5_0", "q8_0"]
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def recipe(model: Path, corpus: Path, mixed: dict[str, Any], **more: Any) -> Recipe:
    data = {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}
    steps = [data, {"mixed": {"formats": TYPES, "samples": 4, **mixed}}, {"rtn": {"search": "inputs"}}]
    export = more or {"dialect": "gguf", "type": "q8_0"}
    return from_data({"model": str(model), "passes": [*steps, {"export": export}]})


def file_of(found: Any) -> Path:
    file = gguf_file(Path(found.artifacts[0].path))
    assert file is not None
    return file


def test_the_file_keeps_the_budget_and_the_choices(
    make_model: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", "llama", layers=1)
    smallest, largest = (plan(recipe(model, corpus, {"average_bits": bits})).artifacts[0].bytes for bits in (4.5, 16))
    limit = (2 * smallest + largest) // 3
    asked = recipe(model, corpus, {"max_bytes": limit})
    planned = plan(asked).artifacts[0].bytes
    done = run(asked, tmp_path / "out")
    file = file_of(done)
    assert limit * 0.98 < planned <= limit and file.stat().st_size <= planned
    assert file.stat().st_size == done.artifacts[0].bytes > smallest
    chosen, tensors = done.bits, {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert len(set(chosen.values())) > 1
    reopened = open_checkpoint(file)
    for module, kind in chosen.items():
        layer, leaf = module.removeprefix("model.layers.").split(".", 1)
        found = tensors[f"blk.{layer}.{GGUF_NAMES[leaf]}.weight"]
        assert found.tensor_type.name.lower() == kind, module
        tensor = reopened.read(f"{module}.weight")
        assert isinstance(tensor, QTensor)
        values = torch.tensor(dequantize(found.data, found.tensor_type))
        assert leaf in ("self_attn.q_proj", "self_attn.k_proj") or torch.equal(tensor.dequantize(), values)
    said = json.loads((tmp_path / "out" / "compress.json").read_bytes())["mixed"]
    assert said["bits"] == chosen and "bits per weight" in said["compared"]


def test_what_types_leave_is_for_them_to_the_byte(tiny_llama: Path, corpus: Path) -> None:
    """The budget is that of the weights alone: all that is in the file beside them is taken off first."""
    opened = outline_recipe(recipe(tiny_llama, corpus, {"max_bytes": 150_000}), Reporter(), None)
    mixed = opened.recipe.passes[1]
    assert isinstance(mixed, Mixed) and mixed.max_bytes is None and mixed.average_bits is not None
    weights = sum(opened.source.spec.tensors[f"{name}.weight"].size for name in opened.model.anatomy.linears)
    even = plan(recipe(tiny_llama, corpus, {"average_bits": 4.5})).artifacts[0].bytes
    assert mixed.average_bits * weights / 8 == pytest.approx(150_000 - even + 4.5 * weights / 8, abs=1)
    assert budgeted(opened.recipe.passes, 1, opened.source, opened.model) == mixed


def test_what_cannot_be_kept_is_refused_in_the_plan(tiny_llama: Path, corpus: Path) -> None:
    with pytest.raises(RefusedError, match=r"mixed: with (q4_0|iq4_nl) everywhere the artifact takes [\d,]+ bytes"):
        plan(recipe(tiny_llama, corpus, {"max_bytes": 50_000}))
    with pytest.raises(UsageError, match="is no GGUF"):
        plan(recipe(tiny_llama, corpus, {"max_bytes": 500_000}, dialect="dense", requantize=True))
