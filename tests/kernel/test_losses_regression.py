"""Losses of students that regress numbers, beyond their reference values: weights, rivals, options."""

import itertools
from collections.abc import Callable

import pytest
import torch
from loss_cases import read
from torch import Tensor, nn

from kd_tasks.losses import AttentiveHint, AttentiveImitation, HeatmapMimicry, Loss, regression
from kd_tasks.losses.regression import attentive_weights


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def poses() -> dict[str, Tensor]:
    """The fixture, with the rows of the batch as `target` and `teacher` and the errors of the whole training set."""
    data = {key: torch.from_numpy(value) for key, value in read("vo_attentive").items() if value.dtype.kind in "fi"}
    rows = data["in_batch_index"]
    errors = (data["in_pose_teacher_all"] - data["in_pose_gt_all"]).square().sum(dim=1)
    batch = {"target": data["in_pose_gt_all"][rows], "teacher": data["in_pose_teacher_all"][rows]}
    return {**data, **batch, "errors": errors, "student": data["in_pose_student"]}


def test_attentive_weights_are_the_papers(poses: dict[str, Tensor]) -> None:
    weights = attentive_weights(poses["errors"])
    torch.testing.assert_close(weights, poses["out_phi_all"], rtol=1e-12, atol=1e-12)
    assert (weights < 0).any()
    torch.testing.assert_close(attentive_weights(poses["errors"], poses["out_eta"]), weights)
    assert attentive_weights(poses["errors"], clamp=True).aminmax() == (0, weights.max())


def test_attentive_weights_are_no_min_max_scaling() -> None:
    weights = attentive_weights(torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.5, -0.25]))


@pytest.mark.parametrize("errors", [torch.tensor([3.0]), torch.full((4,), 2.0), torch.zeros(2)])
def test_errors_without_difference_are_trusted_alike(errors: Tensor) -> None:
    assert (attentive_weights(errors) == 1).all()


@pytest.mark.parametrize(
    ("form", "expected"), [("minimum", "out_min"), ("additive", "out_additional"), ("upper_bound", "out_upper_bound")]
)
def test_what_the_paper_compares_with(form: str, expected: str, poses: dict[str, Tensor]) -> None:
    value = AttentiveImitation(alpha=0.6, form=form)(poses["student"], poses["teacher"], target=poses["target"])
    torch.testing.assert_close(value, poses[expected], rtol=1e-9, atol=0)


def test_attentive_hint_with_the_teachers_outputs_or_its_errors(poses: dict[str, Tensor]) -> None:
    student, hint = poses["in_hint_student"].requires_grad_(), poses["in_hint_teacher"]
    loss = AttentiveHint(spread=poses["out_eta"].item())
    value = loss(student, [hint, poses["teacher"]], target=poses["target"])
    torch.testing.assert_close(value, poses["out_aht"], rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient, poses["grad_hint_student"], rtol=1e-9, atol=1e-12)
    errors = poses["errors"][poses["in_batch_index"]]
    torch.testing.assert_close(loss(student, hint, teacher_error=errors), poses["out_aht"], rtol=1e-9, atol=0)
    alike = AttentiveHint()(student, hint, teacher_error=torch.ones(5))
    torch.testing.assert_close(alike, poses["out_ht_plain"], rtol=1e-9, atol=0)


def test_attentive_imitation_takes_errors_that_were_measured_beforehand(poses: dict[str, Tensor]) -> None:
    loss = AttentiveImitation(alpha=0.6, spread=poses["out_eta"].item())
    sides = poses["student"], poses["teacher"]
    errors = poses["errors"][poses["in_batch_index"]]
    value = loss(*sides, target=poses["target"], teacher_error=errors)
    torch.testing.assert_close(value, poses["out"], rtol=1e-9, atol=0)
    assert loss(*sides, target=poses["target"], teacher_error=0 * errors) != value


def test_the_errors_seen_in_training_spread_the_weights() -> None:
    loss = AttentiveImitation(alpha=0.0)
    zero = torch.zeros(2, 1, dtype=torch.float64)

    def weights(*errors: float) -> list[float]:
        teacher = torch.tensor(errors, dtype=torch.float64)[:, None].sqrt()
        rows = [loss(teacher[i : i + 1] + 1, teacher[i : i + 1], target=zero[:1]).item() for i in range(len(errors))]
        return [round(row, 9) for row in rows]

    assert weights(1.0) == [1.0]
    assert weights(3.0) == [1 - 3 / 2]
    assert (loss.lowest, loss.highest) == (1, 3)
    loss.eval()
    assert weights(5.0) == [1 - 5 / 4]
    assert (loss.lowest, loss.highest) == (1, 3)
    loss.train()
    assert weights(2.0, 1.0) == [0.0, 0.5]
    restored = AttentiveImitation(alpha=0.0)
    restored.load_state_dict(loss.state_dict())
    assert (restored.lowest, restored.highest) == (1, 3)


def test_a_given_spread_leaves_the_buffers_alone() -> None:
    loss = AttentiveHint(spread=2.0)
    loss(draw(3, 2), draw(3, 2), teacher_error=torch.rand(3))
    assert loss.lowest == torch.inf
    assert loss.highest == -torch.inf


def test_the_spread_is_that_of_all_ranks_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.tensor([[0.5, 9.0]])
    monkeypatch.setattr(regression, "all_gather", lambda ends: torch.cat([ends, other]))
    loss = AttentiveHint()
    assert loss.extent(torch.tensor([1.0, 3.0])) == 8.5
    assert (loss.lowest, loss.highest) == (0.5, 9)
    assert AttentiveHint().eval().extent(torch.tensor([1.0, 3.0])) == 2


