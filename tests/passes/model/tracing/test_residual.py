"""Where a linear's output joins the residual stream: what tracing says must hold for real numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
)

from compress.formats.base import ModelSpec, TensorSpec
from compress.passes.model.anatomy import Call
from compress.passes.model.blank import empty_model
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.tracing.residual import find_residuals

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
SMALL = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FOUND: dict[str, tuple[PreTrainedConfig, dict[str, str]]] = {
    "llama": (LlamaConfig(**SIZES, **SMALL),
              {"self_attn.o_proj": "input_layernorm", "mlp.down_proj": "post_attention_layernorm"}),
    "phi3": (Phi3Config(**SIZES, **SMALL),
             {"self_attn.o_proj": "input_layernorm", "mlp.down_proj": "post_attention_layernorm"}),
    "gpt2": (GPT2Config(n_embd=32, n_layer=1, n_head=4, **SMALL), {"attn.c_proj": "ln_1", "mlp.c_proj": "ln_2"}),
    "gpt_neox, side by side": (GPTNeoXConfig(**SIZES, **SMALL), {"mlp.dense_4h_to_h": "post_attention_dropout"}),
    "gemma2, norms in between": (Gemma2Config(**SIZES, **SMALL, head_dim=8, num_key_value_heads=2), {}),
}  # fmt: skip


@pytest.mark.parametrize("family", FOUND)
def test_what_is_added_to_what(family: str) -> None:
    config, expected = FOUND[family]
    parameters = empty_model(config, ()).named_parameters()
    spec = ModelSpec({}, {name: TensorSpec(tuple(value.shape), "float32") for name, value in parameters})
    skeleton = Skeleton(config, spec, torch.device("cpu"))
    assert skeleton.residuals(skeleton.anatomy.layers[0]) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_sum_is_the_layers_output(family: str) -> None:
    config, expected = FOUND[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    (layer,) = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    last, taker = list(expected.items())[-1]
    seen: dict[str, Tensor] = {}
    layer.get_submodule(taker).register_forward_pre_hook(lambda _, args: seen.update(residual=args[0]))
    layer.get_submodule(last).register_forward_hook(lambda _, args, output: seen.update(added=output))
    layer.register_forward_hook(
        lambda _, args, output: seen.update(output=output[0] if isinstance(output, tuple) else output)
    )
    model(torch.arange(12).unsqueeze(0))
    assert torch.equal(seen["residual"] + seen["added"], seen["output"])


class Sums(nn.Module):
    """x + a(n(x)), then that · b: only `a` is added to what `n` took."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a, self.b = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.a(self.n(x))) * self.b(x)


def test_only_what_is_really_added_is_found() -> None:
    assert find_residuals(Sums(), Call((), {}), torch.zeros(1, 3, 4)) == {"a": "n"}
