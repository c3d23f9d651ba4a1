"""Agreement, divergence and CKA, against sums written out."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_tasks.errors import UserError
from kd_tasks.evaluation.fidelity import LinearCKA, OutputFidelity, measure_fidelity, unbiased_hsic


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def brute_force(student: np.ndarray, teacher: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Agreement and KL of (N, C, H, W) scores, one pixel after the other."""
    equal, divergence, positions = 0, 0.0, 0
    for n, y, x in itertools.product(range(len(student)), *(range(s) for s in student.shape[2:])):
        if not counts[n, y, x]:
            continue
        own, other = (scores[n, :, y, x].astype(float) for scores in (student, teacher))
        p, q = (np.exp(s - s.max()) / np.exp(s - s.max()).sum() for s in (other, own))
        divergence += sum(p[c] * (math.log(p[c]) - math.log(q[c])) for c in range(len(p)))
        equal += int(own.argmax() == other.argmax())
        positions += 1
    return equal / positions, divergence / positions


def test_maps_with_a_mask_over_uneven_batches(generator: torch.Generator) -> None:
    student, teacher = (3 * torch.randn(5, 4, 6, 7, generator=generator) for _ in range(2))
    mask = torch.rand(5, 6, 7, generator=generator) > 0.3
    scores = OutputFidelity()
    for part in (slice(0, 3), slice(3, 5)):
        scores.update(student[part], teacher[part], mask[part])
    agreement, divergence = brute_force(student.numpy(), teacher.numpy(), mask.numpy())
    assert scores.positions == int(mask.sum())
    assert scores.agreement() == pytest.approx(agreement, abs=1e-12)
    assert scores.divergence() == pytest.approx(divergence, rel=1e-5)


def test_samples(generator: torch.Generator) -> None:
    student, teacher = (torch.randn(9, 3, generator=generator) for _ in range(2))
    scores = OutputFidelity()
    scores.update(student, teacher)
    agreement, divergence = brute_force(
        student[:, :, None, None].numpy(), teacher[:, :, None, None].numpy(), np.ones((9, 1, 1), dtype=bool)
    )
    assert (scores.agreement(), scores.divergence()) == pytest.approx((agreement, divergence), rel=1e-5)


def test_the_divergence_is_the_teachers_from_the_students_side() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    scores = OutputFidelity()
    scores.update(student, teacher)
    assert scores.divergence() == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5), rel=1e-6)


def test_a_smaller_map_is_resized_to_the_teachers(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 4, 3, 5, generator=generator), torch.randn(2, 4, 6, 10, generator=generator)
    mask = torch.rand(2, 12, 20, generator=generator) > 0.5
    resized = F.interpolate(student, size=(6, 10), mode="bilinear", align_corners=False)
    scores = OutputFidelity()
    scores.update(student, teacher, mask)
    nearest = mask[:, 1::2, 1::2]  # the centre of a pixel of half the size lies on the border; the second one is taken
    agreement, divergence = brute_force(resized.numpy(), teacher.numpy(), nearest.numpy())
    assert scores.agreement() == pytest.approx(agreement, abs=1e-12)
    assert scores.divergence() == pytest.approx(divergence, rel=1e-5)


def test_a_student_that_is_the_teacher(generator: torch.Generator) -> None:
    outputs = 100 * torch.randn(2, 4, 3, 5, generator=generator)
    scores = OutputFidelity()
    scores.update(outputs.bfloat16(), outputs.bfloat16())
    assert (scores.agreement(), scores.divergence()) == (1.0, 0.0)


