"""Export as a pass: its dialect's options are its own, the plan says what it will write, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader
from pydantic import ValidationError
from safetensors import safe_open
from transformers import LlamaConfig

from compress.formats.errors import RefusedError
from compress.passes.artifact.write import Written
from compress.passes.core.base import Setting
from compress.passes.core.run import Run
from compress.passes.export import Export
from compress.passes.rtn import RTN


def test_options_are_those_of_the_dialect() -> None:
    assert (
        Export.model_validate({"dialect": "dense", "dtype": "float32"}).container().model_dump()["dtype"] == "float32"
    )
    with pytest.raises(ValidationError, match="did you mean 'gptq'"):
        Export(dialect="gptk")
    with pytest.raises(ValidationError):
        Export.model_validate({"dialect": "gptq", "no_such_option": 1})


def test_the_plan_is_exact_to_the_byte(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    run, step = carry_out(begin(tiny_llama, tmp_path / "work"), RTN(group_size=32)), Export(dialect="gptq")
    run.manifest = {"recipe": {"model": "tiny"}, "recipe_text": "model: tiny", "source": {"files": {}},
                    "versions": {"compress-llm": "0.1"}}  # fmt: skip
    (product,) = step.products(run.model.spec)
    carry_out(run, step)
    folder = run.output / product.folder
    for file in product.layout.files:
        assert (folder / file.name).stat().st_size == file.nbytes
    (written,) = run.journal.of(Written)
    assert (written.artifact.dialect, written.artifact.bytes) == ("gptq", product.layout.nbytes)
    carry_out(run, step)
    assert len(run.journal.of(Written)) == 1  # it stands


def test_what_a_container_cannot_hold_is_refused_by_the_plan(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    run = carry_out(begin(tiny_llama, tmp_path / "work"), RTN(bits=5, group_size=32))
    with pytest.raises(RefusedError):
        Export(dialect="gptq").products(run.model.spec)


def test_writing_and_verifying_have_a_cost(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    """It grows with the weights; no calibration sequence runs through a layer for it."""
    run, step = carry_out(begin(tiny_llama, tmp_path / "work"), RTN(group_size=32)), Export(dialect="gptq")
    cost = step.cost(Setting(run.model.spec, run.skeleton.anatomy, (0, 0), 1 << 40))
    assert cost.forwards == 0 and cost.effort.flops > 0
    assert cost.effort.calls > 0.02 * run.model.spec.parameters


@pytest.mark.parametrize("dialect", ["gptq", "compressed-tensors", "gguf"])
def test_what_it_takes_goes_by_the_tensors_of_its_files(
    dialect: str, tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    """As many as the libraries of the formats find in what was written."""
    run, step = carry_out(begin(tiny_llama, tmp_path / "work"), RTN(group_size=32)), Export(dialect=dialect)
    run.manifest = {"recipe": {"model": "tiny"}, "recipe_text": "model: tiny", "source": {"files": {}},
                    "versions": {"compress-llm": "0.1"}}  # fmt: skip
    (product,) = step.products(run.model.spec)
    counted = step.container().tensors(product.model)
    carry_out(run, step)
    assert counted == sum(tensors_in(run.output / product.folder / file.name) for file in product.layout.files)


def tensors_in(file: Path) -> int:
    if file.suffix == ".gguf":
        return len(GGUFReader(file).tensors)
    with safe_open(file, "pt") as opened:
        return len(opened.keys())


APART = """
import json, re, sys
from pathlib import Path
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run
recipe = from_data({"model": sys.argv[1], "passes": [{"export": {"dialect": "dense", "dtype": "float32"}}]})
run(recipe, Path(sys.argv[2]))
# Not getrusage: what this process's parent had resident when it forked counts there.
seen = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1))
print(json.dumps([plan(recipe).memory_bytes, seen * 1024]))
"""


def test_verifying_a_large_vocabulary_takes_the_memory_that_the_plan_says(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """A process of its own, whose peak is the kernel's account; an embedding of 98 MiB, the layers next to nothing."""
    config = LlamaConfig(
        vocab_size=100_000, hidden_size=256, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = make_model(tmp_path / "model", "llama", config=config)
    printed = subprocess.run([sys.executable, "-c", APART, model, tmp_path / "out"], stdout=subprocess.PIPE, check=True)
    said, seen = json.loads(printed.stdout.splitlines()[-1])
    assert 0.7 * said < seen < 1.1 * said
