"""Models of every build, a layer at a time: those that can be are the whole model's equal, the others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.walk import Stream, Walk
from compress.passes.kv_cache import KVCache
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.tracing.stand_in import StandIn
from compress.passes.model.tracing.structure import Traces
from compress.passes.model.weights import dense

SMALL = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
WIDE = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# How the layer hands on its result, and what it keeps beside keys and values.
WORKING: dict[str, dict[str, Any]] = {
    "openai-gpt": {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {**SMALL, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "lfm2": {**WIDE, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
}
RECURRENT: dict[str, dict[str, Any]] = {
    "rwkv": {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
    "xlstm": {**SMALL, "hidden_size": 32, "num_blocks": 2, "num_heads": 4},
}
ENCODED: dict[str, dict[str, Any]] = {
    "t5": {**SMALL, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "bart": {**SMALL, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
}


def saved(folder: Path, family: str, sizes: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def opened(path: Path) -> tuple[Checkpoint, Skeleton]:
    return Skeleton.open(open_checkpoint(path), torch.device("cpu"))


@pytest.mark.parametrize("family", WORKING)
def test_a_layer_at_a_time_is_the_whole_model(family: str, tmp_path: Path) -> None:
    path = saved(tmp_path / family, family, WORKING[family])
    (model, skeleton), ids = opened(path), torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    stream = Stream(dense(model), HiddenStates(tmp_path / "hidden", 12, skeleton.width, 2))
    with torch.no_grad():
        Walk(skeleton, Sequences(ids), [stream]).carry(0, lambda boundary: None)
        project, _ = skeleton.back(stream.weights)
        found = project(stream.hidden.read(2, 0, 2))
        expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_cache_is_found_in_the_layers_that_have_one(tmp_path: Path) -> None:
    _, skeleton = opened(saved(tmp_path / "lfm2", "lfm2", WORKING["lfm2"]))
    attentions = skeleton.anatomy.attentions()
    assert attentions[0] is None and attentions[1] is not None
    assert (attentions[1].module, attentions[1].heads) == ("model.layers.1.self_attn", 2)
    mamba, without = opened(saved(tmp_path / "mamba", "mamba", WORKING["mamba"]))
    with pytest.raises(RefusedError, match="no layer keeps keys"):
        KVCache().plan(mamba.spec, without.anatomy)


@pytest.mark.parametrize("family", RECURRENT)
def test_layers_that_hand_on_a_state_are_refused(family: str, tmp_path: Path) -> None:
    path = saved(tmp_path / family, family, RECURRENT[family])
    with pytest.raises(RefusedError, match="hands the next layer more than hidden states"):
        opened(path)


@pytest.mark.parametrize("family", ENCODED)
def test_encoder_decoders_are_refused(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(AutoConfig.for_model(family, **ENCODED[family]).to_dict()))
    save_file({"shared.weight": torch.zeros(64, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(RefusedError, match=f"{family} is no causal language model"):
        opened(tmp_path)


class Layer(nn.Module):
    """Gives what it takes, in a form of choice."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.scale, self.kind = form, nn.Parameter(torch.ones(4)), "its own"

    def forward(self, hidden: Tensor) -> Any:
        forms = {"alone": hidden, "tuple": (hidden, None), "list": [hidden], "dict": {"hidden": hidden},
                 "narrow": hidden[..., :2]}  # fmt: skip
        return forms[self.form]


@pytest.mark.parametrize(("form", "wraps"), [("alone", False), ("tuple", True), ("list", True)])
def test_hidden_states_come_back_as_the_layer_gives_them(form: str, wraps: bool) -> None:
    stand_in, hidden, other = StandIn(Layer(form), 0, Traces(1)), torch.ones(1, 3, 4), torch.zeros(1, 3, 4)
    assert (stand_in(hidden)[0] is hidden) if wraps else (stand_in(hidden) is hidden)
    stand_in.replacement = other
    assert (stand_in(hidden)[0] is other) if wraps else (stand_in(hidden) is other)
    assert stand_in.arrived is hidden and stand_in.kind == "its own"


@pytest.mark.parametrize("form", ["dict", "narrow"])
def test_what_is_no_hidden_state_is_refused(form: str) -> None:
    with pytest.raises(RefusedError, match="Layer does not give hidden states"):
        StandIn(Layer(form), 0, Traces(1))(torch.ones(1, 3, 4))
