"""GPTQ files of other makers: what is honest is read, what lies or is damaged is an input error."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.formats.gptq.dialect import GPTQ
from compress.kernels.numbers.int import IntFormat

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def artifact(quantized, export):
    return export(GPTQ(), quantized(IntFormat(4, 32, "integer")))


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


def test_g_idx_may_be_missing_and_desc_act_may_be_said_of_static_groups(artifact, edit):
    expected = open_checkpoint(artifact).read(f"{Q_PROJ}.weight").dequantize()
    edit(artifact, desc_act=True)
    assert torch.equal(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").dequantize(), expected)
    edit(artifact, {f"{Q_PROJ}.g_idx": None})
    assert torch.equal(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").dequantize(), expected)


def test_reordered_columns_are_input_errors_at_once_if_declared(artifact, edit):
    edit(artifact, {f"{Q_PROJ}.g_idx": part(artifact, "g_idx").flip(0)})
    with pytest.raises(InputError, match=r"q_proj\.weight has its columns reordered"):
        open_checkpoint(artifact).read(f"{Q_PROJ}.weight")
    edit(artifact, desc_act=True)
    with pytest.raises(InputError, match="reordered"):
        open_checkpoint(artifact)


def test_scales_must_be_exact_in_float16(artifact, edit):
    expected = part(artifact, "scales")
    edit(artifact, {f"{Q_PROJ}.scales": expected.float()})
    assert torch.equal(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").params["scale"], expected.T)
    edit(artifact, {f"{Q_PROJ}.scales": expected.float() * 1.0001})
    with pytest.raises(InputError, match="does not hold its scales"):
        open_checkpoint(artifact).read(f"{Q_PROJ}.weight")


def test_a_stored_zero_point_of_all_ones_is_an_input_error(artifact, edit):
    qzeros = part(artifact, "qzeros")
    qzeros[0, 0] |= 15
    edit(artifact, {f"{Q_PROJ}.qzeros": qzeros})
    with pytest.raises(InputError, match="engines make 0 or 16"):
        open_checkpoint(artifact).read(f"{Q_PROJ}.weight")
    edit(artifact, checkpoint_format="gptq_v2")
    assert int(open_checkpoint(artifact).read(f"{Q_PROJ}.weight").params["zero"][0, 0]) == 15


def test_symmetry_that_is_not_there_is_an_input_error(artifact, edit):
    edit(artifact, sym=True)
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
def test_other_packings_and_lying_configs_are_input_errors(artifact, settings, message, edit):
    edit(artifact, **settings)
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
def test_tensors_that_do_not_fit_together_are_input_errors(artifact, case, edit):
    parts = BROKEN[case](lambda name: part(artifact, name))
    edit(artifact, {f"{Q_PROJ}.{name}": tensor for name, tensor in parts.items()})
    with pytest.raises(InputError, match="q_proj"):
        open_checkpoint(artifact)


def test_what_the_source_said_of_its_quantization_is_not_carried(artifact, tmp_path):
    checkpoint = open_checkpoint(artifact)
    assert "quantization_config" not in checkpoint.spec.config
    assert "quantize_config.json" not in checkpoint.files()
    assert "quantization_config" not in json.loads(checkpoint.files()["config.json"])


def test_an_artifact_exported_again_is_the_same(artifact, export):
    again = export(GPTQ(), open_checkpoint(artifact), "again")
    for path in artifact.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
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
