"""What a modelopt artifact says of itself: `quantization_config` in config.json, and hf_quant_config.json.

The two say the same in other words: vLLM reads the former, TensorRT-LLM the latter. One algorithm names how
weights and inputs of all layers are rounded but for a list of modules. Sources: nvidia-modelopt 0.47.0,
torch/export/convert_hf_config.py; vLLM 0.32, quantization/modelopt.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.formats.base import ModelSpec
from compress.formats.compressed_tensors.config import schemes_of
from compress.formats.compressed_tensors.float4 import NVFP4
from compress.formats.compressed_tensors.schemes import Scheme
from compress.formats.errors import InputError, RefusedError
from compress.formats.files.hf_config import CONFIG, HF_QUANT_CONFIG, quantization_of, read_settings
from compress.kernels.numbers.activations import ActivationFormat, CacheFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.qtensor import NumberFormat

METHOD = "modelopt"
ALGORITHMS = {
    "FP8": Scheme(FloatFormat("tensor"), ActivationFormat("fp8", False, "tensor")),
    "FP8_PER_CHANNEL_PER_TOKEN": Scheme(FloatFormat("channel"), ActivationFormat("fp8", True)),
    # "Weights only" by name; engines round what comes in too, as DeepSeek-V3 has it. TensorRT-LLM wants small letters.
    "fp8_pb_wo": Scheme(FloatFormat("block"), ActivationFormat("fp8", True, "group")),
    "W4A16_NVFP4": Scheme(NVFP4),
}
CACHE = CacheFormat("fp8")
# vLLM goes by the producer's name; the version is the one that files were checked with.
_PRODUCER = {"name": METHOD, "version": "0.47.0"}
_FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
_FLOAT4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": NVFP4.block}
_GROUPS = {"FP8": {"input_activations": _FLOAT8, "weights": _FLOAT8}, "W4A16_NVFP4": {"weights": _FLOAT4}}
_HEAD = "lm_head"


def algorithm_of(model: ModelSpec) -> str:
    """The algorithm of a model whose tensors fit, some of them quantized. Raises RefusedError if layers differ."""
    found = {scheme: module for module, scheme in schemes_of(model).items()}
    if len(found) > 1:
        said = ", ".join(f"{_said(scheme)} as {module}" for scheme, module in found.items())
        raise RefusedError(
            f"modelopt files are written with one algorithm for all layers, not {said}",
            "leave layers dense, or export dialect: compressed-tensors",
        )
    return next(name for name, scheme in ALGORITHMS.items() if scheme in found)


def format_misfit(number_format: NumberFormat) -> str | None:
    """Why no algorithm has weights in this format, or None if one has."""
    if any(known.number_format == number_format for known in ALGORITHMS.values()):
        return None
    return f"modelopt files hold FP8 and NVFP4, not {number_format.name}; compressed-tensors holds more, dense all"


def scheme_misfit(scheme: Scheme) -> str | None:
    """Why no algorithm is this scheme, whose number format one has, or None if one is."""
    known = next(found for found in ALGORITHMS.values() if found.number_format == scheme.number_format)
    if known == scheme:
        return None
    return f"weights in {scheme.number_format.name} go with inputs {_inputs(known)}, not {_inputs(scheme)}"


def _said(scheme: Scheme) -> str:
    return f"{scheme.number_format.name} with inputs {_inputs(scheme)}"


def _inputs(scheme: Scheme) -> str:
    return f"in {scheme.inputs.name}" if scheme.inputs else "left as they are"


def hf_quant_config(model: ModelSpec) -> dict[str, Any]:
    """hf_quant_config.json of a model that fits."""
    algorithm = algorithm_of(model)
    return {
        "producer": _PRODUCER,
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": "FP8" if model.kv_cache else None,
            **({"group_size": NVFP4.block} if ALGORITHMS[algorithm].number_format == NVFP4 else {}),
            "exclude_modules": _dense_modules(model),
        },
    }


def quantization_config(model: ModelSpec) -> dict[str, Any]:
    """The `quantization_config` of a model that fits."""
    algorithm = algorithm_of(model)
    groups = {"group_0": {**_GROUPS[algorithm], "targets": ["Linear"]}} if algorithm in _GROUPS else {}
    return {
        **({"config_groups": groups} if groups else {}),
        "ignore": _dense_modules(model),
        "quant_algo": algorithm,
        **({"kv_cache_scheme": _FLOAT8} if model.kv_cache else {}),
        "producer": _PRODUCER,
        "quant_method": METHOD,
    }


def _dense_modules(model: ModelSpec) -> list[str]:
    """Modules with matrices, or stacks of them, that are not quantized; a head that is tied has no tensor."""
    dense = {
        name.rpartition(".")[0] for name, spec in model.tensors.items() if spec.format is None and len(spec.shape) > 1
    }
    return sorted(dense if f"{_HEAD}.weight" in model.tensors else {*dense, _HEAD})


def read_scheme(directory: Path) -> tuple[Scheme, CacheFormat | None]:
    """How all quantized layers are rounded, and the cache. Raises InputError for what is not read.

    The two files must agree where there are both: engines differ in which they go by.
    """
    found = _read(quantization_of(directory) or {}, directory / CONFIG)
    beside = read_settings(directory / HF_QUANT_CONFIG)
    if beside is not None and _read(beside, directory / HF_QUANT_CONFIG) != found:
        raise InputError(f"{directory}: {CONFIG} and {HF_QUANT_CONFIG} disagree on the algorithm or on the cache")
    return found


def _read(settings: Mapping[str, Any], where: Path) -> tuple[Scheme, CacheFormat | None]:
    details, cache = settings, settings.get("kv_cache_scheme")
    if "quantization" in settings:
        details = settings["quantization"]
        if not isinstance(details, dict):
            raise InputError(f"{where}: quantization is not a JSON object")
        cache = details.get("kv_cache_quant_algo")
    algorithm = str(details.get("quant_algo"))[:40]
    known = {name.upper(): scheme for name, scheme in ALGORITHMS.items()}
    if algorithm.upper() not in known:
        raise InputError(f"{where} names the algorithm {algorithm!r}; what is read is {', '.join(known)}")
    if cache not in (None, "FP8", _FLOAT8):
        raise InputError(f"{where} rounds the cache to {str(cache)[:80]!r}, which is not read; FP8 is")
    if details.get("group_size", NVFP4.block) != NVFP4.block:
        raise InputError(f"{where} has groups of {str(details['group_size'])[:40]}; those of {NVFP4.name} are read")
    return known[algorithm.upper()], CACHE if cache else None
