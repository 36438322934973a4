"""Which tensors are codes, or what codes are multiplied with."""

import pytest

from compress.formats.base import Checkpoint, ModelSpec, TensorSpec
from compress.formats.directory.codes import refuse_unexplained
from compress.formats.errors import InputError
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.int import IntFormat


class Headers(Checkpoint):
    """A checkpoint of headers alone."""

    path, dialect = "here", "dense"

    def __init__(self, tensors, activations=None):
        self.spec = ModelSpec({}, tensors, activations=activations or {})

    def read(self, name):
        raise AssertionError("nothing is read")

    files = nbytes = read


PLAIN = {"a.weight": TensorSpec((4, 4), "bfloat16"), "a.bias": TensorSpec((4,), "float32")}


def test_weights_and_buffers_are_none():
    refuse_unexplained(Headers({**PLAIN, "ids": TensorSpec((1, 9), "int64"), "a.masked_bias": TensorSpec((), "uint8")}))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.qweight", "int32"), ("b.weight", "float8_e5m2"), ("b.weight", "int8"), ("mlp.down_proj_scales", "uint8")],
)
def test_codes_are_named_with_their_type(name, dtype):
    with pytest.raises(InputError, match=rf"here holds {name} \({dtype}\)"):
        refuse_unexplained(Headers({**PLAIN, name: TensorSpec((4, 4), dtype)}))


def test_what_was_read_as_quantized_is_explained():
    quantized = {"b.weight": TensorSpec((32, 32), "float32", IntFormat(4, 32))}
    scale = {"b.input_scale": TensorSpec((1,), "float32")}
    refuse_unexplained(Headers({**PLAIN, **quantized, **scale}, {"b": ActivationFormat("int8", False, "tensor")}))
    with pytest.raises(InputError, match="input_scale"):
        refuse_unexplained(Headers({**PLAIN, **quantized, **scale}))
