"""The static scales of what is rounded at run time: which they are, and that they are scales."""

from dataclasses import replace

import pytest
import torch

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError
from compress.formats.views.runtime_scales import flat_scale, runtime_scales, with_runtime_scales
from compress.kernels.numbers.activations import ActivationFormat, CacheFormat

STATIC, TOKEN = ActivationFormat("fp8", False, "tensor"), ActivationFormat("fp8", True)
SCALE = TensorSpec((), "bfloat16")
MODEL = ModelSpec(
    {},
    dict.fromkeys(("a.input_scale", "attn.k_scale", "attn.v_scale", "a.weight"), SCALE),
    activations={"a": STATIC, "b": TOKEN},
    kv_cache=CacheFormat("fp8"),
)


def test_static_inputs_and_the_cache_have_scales():
    assert runtime_scales(MODEL) == {"a.input_scale", "attn.k_scale", "attn.v_scale"}
    assert runtime_scales(replace(MODEL, activations={}, kv_cache=None)) == frozenset()


def test_they_are_flat_float32_in_the_program():
    found = with_runtime_scales(MODEL, "here").tensors
    assert found["a.input_scale"] == found["attn.k_scale"] == TensorSpec((1,), "float32")
    assert found["a.weight"] == SCALE


def test_a_cache_per_head_has_a_scale_for_each():
    heads = {f"attn.{kind}_scale": TensorSpec((4, 1, 1), "float32") for kind in "kv"}
    model = replace(MODEL, tensors=MODEL.tensors | heads, kv_cache=CacheFormat("fp8", "head"))
    assert with_runtime_scales(model, "here").tensors["attn.k_scale"].shape == (4,)
    with pytest.raises(InputError, match="not a scale"):
        with_runtime_scales(replace(model, kv_cache=CacheFormat("fp8")), "here")


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        (("a.input_scale",), "no tensor a.input_scale"), (("attn.k_scale",), "without its counterpart"),
        (("attn.k_scale", "attn.v_scale"), "has no scales for it"),
    ],
)  # fmt: skip
def test_a_scale_that_is_missing_is_named(left_out, said):
    tensors = {name: spec for name, spec in MODEL.tensors.items() if name not in left_out}
    with pytest.raises(InputError, match=said):
        with_runtime_scales(replace(MODEL, tensors=tensors), "here")


@pytest.mark.parametrize("spec", [TensorSpec((2,), "float32"), TensorSpec((), "int32")])
def test_what_is_no_scale_is_refused(spec):
    with pytest.raises(InputError, match="not a scale"):
        with_runtime_scales(replace(MODEL, tensors={**MODEL.tensors, "a.input_scale": spec}), "here")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_scale_is_positive(value):
    assert flat_scale("s", torch.tensor([[0.5]]).half()).tolist() == [0.5]
    with pytest.raises(InputError, match="a scale is positive"):
        flat_scale("s", torch.tensor(value))
