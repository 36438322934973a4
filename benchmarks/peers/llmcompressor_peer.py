"""llm-compressor: MODEL ROWS OUTPUT {"method": …, "scheme": …, "static": false, "smooth": α}.

`method` is rtn, gptq, awq or cache (FP8 keys and values alone), `scheme` int4 (symmetric, groups of 64), int8, fp8,
mxfp4 or nvfp4, `static` the inputs' scales, `smooth` SmoothQuant's α. What it saves is kept as it is. Or `method` is
sparsegpt or wanda, with `sparsity` or `pattern`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

PRESETS = {
    ("int8", False): "INT8",
    ("fp8", False): "FP8_DYNAMIC",
    ("fp8", True): "FP8",
    ("mxfp4", False): "MXFP4A16",
    ("nvfp4", False): "NVFP4A16",
}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FP8_CACHE = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


def main(source: str, rows: str, output: str, settings: str) -> None:
    """Quantize and save."""
    chosen = json.loads(settings)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = json.loads(Path(rows).read_text())
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    oneshot(
        model=model,
        processor=source,
        dataset=data,
        recipe=recipe(**chosen),
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
    )
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


def recipe(
    method: str,
    scheme: str = "",
    static: bool = False,
    smooth: float | None = None,
    sparsity: float = 0.5,
    pattern: str = "0:0",
) -> list[Any]:
    """The modifiers, with llm-compressor's own defaults."""
    if method in ("sparsegpt", "wanda"):
        pruner = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
        return [pruner(sparsity=sparsity, mask_structure=pattern, targets=["Linear"], ignore=["lm_head"])]
    if method == "cache":
        return [QuantizationModifier(kv_cache_scheme=FP8_CACHE, targets=[], ignore=["lm_head"])]
    modifier = {"rtn": QuantizationModifier, "gptq": GPTQModifier}[method]
    modifiers = [modifier(config_groups={"group_0": group(scheme, static)}, ignore=["lm_head"])]
    if smooth is not None:
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        modifiers.insert(0, SmoothQuantModifier(smoothing_strength=smooth))
    return modifiers


def group(scheme: str, static: bool) -> Any:
    if scheme == "int4":
        return {"targets": ["Linear"], "weights": INT4}
    if (scheme, static) == ("int8", True):
        inputs = {**INT8, "strategy": "tensor", "dynamic": False}
        return {"targets": ["Linear"], "weights": {**INT8, "strategy": "channel"}, "input_activations": inputs}
    return preset_name_to_scheme(PRESETS[scheme, static], ["Linear"])


if __name__ == "__main__":
    main(*sys.argv[1:])
