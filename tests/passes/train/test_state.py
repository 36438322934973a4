"""A state holds all that a step depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.formats.errors import RefusedError
from compress.passes.core.journal import Journal
from compress.passes.core.processes import Processes
from compress.passes.core.stage import Stage
from compress.passes.rtn import RTN
from compress.passes.train.state import States, Unsaved


class Pair(Processes):
    """The main one of two, the other of which is not there."""

    count = 2


def made(folder: Path) -> tuple[States, dict[str, nn.Parameter], torch.optim.AdamW]:
    """Two parameters, their optimizer, and the states of the stage in `folder`."""
    torch.manual_seed(1)
    parameters = {"a": nn.Parameter(torch.randn(3, 2)), "b.c": nn.Parameter(torch.randn(4))}
    stage = Stage((RTN(),), {"x": 1}, folder)
    states = States(Journal(folder / "journal.jsonl"), stage, parameters, Processes())
    return states, parameters, torch.optim.AdamW(parameters.values(), lr=0.1)


def step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, only: str | None = None) -> None:
    """One step on random targets; `only`: the other parameter gets no gradient."""
    loss = sum(
        (value - torch.randn_like(value)).square().sum() for name, value in parameters.items() if only in (None, name)
    )
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("only", [None, "a"])
def test_a_resumed_run_goes_on_bit_by_bit(tmp_path: Path, only: str | None) -> None:
    """Also where a parameter had no gradient yet, as an expert that no token came to."""
    states, parameters, optimizer = made(tmp_path)
    step(parameters, optimizer, only)
    states.commit(1, optimizer, [0.5], [(0, 0.7)], "")
    for _ in range(3):
        step(parameters, optimizer)

    again, resumed, other = made(tmp_path)
    assert again.resume(other) == 1
    for _ in range(3):
        step(resumed, other)
    assert all(torch.equal(parameters[name], resumed[name]) for name in parameters)


def test_nothing_committed_is_the_beginning(tmp_path: Path) -> None:
    states, parameters, optimizer = made(tmp_path)
    before = {name: value.clone() for name, value in parameters.items()}
    assert states.resume(optimizer) is None
    assert all(torch.equal(parameters[name], before[name]) for name in before)


def test_another_number_of_processes_is_refused_by_name(tmp_path: Path) -> None:
    states, parameters, optimizer = made(tmp_path)
    States(states._journal, states._stage, parameters, Pair()).commit(2, optimizer, [], [], "")
    with pytest.raises(RefusedError, match="2 processes, and now there are 1") as caught:
        states.resume(optimizer)
    assert "--processes 2" in caught.value.hint


def test_only_the_last_state_and_the_best_are_kept(tmp_path: Path) -> None:
    states, parameters, optimizer = made(tmp_path)
    first = states.best_name(0)
    states.save_best(first)
    best = {name: value.detach().clone() for name, value in parameters.items()}
    states.commit(0, optimizer, [], [(0, 1.0)], first)
    step(parameters, optimizer)
    states.commit(1, optimizer, [0.1], [], first)
    (folder,) = tmp_path.glob("stage-*")
    assert sorted(path.name for path in folder.iterdir()) == ["best-00000000.safetensors", "state-00000001.safetensors"]
    states.take_best(first)
    assert all(torch.equal(parameters[name], best[name]) for name in best)
    states.drop()
    assert not list(folder.iterdir())
    assert [record.losses for record in states.records()] == [(), (0.1,)]


def test_unsaved_states_keep_the_best_and_no_more(tmp_path: Path) -> None:
    _, parameters, optimizer = made(tmp_path)
    states = Unsaved(Journal(tmp_path / "journal.jsonl"), Stage((RTN(),), {"x": 1}, tmp_path), parameters, Processes())
    best = {name: value.detach().clone() for name, value in parameters.items()}
    name = states.best_name(0)
    states.save_best(name)
    step(parameters, optimizer)
    states.commit(1, optimizer, [0.5], [(0, 0.7)], name)
    assert not torch.equal(parameters["a"], best["a"])
    states.take_best(name)
    assert all(torch.equal(value, best[name]) for name, value in parameters.items())
    assert states.resume(optimizer) is None and not list(tmp_path.rglob("*"))
