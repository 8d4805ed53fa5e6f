"""Adam without bias correction, against its formula in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from bert_emd.training.optimizer import BertAdam


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_every_step_is_the_formula(decay: float) -> None:
    values = [0.5, -1.5, 2.0]
    parameter = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))
    optimizer = BertAdam([parameter], lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay)
    m, v = [0.0] * 3, [0.0] * 3
    for step in range(6):
        gradient = [math.sin(step + i) * 3 for i in range(3)]
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        for i, g in enumerate(gradient):
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.95 * v[i] + 0.05 * g * g
            values[i] -= 0.01 * (m[i] / (math.sqrt(v[i]) + 1e-6) + decay * values[i])
        assert parameter.detach().tolist() == pytest.approx(values, rel=1e-12)


def test_the_first_step_is_not_corrected() -> None:
    """(1-β₁) g / √((1-β₂) g²) = 0.1 / √0.001 learning rates, where AdamW takes one."""
    ours, theirs = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    for optimizer, parameter in ((BertAdam([ours], lr=0.01), ours), (torch.optim.AdamW([theirs], lr=0.01), theirs)):
        parameter.grad = torch.ones(1)
        optimizer.step()
    assert float(ours.detach()) == pytest.approx(-0.01 * 0.1 / math.sqrt(0.001), rel=1e-4)
    assert float(theirs.detach()) == pytest.approx(-0.01, rel=1e-4)


def test_groups_have_their_own_settings_and_parameters_without_gradient_stay() -> None:
    fast, slow, idle = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = BertAdam([{"params": [fast, idle], "lr": 0.1}, {"params": [slow], "weight_decay": 0.5}], lr=0.01)
    fast.grad, slow.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert torch.equal(fast.detach(), torch.ones(2))
    assert torch.equal(idle.detach(), torch.ones(2))
    torch.testing.assert_close(slow.detach(), torch.full((2,), 1 - 0.01 * 0.5))
    assert idle not in optimizer.state


def test_its_state_survives_saving() -> None:
    def run(interrupted: bool) -> list[float]:
        parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = BertAdam([parameter], lr=0.1)
        for step in range(4):
            if interrupted and step == 2:
                state = optimizer.state_dict()
                optimizer = BertAdam([parameter], lr=0.1)
                optimizer.load_state_dict(state)
            parameter.grad = torch.tensor([1.0 + step, -step])
            optimizer.step()
        return parameter.tolist()

    assert run(True) == run(False)


def test_a_closure_is_called_with_gradients() -> None:
    parameter = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = BertAdam([parameter], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 9.0
    assert float(parameter.detach()) < 3.0
