"""llm-compressor: MODEL ROWS OUTPUT {"method": …, "scheme": …, "static": false, "smooth": α}.

`method` is rtn, gptq, awq or cache (FP8 keys and values alone), `scheme` int4 (symmetric, groups of 64), int8, fp8,
mxfp4 or nvfp4, `static` the inputs' scales, `smooth` SmoothQuant's α. What it saves is kept as it is, but for
mxfp4 and nvfp4: those its own library decodes.
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
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))
from artifacts import file_bytes, linear_bytes

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
    if chosen.get("scheme") in ("mxfp4", "nvfp4"):
        del model
        decode(Path(output))


def recipe(method: str, scheme: str = "", static: bool = False, smooth: float | None = None) -> list[Any]:
    """The modifiers, with llm-compressor's own defaults."""
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


def decode(folder: Path) -> None:
    """Put the dense values in the place of the codes, and the codes' bytes into sizes.json."""
    from transformers import CompressedTensorsConfig

    sizes = {"linear_bytes": linear_bytes(folder), "file_bytes": file_bytes(folder)}
    config = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    weights = {name: value for name, value in model.state_dict().items() if name.endswith((".weight", ".bias"))}
    plain = type(model)(type(model.config)(**{**model.config.to_dict(), "quantization_config": None}))
    plain.load_state_dict(weights, strict=False)
    del model
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    del plain.config.quantization_config
    plain.save_pretrained(folder)
    (folder / "sizes.json").write_text(json.dumps(sizes))


if __name__ == "__main__":
    main(*sys.argv[1:])
