"""What a GPTQ configuration says of mixed models, against the engines' rules for `dynamic`."""

import re

import pytest

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.gptq.config import quantization_config
from compress.formats.gptq.dialect import GPTQ
from compress.kernels.numbers.int import IntFormat

# What engines make of a configuration. Both look the module's name up as the documents say: rules in order,
# re.match, "-:" means not quantized, "+:" or nothing means overridden keys.


def setting_of(config, module):
    for pattern, override in config.get("dynamic", {}).items():
        if pattern.startswith("-:"):
            if re.match(pattern.removeprefix("-:"), module):
                return None
        elif re.match(pattern.removeprefix("+:"), module):
            config = {**config, **override}
            break
    return config["bits"], config["group_size"], config["sym"]


def wanted(number_format):
    return number_format and (number_format.bits, number_format.group_size, number_format.zero == "middle")


INT4, INT8, ASYM = IntFormat(4, 32), IntFormat(8, -1), IntFormat(4, 16, "integer")
CHOICES = {
    "alike": lambda layer, leaf: INT4,
    "down in 8 bits": lambda layer, leaf: INT8 if leaf == "down_proj" else INT4,
    "first and last in 8 bits": lambda layer, leaf: INT8 if layer in (0, 11) else INT4,
    "layer 1 dense, not 10 or 11": lambda layer, leaf: None if layer == 1 else INT4,
    "attention dense": lambda layer, leaf: None if leaf in ("q_proj", "k_proj", "v_proj", "o_proj") else INT4,
    "mixed symmetry": lambda layer, leaf: ASYM if leaf in ("gate_proj", "up_proj") and layer % 2 else INT4,
    "everything": lambda layer, leaf: [None, INT4, INT8, ASYM][layer % 4],
}


@pytest.mark.parametrize("case", CHOICES)
def test_rules_say_of_every_module_how_it_is_quantized(case, decoder):
    specs = decoder(12, CHOICES[case])
    config = quantization_config(ModelSpec({}, specs), "gptq")
    for name, spec in specs.items():
        module = name.removesuffix(".weight")
        if ".layers." in name and len(spec.shape) == 2:
            assert setting_of(config, module) == wanted(spec.format), module
    assert ("dynamic" in config) == (case != "alike")
    assert len(config.get("dynamic", {})) <= 12


@pytest.mark.parametrize("case", ["layer 1 dense, not 10 or 11", "mixed symmetry", "everything"])
@pytest.mark.parametrize(
    ("joined", "part"), [("self_attn.qkv_proj", "self_attn.q_proj"), ("mlp.gate_up_proj", "mlp.up_proj")]
)
def test_rules_find_the_layers_that_vllm_joins(case, joined, part, decoder):
    config = quantization_config(ModelSpec({}, decoder(12, CHOICES[case])), "gptq")
    for layer in range(12):
        prefix = f"model.layers.{layer}"
        assert setting_of(config, f"{prefix}.{joined}") == setting_of(config, f"{prefix}.{part}")


def test_what_stayed_dense_is_listed_for_transformers(decoder):
    uniform = quantization_config(ModelSpec({}, decoder(3, CHOICES["attention dense"])), "gptq")
    assert uniform["modules_in_block_to_quantize"] == [["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]]
    uneven = quantization_config(ModelSpec({}, decoder(3, CHOICES["layer 1 dense, not 10 or 11"])), "gptq")
    names = uneven["modules_in_block_to_quantize"][0]
    assert len(names) == 14 and "model.layers.0.mlp.up_proj" in names
    assert "modules_in_block_to_quantize" not in quantization_config(
        ModelSpec({}, decoder(3, CHOICES["down in 8 bits"])), "gptq"
    )


@pytest.mark.parametrize("case", CHOICES)
def test_mixed_settings_are_read_back(quantized, export, case):
    chosen = {
        f"layers.{layer}.*{leaf}": CHOICES[case](layer, leaf)
        for layer in range(2)
        for leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    model = quantized(chosen)
    assert open_checkpoint(export(GPTQ(), model)).spec.tensors == {
        name: TensorSpec(spec.shape, "float32" if spec.format else "float16", spec.format)
        for name, spec in model.spec.tensors.items()
    }
