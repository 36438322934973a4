"""What a checkpoint and a container are to the rest of the program."""

import pytest
import torch

from compress.formats.base import FileLayout, Layout, ModelSpec, TensorSpec, dtype_name
from compress.formats.gguf.dialect import GGUF
from compress.formats.gptq.dialect import GPTQ
from compress.kernels.numbers.activations import ActivationFormat, CacheFormat
from compress.kernels.numbers.int import IntFormat


def test_sizes_are_counted_in_elements_and_bytes():
    tensors = {"a": TensorSpec((3, 4), "float32"), "b": TensorSpec((), "int32"), "c": TensorSpec((0, 7), "float32")}
    assert [spec.size for spec in tensors.values()] == [12, 1, 0]
    assert ModelSpec({}, tensors).parameters == 13
    assert Layout((FileLayout("x", 3), FileLayout("y", 4))).nbytes == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e4m3fn])
def test_a_dtype_has_the_name_that_torch_gives_it(dtype):
    assert getattr(torch, dtype_name(dtype)) is dtype


def test_misfits_are_those_of_quantized_tensors_alone():
    real = TensorSpec((32, 32), "float32", IntFormat(4, 32, "real"))
    model = ModelSpec({}, {"a.weight": TensorSpec((32, 32), "float32"), "b.weight": real})
    assert list(GPTQ().misfits(model)) == ["b.weight"] and "real minimums" in GPTQ().misfits(model)["b.weight"]
    assert GGUF().misfits(model) == {}


def test_most_containers_speak_of_weights_only():
    rounded = ModelSpec({}, {}, activations={"a": ActivationFormat("int8", True)})
    assert "compressed-tensors can" in str(GPTQ().runtime_misfit(rounded))
    assert "cache" in str(GGUF().runtime_misfit(ModelSpec({}, {}, kv_cache=CacheFormat("fp8"))))
    assert GPTQ().runtime_misfit(ModelSpec({}, {})) is None


def test_a_directory_is_called_as_its_container():
    assert GPTQ(dtype="bfloat16").folder == "gptq" == GPTQ().name


def test_the_architecture_is_the_class_that_the_configuration_names_or_else_its_type():
    assert ModelSpec({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, {}).architecture.startswith("Ll")
    assert ModelSpec({"architectures": None, "model_type": "llama"}, {}).architecture == "llama"
    assert ModelSpec({}, {}).architecture == "unknown"
