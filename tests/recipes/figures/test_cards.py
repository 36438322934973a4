"""A budget of GPU memory: what decides about a run, and what its tensors then take, on a pretended card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pretended
import pytest
import torch
from transformers import LlamaConfig

from compress.formats.errors import UsageError
from compress.passes.forward.cost.base import RUNTIME
from compress.recipes.figures.cards import allowed_on, kept_on
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

MIB = 1 << 20
THERE = torch.device(pretended.NAME)


@pytest.fixture(scope="module")
def recipe(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """One layer that is wide inside, and 8,192 tokens: to hold them all takes 66 MiB."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=2048, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    model, draw = make_model(folder / "model", "llama", config=config), Random(0)
    (folder / "text.txt").write_text(" ".join("".join(draw.choices("etaoinshrdlu", k=5)) for _ in range(6_000)))
    passes = [{"calibrate": {"data": str(folder / "text.txt"), "samples": 32, "seq_len": 256}},
              {"rtn": {"search": "inputs", "group_size": 32}}, {"export": {"dialect": "gptq"}}]  # fmt: skip
    return from_data({"model": str(model), "passes": passes})


def test_all_of_a_card_may_be_used_or_what_was_allowed_of_it() -> None:
    with pretended.gpu(pretended.Card(total_memory=3000)):
        assert allowed_on(THERE, None, None) == 3000
        assert allowed_on(THERE, None, 2000) == 2000
        assert allowed_on(THERE, None, 4000) == 3000
        with pytest.raises(UsageError, match="--max-ram speaks of the computer's memory"):
            allowed_on(THERE, 2000, None)
    assert allowed_on(torch.device("cpu"), 2000, None) == 2000
    with pytest.raises(UsageError, match="--max-vram speaks of a GPU"):
        allowed_on(torch.device("cpu"), None, 2000)


def test_cuda_is_told_of_the_card_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, str]] = []
    card = pretended.Card(total_memory=16 * RUNTIME)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, at: told.append((part, str(at))))
    with kept_on(torch.device("cuda:1"), 9 * RUNTIME):
        assert told == [(0.5, "cuda:1")]  # beside the context of CUDA
    assert told[1:] == [(1.0, "cuda:1")]
    with kept_on(torch.device("cuda:1"), None):
        assert not told[2:]


def test_a_limit_ends_with_the_run_also_with_one_that_failed() -> None:
    card = pretended.Card(total_memory=4 * RUNTIME)
    with pretended.gpu(card), pytest.raises(torch.OutOfMemoryError), kept_on(THERE, 2 * RUNTIME):
        assert card.allowed == RUNTIME
        raise torch.OutOfMemoryError
    assert card.allowed == card.total_memory


def test_a_run_s_tensors_take_no_more_of_a_card_than_was_planned(recipe: Recipe, tmp_path: Path) -> None:
    """Where little is allowed, layers are run twice, in small batches; what is kept of all would not fit then."""
    peaks: dict[int, int] = {}
    for forwards, allowed in (2, RUNTIME + 40 * MIB), (1, 8 << 30):
        sweep, card = plan(recipe, max_ram=allowed).stages[1], pretended.Card(total_memory=8 << 30, count=True)
        with pretended.gpu(card):
            report = run(recipe, tmp_path / str(forwards), device=pretended.NAME, max_vram=allowed)
        assert sweep.forwards == forwards and not report.fallbacks  # not even once did it have to be tried again
        assert report.peak_vram_bytes == card.peak
        assert 0 < card.peak <= sweep.memory_bytes - RUNTIME <= allowed - RUNTIME
        peaks[forwards] = card.peak
    assert peaks[1] > 40 * MIB
