"""Losses on relations between samples: naive loops, degenerate batches, precision, options, refusals."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from loss_cases import read
from loss_inputs import each
from test_loss_hazards import HAZARDS
from torch import Tensor, nn
from torch.autograd import gradcheck

from kd_tasks.losses import (
    CCKD,
    PKT,
    AbsoluteTeacher,
    HardDarkRank,
    LogEuclidean,
    Loss,
    PairWise,
    RelativeTeacher,
    RKDAngle,
    RKDDistance,
    SimilarityPreserving,
)
from kd_tasks.losses import gram as gram_module
from kd_tasks.losses.gram import (
    AngleDifference,
    LogDistance,
    cosines,
    eigen,
    gram,
    log_slopes,
    mean_logarithm,
    squared_distances,
    symmetric_product,
)

RELATIONAL = [
    RKDDistance(),
    RKDAngle(),
    HardDarkRank(),
    HardDarkRank(normalise=False),
    CCKD(),
    CCKD("gaussian_exact"),
    CCKD("bilinear"),
    SimilarityPreserving(),
    PKT(),
    RelativeTeacher(),
    RelativeTeacher("pairs"),
    LogEuclidean(),
]


def named(loss: Loss) -> str:
    return type(loss).__name__


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fixture(name: str, *keys: str) -> list[Tensor]:
    data = read(name)
    return [torch.from_numpy(data[f"in_{key}"]).double() for key in keys]


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def naive_distance(student: Tensor, teacher: Tensor) -> float:
    def relative(rows: Tensor) -> list[list[float]]:
        all_pairs = [[(a - b).norm().item() for b in rows] for a in rows]
        positive = [d for row in all_pairs for d in row if d > 0]
        mean = sum(positive) / len(positive)
        return [[d / mean for d in row] for row in all_pairs]

    of_student, of_teacher = relative(student), relative(teacher)
    pairs = list(itertools.product(range(len(student)), repeat=2))
    return sum(smooth_l1(of_student[i][j] - of_teacher[i][j]) for i, j in pairs) / len(pairs)


def naive_angle(student: Tensor, teacher: Tensor) -> float:
    def cosine(rows: Tensor, i: int, j: int, k: int) -> float:
        one, other = rows[j] - rows[i], rows[k] - rows[i]
        lengths = one.norm() * other.norm()
        return float(one @ other / lengths) if lengths > 0 else 0.0

    triplets = list(itertools.product(range(len(student)), repeat=3))
    return sum(smooth_l1(cosine(student, *t) - cosine(teacher, *t)) for t in triplets) / len(triplets)


def naive_dark_rank(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        others.sort(key=lambda j: float((teacher[i] - teacher[j]).norm()))
        scores = torch.stack([-3 * (student[i] - student[j]).norm() ** 3 for j in others[:4]])
        for place in range(len(scores)):
            total -= float(scores[place] - scores[place:].logsumexp(0))
    return total / len(student)


def naive_gaussian(student: Tensor, teacher: Tensor) -> float:
    def correlation(one: Tensor, other: Tensor) -> float:
        product = float(one @ other / (one.norm() * other.norm()))
        return math.exp(-0.8) * (1 + 0.8 * product + 0.8**2 / 2 * product**2)

    pairs = list(itertools.product(range(len(student)), repeat=2))
    return sum(
        (correlation(student[i], student[j]) - correlation(teacher[i], teacher[j])) ** 2 for i, j in pairs
    ) / len(pairs)


def naive_similarity(student: Tensor, teacher: Tensor) -> float:
    def similarity(rows: Tensor) -> list[Tensor]:
        products = [torch.stack([one.flatten() @ other.flatten() for other in rows]) for one in rows]
        return [row / row.norm() for row in products]

    pairs = zip(similarity(student), similarity(teacher), strict=True)
    return sum(float((a - b).square().sum()) for a, b in pairs) / len(student) ** 2


def naive_transfer(student: Tensor, teacher: Tensor) -> float:
    def chances(rows: Tensor) -> list[Tensor]:
        kernel = [torch.stack([F.cosine_similarity(a, b, dim=0) / 2 + 0.5 for b in rows]) for a in rows]
        return [row / row.sum() for row in kernel]

    pairs = zip(chances(teacher), chances(student), strict=True)
    return sum(float((t * ((t + 1e-7) / (s + 1e-7)).log()).sum()) for t, s in pairs) / len(student) ** 2


def naive_log_euclidean(student: Tensor, teacher: Tensor) -> float:
    def logarithm(rows: Tensor) -> Tensor:
        rows, one = F.normalize(rows.relu()), torch.eye(len(rows), dtype=rows.dtype)
        matrix = (rows @ rows.T + 0.5 * one) / 4
        # The logarithm of A / 4 as a series around I.
        power, total = one, torch.zeros_like(matrix)
        for n in range(1, 200):
            power = power @ (one - matrix)
            total -= power / n
        return total + math.log(4) * one

    return float((logarithm(student) - logarithm(teacher)).square().sum())


@pytest.mark.parametrize(
    ("loss", "naive"),
    [
        (RKDDistance(), naive_distance),
        (RKDAngle(), naive_angle),
        (HardDarkRank(normalise=False), naive_dark_rank),
        (HardDarkRank(), lambda s, t: naive_dark_rank(F.normalize(s), F.normalize(t))),
        (CCKD(), naive_gaussian),
        (SimilarityPreserving(), naive_similarity),
        (PKT(), naive_transfer),
    ],
    ids=lambda value: named(value) if isinstance(value, Loss) else "",
)
def test_losses_against_naive_loops(loss: Loss, naive: Callable[[Tensor, Tensor], float]) -> None:
    student, teacher = normal(0, 7, 5), 2 * normal(1, 7, 3) + 1
    assert loss(student, teacher).item() == pytest.approx(naive(student, teacher), rel=1e-9)


def test_log_euclidean_against_a_series() -> None:
    student, teacher = normal(0, 3, 9), normal(1, 3, 4)
    value = LogEuclidean(eps=0.5)(student, teacher).item()
    assert value == pytest.approx(naive_log_euclidean(student, teacher), rel=1e-9)


@pytest.mark.parametrize("loss", RELATIONAL, ids=named)
def test_maps_are_flattened_and_widths_are_free(loss: Loss) -> None:
    student, teacher = normal(0, 4, 3, 5, 2), normal(1, 4, 6, 1, 3)
    assert loss(student, teacher) == loss(student.flatten(1), teacher.flatten(1))


@pytest.mark.parametrize("loss", RELATIONAL, ids=named)
def test_the_order_of_the_samples_does_not_matter(loss: Loss) -> None:
    student, teacher, order = normal(0, 6, 5), normal(1, 6, 4), torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "loss", [RKDDistance(), RKDAngle(), CCKD(), SimilarityPreserving(), PKT(), LogEuclidean()], ids=named
)
@pytest.mark.parametrize("factor", [1e-7, 1e6])
def test_the_size_of_the_features_does_not_matter(loss: Loss, factor: float) -> None:
    student, teacher = normal(0, 6, 5, dtype=torch.float32), normal(1, 6, 4, dtype=torch.float32)
    torch.testing.assert_close(loss(factor * student, teacher / factor), loss(student, teacher), rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", [RKDDistance(), RKDAngle(), RelativeTeacher()], ids=named)
def test_a_common_offset_does_not_matter(loss: Loss) -> None:
    student, teacher = normal(0, 6, 5), normal(1, 6, 4)
    torch.testing.assert_close(loss(student + 1e4, teacher - 1e5), loss(student, teacher), rtol=1e-7, atol=0)


def slow_cosines(rows: Tensor) -> Tensor:
    directions = F.normalize(rows[None] - rows[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def slow_angle(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(slow_cosines(student), slow_cosines(teacher))


def close_pairs(rows: Tensor) -> Tensor:
    rows = rows.clone()
    rows[1::2] = rows[::2] + 1e-3 * rows[1::2]
    return rows


CHANGES = {
    "normal": lambda x: x,
    "large offset": lambda x: x + 1000,
    "small beside an offset": lambda x: 0.01 * x + 10,
    "near pairs": close_pairs,
    "nearly one point": lambda x: x[:1] + 1e-2 * x,
    "large": lambda x: 3e4 * x,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_angles_in_single_precision_are_those_in_double_precision(change: Callable[[Tensor], Tensor]) -> None:
    student, teacher = change(normal(0, 24, 64)).float(), normal(1, 24, 48).float()
    exact = student.double().requires_grad_()
    expected = slow_angle(exact, teacher.double())
    expected.backward()
    student.requires_grad_()
    value = RKDAngle()(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (student.grad - exact.grad).abs().max() < 1e-5 * exact.grad.abs().max()


@pytest.mark.parametrize("change", [CHANGES["near pairs"], CHANGES["small beside an offset"]])
def test_distances_in_single_precision_are_those_in_double_precision(change: Callable[[Tensor], Tensor]) -> None:
    rows = change(normal(0, 24, 64)).float()
    expected = (rows[None].double() - rows[:, None].double()).square().sum(dim=2)
    torch.testing.assert_close(squared_distances(rows), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("at_once", [1, 100, 250])
def test_angles_computed_in_parts(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    student, teacher = normal(0, 9, 4).requires_grad_(), normal(1, 9, 5)
    whole = RKDAngle()(student, teacher)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setitem(gram_module.ANGLES_AT_ONCE, "cpu", at_once)
    parts = RKDAngle()(student, teacher)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(parts, student)[0], gradient, rtol=1e-9, atol=1e-15)


def test_gradcheck_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = normal(0, 6, 3).requires_grad_(), squared_distances(normal(1, 6, 2))
    function = lambda x: AngleDifference.apply(squared_distances(x), teacher)  # noqa: E731
    assert gradcheck(function, [student])
    monkeypatch.setitem(gram_module.ANGLES_AT_ONCE, "cpu", 72)
    assert gradcheck(function, [student])
    # Differences beyond 1, where smooth L1 is linear: all on a line against a wide triangle.
    line = torch.tensor([[0.0, 0.1], [1.0, 0.0], [2.1, 0.0], [-1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    teacher = squared_distances(normal(3, 4, 3))
    assert (slow_cosines(line.detach()) - slow_cosines(normal(3, 4, 3))).abs().max() > 1.2
    assert gradcheck(function, [line])


def test_gradcheck_angles_as_a_function_of_any_distances() -> None:
    student = (normal(0, 5, 5).square() + 0.5).fill_diagonal_(0).requires_grad_()
    teacher = squared_distances(normal(1, 5, 3))
    # The function reads both triangles; a symmetric perturbation is what squared distances can make.
    symmetric = lambda x: x.triu(1) + x.triu(1).T  # noqa: E731
    assert gradcheck(lambda x: AngleDifference.apply(symmetric(x), teacher), [student])


@pytest.mark.parametrize("shape", [(5, 3), (5, 9), (2, 4, 3)])
@pytest.mark.parametrize("turned", [False, True])
def test_gradcheck_products_and_cosines(shape: tuple[int, ...], turned: bool) -> None:
    rows = normal(0, *shape).requires_grad_()
    factors = normal(1, *shape[:-1], shape[-2] if not turned else 1)
    for function in (gram, cosines):
        # A factor makes the incoming gradient asymmetric.
        assert gradcheck(lambda x, function=function: factors * function(x), [rows])
        if turned:
            other = rows.detach().mT.contiguous().requires_grad_()
            assert gradcheck(lambda x, function=function: factors * function(x.mT), [other])
    assert torch.autograd.gradgradcheck(lambda x: factors * gram(x), [rows])


def test_gradcheck_log_distance_with_equal_eigenvalues() -> None:
    target = normal(1, 4, 4)
    target = target + target.T
    distinct = gram(normal(0, 4, 6))
    vectors = torch.linalg.eigh(distinct).eigenvectors
    equal = (vectors * torch.tensor([0.3, 0.3, 0.3, 2.0], dtype=torch.float64)) @ vectors.T
    for matrix in (distinct, equal, torch.eye(4, dtype=torch.float64)):
        symmetric = lambda x: LogDistance.apply((x + x.T) / 2, target, 1e-3)  # noqa: E731
        assert gradcheck(symmetric, [matrix.requires_grad_()])


def test_slopes_of_the_logarithm() -> None:
    values = torch.tensor([1e-3, 1e-3, 0.5, 0.5 * (1 + 1e-9), 300.0], dtype=torch.float64)
    slopes = log_slopes(values)
    torch.testing.assert_close(slopes.diagonal(), 1 / values, rtol=1e-12, atol=0)
    assert slopes[0, 1].item() == pytest.approx(1000, rel=1e-12)
    assert slopes[2, 3].item() == pytest.approx(2, rel=1e-8)
    assert slopes[0, 4].item() == pytest.approx((values[4].log() - values[0].log()).item() / 299.999, rel=1e-9)


def test_products_of_large_matrices() -> None:
    for samples, width in ((67, 5000), (256, 300), (130, 1200)):
        rows = normal(0, samples, width)
        assert samples * rows.numel() >= 2**24
        products = symmetric_product(rows)
        torch.testing.assert_close(products, rows @ rows.T, rtol=1e-10, atol=1e-10)


def test_equal_rows_of_the_student_get_a_small_gradient() -> None:
    student, teacher = normal(0, 8, 16, dtype=torch.float32), normal(1, 8, 16, dtype=torch.float32)
    student[5] = student[2]
    student.requires_grad_()
    for loss in (RKDAngle(), RKDDistance(), RelativeTeacher()):
        (gradient,) = torch.autograd.grad(loss(student, teacher), student)
        assert 0 < gradient.abs().max() < 10
    (published,) = torch.autograd.grad(slow_angle(student, teacher), student)
    assert published.abs().max() > 1e6


def test_a_sample_of_zeros_gets_a_small_gradient() -> None:
    student, teacher = normal(0, 8, 16, dtype=torch.float32), normal(1, 8, 16, dtype=torch.float32)
    student[3] = 0
    student.requires_grad_()
    for loss in (SimilarityPreserving(), PKT(), CCKD(), LogEuclidean()):
        (gradient,) = torch.autograd.grad(loss(student, teacher), student)
        assert gradient.isfinite().all()
        assert 0 < gradient.abs().max() < 1e3
        if not isinstance(loss, SimilarityPreserving):
            assert (gradient[3] == 0).all()
    (published,) = torch.autograd.grad(
        F.mse_loss(F.normalize(student @ student.T), F.normalize(teacher @ teacher.T)), student
    )
    assert published.abs().max() > 1e6


@pytest.mark.parametrize(
    "loss",
    [RKDDistance(), RKDAngle(), HardDarkRank(), HardDarkRank(normalise=False), RelativeTeacher()],
    ids=named,
)
def test_a_student_of_equal_rows_has_a_loss_and_no_gradient(loss: Loss) -> None:
    student = normal(0, 1, 16, dtype=torch.float32).expand(6, 16).clone().requires_grad_()
    value = loss(student, normal(1, 6, 16, dtype=torch.float32))
    value.backward()
    assert value > 0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("hazard", [h for h in HAZARDS if h.__name__ != "large_float16"], ids=lambda h: h.__name__)
@pytest.mark.parametrize(
    "build",
    [lambda: CCKD("bilinear"), lambda: CCKD("author"), lambda: HardDarkRank(normalise=False)],
    ids=["bilinear", "author", "HardDarkRank"],
)
def test_losses_that_grow_with_the_features_are_finite(build: Callable[[], Loss], hazard: Callable) -> None:
    loss = build()
    inputs = hazard(loss)
    student = each(lambda x: x.detach().requires_grad_(), inputs.student)
    if len(student) < loss.smallest_batch:
        with pytest.raises(ValueError, match="batch of at least"):
            loss(student, inputs.teacher)
        return
    value = loss(student, inputs.teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [*(loss for loss in RELATIONAL if not isinstance(loss, HardDarkRank)), AbsoluteTeacher(), CCKD("author")],
    ids=named,
)
def test_equal_student_and_teacher_are_at_a_minimum(loss: Loss) -> None:
    student = normal(0, 6, 5).requires_grad_()
    value = loss(student, student)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-7


def test_dark_rank_takes_as_many_neighbours_as_there_are_and_never_the_sample_itself() -> None:
    student, teacher = normal(0, 4, 5), normal(1, 4, 5)
    assert HardDarkRank(permute_len=3)(student, teacher) == HardDarkRank(permute_len=99)(student, teacher)
    teacher[1] = teacher[0]
    # Of two equal rows each is the nearest neighbour of the other.
    nearest = HardDarkRank(permute_len=2).distances(teacher).fill_diagonal_(9).argmin(dim=1)
    assert nearest[:2].tolist() == [1, 0]
    assert HardDarkRank(permute_len=2)(student, teacher).isfinite()
    with pytest.raises(ValueError, match="batch of at least 3"):
        HardDarkRank()(student[:2], teacher[:2])


def test_congruence_is_the_squared_norm() -> None:
    student, teacher = fixture("cckd", "emb_s", "emb_t")
    pitfall = float(read("cckd")["out64__torchdistill_unsquared"])
    for kernel in ("gaussian", "gaussian_exact", "bilinear"):
        assert CCKD(kernel)(student, teacher).item() != pytest.approx(pitfall, rel=1e-2)
    unsquared = CCKD()(student, teacher).item() ** 0.5 / len(student)
    assert unsquared == pytest.approx(pitfall, rel=1e-6)


def test_the_series_of_the_gaussian_kernel_converges_to_it() -> None:
    rows = normal(0, 6, 5)
    exact = CCKD("gaussian_exact").correlation(rows)
    errors = [float((CCKD(order=p).correlation(rows) - exact).abs().max()) for p in (1, 2, 4, 10)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8
    unit = F.normalize(rows)
    torch.testing.assert_close(exact, torch.exp(-0.4 * torch.cdist(unit, unit).square()), rtol=1e-7, atol=1e-9)


def test_congruence_at_a_common_width_trains_both_layers() -> None:
    loss = CCKD(width=6)
    student, teacher = normal(0, 5, 3, 2, 2).float(), normal(1, 5, 7).float()
    loss.prepare(student, teacher)
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {
        "project_student.weight": (6, 12),
        "project_student.bias": (6,),
        "project_teacher.weight": (6, 7),
        "project_teacher.bias": (6,),
    }
    loss(student, teacher).backward()
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())
    assert not list(CCKD().parameters())
    author = CCKD("author", width=6)
    author.prepare(student, teacher)
    assert author(student, teacher) > 0


def test_similarity_does_not_overflow() -> None:
    student, teacher = 6e4 * normal(0, 4, 64, 28, 28).tanh().half(), normal(1, 4, 8, 7, 7).half()
    torch.testing.assert_close(
        SimilarityPreserving()(student, teacher),
        SimilarityPreserving()(student.double(), teacher.double()).float(),
        rtol=1e-4,
        atol=0,
    )


def test_transfer_keeps_the_diagonal() -> None:
    chances = PKT().probabilities(normal(0, 6, 5))
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(6, dtype=torch.float64))
    assert (chances.diagonal() == chances.amax(dim=1)).all()
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert PKT()(opposed, torch.ones(2, 2)).isfinite()


def test_relative_teacher_reductions() -> None:
    student, teacher = fixture("metric_teachers", "emb_s", "emb_t")
    difference = torch.cdist(student, student) - torch.cdist(teacher, teacher)
    torch.testing.assert_close(RelativeTeacher()(student, teacher), difference.norm(), rtol=1e-9, atol=0)
    pairs = torch.stack([difference[i, j].abs() for i in range(12) for j in range(i)]).mean()
    torch.testing.assert_close(RelativeTeacher("pairs")(student, teacher), pairs, rtol=1e-9, atol=0)
    two = RelativeTeacher()(torch.cat([student, student]), torch.cat([teacher, teacher]))
    torch.testing.assert_close(two, 2 * difference.norm(), rtol=1e-9, atol=0)


def test_log_euclidean_of_one_teacher_and_of_the_mean() -> None:
    data = read("reid_log_euclidean")
    student, *teachers = fixture("reid_log_euclidean", "student", "teacher0", "teacher1", "teacher2")
    weights = torch.from_numpy(data["in_alpha"])
    student.requires_grad_()
    loss = LogEuclidean()
    single = loss(student, teachers[0])
    assert single.item() == pytest.approx(float(data["out_single_teacher0"]), rel=1e-9)
    (gradient,) = torch.autograd.grad(single, student)
    torch.testing.assert_close(gradient, torch.from_numpy(data["out_grad_single"]), rtol=1e-6, atol=1e-9)
    assert single.item() != pytest.approx(float(data["out_euclidean_teacher0"]), rel=0.1)

    one = torch.ones(1, dtype=torch.float64)
    for name, rows in (("student", student.detach()), ("teacher0", teachers[0])):
        logarithm, spread = mean_logarithm(loss.similarity(rows)[None], one, 1e-3)
        torch.testing.assert_close(logarithm, torch.from_numpy(data[f"out_log_{name}"]), rtol=1e-8, atol=1e-9)
        assert spread.item() == pytest.approx(0, abs=1e-9)

    matrices = torch.stack([loss.similarity(rows) for rows in teachers])
    mean, spread = mean_logarithm(matrices, weights, 1e-3)
    distance = LogDistance.apply(loss.similarity(student), mean, 1e-3).item()
    assert distance == pytest.approx(float(data["out_mean_target"]), rel=1e-9)
    assert distance + spread.item() == pytest.approx(float(data["out"]), rel=1e-9)
    values, vectors = eigen(matrices[0], 1e-3)
    torch.testing.assert_close(vectors * values @ vectors.T, matrices[0] + 1e-3 * torch.eye(6), rtol=1e-8, atol=1e-9)


def test_log_euclidean_weights() -> None:
    student, teachers = normal(0, 4, 9), [normal(seed, 4, 7) for seed in (1, 2, 3)]
    singles = [LogEuclidean()(student, one).item() for one in teachers]
    assert LogEuclidean()(student, teachers).item() == pytest.approx(sum(singles) / 3, rel=1e-9)
    loss = LogEuclidean([0.5, 0.0, 2.0])
    assert loss(student, teachers).item() == pytest.approx(0.5 * singles[0] + 2 * singles[2], rel=1e-9)
    assert LogEuclidean([0.0, 0.0, 0.0])(student, teachers).item() == 0
    assert loss.state_dict()["weights"].tolist() == [0.5, 0.0, 2.0]
    loss.weights.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert loss(student, teachers).item() == pytest.approx(singles[1], rel=1e-9)
    with pytest.raises(ValueError, match="LogEuclidean has 3 weights, but is given 2 teachers"):
        loss(student, teachers[:2])


def test_log_euclidean_of_a_batch_larger_than_the_width() -> None:
    student, teacher = normal(0, 12, 3, dtype=torch.float32).requires_grad_(), normal(1, 12, 2, dtype=torch.float32)
    value = LogEuclidean()(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_cosines_of_nodes_have_the_gradient_of_plain_normalisation() -> None:
    student, teacher = normal(0, 2, 6, 8, 9).requires_grad_(), normal(1, 2, 3, 8, 9)

    def plain(features: Tensor, detach: bool) -> Tensor:
        nodes = F.max_pool2d(features, (4, 4), (4, 4), ceil_mode=True).flatten(2)
        lengths = nodes.norm(dim=1, keepdim=True)
        nodes = nodes / (lengths.detach() if detach else lengths)
        return nodes.transpose(1, 2) @ nodes

    for detach in (False, True):
        expected = F.mse_loss(plain(student, detach), plain(teacher, detach))
        value = PairWise(detach_norm=detach)(student, teacher)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
        gradients = [torch.autograd.grad(loss, student)[0] for loss in (value, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        *((loss, ((4, 3), (5, 3))) for loss in RELATIONAL),
        *((loss, ((4,), (4,))) for loss in RELATIONAL),
        (CCKD("author"), ((4, 3), (4, 5))),
        (AbsoluteTeacher(), ((4, 3), (4, 5))),
    ],
    ids=lambda value: named(value) if isinstance(value, Loss) else str(value),
)
def test_shapes_that_do_not_fit_are_named_both(loss: Loss, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError) as error:
        loss(*(torch.randn(shape) for shape in shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)
    assert named(loss) in str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HardDarkRank(alpha=0), "HardDarkRank: alpha"),
        (lambda: HardDarkRank(beta=0.5), "HardDarkRank: beta"),
        (lambda: HardDarkRank(permute_len=1), "HardDarkRank: permute_len"),
        (lambda: CCKD("rbf"), "CCKD: kernel"),
        (lambda: CCKD(gamma=0), "CCKD: gamma"),
        (lambda: CCKD(order=0), "CCKD: order"),
        (lambda: CCKD(width=0), "CCKD: width"),
        (lambda: PKT(eps=0), "PKT: eps"),
        (lambda: RelativeTeacher("mean"), "RelativeTeacher: reduction"),
        (lambda: LogEuclidean(eps=0), "LogEuclidean: eps"),
        (lambda: LogEuclidean(weights=[]), "LogEuclidean: weights"),
        (lambda: LogEuclidean(weights=[1.0, -0.1]), "LogEuclidean: weights"),
    ],
)
def test_settings_without_meaning_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_connections_made_in_inference_mode_serve_in_training() -> None:
    student, teacher = torch.randn(2, 3, 10, 14, requires_grad=True), torch.randn(2, 3, 10, 14)
    loss = PairWise(pool=2, neighbours=5)
    with torch.inference_mode():
        loss(student, teacher)
    loss(student, teacher).backward()
    assert student.grad is not None
