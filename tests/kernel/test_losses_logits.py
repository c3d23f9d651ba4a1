"""Losses on logits: what the matrix of all losses cannot see."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from loss_cases import read
from loss_cases.logits import GivenNoise
from torch import Tensor

from kd_tasks.losses import (
    CWTM,
    DIST,
    DKD,
    DKPP,
    ONE,
    WGANGP,
    Consistency,
    GeneralisedDistillation,
    Hint,
    LabelSmoothing,
    LogitDistance,
    LogitRegression,
    LogitStandardisation,
    Loss,
    MutualLearning,
    NoisyTeacher,
    PatientPrediction,
    SoftTargets,
)
from kd_tasks.registry import LOSSES


def arrays(name: str) -> dict[str, Tensor]:
    """The arrays of a fixture as tensors, in double precision."""
    tensors = {key: torch.from_numpy(array) for key, array in read(name).items() if array.dtype.kind in "fi"}
    return {key: x.double() if x.is_floating_point() else x for key, x in tensors.items()}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape: int, count: int, seed: int = 2) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed))


def same(actual: Tensor, expected: Tensor | float, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=1e-12)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


# Conventions that are not ours


def test_logits_of_several_teachers_are_not_averaged() -> None:
    x = arrays("multi_teacher_you")
    teachers = [x[f"in_logits_t{i}"] for i in (1, 2, 3)]
    wrong = x["out64__PITFALL_avg_logits"].item()
    for form in ("kl", "cross_entropy"):
        value = SoftTargets(form=form)(x["in_logits_s"], teachers).item()
        assert value != pytest.approx(wrong, rel=1e-2)


def test_a_number_added_to_all_logits_is_not_the_noise() -> None:
    x = arrays("noisy_teacher")
    student, teacher, noise = x["in_logits_s"], x["in_logits_t"], x["in_xi"] * x["in_mask"]
    value = GivenNoise(noise)(student, teacher)
    same(LogitRegression()(student, teacher + noise), x["out64__tf_additive"], 1e-6)
    assert value.item() != pytest.approx(x["out64__tf_additive"].item(), rel=1e-3)


def test_label_smoothing_spreads_over_all_classes_the_true_one_among_them() -> None:
    x = arrays("label_smoothing")
    value = LabelSmoothing()(x["in_logits_s"], label=x["in_target"]).item()
    assert value != pytest.approx(x["out64__PITFALL_offtarget_K-1"].item(), rel=1e-3)


def test_all_that_parts_mutual_learning_from_its_authors_code_is_the_small_number() -> None:
    x = arrays("dml")
    own, label = x["in_z1"].softmax(dim=1), x["in_target"]
    hard = F.cross_entropy(x["in_z1"], label)
    terms = [
        (p * (1e-8 + p / (own + 1e-8)).log()).sum(dim=1).mean() for p in (x["in_z2"].softmax(1), x["in_z3"].softmax(1))
    ]
    same(hard + terms[0], x["out64"], 1e-8)
    same(hard + sum(terms), x["out64__K3_official_sum"], 1e-8)


# Values


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_forms_differ_by_the_entropy_of_the_target(temperature: float) -> None:
    student, teachers = draw(3, 4, 5, 2), [draw(3, 4, 5, 2, seed=i) for i in (1, 2)]
    target = torch.stack([(t / temperature).softmax(dim=1) for t in teachers]).mean(dim=0)
    entropy = temperature**2 * -(target * target.log()).sum(dim=1).mean()
    kl, whole = (SoftTargets(temperature, form)(student, teachers) for form in ("kl", "cross_entropy"))
    same(whole - kl, entropy)
    naive = -(target * (student / temperature).softmax(dim=1).log()).sum(dim=1).mean() * temperature**2
    same(whole, naive)
    same(
        gradient(lambda s: SoftTargets(temperature)(s, teachers), student),
        gradient(lambda s: SoftTargets(temperature, "cross_entropy")(s, teachers), student),
    )


def test_one_teacher_in_a_list_is_that_teacher() -> None:
    student, teacher = draw(3, 4), draw(3, 4, seed=1)
    assert SoftTargets()(student, [teacher]) == SoftTargets()(student, teacher)
    assert MutualLearning()(student, [teacher]) == MutualLearning()(student, teacher)
    assert LogitStandardisation()(student, [teacher]) == LogitStandardisation()(student, teacher)


def test_generations_are_averaged_as_probabilities() -> None:
    x = arrays("ban")
    value = SoftTargets(1.0, "cross_entropy")(x["in_logits_s"], list(x["in_gen_logits"]))
    same(value, -(x["aux_ensemble_mean_prob"] * x["in_logits_s"].log_softmax(dim=1)).sum(dim=1).mean(), 1e-6)


def test_several_teachers_far_apart_stay_finite() -> None:
    student, teacher = 1e4 * draw(3, 4).sign(), 1e4 * draw(3, 4, seed=1).sign()
    for form in ("kl", "cross_entropy"):
        loss = SoftTargets(1.0, form)
        assert loss(student, [teacher, -teacher]).isfinite()
        assert gradient(lambda s, loss=loss: loss(s, [teacher, -teacher]), student).isfinite().all()


def row_losses() -> list[Callable[..., Loss]]:
    return [
        lambda **over: SoftTargets(2.0, **over),
        lambda **over: SoftTargets(2.0, "cross_entropy", **over),
        lambda **over: MutualLearning(**over),
        lambda **over: Consistency(**over),
        lambda **over: Consistency("kl", **over),
        lambda **over: LogitStandardisation(**over),
    ]


@pytest.mark.parametrize("build", row_losses())
def test_over_positions_every_map_is_a_sample(build: Callable[..., Loss]) -> None:
    student, teacher = draw(3, 4, 5, 2), draw(3, 4, 5, 2, seed=1)
    value = build(over="positions")(student, teacher)
    rows = [
        build()(student[n, k].reshape(1, 10), teacher[n, k].reshape(1, 10))
        for n, k in itertools.product(range(3), range(4))
    ]
    same(value, torch.stack(rows).mean())
    assert not torch.isclose(value, build()(student, teacher), rtol=1e-3)


@pytest.mark.parametrize("build", row_losses())
def test_over_positions_logits_without_positions_are_refused(build: Callable[..., Loss]) -> None:
    loss = build(over="positions")
    with pytest.raises(ValueError, match=rf"{type(loss).__name__}.*\(3, 4\)"):
        loss(draw(3, 4), draw(3, 4))


def map_losses() -> list[Loss]:
    return [
        SoftTargets(form="cross_entropy"),
        GeneralisedDistillation(3.0, "code"),
        MutualLearning(),
        Consistency(),
        Consistency("kl"),
        LogitDistance(),
        LogitStandardisation(),
        PatientPrediction(),
        LogitRegression(),
    ]


@pytest.mark.parametrize("loss", map_losses(), ids=lambda loss: type(loss).__name__)
def test_a_map_has_the_mean_over_its_pixels(loss: Loss) -> None:
    student, teacher = draw(2, 4, 3, 5), draw(2, 4, 3, 5, seed=1)
    pixels = [loss(student[..., y, x], teacher[..., y, x]) for y, x in itertools.product(range(3), range(5))]
    same(loss(student, teacher), torch.stack(pixels).mean())


@pytest.mark.parametrize("loss", [DKD(), LabelSmoothing(), CWTM(), DIST()], ids=lambda loss: type(loss).__name__)
def test_the_pixels_of_a_map_are_samples(loss: Loss) -> None:
    student, teacher, label = draw(2, 4, 3, 5), draw(2, 4, 3, 5, seed=1), classes(2, 3, 5, count=4)
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in (student, teacher)]
    same(loss(student, teacher, label=label), loss(*rows, label=label.flatten()))


def test_generalised_distillation_softens_the_teacher_alone() -> None:
    student, teacher = draw(3, 4), draw(3, 4, seed=1)
    paper = GeneralisedDistillation(5.0)(student, teacher)
    target = (teacher / 5).softmax(dim=1)
    same(paper, -(target * student.log_softmax(dim=1)).sum() / 3)
    same(GeneralisedDistillation(5.0, "code")(student, teacher), 25 * paper)


def test_noise_is_one_number_for_the_chosen_samples() -> None:
    torch.manual_seed(0)
    noise = NoisyTeacher(alpha=0.25, sigma=2.0).noise(torch.zeros(20_000, 3, 2, 2))
    assert noise.shape == (20_000, 1, 1, 1)
    drawn = noise[noise != 0]
    assert len(drawn) / 20_000 == pytest.approx(0.25, abs=0.02)
    assert drawn.mean().item() == pytest.approx(0, abs=0.1)
    assert drawn.std().item() == pytest.approx(2.0, rel=0.05)
    assert not NoisyTeacher(alpha=0.0).noise(torch.zeros(100, 3)).any()
    assert NoisyTeacher(alpha=1.0).noise(torch.zeros(100, 3)).all()


def test_noise_is_drawn_in_training_alone() -> None:
    student, teacher = draw(8, 4), draw(8, 4, seed=1)
    loss = NoisyTeacher()
    assert loss(student, teacher) != loss(student, teacher)
    assert loss.eval()(student, teacher) == LogitRegression()(student, teacher)


def test_permuted_predictions_keep_the_largest_in_its_place() -> None:
    torch.manual_seed(0)
    teacher = draw(500, 5, 2, 3).float()
    permuted = teacher.gather(1, DKPP().permutation(teacher))
    assert torch.equal(permuted.sort(dim=1).values, teacher.sort(dim=1).values)
    assert torch.equal(permuted.argmax(dim=1), teacher.argmax(dim=1))
    assert torch.equal(permuted.amax(dim=1), teacher.amax(dim=1))


def test_permuted_predictions_are_uniform_over_all_permutations_of_the_others() -> None:
    torch.manual_seed(0)
    teacher = torch.tensor([[0.0, 9.0, 1.0, 2.0]]).expand(12_000, 4)
    orders = DKPP().permutation(teacher)
    assert (orders[:, 1] == 1).all()
    found, counts = orders.unique(dim=0, return_counts=True)
    assert len(found) == 6
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_confidence_weights_sum_to_one() -> None:
    student, teacher, label = draw(6, 4), draw(6, 4, seed=1), classes(6, count=4)
    weights = [max(teacher[n].softmax(dim=0)) for n in range(6)]
    terms = [w * -student[n].log_softmax(dim=0)[label[n]] for n, w in enumerate(weights)]
    same(CWTM()(student, teacher, label=label), sum(terms) / sum(weights))
    same(CWTM()(student[:1], teacher[:1], label=label[:1]), F.cross_entropy(student[:1], label[:1]))


def test_averaged_peers_are_one_target() -> None:
    student, peers = draw(3, 4), [draw(3, 4, seed=i) for i in (1, 2, 3)]
    single = [MutualLearning()(student, peer) for peer in peers]
    same(MutualLearning()(student, peers), sum(single) / 3)
    same(MutualLearning("sum")(student, peers), sum(single))
    target = sum(peer.softmax(dim=1) for peer in peers) / 3
    same(MutualLearning("averaged")(student, peers), (target * (target / student.softmax(1)).log()).sum() / 3)


def test_patient_prediction_divides_by_the_classes_as_well() -> None:
    student, teacher = draw(3, 7), draw(3, 7, seed=1)
    paper = PatientPrediction(5.0, "sum")(student, teacher)
    same(paper, SoftTargets(5.0)(student, teacher))
    same(PatientPrediction(5.0)(student, teacher), paper / 7)


def test_both_heads_of_a_logit_distance_get_a_gradient() -> None:
    one, other = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    LogitDistance()(one, other).backward()
    same(one.grad, -other.grad)
    same(one.grad, 2 * (one - other).detach() / 12)


# Decoupled distillation


def naive_dkd(student: Tensor, teacher: Tensor, label: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    terms = []
    for s, t, y in zip(student, teacher, label.tolist(), strict=True):
        p, q = ((x / temperature).softmax(dim=0) for x in (t, s))
        true = p[y] * (p[y] / q[y]).log() + (1 - p[y]) * ((1 - p[y]) / (1 - q[y])).log()
        others = [k for k in range(len(s)) if k != y]
        p, q = p[others] / p[others].sum(), q[others] / q[others].sum()
        terms.append(alpha * true + beta * (p * (p / q).log()).sum())
    return temperature**2 * torch.stack(terms).mean()


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.0)])
def test_decoupled_distillation_against_a_naive_loop(alpha: float, beta: float, temperature: float) -> None:
    student, teacher, label = 2 * draw(9, 5), 2 * draw(9, 5, seed=1), classes(9, count=5)
    value = DKD(alpha, beta, temperature)(student, teacher, label=label)
    same(value, naive_dkd(student, teacher, label, alpha, beta, temperature))


def test_soft_targets_are_decoupled_distillation_with_the_teachers_doubt_as_beta() -> None:
    student, teacher, label = draw(1, 5), draw(1, 5, seed=1), classes(1, count=5)
    doubt = 1 - (teacher / 4).softmax(dim=1)[0, label[0]].item()
    same(DKD(1.0, doubt)(student, teacher, label=label), SoftTargets(4.0)(student, teacher))


def test_decoupled_distillation_of_a_saturated_student_has_the_right_size() -> None:
    # The student gives the true class, and the teacher another: the gap of 2000 costs T^2 * 2000 / T each way.
    student, teacher = torch.tensor([[2000.0, 0.0, 0.0]]), torch.tensor([[0.0, 2000.0, 0.0]])
    loss = DKD(1.0, 0.0, 1.0)
    value = loss(student, teacher, label=torch.tensor([0]))
    assert value.item() == pytest.approx(2000 - math.log(2), rel=1e-5)
    slope = gradient(lambda s: loss(s, teacher, label=torch.tensor([0])), student)
    assert slope[0, 0].item() == pytest.approx(1.0, rel=1e-5)


def test_decoupled_distillation_needs_two_classes() -> None:
    with pytest.raises(ValueError, match=r"DKD needs at least 2 classes.*\(3, 1\)"):
        DKD()(torch.zeros(3, 1), torch.zeros(3, 1), label=torch.zeros(3, dtype=torch.long))


# Labels


LABELLED = [DKD(), LabelSmoothing(), CWTM()]


@pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: type(loss).__name__)
def test_ignored_pixels_take_no_part(loss: Loss) -> None:
    student, teacher, label = draw(2, 4, 3, 5), draw(2, 4, 3, 5, seed=1), classes(2, 3, 5, count=4)
    label[:, 1:] = 255
    rest = loss(student[:, :, :1], teacher[:, :, :1], label=label[:, :1])
    same(loss(student, teacher, label=label), rest)
    slope = gradient(lambda s: loss(s, teacher, label=label), student)
    assert not slope[:, :, 1:].any()
    assert slope[:, :, :1].abs().amin() > 0


@pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: type(loss).__name__)
def test_without_any_label_the_loss_is_nothing(loss: Loss) -> None:
    student, teacher = draw(2, 4, 3, 5), draw(2, 4, 3, 5, seed=1)
    label = torch.full((2, 3, 5), 255)
    assert loss(student, teacher, label=label) == 0
    assert not gradient(lambda s: loss(s, teacher, label=label), student).any()


@pytest.mark.parametrize("cls", [DKD, LabelSmoothing, CWTM])
def test_the_ignored_label_can_be_another(cls: type[Loss]) -> None:
    student, teacher = draw(4, 3), draw(4, 3, seed=1)
    chosen = cls()(student[1:3], teacher[1:3], label=torch.tensor([2, 1]))
    same(cls(ignore_index=-1)(student, teacher, label=torch.tensor([-1, 2, 1, -1])), chosen)
    same(cls(ignore_index=0)(student, teacher, label=torch.tensor([0, 2, 1, 0])), chosen)


@pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: type(loss).__name__)
def test_with_many_classes_255_is_a_class(loss: Loss) -> None:
    student, teacher = draw(2, 300), draw(2, 300, seed=1)
    value = loss(student, teacher, label=torch.tensor([255, 3]))
    assert value != loss(student[1:], teacher[1:], label=torch.tensor([3]))
    moved = [x.clone() for x in (student, teacher)]
    for x in moved:
        x[:, [255, 7]] = x[:, [7, 255]]
    same(loss(*moved, label=torch.tensor([7, 3])), value)


@pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("size", [(6, 10), (7, 11), (3, 5), (2, 3)])
def test_label_maps_of_another_size_are_resized_by_nearest(loss: Loss, size: tuple[int, int]) -> None:
    student, teacher, label = draw(2, 4, 3, 5), draw(2, 4, 3, 5, seed=1), classes(2, *size, count=4)
    label[0, 0, 0] = 255
    resized = F.interpolate(label[:, None].double(), (3, 5), mode="nearest")[:, 0].long()
    assert loss(student, teacher, label=label) == loss(student, teacher, label=resized)


@pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize(
    ("logits", "label"), [((2, 4, 3, 5), (2,)), ((2, 4), (2, 3, 5)), ((2, 4), (3,)), ((2, 4, 3, 5), (2, 1, 3, 5))]
)
def test_labels_that_do_not_fit_are_named_with_the_logits(
    loss: Loss, logits: tuple[int, ...], label: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError) as error:
        loss(torch.zeros(logits), torch.zeros(logits), label=torch.zeros(label, dtype=torch.long))
    assert str(logits) in str(error.value)
    assert str(label) in str(error.value)
    assert type(loss).__name__ in str(error.value)


@pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: type(loss).__name__)
def test_labels_are_needed(loss: Loss) -> None:
    with pytest.raises(ValueError, match=f"{type(loss).__name__} needs label"):
        loss(torch.zeros(2, 4), torch.zeros(2, 4))


def test_label_smoothing_without_smoothing_is_the_cross_entropy() -> None:
    student, label = draw(2, 4, 3, 5), classes(2, 3, 5, count=4)
    label[0, 0, 0] = 255
    same(LabelSmoothing(0.0)(student, label=label), F.cross_entropy(student, label, ignore_index=255))
    expected = F.cross_entropy(student, label, ignore_index=255, label_smoothing=0.3)
    same(LabelSmoothing(0.3)(student, label=label), expected)


def test_label_smoothing_leaves_masked_classes_out() -> None:
    student, label = draw(3, 5), torch.tensor([0, 1, 3])
    student[:, [2, 4]] = -math.inf
    value = LabelSmoothing()(student, label=label)
    same(value, LabelSmoothing()(student[:, [0, 1, 3]], label=torch.tensor([0, 1, 2])))
    slope = gradient(lambda s: LabelSmoothing()(s, label=label), student)
    assert slope.isfinite().all()
    assert not slope[:, [2, 4]].any()
    assert F.cross_entropy(student, label, label_smoothing=0.1).isinf(), "what this is for"


# ONE


def gated(size: tuple[int, ...] = (6, 7), branches: int = 3) -> tuple[ONE, list[Tensor], Tensor]:
    torch.manual_seed(0)
    loss, logits, trunk = ONE(), [draw(6, 4, seed=i) for i in range(branches)], draw(*size, seed=9)
    loss.prepare(logits, trunk)
    return loss.double(), logits, trunk


def test_the_native_ensemble_matches_the_reference() -> None:
    x = arrays("one")
    branches, trunk = [x[f"in_logits_{i}"] for i in (1, 2, 3)], x["in_gate_feat"]
    loss = ONE()
    loss.prepare(branches, trunk)
    loss.double()
    with torch.no_grad():
        for parameter, name in zip(loss.parameters(), ("gate_w", "gate_b", "gate_bn_w", "gate_bn_b"), strict=True):
            parameter.copy_(x[f"param_{name}"])
    same(loss.ensemble(branches, trunk), x["aux_ensemble_logits"], 1e-6)


def test_the_gate_reads_the_mean_over_positions() -> None:
    loss, branches, trunk = gated((6, 7, 3, 5))
    same(loss.ensemble(branches, trunk), loss.ensemble(branches, trunk.mean(dim=(2, 3))))


def test_the_parts_of_one_add_up() -> None:
    loss, branches, trunk = gated()
    label = classes(6, count=4)
    ensemble = loss.ensemble(branches, trunk)
    hard = sum(F.cross_entropy(logits, label) for logits in (*branches, ensemble))
    soft = sum(SoftTargets(3.0)(logits, ensemble) for logits in branches)
    same(loss(branches, trunk, label=label), hard + soft)
    loss.kl_weight = 0.25
    same(loss(branches, trunk, label=label), hard + 0.25 * soft)


def test_the_ensemble_learns_from_labels_and_not_from_its_branches() -> None:
    loss, branches, trunk = gated()
    label = classes(6, count=4)
    trunk.requires_grad_()
    slopes = {}
    for kl_weight in (0.0, 1.0):
        loss.kl_weight = kl_weight
        slopes[kl_weight] = torch.autograd.grad(loss(branches, trunk, label=label), [trunk, *loss.parameters()])
    assert slopes[0.0][0].abs().max() > 0
    for with_kl, without in zip(*slopes.values(), strict=True):
        same(with_kl, without)


def test_the_gate_trains_with_the_student_and_is_saved() -> None:
    loss, _, _ = gated(branches=2)
    shapes = {name: tuple(value.shape) for name, value in loss.state_dict().items()}
    assert shapes["gate.0.weight"] == (2, 7)
    assert shapes["gate.1.running_mean"] == (2,)
    assert all(parameter.requires_grad for parameter in loss.parameters())


def test_one_says_what_it_reads() -> None:
    label = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match="ONE has no gate yet"):
        ONE()([draw(6, 4), draw(6, 4)], draw(6, 7), label=label)
    for branches, trunk in (
        (draw(6, 4), draw(6, 7)),
        ([draw(6, 4)], draw(6, 7)),
        ([draw(6, 4), draw(6, 5)], draw(6, 7)),
        ([draw(6, 4), draw(6, 4)], draw(5, 7)),
        ([draw(6, 4, 2, 2), draw(6, 4, 2, 2)], draw(6, 7)),
    ):
        with pytest.raises(ValueError, match=r"ONE reads a list.*\(\d, 7\)"):
            ONE().prepare(branches, trunk)


# DIST and standardised logits


def pearson(a: Tensor, b: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([a, b]))[0, 1]


def test_dist_against_the_correlation_of_each_row_and_column() -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    p, q = ((x / 2).softmax(dim=1) for x in (student, teacher))
    between = sum(pearson(p[n], q[n]) for n in range(6)) / 6
    within = sum(pearson(p[:, k], q[:, k]) for k in range(5)) / 5
    expected = 4 * (3 * (1 - between) + 0.5 * (1 - within))
    same(DIST(beta=3.0, gamma=0.5, temperature=2.0)(student, teacher), expected, 1e-6)
    assert DIST()(teacher, teacher).item() == pytest.approx(0, abs=1e-5)


def test_dist_needs_two_samples_or_pixels() -> None:
    with pytest.raises(ValueError, match=r"DIST needs at least 2 samples or pixels.*\(1, 4\)"):
        DIST()(torch.zeros(1, 4), torch.zeros(1, 4))
    assert DIST()(torch.randn(1, 4, 3, 1), torch.randn(1, 4, 3, 1)).isfinite()


@pytest.mark.parametrize("student", [torch.zeros(8, 10), torch.full((8, 10), 3.0)])
def test_constant_logits_have_a_bounded_gradient(student: Tensor) -> None:
    teacher = draw(8, 10).float()
    rows = gradient(lambda s: DIST(gamma=0.0)(s, teacher), student)
    assert 0 < rows.norm() < 1e4 / 8
    standardised = gradient(lambda s: LogitStandardisation()(s, teacher), student)
    plain = gradient(lambda s: SoftTargets(2.0)(s, teacher), student)
    assert standardised.abs().max() < 2e3 * plain.abs().max()


def test_standardised_logits_have_mean_0_and_the_unbiased_deviation_1() -> None:
    logits = 3 * draw(5, 7, 2, 3) + 4
    z = LogitStandardisation().standardised(logits)
    same(z.mean(dim=1), torch.zeros(5, 2, 3))
    same(z.std(dim=1), torch.ones(5, 2, 3), 1e-6)


def test_standardisation_forgets_scale_and_offset() -> None:
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    loss = LogitStandardisation()
    same(loss(7 * student - 3, 0.5 * teacher + 9), loss(student, teacher), 1e-4)


def test_standardisation_hands_on_the_context() -> None:
    student, teacher, label = draw(6, 5), draw(6, 5, seed=1), classes(6, count=5)
    loss = LogitStandardisation(DKD())
    z = loss.standardised
    assert loss.context_names() == {"label": True}
    assert LogitStandardisation().context_names() == {}
    same(loss(student, teacher, label=label, image="unread"), DKD()(z(student), z(teacher), label=label))
    with pytest.raises(ValueError, match="needs label"):
        loss(student, teacher)


def test_standardisation_is_built_from_a_config() -> None:
    loss = LOSSES.build({"type": "LogitStandardisation", "loss": {"type": "DKD", "beta": 72.0, "temperature": 2.0}})
    assert isinstance(loss.loss, DKD)
    assert loss.loss.beta == 72.0


def test_standardisation_needs_two_logits() -> None:
    with pytest.raises(ValueError, match=r"LogitStandardisation needs at least 2 logits.*\(3, 1\)"):
        LogitStandardisation()(torch.zeros(3, 1), torch.zeros(3, 1))


# Settings and shapes


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: SoftTargets(form="ce"), "SoftTargets: form"),
        (lambda: SoftTargets(over="pixels"), "SoftTargets: over"),
        (lambda: GeneralisedDistillation(0.0), "GeneralisedDistillation: temperature"),
        (lambda: GeneralisedDistillation(form="tex"), "GeneralisedDistillation: form"),
        (lambda: NoisyTeacher(alpha=1.5), "NoisyTeacher: alpha"),
        (lambda: NoisyTeacher(sigma=-1.0), "NoisyTeacher: sigma"),
        (lambda: LabelSmoothing(alpha=-0.1), "LabelSmoothing: alpha"),
        (lambda: MutualLearning(peers="max"), "MutualLearning: peers"),
        (lambda: MutualLearning(over="pixels"), "MutualLearning: over"),
        (lambda: ONE(temperature=0.0), "ONE: temperature"),
        (lambda: ONE(kl_weight=-1.0), "ONE: kl_weight"),
        (lambda: Consistency(form="l1"), "Consistency: form"),
        (lambda: Consistency(over="pixels"), "Consistency: over"),
        (lambda: PatientPrediction(temperature=-1.0), "PatientPrediction: temperature"),
        (lambda: PatientPrediction(reduction="batchmean"), "PatientPrediction: reduction"),
        (lambda: DKD(alpha=-1.0), "DKD: alpha"),
        (lambda: DKD(beta=math.nan), "DKD: beta"),
        (lambda: DKD(temperature=0.0), "DKD: temperature"),
        (lambda: DIST(beta=-1.0), "DIST: beta"),
        (lambda: DIST(gamma=math.inf), "DIST: gamma"),
        (lambda: DIST(temperature=0.0), "DIST: temperature"),
        (lambda: LogitStandardisation(over="pixels"), "LogitStandardisation: over"),
        (lambda: LogitStandardisation(Hint()), "LogitStandardisation: loss.*Hint"),
        (lambda: LogitStandardisation(LabelSmoothing()), "LogitStandardisation: loss.*LabelSmoothing"),
        (lambda: LogitStandardisation(WGANGP(torch.nn.Identity())), "LogitStandardisation: loss.*WGANGP"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(build: Callable[[], Loss], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        build()


@pytest.mark.parametrize(
    "loss",
    [
        SoftTargets(),
        GeneralisedDistillation(),
        NoisyTeacher(),
        CWTM(),
        DKPP(),
        MutualLearning(),
        Consistency(),
        LogitDistance(),
        PatientPrediction(),
        DKD(),
        DIST(),
        LogitStandardisation(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_logits_of_two_shapes_are_refused_with_both(loss: Loss) -> None:
    for one, other in (((2, 3), (2, 4)), ((2, 3, 4, 4), (2, 3, 5, 5)), ((2, 3), (3, 3))):
        with pytest.raises(ValueError) as error:
            loss(torch.zeros(one), torch.zeros(other), label=torch.zeros(2, *one[2:], dtype=torch.long))
        assert all(text in str(error.value) for text in (str(one), str(other), type(loss).__name__))


@pytest.mark.parametrize("loss", [SoftTargets(), MutualLearning(), LogitStandardisation()])
def test_every_teacher_of_a_list_is_checked(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        loss(torch.zeros(2, 3), [torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="empty list"):
        loss(torch.zeros(2, 3), [])
