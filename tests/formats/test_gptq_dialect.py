"""The GPTQ container, against AutoGPTQ's own bytes, a naive unpacker and the engines' rules for `dynamic`."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.gptq import GPTQ
from compress.formats.gptq_config import quantization_config
from compress.formats.gptq_tensors import encode
from compress.kernels.int_format import IntFormat
from compress.kernels.qtensor import QTensor

GOLDEN = sorted((Path(__file__).parent / "golden").glob("autogptq_*.safetensors"))


def ignore(_):
    pass


def naive(tensors, module, offset=1):
    """The values of one layer [out, in] in plain Python: each line of words is one long number."""
    groups = tensors[f"{module}.g_idx"].tolist()
    bits = len(tensors[f"{module}.qweight"]) * 32 // len(groups)

    def codes(words, count):
        number = sum((word & 0xFFFFFFFF) << 32 * index for index, word in enumerate(words))
        return [number >> bits * index & (1 << bits) - 1 for index in range(count)]

    rows = [codes(words, len(groups)) for words in tensors[f"{module}.qweight"].T.tolist()]
    zeros = [codes(words, len(rows)) for words in tensors[f"{module}.qzeros"].tolist()]
    scales = tensors[f"{module}.scales"].float().tolist()
    return torch.tensor(
        [
            [scales[group][row] * (code - zeros[group][row] - offset) for code, group in zip(line, groups)]
            for row, line in enumerate(rows)
        ]
    )


def linear_weights(checkpoint):
    """The matrices of the decoder blocks, by name."""
    return [name for name, spec in checkpoint.spec.tensors.items() if ".layers." in name and len(spec.shape) == 2]


@pytest.fixture
def quantized(tiny_llama, in_memory):
    """quantized(number format or {name pattern: number format}) → a llama, quantized in memory."""

    def make(rules):
        checkpoint = open_checkpoint(tiny_llama)
        rules = rules if isinstance(rules, dict) else {"": rules}
        formats = {
            name: number_format
            for name in linear_weights(checkpoint)
            for pattern, number_format in rules.items()
            if re.search(pattern, name) and number_format
        }
        return in_memory(checkpoint, formats)

    return make


@pytest.fixture
def export(tmp_path):
    """export(model, **options) → the artifact's directory."""

    def write(model, **options):
        directory = tmp_path / "artifact"
        directory.mkdir()
        GPTQ(**options).write(model, directory, ignore)
        return directory

    return write


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_packed_bytes_equal_autogptq_s(path):
    golden = load_file(path)
    bits, kind = int(path.stem[9]), path.stem.rpartition("_")[2]
    groups, columns = golden["in.scale"].shape[1], golden["in.codes"].shape[1]
    number_format = IntFormat(bits, columns // groups, "middle" if kind == "sym" else "integer")
    params = {"scale": golden["in.scale"]} | ({} if kind == "sym" else {"zero": golden["in.zero"]})
    made = encode("layer.weight", QTensor(number_format, golden["in.codes"], params), "gptq")
    theirs = {name.removeprefix("out."): tensor for name, tensor in golden.items() if name.startswith("out.")}
    assert made.keys() == theirs.keys()
    for name, tensor in made.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def test_the_golden_files_cover_every_width():
    assert [path.stem for path in GOLDEN] == [
        f"autogptq_{case}" for case in ("2bit_asym", "3bit_asym", "4bit_asym", "4bit_sym", "8bit_asym")
    ]


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("zero", ["middle", "integer"])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 32), (4, 64), (8, -1)])
def test_values_survive_the_file_for_us_for_the_witness_and_for_the_naive_reader(
    quantized, export, bits, group_size, zero, checkpoint_format
):
    model = quantized(IntFormat(bits, group_size, zero))
    directory = export(model, checkpoint_format=checkpoint_format)
    tensors = load_file(directory / "model.safetensors")
    reopened, witness = open_checkpoint(directory), GPTQ.witness(directory)
    assert reopened.dialect == "gptq" and reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name, spec in model.spec.tensors.items():
        meant, found = model.read(name), reopened.read(name)
        assert reopened.spec.tensors[name].format == spec.format
        if spec.format is None:
            assert torch.equal(found, meant.half()) and torch.equal(witness(name), meant.half().float())
            continue
        assert torch.equal(found.codes, meant.codes) and found.format == meant.format
        assert found.params.keys() == meant.params.keys()
        assert all(torch.equal(found.params[key], meant.params[key]) for key in meant.params)
        assert torch.equal(witness(name), meant.dequantize())
        if name.endswith("0.mlp.down_proj.weight"):
            module = name.removesuffix(".weight")
            assert torch.equal(naive(tensors, module, checkpoint_format == "gptq"), meant.dequantize())