def test_nothing_seen_is_not_a_number() -> None:
    scores = OutputFidelity()
    scores.update(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3))
    assert math.isnan(scores.agreement())
    assert math.isnan(scores.divergence())
    assert math.isnan(LinearCKA().compute())


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((2, 3), (2, 3, 4, 4))])
def test_shapes_that_do_not_fit_are_both_named(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(UserError) as error:
        OutputFidelity().update(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
    assert str(shapes[0]) in str(error.value)
    assert str(shapes[1]) in str(error.value)


# --- CKA


def hsic_by_definition(x: Tensor, y: Tensor) -> float:
    """The U-statistic: the mean over all ordered quadruples of different samples, linear kernels."""
    k, m, n = (x @ x.T).tolist(), (y @ y.T).tolist(), len(x)
    terms = [k[i][j] * (m[i][j] + m[q][r] - 2 * m[i][q]) for i, j, q, r in itertools.permutations(range(n), 4)]
    return sum(terms) / len(terms)


def test_the_estimator_is_the_u_statistic(generator: torch.Generator) -> None:
    x, y = torch.randn(7, 3, generator=generator).double(), torch.randn(7, 5, generator=generator).double()
    assert float(unbiased_hsic(x @ x.T, y @ y.T)) == pytest.approx(hsic_by_definition(x, y), rel=1e-10)


def test_one_group_is_the_closed_form(generator: torch.Generator) -> None:
    x, y = torch.randn(8, 3, generator=generator).double(), torch.randn(8, 5, generator=generator).double()
    alignment = LinearCKA(group=8)
    alignment.update(x, y)
    expected = hsic_by_definition(x, y) / math.sqrt(hsic_by_definition(x, x) * hsic_by_definition(y, y))
    assert alignment.compute() == pytest.approx(expected, rel=1e-10)


def test_groups_are_averaged_before_the_ratio(generator: torch.Generator) -> None:
    x, y = torch.randn(17, 3, generator=generator).double(), torch.randn(17, 4, generator=generator).double()
    alignment = LinearCKA(group=6)
    for start in range(17):  # batches of one, as test loaders have
        alignment.update(x[start : start + 1], y[start : start + 1])
    parts = [slice(0, 6), slice(6, 12), slice(12, 17)]
    between, own, other = (sum(hsic_by_definition(a[p], b[p]) for p in parts) / 3 for a, b in ((x, y), (x, x), (y, y)))
    assert alignment.compute() == pytest.approx(between / math.sqrt(own * other), rel=1e-10)
    assert alignment.groups == 3


def cka(x: Tensor, y: Tensor, group: int = 32) -> float:
    alignment = LinearCKA(group)
    alignment.update(x, y)
    return alignment.compute()


def test_invariances(generator: torch.Generator) -> None:
    x, noise = torch.randn(32, 6, generator=generator).double(), torch.randn(32, 6, generator=generator).double()
    y = x[:, :4] ** 2 + 0.5 * noise[:, :4]
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator).double())
    stretch = torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]).double())
    value = cka(x, y)
    assert cka(x @ rotation, y) == pytest.approx(value, rel=1e-9)
    assert cka(1e3 * x, 1e-3 * y) == pytest.approx(value, rel=1e-9)
    assert cka(x + 100, y - 7) == pytest.approx(value, rel=1e-6)
    assert cka(y, x) == pytest.approx(value, rel=1e-9)
    assert cka(x @ rotation, x) == pytest.approx(1.0, rel=1e-9)
    assert abs(cka(x @ stretch, y) - value) > 0.01


def test_independent_features_have_no_bias_with_few_samples(generator: torch.Generator) -> None:
    alignment = LinearCKA(group=8)
    alignment.update(*(torch.randn(8 * 400, 30, generator=generator) for _ in range(2)))
    assert abs(alignment.compute()) < 0.05


def test_maps_and_tokens_are_pooled(generator: torch.Generator) -> None:
    maps, tokens = torch.randn(16, 5, 3, 4, generator=generator), torch.randn(16, 7, 6, generator=generator)
    assert cka(maps, tokens, 16) == pytest.approx(cka(maps.mean((2, 3)), tokens.mean(1), 16), rel=1e-6)
    flat = LinearCKA(16, pool=False)
    flat.update(maps, tokens)
    assert flat.compute() == pytest.approx(cka(maps.flatten(1), tokens.flatten(1), 16), rel=1e-6)


def test_features_that_do_not_vary_have_no_similarity(generator: torch.Generator) -> None:
    assert math.isnan(cka(torch.zeros(8, 3), torch.randn(8, 3, generator=generator), 8))
    with pytest.raises(ValueError, match="at least 4"):
        LinearCKA(group=3)


# --- the whole measurement


def test_measure_fidelity(generator: torch.Generator) -> None:
    batches = [torch.randn(n, 3, 4, 5, generator=generator) for n in (6, 2)]
    seen: list[int] = []
    result = measure_fidelity(
        student=lambda batch: ({"logits": batch * 2}, {"layer2": batch, "last": -batch}),
        teacher=lambda batch: ({"logits": batch}, {"layer3": batch, "last": 5 * batch}),
        loader=batches,
        taps=[("layer2", "layer3"), "last"],
        mask=lambda batch: batch[:, 0] > 0,
        progress=seen.append,
    )
    assert result.agreement == 1.0
    assert result.divergence > 0
    assert result.similarity == {"layer2 ~ layer3": pytest.approx(1.0), "last": pytest.approx(1.0)}
    assert result.positions == sum(int((batch[:, 0] > 0).sum()) for batch in batches)
    assert seen == [1, 2]


def test_missing_names_are_errors_with_the_nearest() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(UserError, match=r"'logit' is not among the student's outputs\. Did you mean 'logits'"):
        measure_fidelity(lambda _: ({"logits": x}, {}), lambda _: ({"logits": x}, {}), [0], output="logit")
    with pytest.raises(UserError, match="teacher's taps"):
        measure_fidelity(lambda _: ({"logits": x}, {"a": x}), lambda _: ({"logits": x}, {}), [0], taps=["a"])
