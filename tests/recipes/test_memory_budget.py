"""Budgets of memory under a limit that the system keeps: RLIMIT_DATA refuses what goes beyond them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from subprocess import CompletedProcess

import pytest
from transformers import LlamaConfig

from compress.formats.errors import RefusedError
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data

MIB = 1 << 20
RUN = """
import json, resource, sys
from pathlib import Path
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from compress.recipes.recipe import from_data
from compress.recipes.run import run
for allowed in limit, 8 << 30:
    run(from_data(json.loads(sys.argv[1])), Path(sys.argv[3], str(allowed)), max_ram=allowed)
    print(f"kept {allowed}")
"""


@pytest.fixture(scope="module")
def given(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """One layer that is wide inside, and 8,192 tokens: to hold them all takes 258 MiB, and the heap's share."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=8192, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    model, draw = make_model(folder / "model", "llama", config=config), Random(0)
    (folder / "text.txt").write_text(" ".join("".join(draw.choices("etaoinshrdlu", k=5)) for _ in range(6_000)))
    passes = [{"calibrate": {"data": str(folder / "text.txt"), "samples": 32, "seq_len": 256}},
              {"rtn": {"search": "inputs", "group_size": 32}}, {"export": {"dialect": "gptq"}}]  # fmt: skip
    return {"model": str(model), "passes": passes}


def sweep(given: Recipe, allowed: int) -> tuple[int, int]:
    """Forwards and memory of the sweep within so many bytes."""
    stage = plan(given, max_ram=allowed).stages[1]
    return stage.forwards, stage.memory_bytes


def test_a_run_stays_within_what_the_system_allows(
    given: dict[str, object], python: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    recipe = from_data(given)
    (once, much), limit = sweep(recipe, 8 << 30), 640 * MIB
    twice, little = sweep(recipe, limit)
    assert (once, twice) == (1, 2) and little <= limit < much
    ran = python(RUN, json.dumps(given), str(limit), str(tmp_path), OMP_NUM_THREADS="1")
    assert ran.stdout.startswith(f"kept {limit}") and "kept" not in ran.stdout[4:], ran.stderr[-2000:]
    assert "memory" in ran.stderr.splitlines()[-1].lower()  # with more allowed, the limit bites


def test_what_cannot_be_kept_is_refused_with_the_smallest_that_can(given: dict[str, object]) -> None:
    recipe = from_data(given)
    with pytest.raises(RefusedError, match="of memory, and 100 MiB are allowed") as caught:
        plan(recipe, max_ram=100 * MIB)
    least = int(str(caught.value).partition("about ")[2].partition(" MiB")[0].replace(",", ""))
    assert plan(recipe, max_ram=least * MIB).verdict == "fits"
    with pytest.raises(RefusedError):
        plan(recipe, max_ram=(least - 1) * MIB)