def test_logits_of_the_unpacked_file_equal_the_model_in_memory(make_model, tmp_path, family, in_memory, export):
    source = make_model(tmp_path / "source", family)
    checkpoint = open_checkpoint(source)
    model = in_memory(checkpoint, dict.fromkeys(linear_weights(checkpoint), IntFormat(4, 32)))
    directory = export(model, dtype="float32")
    tensors = load_file(directory / "model.safetensors")
    for packed in [name for name in tensors if name.endswith(".qweight")]:
        module = packed.removesuffix(".qweight")
        tensors[f"{module}.weight"] = naive(tensors, module)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32) for _ in range(2))
    ours.load_state_dict({name: model.read(name).dequantize() for name in model.formats}, strict=False)
    result = theirs.load_state_dict(tensors, strict=False)
    assert not set(result.missing_keys) - {"lm_head.weight"}
    tokens = torch.arange(32).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_layout_is_exact(quantized, export, dtype, shard_size):
    model = quantized(IntFormat(4, 32))
    layout = GPTQ(dtype=dtype, max_shard_size=shard_size).layout(model.spec)
    directory = export(model, dtype=dtype, max_shard_size=shard_size)
    sizes = {path.name: path.stat().st_size for path in directory.glob("model*")}
    assert sizes == {file.name: file.nbytes for file in layout.files}
    assert (len(sizes) > 1) == (shard_size == "40KB")
    reopened = open_checkpoint(directory)
    for name in model.spec.tensors:
        found = reopened.read(name)
        assert found.dtype == getattr(torch, dtype) if isinstance(found, torch.Tensor) else found.params["scale"].dtype


def test_progress_names_every_tensor_once(quantized, tmp_path):
    model = quantized(IntFormat(4, 32))
    seen = []
    GPTQ(max_shard_size="10KB").write(model, tmp_path, seen.append)
    assert sorted(seen) == sorted(model.spec.tensors)


def test_the_config_is_the_source_s_with_only_what_changed(quantized, export, tiny_llama):
    before = json.loads((tiny_llama / "config.json").read_bytes())
    directory = export(quantized(IntFormat(4, 32)))
    after = json.loads((directory / "config.json").read_bytes())
    described = json.loads((directory / "quantize_config.json").read_bytes())
    assert described == after.pop("quantization_config")
    assert list(after.items()) == list({**before, "dtype": "float16"}.items())
    assert described == {
        "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "lm_head": False,
        "quant_method": "gptq", "checkpoint_format": "gptq", "pack_dtype": "int32",
    }  # fmt: skip
    files = {path.name for path in tiny_llama.iterdir()} - {"config.json"}
    for name in files - {"model.safetensors"}:
        assert (directory / name).read_bytes() == (tiny_llama / name).read_bytes()


def test_the_same_model_gives_the_same_bytes(quantized, tmp_path):
    contents = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        GPTQ().write(quantized(IntFormat(3, 16, "integer")), tmp_path / run, ignore)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / run).iterdir()})
    assert contents[0] == contents[1]


def test_a_quantized_head_is_declared_and_untied(make_model, tmp_path, in_memory, export):
    checkpoint = open_checkpoint(make_model(tmp_path / "source", "qwen3"))
    names = [*linear_weights(checkpoint), "lm_head.weight"]
    directory = export(in_memory(checkpoint, dict.fromkeys(names, IntFormat(4, 32))))
    config = json.loads((directory / "config.json").read_bytes())
    assert config["quantization_config"]["lm_head"] and config["tie_word_embeddings"] is False
    assert open_checkpoint(directory).spec.tensors["lm_head.weight"].format == IntFormat(4, 32)


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


