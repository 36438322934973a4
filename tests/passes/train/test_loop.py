"""The loop against a loop written out, its best step, its way back from a kill, its end where losses run away."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from told import Notes
from torch import Tensor, nn

from compress.formats.errors import CompressError
from compress.passes.core.processes import Processes
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.sequences import Sequences
from compress.passes.rtn import RTN
from compress.passes.train.examples import Examples
from compress.passes.train.loop import Group, Objective, Training, keep_zeros
from compress.passes.train.options import TrainOptions
from compress.passes.train.order import rows_of

IDS = (torch.arange(8) + 3 * torch.arange(12).unsqueeze(1)) % 50
"""Every token is followed by the next one: there is something to learn that holds for what is held out."""


class Bigrams(Objective):
    """The smallest language model: a table of logits, learned by cross entropy; counts its calls."""

    def __init__(self, fail_after: int | None = None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(50, 50, generator=torch.Generator().manual_seed(3)))
        self.calls, self.fail_after = 0, fail_after

    def forward(self, examples: Examples, rows: Tensor) -> Tensor:
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        logits = self.table[examples.sequences.ids[:, :-1]]
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), examples.sequences.ids[:, 1:].flatten(), reduction="sum"
        )


Make = Callable[..., Training]


@pytest.fixture
def training(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> Make:
    """training(folder, objective, **options): the training that was begun in the folder, or a new one."""

    def make(
        folder: str, objective: Bigrams, rate: float = 0.1, pruned: frozenset[str] = frozenset(), **options: object
    ) -> Training:
        settings = TrainOptions.model_validate({"steps": 12, "batch": 4, "measure_every": 4, "held_out": 3, **options})
        learned, held_out = Examples(Sequences(IDS)).split(settings.held_out, 0)
        run = begin(tiny_llama, tmp_path / folder)
        groups = [Group({"table": objective.table}, rate, settings.weight_decay, pruned)]
        return Training(run, Stage((RTN(),), {"x": 1}, run.work), settings, objective, groups, learned, held_out)

    return make


def test_it_is_adamw_with_warm_up_cosine_and_clipping(training: Make) -> None:
    objective, expected = Bigrams(), Bigrams()
    run = training("run", objective, clip=0.05, weight_decay=0.1, warmup=0.25, micro_batch=1)
    curve = run.execute()

    learned, _ = Examples(Sequences(IDS)).split(3, 0)
    optimizer = torch.optim.AdamW([expected.table], lr=0.1, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.1)
    tables = [expected.table.detach().clone()]
    for step in range(12):
        picked = learned.pick(rows_of(step, seed=0, count=9, batch=4))
        (expected(picked, torch.arange(4)) / (4 * 7)).backward()
        nn.utils.clip_grad_norm_([expected.table], 0.05)
        optimizer.param_groups[0]["lr"] = 0.1 * (
            (step + 1) / 3 if step + 1 < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9 if step > 3 else 0.0))
        )
        optimizer.step()
        optimizer.zero_grad()
        tables.append(expected.table.detach().clone())
    assert torch.allclose(objective.table, tables[curve.best[0]], atol=1e-5)
    assert curve.best[0] == 12
    assert len(curve.losses) == 12 and [done for done, _ in curve.measured] == [0, 4, 8, 12]


PRUNED = frozenset({"table"})


class Sparse(Bigrams):
    """Half of the table is 0, as `prune` leaves it."""

    def __init__(self, fail_after: int | None = None) -> None:
        super().__init__(fail_after)
        with torch.no_grad():
            self.table.masked_fill_(torch.rand(50, 50, generator=torch.Generator().manual_seed(1)) < 0.5, 0.0)


def test_zeros_of_what_was_pruned_stay_and_the_rest_learns_as_if_they_were_constants(training: Make) -> None:
    """Against a loop in which only a vector of kept weights is a parameter, put into the table by its places."""
    objective, expected = Sparse(), Sparse()
    run = training("run", objective, pruned=PRUNED, steps=100, clip=0.05, weight_decay=0.1, micro_batch=1)
    curve = run.execute()

    learned, _ = Examples(Sequences(IDS)).split(3, 0)
    places = expected.table.detach().nonzero(as_tuple=True)
    values = nn.Parameter(expected.table.detach()[places].clone())
    optimizer = torch.optim.AdamW([values], betas=(0.9, 0.95), eps=1e-15, weight_decay=0.1)
    for step in range(curve.best[0]):
        picked = learned.pick(rows_of(step, seed=0, count=9, batch=4)).sequences.ids
        logits = torch.zeros(50, 50).index_put(places, values)[picked[:, :-1]]
        nn.functional.cross_entropy(logits.flatten(0, 1), picked[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_([values], 0.05)
        optimizer.param_groups[0]["lr"] = 0.1 * run.options.rate(step)
        optimizer.step()
        optimizer.zero_grad()
    assert curve.best[0] == 100
    assert torch.equal(objective.table == 0, expected.table == 0)
    assert torch.allclose(objective.table[places], values, atol=1e-4)


def test_the_gradient_of_what_is_kept_is_not_touched() -> None:
    table = Sparse().table
    gone, table.grad = table == 0, torch.full_like(table, torch.nan).where(table == 0, torch.randn(50, 50))
    before = table.grad.clone()
    keep_zeros(table)
    assert torch.equal(table.grad[~gone], before[~gone]) and not bool(table.grad[gone].any())


class Wrong(Bigrams):
    """Learns what is not to be learned: every step makes it worse."""

    def forward(self, examples: Examples, rows: Tensor) -> Tensor:
        loss = super().forward(examples, rows)
        return -loss if torch.is_grad_enabled() else loss


def test_what_is_held_out_decides_which_step_is_kept(training: Make) -> None:
    objective = Wrong()
    start = objective.table.detach().clone()
    curve = training("run", objective, measure_every=3).execute()
    found = [loss for _, loss in curve.measured]
    assert found == sorted(found) and curve.best == (0, found[0])
    assert torch.equal(objective.table, start)


@pytest.mark.parametrize(
    ("kind", "calls"), [*((Bigrams, calls) for calls in (1, 3, 4, 9, 14, 15)), (Sparse, 4), (Sparse, 9)]
)
def test_interrupted_anywhere_it_ends_in_the_same_bytes(training: Make, kind: type[Bigrams], calls: int) -> None:
    pruned = PRUNED if kind is Sparse else frozenset[str]()
    whole = kind()
    expected = training("whole", whole, pruned=pruned).execute()
    with pytest.raises(KeyboardInterrupt):
        training("cut", kind(fail_after=calls), pruned=pruned).execute()
    resumed = kind()
    curve = training("cut", resumed, pruned=pruned).execute()
    assert torch.equal(resumed.table, whole.table)
    assert (curve.losses, curve.measured) == (expected.losses, expected.measured)
    assert resumed.calls < whole.calls or calls == 1


class Second(Processes):
    """The second of two, the first of which gives `given` to each sum."""

    index = 1

    def __init__(self, given: float) -> None:
        self.given = given

    def sum(self, value: float) -> float:
        return self.given + value


@pytest.mark.parametrize("given", [0, 1])
def test_the_clock_of_the_main_process_says_when_all_commit(training: Make, given: int) -> None:
    run = training("run", Bigrams())
    run.execute()
    run.run.processes = Second(given)
    assert run._due(measured=True) == run._due(measured=False) == bool(given)


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it_with_the_step(training: Make, spoil: float) -> None:
    class Spoiled(Bigrams):
        def forward(self, examples: Examples, rows: Tensor) -> Tensor:
            loss = super().forward(examples, rows)
            return loss * spoil if self.calls == 5 else loss

    run = training("run", Spoiled())
    with pytest.raises(CompressError, match="diverges: the loss of step") as caught:
        run.execute()
    assert caught.value.exit_code == 1 and "lr" in caught.value.hint
    assert [record.step for record in run.states.records()][-1] < 5  # what is committed is from before


def test_a_held_out_loss_that_runs_away_ends_it(training: Make) -> None:
    run = training("run", Wrong(), rate=100.0, warmup=0)
    with pytest.raises(CompressError, match=r"after 4 steps the loss on held-out sequences"):
        run.execute()


@pytest.mark.parametrize(("size", "calls"), [(None, 4 + 12), (1, 4 * 3 + 12 * 4), (3, 4 * 1 + 12 * 2)])
def test_a_step_takes_as_many_forwards_as_micro_batches(training: Make, size: int | None, calls: int) -> None:
    """4 measurements of 3 sequences, and 12 steps of 4."""
    objective = Bigrams()
    training("run", objective, micro_batch=size).execute()
    assert objective.calls == calls


class Tight(Bigrams):
    """Has memory for so many sequences in a forward; how many there were where it had."""

    def __init__(self, room: int, from_call: int = 0) -> None:
        super().__init__()
        self.room, self.from_call, self.sizes = room, from_call, list[int]()

    def forward(self, examples: Examples, rows: Tensor) -> Tensor:
        loss = super().forward(examples, rows)
        if len(rows) > self.room and self.calls > self.from_call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(rows))
        return loss


@pytest.mark.parametrize("room", [1, 2])
def test_where_memory_runs_out_fewer_sequences_go_at_once(training: Make, room: int) -> None:
    """Of 4 a step, of 3 that are held out: as if that had been asked for."""
    tight, asked = Tight(room), Bigrams()
    curve, expected = training("run", tight).execute(), training("asked", asked, micro_batch=room).execute()
    assert (curve.losses, curve.measured) == (expected.losses, expected.measured)
    assert torch.equal(tight.table, asked.table)


def test_gradients_of_a_step_that_ran_out_of_memory_count_once(training: Make) -> None:
    """It does so in the second half of the first step: two forwards for what is held out, one that went well."""
    tight, asked = Tight(1, from_call=3), Bigrams()
    run = training("run", tight, micro_batch=2)
    run.run.reporter = notes = Notes()
    run.execute()
    training("asked", asked, micro_batch=1).execute()
    assert tight.sizes[:4] == [2, 1, 2, 1] and max(tight.sizes[3:]) == 1
    assert torch.equal(tight.table, asked.table)
    assert notes.said == [
        "rtn: memory does not suffice for 2 sequences in a forward: 1 from now on (micro_batch: 1 begins so)"
    ]


def test_memory_that_does_not_suffice_for_one_sequence_ends_it(training: Make) -> None:
    run = training("run", Tight(0), micro_batch=1)
    with pytest.raises(CompressError, match="does not suffice for 1 of its sequences") as caught:
        run.execute()
    assert caught.value.exit_code == 1 and isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert all(word in caught.value.hint for word in ("checkpointing: true", "seq_len", "shard: true"))


def test_of_several_processes_one_alone_does_not_halve(training: Make) -> None:
    """Others would wait for it for ever."""
    run = training("run", Tight(1), micro_batch=2)
    run.run.processes = Second(0)
    run.run.processes.count = 2
    with pytest.raises(CompressError, match="rtn: memory does not suffice for 2") as caught:
        run._micro_batches.fitting(run._gradients, torch.arange(4))
    assert "micro_batch: 1, " in caught.value.hint


APART = """
import torch
from torch import nn
from compress.passes.core.processes import joined
from compress.passes.train.loop import _accelerator

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.one, self.none = (nn.Parameter(torch.ones(2)) for _ in range(3))

    def forward(self, index):
        return (2 * self.both).sum() + ((3 * self.one).sum() if index == 0 else 0)

with joined(gpus=False) as processes:
    model, accelerator = Experts(), _accelerator(torch.device("cpu"))
    wrapped = accelerator.prepare_model(model, False)
    accelerator.backward(wrapped(processes.index) * processes.count)
    grads = [getattr(model, name).grad for name in ("both", "one", "none")]
    assert [None if grad is None else grad.tolist() for grad in grads] == [[4.0, 4.0], [3.0, 3.0], None], grads
"""


def test_what_one_process_reaches_has_its_gradient_and_what_none_does_has_none(
    tmp_path: Path, environment: Mapping[str, str]
) -> None:
    """As in one process: the optimizer leaves alone what has no gradient."""
    script = tmp_path / "apart.py"
    script.write_text(APART)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(torchrun, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
