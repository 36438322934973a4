"""What a container cannot hold is refused by name, or decoded where the user says so."""

import pytest
import torch

from compress.formats.awq.dialect import AWQ
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.gptq.dialect import GPTQ
from compress.formats.views.fit import Decoded, decoded_spec, fit_spec, refuse_misfits
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.int import IntFormat

REAL = IntFormat(4, 32, "real")


def test_what_fits_is_left_as_it_is(quantized):
    spec = quantized(IntFormat(4, 32)).spec
    assert fit_spec(spec, GPTQ(), requantize=False) is spec
    refuse_misfits(spec, GPTQ())


def test_what_does_not_fit_is_refused_with_how_many_there_are(quantized):
    spec = quantized({"": IntFormat(4, 32), "down": REAL}).spec
    with pytest.raises(RefusedError, match=r"gptq cannot hold .*down_proj\.weight exactly \(1 more like it\)") as error:
        fit_spec(spec, GPTQ(), requantize=False)
    assert "requantize: true" in error.value.hint


def test_or_it_is_decoded(quantized):
    model = quantized({"": IntFormat(4, 32), "down": REAL})
    fitted = Decoded(model, fit_spec(model.spec, GPTQ(), requantize=True))
    down, up = ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight")
    assert fitted.spec.tensors[down].format is None and fitted.spec.tensors[up].format == IntFormat(4, 32)
    assert torch.equal(fitted.read(down), model.read(down).dequantize())
    assert torch.equal(fitted.read(up).codes, model.read(up).codes)


def test_rounding_at_run_time_is_refused_or_dropped(quantized, with_rounding):
    model = with_rounding(quantized(IntFormat(4, 32)), ActivationFormat("int8", False, "tensor")).spec
    with pytest.raises(RefusedError, match="inputs are rounded"):
        fit_spec(model, GPTQ(), requantize=False)
    fitted = fit_spec(model, GPTQ(), requantize=True)
    assert fitted.activations == {} and not any(name.endswith("input_scale") for name in fitted.tensors)
    assert all(spec.format is None for spec in decoded_spec(model).tensors.values())


def test_the_commonest_group_size_is_the_one_that_awq_holds():
    sizes = {f"model.layers.0.{leaf}": 32 for leaf in ("q", "k", "v")} | {"model.layers.0.o": 64}
    tensors = {
        f"{module}.weight": TensorSpec((32, 64), "float32", IntFormat(4, size, "integer"))
        for module, size in sizes.items()
    }
    model = ModelSpec({}, tensors)
    odd = "model.layers.0.o.weight"
    assert AWQ().misfits(model) == {odd: AWQ().misfit(odd, tensors[odd], model)}
    assert "one group size, here 32" in AWQ().misfits(model)[odd]