def decoder(layers, chosen):
    """Specs of a decoder of 32 × 32 layers; `chosen(layer, leaf)` gives each its number format."""
    leaves = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    specs = {"model.embed_tokens.weight": TensorSpec((32, 32), "float32")}
    for layer in range(layers):
        for leaf in leaves:
            name = f"model.layers.{layer}.{leaf}.weight"
            specs[name] = TensorSpec((32, 32), "float32", chosen(layer, leaf.rpartition(".")[2]))
        specs[f"model.layers.{layer}.input_layernorm.weight"] = TensorSpec((32,), "float32")
    return specs | {"lm_head.weight": TensorSpec((32, 32), "float32")}


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
def test_rules_say_of_every_module_how_it_is_quantized(case):
    specs = decoder(12, CHOICES[case])
    config = quantization_config(specs, "gptq")
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
def test_rules_find_the_layers_that_vllm_joins(case, joined, part):
    config = quantization_config(decoder(12, CHOICES[case]), "gptq")
    for layer in range(12):
        prefix = f"model.layers.{layer}"
        assert setting_of(config, f"{prefix}.{joined}") == setting_of(config, f"{prefix}.{part}")


def test_what_stayed_dense_is_listed_for_transformers():
    uniform = quantization_config(decoder(3, CHOICES["attention dense"]), "gptq")
    assert uniform["modules_in_block_to_quantize"] == [["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]]
    uneven = quantization_config(decoder(3, CHOICES["layer 1 dense, not 10 or 11"]), "gptq")
    names = uneven["modules_in_block_to_quantize"][0]
    assert len(names) == 14 and "model.layers.0.mlp.up_proj" in names
    assert "modules_in_block_to_quantize" not in quantization_config(decoder(3, CHOICES["down in 8 bits"]), "gptq")


@pytest.mark.parametrize("case", CHOICES)
def test_mixed_settings_are_read_back(quantized, export, case):
    chosen = {
        f"layers.{layer}.*{leaf}": CHOICES[case](layer, leaf)
        for layer in range(2)
        for leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    model = quantized(chosen)
    assert open_checkpoint(export(model)).spec.tensors == {
        name: TensorSpec(spec.shape, "float32" if spec.format else "float16", spec.format)
        for name, spec in model.spec.tensors.items()
    }


SPEC = {
    "5 bits": ("a.proj.weight", (32, 32), IntFormat(5, 32), "2, 3, 4 or 8 bits"),
    "real minimums": ("a.proj.weight", (32, 32), IntFormat(4, 32, "real"), "whole zero points"),
    "embedding": ("model.embed_tokens.weight", (320, 32), IntFormat(4, 32), "linear layers only"),
    "33 outputs": ("a.proj.weight", (33, 32), IntFormat(4, 32), "33 × 32"),
    "48 inputs": ("a.proj.weight", (32, 48), IntFormat(4, 16), "32 × 48"),
    "group size": ("a.proj.weight", (32, 64), IntFormat(4, 48), "do not divide"),
}


@pytest.mark.parametrize("case", SPEC)
def test_what_the_container_cannot_hold_is_refused_by_name(case, quantized):
    name, shape, number_format, reason = SPEC[case]
    spec = TensorSpec(shape, "float32", number_format)
    model = quantized(IntFormat(4, 32)).spec
    assert reason in GPTQ().misfit(name, spec, model)
    with pytest.raises(RefusedError, match=re.escape(name)):
        GPTQ().layout(ModelSpec(model.config, {**model.tensors, name: spec}))


@pytest.mark.parametrize("name", ["lm_head.weight", "embed_out.weight", "model.layers.0.mlp.up_proj.weight"])
def test_linear_layers_fit(name, quantized):
    spec = TensorSpec((320, 64), "float32", IntFormat(4, 32))
    assert GPTQ().misfit(name, spec, quantized(IntFormat(4, 32)).spec) is None


def test_a_model_without_quantized_tensors_is_refused(tiny_llama):
    with pytest.raises(RefusedError, match="no tensor is quantized"):
        GPTQ().layout(open_checkpoint(tiny_llama).spec)


class ZeroOfNought:
    """A layer whose zero point is 0: codes 0 … 15 stand for values that are never negative."""

    def __init__(self, inner):
        self.inner, self.spec = inner, inner.spec

    def read(self, name):
        tensor = self.inner.read(name)
        if name == "model.layers.1.mlp.up_proj.weight":
            tensor.params["zero"][5, 0] = 0
        return tensor

    def files(self):
        return self.inner.files()


def test_a_zero_point_of_0_is_refused_by_name_in_v1_and_held_by_v2(quantized, tmp_path):
    model = ZeroOfNought(quantized(IntFormat(4, 32, "integer")))
    with pytest.raises(RefusedError, match=r"layers\.1\.mlp\.up_proj\.weight has a zero point of 0"):
        GPTQ().write(model, tmp_path, ignore)
    assert not list(tmp_path.glob("model.safetensors*"))
    GPTQ(checkpoint_format="gptq_v2").write(model, tmp_path, ignore)
    found = open_checkpoint(tmp_path).read("model.layers.1.mlp.up_proj.weight")
    assert int(found.params["zero"][5, 0]) == 0


@pytest.fixture
def artifact(quantized, export):
    return export(quantized(IntFormat(4, 32, "integer")))


Q_PROJ = "model.layers.0.self_attn.q_proj"


def change(directory, tensors=None, **settings):
    """Rewrite an artifact: tensors by name (None removes one), and keys of its configuration."""
    held = load_file(directory / "model.safetensors") | (tensors or {})
    save_file({name: tensor.contiguous() for name, tensor in held.items() if tensor is not None},
              directory / "model.safetensors", {"format": "pt"})  # fmt: skip
    config = json.loads((directory / "config.json").read_bytes())
    config["quantization_config"] |= settings
    (directory / "config.json").write_text(json.dumps(config))


def part(directory, name):
    return load_file(directory / "model.safetensors")[f"{Q_PROJ}.{name}"]


def test_files_of_other_makers_are_read(artifact):
    """Early AutoGPTQ: settings beside the config only, no method named, a file name of its own."""
    expected = open_checkpoint(artifact).read(f"{Q_PROJ}.weight")
    config = json.loads((artifact / "config.json").read_bytes())
    settings = config.pop("quantization_config")
    (artifact / "config.json").write_text(json.dumps(config))
    early = {key: settings[key] for key in ("bits", "group_size", "desc_act", "sym")}
    (artifact / "quantize_config.json").write_text(json.dumps(early))
    (artifact / "model.safetensors").rename(artifact / "gptq_model-4bit-32g.safetensors")
    assert torch.equal(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").codes, expected.codes)


def test_g_idx_may_be_missing_and_desc_act_may_be_said_of_static_groups(artifact):
    expected = open_checkpoint(artifact).read(f"{Q_PROJ}.weight").dequantize()
    change(artifact, desc_act=True)
    assert torch.equal(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").dequantize(), expected)
    change(artifact, {f"{Q_PROJ}.g_idx": None})
    assert torch.equal(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").dequantize(), expected)


def test_reordered_columns_are_input_errors_at_once_if_declared(artifact):
    change(artifact, {f"{Q_PROJ}.g_idx": part(artifact, "g_idx").flip(0)})
    with pytest.raises(InputError, match=r"q_proj\.weight has its columns reordered"):
        open_checkpoint(artifact).read(f"{Q_PROJ}.weight")
    change(artifact, desc_act=True)
    with pytest.raises(InputError, match="reordered"):
        open_checkpoint(artifact)


def test_scales_must_be_exact_in_float16(artifact):
    expected = part(artifact, "scales")
    change(artifact, {f"{Q_PROJ}.scales": expected.float()})
    assert torch.equal(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").params["scale"], expected.T)
    change(artifact, {f"{Q_PROJ}.scales": expected.float() * 1.0001})
    with pytest.raises(InputError, match="does not hold its scales"):
        open_checkpoint(artifact).read(f"{Q_PROJ}.weight")


def test_a_stored_zero_point_of_all_ones_is_an_input_error(artifact):
    qzeros = part(artifact, "qzeros")
    qzeros[0, 0] |= 15
    change(artifact, {f"{Q_PROJ}.qzeros": qzeros})
    with pytest.raises(InputError, match="engines make 0 or 16"):
        open_checkpoint(artifact).read(f"{Q_PROJ}.weight")
    change(artifact, checkpoint_format="gptq_v2")
    assert int(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").params["zero"][0, 0]) == 15


def test_symmetry_that_is_not_there_is_an_input_error(artifact):
    change(artifact, sym=True)
    with pytest.raises(InputError, match="is not symmetric"):
        open_checkpoint(artifact).read(f"{Q_PROJ}.weight")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint_format": "marlin"}, "packed as 'marlin'"),
        ({"is_marlin_format": True}, "packed as 'marlin'"),
        ({"checkpoint_format": ["gptq"]}, "packed as"),
        ({"group_size": 64}, "groups of 32"),
        ({"group_size": None}, "groups of 32"),
    ],
)
def test_other_packings_and_lying_configs_are_input_errors(artifact, settings, message):
    change(artifact, **settings)
    with pytest.raises(InputError, match=message):
        open_checkpoint(artifact)


BROKEN = {
    "no scales": lambda held: {"scales": None},
    "no zeros": lambda held: {"qzeros": None},
    "vector of words": lambda held: {"qweight": held("qweight").flatten()},
    "5 bits": lambda held: {"qzeros": torch.zeros(2, 10, dtype=torch.int32)},
    "zero points of other groups": lambda held: {"qzeros": held("qzeros")[:1]},
    "scales of other outputs": lambda held: {"scales": held("scales")[:, :32]},
    "words of other inputs": lambda held: {"qweight": held("qweight")[:7]},
    "g_idx of other inputs": lambda held: {"g_idx": held("g_idx")[:-1]},
    "floating words": lambda held: {"qweight": held("qweight").float()},
    "no words": lambda held: {"qweight": held("qweight")[:0]},
    "packed and dense": lambda held: {"weight": torch.zeros(64, 64)},
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_do_not_fit_together_are_input_errors(artifact, case):
    parts = BROKEN[case](lambda name: part(artifact, name))
    change(artifact, {f"{Q_PROJ}.{name}": tensor for name, tensor in parts.items()})
    with pytest.raises(InputError, match="q_proj"):
        open_checkpoint(artifact)


def test_what_the_source_said_of_its_quantization_is_not_carried(artifact, tmp_path):
    checkpoint = open_checkpoint(artifact)
    assert "quantization_config" not in checkpoint.spec.config
    assert "quantize_config.json" not in checkpoint.files()
    assert "quantization_config" not in json.loads(checkpoint.files()["config.json"])


def test_an_artifact_exported_again_is_the_same(artifact, tmp_path):
    (tmp_path / "again").mkdir()
    GPTQ().write(open_checkpoint(artifact), tmp_path / "again", ignore)
    for path in artifact.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    shutil.rmtree(artifact)


def test_mutated_configs_are_input_errors_or_are_read(artifact):
    """300 seeded mutants of the file that says how to read the weights."""
    chance, read = random.Random(0), 0
    original = (artifact / "config.json").read_bytes()
    for _ in range(300):
        mutant = bytearray(original)
        for _ in range(chance.choice((1, 2, 8))):
            mutant[chance.randrange(len(mutant))] = chance.choice(b'0123456789"[]{},:.-nulltrue x')
        (artifact / "config.json").write_bytes(mutant)
        try:
            open_checkpoint(artifact).read(f"{Q_PROJ}.weight")
        except InputError:
            continue
        read += 1
    assert 20 < read < 300
