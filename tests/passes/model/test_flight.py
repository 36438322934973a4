"""Forwards that pause: each stops at the marked modules, goes on with what was changed, and knows its tokens."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from compress.passes.model.flight import Flight, PausePoints, routed


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_all_flights_stop_at_a_pause_and_go_on_with_the_new_weights() -> None:
    module, batches = Two().requires_grad_(False), [torch.ones(1, 4), torch.full((1, 4), 2.0)]
    with PausePoints([module.first, module.second]):
        flights = [Flight(lambda x=x: module(x)) for x in batches]
        assert all(torch.equal(flight.next(), x) for flight, x in zip(flights, batches))
        module.first.weight.copy_(torch.eye(4))
        assert all(torch.equal(flight.next(), x) for flight, x in zip(flights, batches))
        module.second.weight.fill_(1.0)
        assert [flight.next().tolist() for flight in flights] == [[[4.0, 4.0]], [[8.0, 8.0]]]


def test_a_forward_outside_a_flight_does_not_pause() -> None:
    module = Two()
    with PausePoints([module.first]):
        assert module(torch.ones(1, 4)).shape == (1, 2)


def test_after_the_last_pause_nothing_pauses_any_more() -> None:
    module = Two()
    with PausePoints([module.first]):
        pass
    assert Flight(lambda: module(torch.ones(1, 4))).next().shape == (1, 2)


def test_a_note_keeps_what_arrived_at_a_module() -> None:
    module, x = Two().requires_grad_(False), torch.ones(1, 4)
    with PausePoints([module.second]) as points:
        points.note("first", module.first)
        flight = Flight(lambda: module(x))
        flight.next()
        assert flight.notes["first"] is x


def test_a_flight_knows_which_tokens_an_expert_got() -> None:
    module, tokens = Two(), torch.tensor([1, 3])

    def forward() -> Tensor:
        with routed(tokens):
            module.first(torch.ones(2, 4))
        return module.second(torch.ones(4, 4))

    with PausePoints([module.first, module.second]):
        flight = Flight(forward)
        flight.next()
        assert flight.tokens is tokens
        flight.next()
        assert flight.tokens is None


def test_a_flight_that_goes_no_further_frees_what_it_held() -> None:
    module, held = Two().requires_grad_(False), list[weakref.ref[Tensor]]()
    with PausePoints([module.second]):
        flight = Flight(lambda: module(torch.ones(1, 4)))
        held.append(weakref.ref(flight.next()))
        assert held[0]() is not None
        flight.drop()
        flight.drop()
        assert held[0]() is None
    Flight(lambda: module(torch.ones(1, 4))).drop()  # one that never began
