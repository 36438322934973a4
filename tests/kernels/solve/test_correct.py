"""The corrected target, against its definition in float64 and against what it is for."""

import pytest
import torch

from compress.kernels.measure.hessian import add_cross, add_hessian, fill_lower
from compress.kernels.solve.correct import corrected_target


def streams(columns=24, tokens=300):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator)
    reference = torch.randn(tokens, columns, generator=generator) @ mixing
    moved = reference @ (torch.eye(columns) * 0.95) + 0.3 * torch.randn(tokens, columns, generator=generator)
    return reference, moved, torch.randn(7, columns, generator=generator)


def statistics(reference, moved):
    hessian, drift = torch.zeros(2, moved.shape[1], moved.shape[1])
    add_hessian(hessian, moved)
    add_cross(drift, reference, moved)
    fill_lower(hessian)
    return drift, hessian


@pytest.mark.parametrize("ridge", [0.01, 0.1])
def test_equals_the_formula_in_float64(ridge):
    reference, moved, weight = streams()
    x, y, w = reference.double().T, moved.double().T, weight.double()
    gram = y @ y.T
    regular = gram + ridge * gram.diagonal().mean() * torch.eye(24)
    expected = w + w @ (x - y) @ y.T @ torch.linalg.inv(regular)
    found = corrected_target(weight, *statistics(reference, moved), ridge=ridge)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_brings_the_outputs_nearer():
    reference, moved, weight = streams()
    wanted = reference @ weight.T
    found = corrected_target(weight, *statistics(reference, moved))
    assert (moved @ found.T - wanted).norm() < 0.8 * (moved @ weight.T - wanted).norm()


def test_no_drift_no_change():
    reference, _, weight = streams()
    torch.testing.assert_close(corrected_target(weight, *statistics(reference, reference)), weight)


def test_dead_inputs_leave_the_weight():
    weight = torch.randn(3, 5)
    assert torch.equal(corrected_target(weight, torch.zeros(5, 5), torch.zeros(5, 5)), weight)


def test_the_gap_of_the_residual_stream_is_made_up_for() -> None:
    """The normal equations of min ‖W'X̂ + R̂ − WX − R‖² + λ·m·‖W' − W‖², solved by an explicit inverse."""
    generator = torch.Generator().manual_seed(3)
    x, noise = (torch.randn(200, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    seen = x + 0.1 * noise
    gap = (
        torch.randn(200, 8, generator=generator, dtype=torch.float64) @ torch.eye(8, dtype=torch.float64) + seen[:, :8]
    )
    weight = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    hessian = seen.T @ seen
    ridge = 0.2 * hessian.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    wanted = x @ weight.T + gap
    expected = (torch.linalg.inv(hessian + ridge) @ (seen.T @ wanted + ridge @ weight.T)).T
    found = corrected_target(weight, (x - seen).T @ seen, hessian, gap.T @ seen, ridge=0.2, gap_ridge=0.2)
    assert torch.allclose(found, expected, atol=1e-9)


def test_inputs_in_other_coordinates_have_the_same_target() -> None:
    reference, moved, weight = streams()
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)))[0]
    drift, hessian = statistics(reference, moved @ turn)  # the untouched model's inputs are as they were
    found = corrected_target(weight @ turn, drift, hessian, original=weight)
    wanted = corrected_target(weight, *statistics(reference, moved))
    torch.testing.assert_close(found @ turn.T, wanted, rtol=1e-4, atol=1e-4)
