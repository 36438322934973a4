"""Checkpoints that were quantized in memory, as passes leave them for an export; artifacts, written and changed."""

import errno
import inspect
import json
import os
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint, TensorSpec
from compress.formats.errors import RefusedError
from compress.kernels.qtensor import quantize


class InMemory(Checkpoint):
    """`inner`, with the tensors that `formats` names rounded to the nearest value of their number format."""

    def __init__(self, inner, formats):
        self.inner, self.formats = inner, formats
        self.path, self.dialect = inner.path, "memory"
        tensors = {name: replace(spec, format=formats.get(name)) for name, spec in inner.spec.tensors.items()}
        self.spec = replace(inner.spec, tensors=tensors)

    def read(self, name):
        weight = self.inner.read(name)
        if name not in self.formats:
            return weight
        return quantize(weight.float(), self.formats[name], self.formats[name].fit(weight.float()))

    def files(self):
        return self.inner.files()

    def nbytes(self):
        return self.inner.nbytes()


@pytest.fixture
def in_memory():
    """in_memory(checkpoint, {name: number format}) → a quantized checkpoint."""
    return InMemory


class Rounding(Checkpoint):
    """`inner`, whose quantized layers round their inputs, and whose cache is rounded."""

    def __init__(self, inner, inputs, cache=None):
        self.inner, self.path, self.dialect = inner, inner.path, "memory"
        modules = [name.removesuffix(".weight") for name in inner.formats]
        self.scales = {}
        if inputs and not inputs.dynamic:
            self.scales = {f"{name}.input_scale": torch.tensor([0.1 + len(name)]) for name in modules}
        attention = [name.removesuffix(".q_proj") for name in modules if name.endswith(".q_proj")]
        if cache:
            count = 2 if cache.per == "head" else 1
            names = [f"{module}.{kind}_scale" for module in attention for kind in "kv"]
            self.scales |= {name: torch.rand(count) + 0.01 for name in names}
        specs = {name: TensorSpec(tuple(scale.shape), "float32") for name, scale in self.scales.items()}
        self.spec = replace(
            inner.spec,
            tensors={**inner.spec.tensors, **specs},
            activations=dict.fromkeys(modules, inputs) if inputs else {},
            kv_cache=cache,
        )

    def read(self, name):
        return self.scales[name] if name in self.scales else self.inner.read(name)

    def files(self):
        return self.inner.files()

    def nbytes(self):
        return self.inner.nbytes()


@pytest.fixture
def with_rounding():
    """with_rounding(quantized checkpoint, format of the inputs or None, format of the cache or None)."""
    return Rounding


@pytest.fixture
def linear_weights():
    """linear_weights(checkpoint) → the names of the matrices of its decoder blocks."""

    def names(checkpoint):
        return [name for name, spec in checkpoint.spec.tensors.items() if ".layers." in name and len(spec.shape) == 2]

    return names


@pytest.fixture
def quantized(tiny_llama, in_memory, linear_weights):
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
def decoder():
    """decoder(layers, chosen) → specs of 32 × 32 layers; `chosen(layer, leaf)` gives each its number format."""

    def make(layers, chosen):
        leaves = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
        specs = {"model.embed_tokens.weight": TensorSpec((32, 32), "float32")}
        for layer in range(layers):
            for leaf in leaves:
                name = f"model.layers.{layer}.{leaf}.weight"
                specs[name] = TensorSpec((32, 32), "float32", chosen(layer, leaf.rpartition(".")[2]))
            specs[f"model.layers.{layer}.input_layernorm.weight"] = TensorSpec((32,), "float32")
        return specs | {"lm_head.weight": TensorSpec((32, 32), "float32")}

    return make


@pytest.fixture
def export(tmp_path):
    """export(dialect, model, name of the directory) → the artifact's directory."""

    def write(dialect, model, name="artifact"):
        directory = tmp_path / name
        directory.mkdir()
        dialect.write(model, directory, lambda _: None)
        return directory

    return write


@pytest.fixture
def assert_layout_exact(export):
    """assert_layout_exact(kind, model, dtype, "5GB" or "40KB") → the artifact, whose files are those of the layout."""

    def compare(kind, model, dtype, shard_size):
        dialect = kind(dtype=dtype, max_shard_size=shard_size)
        layout, directory = dialect.layout(model.spec), export(dialect, model)
        sizes = {path.name: path.stat().st_size for path in directory.glob("model*")}
        assert sizes == {file.name: file.nbytes for file in layout.files}
        assert (len(sizes) > 1) == (shard_size == "40KB")
        return directory

    return compare


