"""The facts about engines, each with the version and the file that it was read from: they stand here only.

Read, not tried, where the source is a file; `tests/conformance` tries what can be tried here. What no fact
speaks of: negative scales (every weight-only kernel multiplies by the scale as it is; vLLM's Marlin with 8-bit
activations alone divides by the largest one, marlin_utils.py `marlin_act_int8_process_scales`), and `desc_act`
(our files never reorder columns). What a container itself cannot hold is refused by its dialect: of AWQ files
for instance a second group size, and rows that do not divide by 8. Where AutoGPTQ, GPTQModel and transformers
fail on a GPTQ file, most load noise in silence.
"""

from __future__ import annotations

from compress.recipes.engines.checks.dense import dense_head, no_dense_linears, no_dense_substring, separate_head
from compress.recipes.engines.checks.grids import (
    bits,
    divisible,
    group_sizes,
    no_integers,
    no_packed_zeros,
    scales_kept,
    symmetric,
)
from compress.recipes.engines.checks.inputs import float8_cache, half_inputs, kept_inputs, whole_groups
from compress.recipes.engines.checks.joined import joined_alike, scales_apart, whole_blocks
from compress.recipes.engines.checks.phones import phone_types
from compress.recipes.engines.checks.settings import (
    any_model,
    architectures,
    either,
    never,
    one_setting,
    option,
    other_architectures,
)
from compress.recipes.engines.checks.tables import cpu_rows, float4_in_bfloat16, long_blocks, without
from compress.recipes.engines.subject import Check, Fact

_LAYERS = "vllm/model_executor/layers/quantization"
_LINEAR = "vllm/model_executor/kernels/linear"
_KERNELS = f"{_LINEAR}/mixed_precision"
_COMPRESSED = f"{_LAYERS}/compressed_tensors"
_MARLIN = f"{_LAYERS}/utils/marlin_utils.py MARLIN_SUPPORTED_GROUP_SIZES"
_GONE = f"{_LAYERS}/__init__.py QuantizationMethods"
_JOINT = "vllm/model_executor/layers/linear.py QKVParallelLinear, MergedColumnParallelLinear"
_MARLIN_SIZES = (-1, 32, 64, 128)
_BITSANDBYTES = "bitsandbytes 0.50.2, bitsandbytes"
_ACT_SCALES = "transformers/integrations/awq.py AWQ_SCALES_MAPPINGS"
_ASYMMETRIC = (
    "gptqmodel/models/loader.py ('Loading of a sym=False model with format=FORMAT.GPTQ is only supported if "
    "produced by gptqmodel version >= 0.9.0')"
)


def _vllm(dialect: str, source: str, check: Check, *, refuse: bool = True) -> tuple[Fact, ...]:
    """A fact about vLLM; its build for CPUs shares the loaders."""
    return tuple(Fact(engine, dialect, "0.32.0", source, check, refuse) for engine in ("vllm", "vllm-cpu"))


def _on_cpu(dialect: str, check: Check) -> Fact:
    return Fact("vllm-cpu", dialect, "0.32.0", f"{_KERNELS}/cpu.py can_implement", check)


