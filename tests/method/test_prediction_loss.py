"""The prediction loss against hand-written numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from bert_emd.method import hard_loss, prediction_loss, soft_loss

BATCH = 5


def logits(seed: int, classes: int) -> Tensor:
    return 3 * torch.randn(BATCH, classes, generator=torch.Generator().manual_seed(seed))


def labels(classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    if classes == 1:
        return 5 * torch.rand(BATCH, generator=generator)
    return torch.randint(classes, (BATCH,), generator=generator)


def as_numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().double().numpy() if t.is_floating_point() else t.numpy() for t in tensors]


@pytest.mark.parametrize("T", [0.5, 1.0, 7.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("classes", [1, 2, 3, 7])
def test_equals_the_formula(classes: int, alpha: float, T: float) -> None:
    student, teacher, y = logits(0, classes), logits(1, classes), labels(classes)
    expected = reference.prediction_loss(*as_numpy(student, teacher, y), alpha, T)
    found = prediction_loss(student, teacher, y, alpha=alpha, temperature=T)
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("T", [1.0, 7.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_parts(classes: int, T: float) -> None:
    student, teacher, y = logits(0, classes), logits(1, classes), labels(classes)
    s, t, labels_np = as_numpy(student, teacher, y)
    assert soft_loss(student, teacher, T).item() == pytest.approx(reference.soft_cross_entropy(s, t, T), rel=1e-6)
    assert hard_loss(student, y).item() == pytest.approx(reference.cross_entropy(s, labels_np), rel=1e-6)


def test_by_hand() -> None:
    """Two classes at one half each: log 2 spread over two classes; T² = 4 on the soft part."""
    zero, y = torch.zeros(1, 2), torch.tensor([1])
    soft, hard = math.log(2) / 2, math.log(2)
    assert prediction_loss(zero, zero, y).item() == pytest.approx(soft, rel=1e-6)
    assert prediction_loss(zero, zero, y, temperature=2.0).item() == pytest.approx(4 * soft, rel=1e-6)
    assert prediction_loss(zero, zero, y, alpha=0.0).item() == pytest.approx(hard, rel=1e-6)
    assert prediction_loss(zero, zero, y, alpha=0.3).item() == pytest.approx(0.3 * soft + 0.7 * hard, rel=1e-6)


def test_regression_by_hand() -> None:
    """Off by 1 and 3 from the teacher, by 2 and 0 from the labels; T has no part."""
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [5.0]])
    y = torch.tensor([3.0, 2.0])
    assert prediction_loss(student, teacher, y, temperature=9.0).item() == 5.0
    assert prediction_loss(student, teacher, y, alpha=0.0).item() == 2.0
    assert prediction_loss(student, teacher, y, alpha=0.5).item() == 3.5


def test_regression_labels_may_be_a_column() -> None:
    """[B, 1] against [B] would broadcast to B · B differences."""
    student, y = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([3.0, 2.0, 1.0])
    assert hard_loss(student, y[:, None]).item() == hard_loss(student, y).item() == pytest.approx(13 / 3)


def test_the_mean_runs_over_the_classes() -> None:
    """1/C of the usual batch mean."""
    student, teacher = logits(0, 4), logits(1, 4)
    usual = torch.nn.functional.cross_entropy(student, teacher.softmax(-1))
    assert soft_loss(student, teacher).item() == pytest.approx(usual.item() / 4, rel=1e-6)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("published", [True, False])
def test_reduce_T_divides_the_soft_loss_only(classes: int, published: bool) -> None:
    student, teacher, y = logits(0, classes), logits(1, classes), labels(classes)

    def at(alpha: float, reduce_T: float) -> float:
        options = {"alpha": alpha, "temperature": 3.0, "reduce_T": reduce_T, "published": published}
        return prediction_loss(student, teacher, y, **options).item()

    if published:
        assert at(1.0, 4.0) == pytest.approx(at(1.0, 1.0) / 4, rel=1e-6)
        assert at(0.0, 4.0) == at(0.0, 1.0)
        assert at(0.3, 4.0) == pytest.approx(0.3 * at(1.0, 1.0) / 4 + 0.7 * at(0.0, 1.0), rel=1e-6)
    elif classes == 1:
        assert at(1.0, 4.0) == at(1.0, 1.0)
    else:
        assert at(1.0, 4.0) == pytest.approx(at(1.0, 1.0) / 4, rel=1e-6)


class TestNotPublished:
    """The reference's ``new_pred_loss false``: soft · T²/2 whatever alpha, and regression on the labels alone."""

    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("T", [1.0, 3.0])
    def test_classes(self, alpha: float, T: float) -> None:
        student, teacher = logits(0, 3), logits(1, 3)
        expected = reference.soft_cross_entropy(*as_numpy(student, teacher), T) * T**2 / 2
        found = prediction_loss(student, teacher, None, alpha=alpha, temperature=T, published=False)
        assert found.item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    def test_regression(self, alpha: float) -> None:
        student, y = logits(0, 1), labels(1)
        expected = np.mean((student.double().numpy()[:, 0] - y.double().numpy()) ** 2)
        found = prediction_loss(student, None, y, alpha=alpha, temperature=3.0, published=False)
        assert found.item() == pytest.approx(expected, rel=1e-6)


