"""Scales beside blocks: their names are llama.cpp's."""

import pytest
import torch

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.scales import has_scale, read_scale, scale_name, scales_beside, whole_scale


def test_names() -> None:
    assert scale_name("blk.3.attn_q.weight") == "blk.3.attn_q.scale"
    assert scales_beside("output.weight") == ("output.scale", "output.input_scale")
    for stem in ("attn_qkv", "attn_output", "ffn_up", "ffn_down_shexp", "ffn_gate_exps"):
        assert has_scale(f"blk.0.{stem}.weight")
    for name in ("token_embd.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight"):
        assert not has_scale(name) and scales_beside(name) == ()


def test_a_tensor_has_one_scale() -> None:
    assert whole_scale(torch.full((3, 1), 0.25)).tolist() == [0.25]
    with pytest.raises(RefusedError, match="different tensor scales"):
        whole_scale(torch.tensor([[1.0], [2.0]]))


@pytest.mark.parametrize("value", [0.0, -1.0, 1e36, float("nan")])
def test_what_is_no_scale_is_refused(value: float) -> None:
    assert read_scale("x", torch.tensor([1.0, 0.5]), 1) == 0.5
    with pytest.raises(InputError, match="x is"):
        read_scale("x", torch.tensor([value]), None)