FACTS: tuple[Fact, ...] = (
    # vLLM
    *_vllm("dense", "vllm/model_executor/model_loader/default_loader.py", any_model()),
    *_vllm("gguf", f"{_GONE} (vllm-project/vllm#39612)", never(
        "GGUF left vLLM for a plugin (pip install vllm-gguf-plugin); export dialect: gptq or compressed-tensors")),
    *_vllm("bitsandbytes", f"{_GONE} (vllm-project/vllm#39583)", never(
        "bitsandbytes left vLLM; export dialect: gptq or compressed-tensors")),
    *_vllm("gptq", f"{_LAYERS}/auto_gptq.py TYPE_MAP", bits(4, 8)),
    *_vllm("gptq", f"{_LAYERS}/auto_gptq.py TYPE_MAP ('Unsupported quantization config: bits=4, sym=False')", symmetric(
        "quantize with symmetric: true, or export dialect: awq or compressed-tensors")),
    *_vllm("gptq", f"{_LAYERS}/auto_gptq.py verify_marlin_supported, {_MARLIN}", group_sizes(*_MARLIN_SIZES)),
    *_vllm("gptq", _JOINT, joined_alike()),
    *_vllm("gptq", f"{_LAYERS}/auto_gptq.py create_weights (params_dtype)", scales_kept, refuse=False),
    *_vllm("awq", f"{_LAYERS}/auto_awq.py TYPE_MAP", bits(4)),
    *_vllm("awq", _MARLIN, group_sizes(*_MARLIN_SIZES)),
    *_vllm("awq", _JOINT, joined_alike(zeros=False)),
    *_vllm("awq", f"{_LAYERS}/auto_awq.py get_quant_method (match_mode='substring')", no_dense_substring),
    *_vllm("awq", f"{_LAYERS}/auto_awq.py create_weights (params_dtype)", scales_kept, refuse=False),
    *_vllm("compressed-tensors", f"{_COMPRESSED}/compressed_tensors.py (2:4 sparsity was removed)",
           option("sparsity_config", None, {})),
    *_vllm("compressed-tensors", f"{_COMPRESSED}/schemes/compressed_tensors_wNa16.py WNA16_SUPPORTED_TYPES_MAP",
           bits(2, 3, 4, 5, 6, 7, 8)),
    *_vllm("compressed-tensors", f"{_COMPRESSED}/compressed_tensors.py validate_kv_cache_scheme", float8_cache),
    *_vllm("compressed-tensors", f"{_COMPRESSED}/schemes/compressed_tensors_wNa16.py create_weights (params_dtype)",
           scales_kept, refuse=False),
    # Exllama takes symmetric groups of any size, Triton these with zero points.
    *_vllm("compressed-tensors", f"{_KERNELS}/triton_w4a16.py TRITON_W4A16_SUPPORTED_GROUP_SIZES",
           group_sizes(*_MARLIN_SIZES, 256, zero="integer")),
    *_vllm("compressed-tensors", f"{_LAYERS}/utils/fp8_utils.py validate_fp8_block_shape", whole_blocks),
    *_vllm("compressed-tensors", _JOINT, joined_alike()),
    Fact("vllm", "compressed-tensors", "0.32.0", f"{_COMPRESSED}/schemes/compressed_tensors_w4a4_mxfp4.py; "
         f"{_LINEAR}/mxfp4/flashinfer.py", without(
             "mxfp4", why="whose inputs GPUs from Blackwell on round to MXFP4 too; those before Ampere do not run it"),
         refuse=False),
    *(Fact("vllm-cpu", dialect, "0.32.0", f"{_LINEAR}/__init__.py init_mxfp4_linear_kernel, init_nvfp4_linear_kernel",
           without("mxfp4", "nvfp4", why="for which there is no kernel; use rtn, gptq or awq"))
      for dialect in ("compressed-tensors", "modelopt")),
    *_vllm("modelopt", _JOINT, joined_alike()),
    *_vllm("modelopt", f"{_LAYERS}/utils/w8a8_utils.py requantize_with_max_scale", scales_apart, refuse=False),
    *(_on_cpu(dialect, check) for dialect in ("gptq", "awq", "compressed-tensors") for check in (
        bits(4), divisible(rows=32, columns=32))),
    *(Fact("vllm-cpu", dialect, "0.32.0", "csrc/cpu/torch_bindings.cpp cpu_gemm_wna16 (vllm-project/vllm#55613)",
           no_integers("are computed on x86 processors with AVX-512 only"), refuse=False, needs="avx512f")
      for dialect in ("gptq", "awq", "compressed-tensors")),
    Fact("vllm-cpu", "compressed-tensors", "0.32.0", "csrc/cpu/sgl-kernels/gemm_int8.cpp scale_C", half_inputs,
         refuse=False),
    # transformers: gptq and awq through gptqmodel, whose kernels choose themselves by layer
    Fact("transformers", "gptq", "5.23.0", "transformers/utils/quantization_config.py GPTQConfig", one_setting),
    Fact("transformers", "gptq", "5.23.0", "transformers/quantizers/quantizer_gptq.py", dense_head),
    Fact("transformers", "awq", "5.23.0", _ACT_SCALES, other_architectures(
        "RefinedWebModel", "bloom", "falcon", "gpt_bigcode", "gpt_neox", "gptj", "mpt", "starcoder2",
        why="looks for act.scales, which our files do not have,")),
    Fact("transformers", "awq", "5.23.0", "gptqmodel 7.7.0, gptqmodel/nn_modules/qlinear/torch_awq.py",
         group_sizes(-1, 16, 32, 64, 128)),
    Fact("transformers", "compressed-tensors", "5.23.0",
         "transformers/quantizers/quantizer_compressed_tensors.py (compress_model)", no_packed_zeros),
    Fact("transformers", "compressed-tensors", "5.23.0", "transformers/quantizers/quantizer_compressed_tensors.py",
         scales_kept, refuse=False),
    Fact("transformers", "compressed-tensors", "5.23.0",
         "compressed-tensors 0.20.0, compressed_tensors/quantization/lifecycle/forward_helpers.py", whole_groups),
    Fact("transformers", "compressed-tensors", "5.23.0",
         "compressed-tensors 0.20.0, compressors/nvfp4/helpers.py unpack_fp4_from_uint8 (dtype)", float4_in_bfloat16),
    Fact("transformers", "bitsandbytes", "5.23.0", f"{_BITSANDBYTES}/nn/modules.py Linear4bit.forward", cpu_rows,
         refuse=False),
    Fact("transformers", "bitsandbytes", "5.23.0", f"{_BITSANDBYTES}/functional.py quantize_4bit", long_blocks,
         refuse=False),
    Fact("transformers", "bitsandbytes", "5.23.0", f"{_BITSANDBYTES}/autograd/_functions.py MatMul8bitLt", kept_inputs,
         refuse=False),
    Fact("transformers", "gguf", "5.23.0", "transformers/modeling_gguf_pytorch_utils.py GGUF_SUPPORTED_ARCHITECTURES",
         architectures("bloom", "falcon", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_oss", "llama", "mamba",
                       "mistral", "nemotron", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "stablelm",
                       "starcoder2", "t5")),
    Fact("transformers", "gguf", "5.23.0", "transformers/modeling_gguf_pytorch_utils.py load_gguf_checkpoint",
         without("nvfp4", why="whose scale of the whole tensor lies beside it in GGUF, where it is not looked for")),
    # GPTQModel
    Fact("gptqmodel", "gptq", "7.7.0", _ASYMMETRIC, either(
        symmetric("export with checkpoint_format: gptq_v2"), option("checkpoint_format", "gptq_v2"),
    )),
    Fact("gptqmodel", "gptq", "7.7.0", "gptqmodel/nn_modules/qlinear/torch.py SUPPORTS_GROUP_SIZE",
         group_sizes(-1, 16, 32, 64, 128, 256, 512, 1024)),
    Fact("gptqmodel", "awq", "7.7.0", "gptqmodel/nn_modules/qlinear/gemm_awq.py SUPPORTS_GROUP_SIZE",
         group_sizes(-1, 16, 32, 64, 128)),
    # AutoAWQ
    Fact("autoawq", "awq", "0.2.9", "awq/utils/module.py exclude_layers_to_not_quantize", no_dense_substring),
    # AutoGPTQ, which does not say that it misreads gptq_v2
    Fact("autogptq", "gptq", "0.7.1", "auto_gptq/quantization/config.py CHECKPOINT_FORMAT",
         option("checkpoint_format", "gptq", default="gptq")),
    Fact("autogptq", "gptq", "0.7.1", "auto_gptq/quantization/config.py BaseQuantizeConfig", one_setting),
    Fact("autogptq", "gptq", "0.7.1", "auto_gptq/modeling/_base.py from_quantized", no_dense_linears),
    Fact("autogptq", "gptq", "0.7.1", "auto_gptq/modeling/_base.py from_quantized", dense_head),
    Fact("autogptq", "gptq", "0.7.1", "auto_gptq/modeling/_base.py from_quantized (tied before the weights are read)",
         separate_head),
    Fact("autogptq", "gptq", "0.7.1", "auto_gptq/nn_modules/qlinear/qlinear_exllamav2.py",
         divisible(rows=32, columns=32)),
    # llama.cpp
    Fact("llama.cpp", "gguf", "2026.10", "ggml/src/ggml-common.h QK4_0, QK4_1, QK5_0, QK5_1, QK8_0",
         divisible(columns=32)),
    # Phones: llama.cpp on ARM
    Fact("mobile", "gguf", "2026.10", "llama.cpp, ggml/src/ggml-cpu/repack.cpp ggml_repack_get_optimal_repack_type; "
         "ggml/src/ggml-cpu/arch/arm/quants.c", phone_types),
    # TensorRT-LLM
    Fact("tensorrt-llm", "modelopt", "1.3", "https://nvidia.github.io/TensorRT-LLM/features/quantization.html",
         any_model()),
)  # fmt: skip