class TestWhatMayBeMissing:
    @pytest.mark.parametrize("classes", [1, 3])
    def test_nothing_that_is_used(self, classes: int) -> None:
        student, teacher, y = logits(0, classes), logits(1, classes), labels(classes)
        full = {alpha: prediction_loss(student, teacher, y, alpha=alpha).item() for alpha in (0.0, 1.0)}
        assert prediction_loss(student, teacher, None, alpha=1.0).item() == full[1.0]
        assert prediction_loss(student, None, y, alpha=0.0).item() == full[0.0]

    @pytest.mark.parametrize(
        ("classes", "given", "options", "message"),
        [
            (3, "teacher", {"alpha": 0.3}, "needs labels"),
            (3, "teacher", {"alpha": 0.0}, "needs labels"),
            (3, "labels", {"alpha": 0.3}, "needs teacher_logits"),
            (3, "labels", {"alpha": 1.0}, "needs teacher_logits"),
            (1, "teacher", {"alpha": 0.3}, "needs labels"),
            (1, "labels", {"alpha": 1.0}, "needs teacher_logits"),
            (3, "labels", {"published": False}, "needs teacher_logits"),
            (1, "teacher", {"published": False}, "needs labels"),
        ],
    )
    def test_what_is_used_is_asked_for(self, classes: int, given: str, options: dict[str, float], message: str) -> None:
        teacher = logits(1, classes) if given == "teacher" else None
        y = labels(classes) if given == "labels" else None
        with pytest.raises(ValueError, match=message):
            prediction_loss(logits(0, classes), teacher, y, **options)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_gradient(classes: int, alpha: float) -> None:
    """Against central differences of the formula, in float64."""
    student, teacher, y = logits(0, classes).requires_grad_(), logits(1, classes), labels(classes)
    prediction_loss(student, teacher, y, alpha=alpha, temperature=2.0).backward()
    s, t, labels_np = as_numpy(student, teacher, y)
    for row in range(BATCH):
        for column in range(classes):
            values = []
            for move in (1e-5, -1e-5):
                moved = s.copy()
                moved[row, column] += move
                values.append(reference.prediction_loss(moved, t, labels_np, alpha, 2.0))
            slope = (values[0] - values[1]) / 2e-5
            assert student.grad[row, column].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher, y = logits(0, 3).to(dtype), logits(1, 3).to(dtype), labels(3)
    expected = reference.prediction_loss(*as_numpy(student, teacher, y), 0.3, 2.0)
    found = prediction_loss(student, teacher, y, alpha=0.3, temperature=2.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_large_logits_stay_finite() -> None:
    student, teacher = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    assert prediction_loss(student, teacher, torch.tensor([0]), alpha=0.5).item() == pytest.approx(5e3)
