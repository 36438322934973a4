"""The decision against a model whose KL is known: mixes and even choices are beaten or taken, and it says which."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from compress.formats.errors import RefusedError
from compress.passes.choice.bit_budget import Unit, cached, spent
from compress.passes.choice.decision import decided, fullest
from compress.passes.choice.menu import Menu

KINDS = ("q4_0", "q5_0", "q8_0")
WEIGHTS = torch.tensor([1.0, 30.0, 2.0, 40.0, 3.0, 50.0], dtype=torch.float64)
ERRORS = torch.tensor([[0.4, 0.1, 0.01]] * 6, dtype=torch.float64)
NAMES = [f"layers.{layer}.{kind}" for layer in range(3) for kind in ("up", "down")]
MENU = Menu(
    tuple(Unit((name,), 2, (9, 11, 17)) for name in NAMES),
    KINDS,
    {},
    {kind: dict.fromkeys(NAMES, kind) for kind in KINDS},
)


def judge(chosen: Sequence[int]) -> float:
    """A KL that errors make together: twice what they add up to where neighbours are poor, too."""
    each = torch.stack([WEIGHTS[unit] * ERRORS[unit, at] for unit, at in enumerate(chosen)])
    return float(each.sum() + (each[1:] * each[:-1]).sum())


@pytest.mark.parametrize("most", [54, 60, 66, 80, 102])
def test_it_is_no_worse_than_the_even_choice_and_the_mix_at_any_budget(most: int) -> None:
    mixes = {"ours": [0, 1, 0, 1, 0, 1], "theirs": [0, 0, 0, 0, 1, 0]}
    found = decided(MENU, ERRORS.clone(), cached(judge), most, None, mixes)
    assert spent(MENU.units, found.chosen) <= most and found.divergence == judge(found.chosen)
    fitting = [chosen for chosen in ([0] * 6, *mixes.values()) if spent(MENU.units, chosen) <= most]
    assert all(found.divergence <= judge(chosen) for chosen in fitting)
    assert spent(MENU.units, fullest(MENU, most, mixes)) >= spent(MENU.units, found.chosen)
    assert spent(MENU.units, fullest(MENU, most, mixes)) <= most


def test_it_says_what_a_mix_is_worth_at_its_own_bytes() -> None:
    """Where errors are told wrongly, another choice is the better one, and that is said, too."""
    beaten = decided(MENU, ERRORS.clone(), judge, 60, None, {"Q4_K_M": [1, 0, 1, 0, 1, 0]})
    assert beaten.compared.startswith("at the 5.000 bits per weight of Q4_K_M KL is ")
    alike = decided(MENU, ERRORS.clone(), judge, 60, None, {"Q4_0": [0] * 6})
    assert alike.compared.startswith("at the 4.500 bits per weight of Q4_0 that is the choice: KL ")
    best_mix = [0, 1, 0, 1, 0, 1]
    wrong = ERRORS.clone() * torch.tensor([1e4, 1.0] * 3, dtype=torch.float64).unsqueeze(1)

    def deaf(chosen: Sequence[int]) -> float:
        return judge(chosen) if list(chosen) in (best_mix, [0] * 6, [1] * 6) else 1e3

    not_beaten = decided(MENU, wrong, deaf, 60, None, {"Q4_K_M": best_mix})
    assert not_beaten.compared.startswith("Q4_K_M is not beaten at its own 5.000 bits per weight: KL ")
    assert not_beaten.chosen == best_mix and not_beaten.divergence == judge(best_mix)


def test_the_fewest_bits_within_a_limit() -> None:
    found = decided(MENU, ERRORS.clone(), cached(judge), 102, 30.0, {"small": [0, 0, 0, 0, 0, 0]})
    assert found.divergence <= 30.0 and 54 < spent(MENU.units, found.chosen) < 102 and "small" in found.compared
    with pytest.raises(RefusedError, match="all the bits allowed"):
        decided(MENU, ERRORS.clone(), judge, 102, 0.1)


def test_no_choice_is_asked_about_twice_and_bisection_ends_at_a_tensor() -> None:
    asked: list[tuple[int, ...]] = []

    def once(chosen: Sequence[int]) -> float:
        asked.append(tuple(chosen))
        return judge(chosen)

    decided(MENU, ERRORS.clone(), cached(once), 102, 30.0)
    assert len(asked) == len(set(asked)) <= 1 + 6 + 1 + 5  # budgets of 2 bits: 24 of them, halved to one