def test_a_sample_that_the_teacher_gets_worst_drives_away_unless_clamped() -> None:
    student, hint = torch.ones(2, 1), torch.zeros(2, 1)
    errors = torch.tensor([1.0, 2.0])
    assert AttentiveHint()(student, hint, teacher_error=errors) == pytest.approx(-0.5)
    assert AttentiveHint(clamp=True)(student, hint, teacher_error=errors) == 0


def test_the_teachers_error_is_no_way_to_a_gradient() -> None:
    student, target = draw(3, 2).requires_grad_(), draw(3, 2, seed=1).requires_grad_()
    AttentiveImitation(alpha=0.0)(student, draw(3, 2, seed=2), target=target).backward()
    assert target.grad is None or (target.grad == 0).all()


def test_alpha_leads_from_imitation_to_the_label() -> None:
    student, teacher, target = draw(3, 2), draw(3, 2, seed=1), draw(3, 2, seed=2)
    label = AttentiveImitation(alpha=1.0)(student, teacher, target=target)
    torch.testing.assert_close(label, (student - target).square().sum() / 3)
    imitation = AttentiveImitation(alpha=0.0, form="additive")(student, teacher, target=target)
    torch.testing.assert_close(imitation, (student - teacher).square().sum() / 3)


def test_mimicry_against_a_loop_on_maps_that_are_not_square() -> None:
    stacks, teacher = [draw(2, 3, 5, 4), draw(2, 3, 5, 4, seed=1)], draw(2, 3, 5, 4, seed=2)
    visibility = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]], dtype=torch.float64)
    expected = 0.0
    for stack, joint in itertools.product(stacks, range(3)):
        pixels = [
            (visibility[n, joint] * (stack[n, joint, y, x] - teacher[n, joint, y, x])) ** 2
            for n, y, x in itertools.product(range(2), range(5), range(4))
        ]
        expected += 0.5 * sum(pixels) / len(pixels) / 3
    value = HeatmapMimicry()(stacks, teacher, visibility=visibility)
    torch.testing.assert_close(value, expected)
    assert HeatmapMimicry()(stacks, [draw(2, 3, 5, 4, seed=3), teacher], visibility=visibility[..., None]) == value


def test_mimicry_of_the_fixture_and_of_all_joints() -> None:
    data = {key: torch.from_numpy(value) for key, value in read("fpd_mimicry").items() if value.dtype.kind == "f"}
    stacks, visibility = [data["in_student0"], data["in_student1"]], data["in_target_weight"]
    for side, name in (("target", "out_pose"), ("teacher", "out_kd")):
        value = HeatmapMimicry()(stacks, data[f"in_{side}"], visibility=visibility)
        torch.testing.assert_close(value, data[name], rtol=1e-9, atol=0)
    whole = HeatmapMimicry()(stacks, data["in_teacher"])
    assert whole == HeatmapMimicry()(stacks, data["in_teacher"], visibility=torch.ones(3, 4))
    assert whole > data["out_kd"]


def test_an_invisible_joint_gets_no_gradient() -> None:
    student = draw(1, 2, 3, 3).requires_grad_()
    HeatmapMimicry()(student, draw(1, 2, 3, 3, seed=1), visibility=torch.tensor([[1, 0]])).backward()
    assert (student.grad[:, 1] == 0).all()
    assert (student.grad[:, 0] != 0).all()


POSES = (draw(3, 6), draw(3, 6))


@pytest.mark.parametrize(
    ("loss", "sides", "context", "message"),
    [
        (AttentiveImitation(), (draw(3, 6), draw(3, 7)), {"target": draw(3, 6)}, r"\(3, 6\).*\(3, 7\)"),
        (AttentiveImitation(), POSES, {"target": draw(3, 5)}, r"AttentiveImitation.*\(3, 6\).*\(3, 5\)"),
        (AttentiveImitation(), POSES, {}, "AttentiveImitation needs target"),
        (
            AttentiveImitation(),
            POSES,
            {"target": draw(3, 6), "teacher_error": draw(3, 1)},
            r"teacher_error .*\(3,\), not \(3, 1\)",
        ),
        (AttentiveHint(), POSES, {}, "AttentiveHint needs teacher_error or target"),
        (AttentiveHint(), POSES, {"target": draw(3, 6)}, "AttentiveHint needs the teacher's errors"),
        (AttentiveHint(), (draw(3, 6), draw(3, 7)), {"teacher_error": draw(3)}, r"\(3, 6\).*\(3, 7\)"),
        (HeatmapMimicry(), (draw(2, 3, 4, 4), draw(2, 3, 4, 5)), {}, r"\(2, 3, 4, 4\).*\(2, 3, 4, 5\)"),
        (HeatmapMimicry(), POSES, {}, r"HeatmapMimicry.*\(3, 6\)"),
        (
            HeatmapMimicry(),
            (draw(2, 3, 4, 4), draw(2, 3, 4, 4)),
            {"visibility": torch.ones(2, 4)},
            r"HeatmapMimicry.*visibility .*\(2, 4\).*\(2, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_shapes(
    loss: Loss, sides: tuple[Tensor, Tensor], context: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*sides, **context)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AttentiveImitation(alpha=1.5), "AttentiveImitation: alpha"),
        (lambda: AttentiveImitation(form="laplace"), "AttentiveImitation: form"),
        (lambda: AttentiveImitation(spread=0.0), "AttentiveImitation: spread"),
        (lambda: AttentiveHint(spread=-1.0), "AttentiveHint: spread"),
    ],
)
def test_settings_without_meaning_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
