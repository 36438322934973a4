"""Text of the model's own: written once, by the seed, resumed, ended where texts end; what it takes is planned."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.kernels.effort import Effort
from compress.passes.core import sample
from compress.passes.core.run import Run
from compress.passes.core.sample import Sampled, completed, computes_in_bf16, sample_cost
from compress.passes.core.stage import Stage
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer

LENGTH = 12
WANTED = Sequences(torch.arange(5 * LENGTH).reshape(5, LENGTH), begun=torch.tensor([0, 3, LENGTH, 1, 5]))


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> Run:
    return begin(tiny_llama, tmp_path / "work")


def stage(run: Run, name: str = "a") -> Stage:
    return Stage((), {"name": name}, run.work)


def test_only_what_is_left_to_the_model_is_written_and_the_seed_decides(run: Run) -> None:
    found = completed(run, stage(run), WANTED)
    assert found.begun is None and found.mask is None
    for row, begun in enumerate([0, 3, LENGTH, 1, 5]):
        assert found.ids[row, :begun].equal(WANTED.ids[row, :begun])
        assert begun == LENGTH or not found.ids[row].equal(WANTED.ids[row])
    assert int(found.ids[0, 0]) not in load_tokenizer(run.source).all_special_ids
    run.seed = 1
    assert not completed(run, stage(run), WANTED).ids.equal(found.ids)
    whole = replace(WANTED, begun=None)
    assert completed(run, stage(run), whole) is whole


def test_it_is_written_once_whatever_stage_wants_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = completed(run, stage(run), WANTED)
    monkeypatch.setattr("compress.passes.model.whole.loading.load_model", lambda *_: pytest.fail("loaded again"))
    assert completed(run, stage(run, "b"), WANTED).ids.equal(found.ids)
    with pytest.raises(pytest.fail.Exception, match="loaded again"):
        completed(run, stage(run), replace(WANTED, begun=torch.tensor([0, 3, LENGTH, 1, 4])))


def test_a_run_that_is_killed_goes_on_to_the_same_text(
    tiny_llama: Path,
    tmp_path: Path,
    begin: Callable[..., Run],
    killed_at: Callable[[int], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample, "_MOST", 2)
    whole = begin(tiny_llama, tmp_path / "whole")
    expected = completed(whole, stage(whole), WANTED)
    with killed_at(2):
        completed(run := begin(tiny_llama, tmp_path / "killed"), stage(run), WANTED)
    run = begin(tiny_llama, tmp_path / "killed")
    assert [(record.start, record.stop) for record in run.journal.of(Sampled)] == [(0, 2)]
    assert completed(run, stage(run), WANTED).ids.equal(expected.ids)
    assert [(record.start, record.stop) for record in run.journal.of(Sampled)] == [(0, 2), (2, 4)]


def test_where_sequences_are_padded_a_text_ends(run: Run) -> None:
    """`<|endoftext|>`, token 0, is one of 320: in 64 times 40 tokens it comes."""
    packed = Sequences(torch.ones(64, 40, dtype=torch.int64), begun=torch.ones(64, dtype=torch.int64))
    whole = completed(run, stage(run), packed)
    assert bool((whole.ids == 0).any()) and whole.mask is None
    mask = torch.ones(64, 40, dtype=torch.bool)
    mask[0, 3:], packed.begun[0] = False, 40  # a text that was there, and is short
    found = completed(run, stage(run), replace(packed, mask=mask))
    assert found.mask is not None and found.mask[0].equal(mask[0])
    ended = 0
    for ids, real in zip(found.ids[1:], found.mask[1:]):
        length = int(real.sum())
        assert bool(real[:length].all()) and not bool((ids[:length][1:-1] == 0).any())
        assert length == 40 or int(ids[length - 1]) == 0
        ended += length < 40
    assert ended


def test_what_it_takes_grows_with_what_is_written(run: Run) -> None:
    spec, anatomy = run.model.spec, run.skeleton.anatomy
    none, some, more = (sample_cost(spec, anatomy, count, 512) for count in (0, 64, 128))
    assert none.effort == Effort() and none.memory == 0
    assert more.effort == some.effort * 2 and more.memory == some.memory  # side by side are 64
    assert sample_cost(spec, anatomy, 64, 1024).memory <= some.memory  # or fewer that are longer


def test_the_machine_is_asked_whether_it_has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, has, expected in (("AVX512", True, True), ("AVX512", False, False), ("DEFAULT", True, False)):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda has=has: {"amx_bf16": has, "avx512_bf16": False})
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability)
        assert computes_in_bf16(torch.device("cpu")) == expected
