"""Makes tests/formats/golden/modelopt/ with nvidia-modelopt 0.47.0's own quantizer and export, on the CPU:

    python tests/conformance/modelopt_golden.py tests/formats/golden/modelopt

A folder for each algorithm holds what was exported of a tiny Llama, whose weights follow a formula that the
tests know. Of blocks, which are larger, one layer is kept.
"""

import sys
from copy import deepcopy
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.utils import update_quant_cfg_with_kv_cache_quant
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

FP8_AND_CACHE = update_quant_cfg_with_kv_cache_quant(deepcopy(mtq.FP8_DEFAULT_CFG), mtq.FP8_KV_CFG["quant_cfg"])
KEPT = "model.layers.0.mlp.up_proj."


def formula(shape: torch.Size) -> torch.Tensor:
    """−1000 … 1000 in a mixed order, over 4096: float16 holds them exactly."""
    return ((torch.arange(shape.numel()) * 7919 % 2001 - 1000) / 4096).view(shape)


def model(hidden: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=16, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    made = LlamaForCausalLM(config).half()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data.copy_(formula(parameter.shape))
    return made


def export(hidden: int, settings: object, directory: Path) -> None:
    tokens = torch.arange(16).unsqueeze(0)
    export_hf_checkpoint(mtq.quantize(model(hidden), settings, lambda made: made(tokens)), export_dir=directory)
    (directory / "generation_config.json").unlink()


def main() -> None:
    golden = Path(sys.argv[1])
    export(16, FP8_AND_CACHE, golden / "fp8")
    export(16, mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG, golden / "fp8_per_channel_per_token")
    export(32, mtq.W4A16_NVFP4_CFG, golden / "w4a16_nvfp4")
    blocks = golden / "fp8_pb_wo"
    export(128, mtq.FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG, blocks)
    (blocks / "config.json").unlink()
    kept = {name: tensor for name, tensor in load_file(blocks / "model.safetensors").items() if KEPT in name}
    save_file(kept, blocks / "model.safetensors")


main()
