"""Who goes first, who waits, who speaks; what the processes of a run find together is shown in tests/cli."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from compress.passes.core.processes import Joined, Processes, joined, started_together


def test_one_process_does_it_all() -> None:
    done: list[str] = []
    alone = Processes()
    alone.on_main(lambda: done.append("work"))
    with alone.turn():
        done.append("turn")
    alone.wait()
    assert done == ["work", "turn"]
    assert alone.main and alone.count == 1 and alone.sum(1.5) == 1.5 and alone.speaks()
    assert alone.device("cuda") == "cuda"


def test_no_launcher_no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert started_together() == 1
    with joined(gpus=False) as processes:
        assert processes.count == 1


def test_the_main_process_is_through_before_another_begins_its_turn() -> None:
    store, seen = HashStore(), list[str]()
    main, other = (Joined(store, index, 2, local=index, here=2) for index in range(2))

    def follow() -> None:
        for number in range(3):
            with other.turn():
                seen.append(f"other {number}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    for number in range(3):
        with main.turn():
            time.sleep(0.12)
            seen.append(f"main {number}")
    thread.join(10)
    assert sorted(seen) == sorted([f"{who} {number}" for who in ("main", "other") for number in range(3)])
    assert all(seen.index(f"main {number}") < seen.index(f"other {number}") for number in range(3))


def test_a_turn_that_fails_lets_nobody_go_on() -> None:
    store = HashStore()
    with pytest.raises(ValueError, match="broken"), Joined(store, 0, 2, 0, 2).turn():
        raise ValueError("broken")
    assert not store.check(["turn 0"])


def test_one_of_them_writes_and_one_of_them_speaks() -> None:
    store, done = HashStore(), list[int]()
    several = [Joined(store, index, 3, local=index, here=3) for index in range(3)]
    for each in several:
        each.on_main(lambda each=each: done.append(each.index))
    assert done == [0]
    assert [each.speaks() for each in reversed(several)] == [True, False, False]


def test_of_several_gpus_each_has_its_own() -> None:
    assert Joined(HashStore(), 5, 8, local=1, here=4).device("cuda") == "cuda:1"
    assert Joined(HashStore(), 5, 8, local=1, here=4).device("cpu") == "cpu"
