"""What is learned from: parts that no row is in twice, positions that count, a name for the data."""

from __future__ import annotations

import torch

from compress.passes.model.sequences import Sequences
from compress.passes.train.examples import Examples, Marked

IDS = torch.arange(40).reshape(8, 5)
MASK = torch.arange(5) < torch.tensor([5, 4, 3, 5, 5, 2, 5, 1])[:, None]
ANSWERS = MASK & (torch.arange(5) % 2 == 0)


def test_positions_count_whose_next_token_is_real_and_an_answer() -> None:
    assert Examples.of(Sequences(IDS)).scored().tolist() == [[True] * 4] * 8
    padded = Examples.of(Sequences(IDS, MASK)).scored()
    assert padded.sum(1).tolist() == [4, 3, 2, 4, 4, 1, 4, 0]
    assert Examples.of(Marked(IDS, MASK, answers=ANSWERS)).scored()[0].tolist() == [False, True, False, True]
    # An answer is never a padding token.
    assert not Examples.of(Marked(IDS, MASK, answers=torch.ones_like(MASK))).scored()[7].any()


def test_what_is_held_out_is_chosen_by_the_seed_and_never_learned() -> None:
    whole = Examples.of(Marked(IDS, MASK, answers=ANSWERS))
    learned, held_out = whole.split(3, seed=1)
    again, other = whole.split(3, seed=1), whole.split(3, seed=2)
    assert (learned.count, held_out.count) == (5, 3)
    rows = [each.sequences.ids[:, 0].tolist() for each in (learned, held_out)]
    assert sorted(rows[0] + rows[1]) == IDS[:, 0].tolist() and rows == [sorted(row) for row in rows]
    assert torch.equal(again[1].sequences.ids, held_out.sequences.ids)
    assert not torch.equal(other[1].sequences.ids, held_out.sequences.ids)
    for part in (learned, held_out):  # masks and answers go with their rows
        at = part.sequences.ids[:, 0] // 5
        assert part.sequences.mask is not None and part.answers is not None
        assert torch.equal(part.sequences.mask, MASK[at]) and torch.equal(part.answers, ANSWERS[at])


def test_parts_are_put_together_again() -> None:
    for whole in (Marked(IDS), Marked(IDS, MASK), Marked(IDS, MASK, answers=ANSWERS)):
        learned, held_out = Examples.of(whole).split(3, seed=1)
        both = learned.then(held_out)
        order = both.sequences.ids[:, 0] // 5
        assert torch.equal(both.scored(), Examples.of(whole).scored()[order])


def test_the_name_of_the_data_speaks_of_ids_mask_and_answers() -> None:
    assert Marked(IDS, MASK).sha256() == Sequences(IDS, MASK).sha256()
    changed = ANSWERS.clone()
    changed[0, 2] = False
    names = {Marked(IDS, MASK, answers=answers).sha256() for answers in (None, ANSWERS, changed)}
    assert len(names | {Marked(IDS).sha256(), Marked(IDS + 1, MASK, answers=ANSWERS).sha256()}) == 5
