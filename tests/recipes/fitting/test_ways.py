"""What a recipe leaves open, and what it does not."""

from __future__ import annotations

from typing import Any

from compress.recipes.fitting.ways import Way, ways
from compress.recipes.recipe import from_data

GPTQ, GGUF, VLLM = {"gptq": {}}, {"export": {"dialect": "gguf"}}, {"export": {"dialect": "compressed-tensors"}}


def found(*steps: dict[str, Any]) -> list[Way]:
    return ways(from_data({"model": "m", "passes": list(steps)}).passes)


def labels(*steps: dict[str, Any]) -> list[tuple[str, str]]:
    return [(way.weights, way.cache) for way in found(*steps)]


def test_bits_that_are_not_said_are_open() -> None:
    assert labels(GPTQ, VLLM) == [(f"{bits} bits", "16 bits") for bits in (8, 7, 6, 5, 4, 3, 2)]
    assert [way.steps[0].model_dump()["bits"] for way in found(GPTQ, VLLM)] == [8, 7, 6, 5, 4, 3, 2]
    assert labels({"gptq": {"bits": 4}}, VLLM) == [("as written", "16 bits")]
    assert labels({"mixed": {"average_bits": 3.5}}, GPTQ, VLLM) == [("as written", "16 bits")]


def test_scales_of_a_cache_are_used_where_they_are_needed() -> None:
    both = found({"kv_cache": {}}, {"gptq": {"bits": 4}}, VLLM)
    assert [(way.cache, way.width, sorted(way.steps)) for way in both] == [
        ("16 bits", 2, [1, 2]),
        ("fp8", 1, [0, 1, 2]),
    ]
    assert labels({"kv_cache": {"dtype": "int8"}}, {"gptq": {"bits": 4}}, VLLM) == [("as written", "int8")]


def test_types_where_everything_becomes_gguf() -> None:
    typed = found(GPTQ, GGUF)
    assert list(dict.fromkeys(way.weights for way in typed))[:3] == ["q8_0", "q6_k", "q5_k"]
    assert typed[1].steps[0].model_dump()["format"] == "q8_0"
    assert (typed[0].told, typed[1].width) == ("", 34 / 32) and "--cache q8_0" in typed[1].told
    assert found(GPTQ, GGUF, VLLM)[0].weights == "8 bits"


def test_whole_files_where_no_pass_quantizes() -> None:
    files = found(GGUF)
    assert files[0].weights == "f16" and files[2].steps[0].model_dump()["type"] == "q8_0"
    assert labels({"export": {"dialect": "gguf", "type": "q4_0"}})[0] == ("as written", "16 bits")
    assert labels({"rtn": {"bits": 4}}, GGUF)[0] == ("as written", "16 bits")