@pytest.fixture
def assert_same_bytes(export):
    """assert_same_bytes(dialect, make a model): two exports are equal, file by file."""

    def compare(dialect, make):
        first, second = (export(dialect, make(), name) for name in ("first", "second"))
        assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
        assert all(path.read_bytes() == (second / path.name).read_bytes() for path in first.iterdir())

    return compare


@pytest.fixture
def assert_refused():
    """assert_refused(dialect, model, (name, shape, format, reason)): the model with that tensor, too, by its name."""

    def compare(dialect, model, case):
        name, shape, number_format, reason = case
        spec = TensorSpec(shape, "float32", number_format)
        assert reason in dialect.misfit(name, spec, model.spec)
        with pytest.raises(RefusedError, match=re.escape(name)):
            dialect.layout(replace(model.spec, tensors={**model.spec.tensors, name: spec}))

    return compare


@pytest.fixture
def assert_logits_equal(make_model, tmp_path, in_memory, export, linear_weights):
    """assert_logits_equal(dialect, number format, family, naive): transformers computes the same with what was written.

    `naive(tensors, module)` unpacks one layer of the file.
    """

    def compare(dialect, number_format, family, naive):
        source = make_model(tmp_path / "source", family)
        checkpoint = open_checkpoint(source)
        model = in_memory(checkpoint, dict.fromkeys(linear_weights(checkpoint), number_format))
        tensors = load_file(export(dialect, model) / "model.safetensors")
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

    return compare


@pytest.fixture
def judged(export):
    """judged(dialect, model, checkpoint class, witness): the reader and the witness of what was written agree.

    The two share no code: the witness's module imports nothing that decodes.
    """

    def compare(dialect, model, kind, witness):
        directory = export(dialect, model)
        artifact, read = open_checkpoint(directory), witness(directory)
        assert isinstance(artifact, kind)
        for name, spec in artifact.spec.tensors.items():
            found = artifact.read(name)
            values = found if spec.format is None else found.dequantize()
            torch.testing.assert_close(read(name), values.float(), rtol=1e-6, atol=0)
        imported = set(re.findall(r"^from (compress\\S+)", inspect.getsource(inspect.getmodule(witness)), re.MULTILINE))
        assert imported <= {"compress.formats.files.safetensors.witness", "compress.formats.compressed_tensors.witness"}
        return read

    return compare


@pytest.fixture
def edit():
    """edit(artifact, {tensor name: tensor, or None to remove it}, **keys of its quantization_config)."""

    def rewrite(directory, tensors=None, **settings):
        held = load_file(directory / "model.safetensors")
        for name, tensor in (tensors or {}).items():
            if tensor is None:
                del held[name]
            else:
                held[name] = tensor.contiguous()
        save_file(held, directory / "model.safetensors", {"format": "pt"})
        config = json.loads((directory / "config.json").read_bytes())
        config["quantization_config"] |= settings
        (directory / "config.json").write_text(json.dumps(config))

    return rewrite


@pytest.fixture
def assert_same():
    """assert_same(found, meant): two quantized tensors of one format, codes and parameters."""

    def compare(found, meant):
        assert found.format == meant.format and torch.equal(found.codes, meant.codes)
        assert found.params.keys() == meant.params.keys()
        assert all(torch.equal(found.params[key], meant.params[key]) for key in meant.params)

    return compare


@pytest.fixture
def octets():
    """octets(tensor) → what two tensors compare by: dtype, shape and bytes."""
    return lambda tensor: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist())


@pytest.fixture
def specs_of():
    """specs_of({name: tensor}) → their specs."""

    def describe(tensors):
        names = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        return {name: TensorSpec(tuple(tensor.shape), names[name]) for name, tensor in tensors.items()}

    return describe


class FailingKernel:
    """Counts the calls that write, and lets the one numbered `fail_at` (from 0) fail with `code`."""

    def __init__(
        self,
        monkeypatch,
        fail_at=None,
        code=errno.ENOSPC,
        names=("open", "posix_fallocate", "pwrite", "fsync", "replace"),
    ):
        self.calls = 0
        for name in names:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name), fail_at, code))

    def wrap(self, real, fail_at, code):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls - 1 == fail_at:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call


@pytest.fixture
def failing_kernel():
    """failing_kernel(monkeypatch, fail_at, code, names): `os` with one call that fails."""
    return FailingKernel
