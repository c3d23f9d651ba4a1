"""The losses with a critic: parts, options, draws, and what reaches which side."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toys
from loss_cases import read
from torch import Tensor, nn

from kd_tasks.engine.compat import build_optimisers
from kd_tasks.losses import KDGAN, MEAL, AdversarialLoss, ConditionalAdversarial
from kd_tasks.losses.adversarial import BlockCritics, LabelCritic, LogitCritic, concrete_sample, known_cross_entropy

IMAGE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
LABEL = torch.tensor([0, 3, 1, 1])


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (4, 5), generator=torch.Generator().manual_seed(seed))


class Scores(nn.Module):
    """A critic of pictures with given scores."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores.clone())

    def forward(self, image: Tensor) -> Tensor:
        return self.scores.to(image.dtype)


class Unable(nn.Module):
    """A critic that gives zeros of a fixed shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.zeros = nn.Parameter(torch.zeros(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.zeros


PREPARED: dict[str, Callable[[], tuple[AdversarialLoss, dict[str, Tensor]]]] = {
    "ConditionalAdversarial": lambda: (ConditionalAdversarial(), {"label": LABEL}),
    "KDGAN": lambda: (KDGAN(width=4), {"image": IMAGE, "label": LABEL}),
    "KDGAN-concrete": lambda: (KDGAN(estimator="concrete", width=4), {"image": IMAGE, "label": LABEL}),
    "KDGAN-code": lambda: (KDGAN(estimator="code", width=4), {"image": IMAGE, "label": LABEL}),
    "MEAL": lambda: (MEAL(), {}),
}


@pytest.mark.parametrize("name", PREPARED)
def test_each_side_trains_only_its_own_side(name: str) -> None:
    torch.manual_seed(0)
    loss, context = PREPARED[name]()
    student, teacher = logits(1).requires_grad_(), logits(2).requires_grad_()
    loss.prepare(student, teacher, **context)
    loss(student, teacher, **context).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None
    assert all(p.requires_grad and p.grad is None for p in loss.critic.parameters())
    student.grad = None
    loss.critic_loss(student, teacher, **context).backward()
    assert student.grad is None
    assert teacher.grad is None
    assert all(p.grad is not None for p in loss.critic.parameters())


@pytest.mark.parametrize("name", PREPARED)
def test_the_critic_is_created_once_and_belongs_to_the_state(name: str) -> None:
    loss, context = PREPARED[name]()
    with pytest.raises(ValueError, match=r"no critic yet.*prepare"):
        loss(logits(1), logits(2), **context)
    loss.prepare(logits(1), logits(2), **context)
    critic = loss.critic
    assert list(loss.state_dict()) == [f"critic.{key}" for key in critic.state_dict()]
    loss.prepare(logits(1), logits(2), **context)
    assert loss.critic is critic


@pytest.mark.parametrize("name", PREPARED)
def test_a_trained_critic_tells_the_sides_apart(name: str) -> None:
    torch.manual_seed(0)
    loss, context = PREPARED[name]()
    student, teacher = logits(1, 4, 32), 4 * F.one_hot(LABEL + 1, 32).float()
    loss.prepare(student, teacher, **context)
    optimiser = torch.optim.Adam(loss.critic.parameters(), lr=0.01)
    values = []
    for _ in range(100):
        value = loss.critic_loss(student, teacher, **context)
        values.append(value.item())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert values[-1] < 0.75 * values[0]


@pytest.mark.parametrize("name", ["ConditionalAdversarial", "MEAL"])
def test_the_students_game_descends_against_the_critic(name: str) -> None:
    """A step along the student's gradient of the game alone makes the critic's own objective worse."""
    torch.manual_seed(0)
    loss = ConditionalAdversarial(l1=0, label=0) if name == "ConditionalAdversarial" else MEAL(gamma=0.0)
    context = {"label": LABEL} if name == "ConditionalAdversarial" else {}
    student, teacher = logits(1, 4, 32).requires_grad_(), logits(2, 4, 32)
    loss.prepare(student, teacher, **context)
    (gradient,) = torch.autograd.grad(loss(student, teacher, **context), student)
    moved = student.detach() - 1e-2 * gradient / gradient.norm()
    without_classes = dict(context, label=torch.full((4,), -1)) if context else {}
    before, after = (loss.critic_loss(x, teacher, **without_classes) for x in (student, moved))
    assert after > before


# ConditionalAdversarial


def by_hand(critic: nn.Module, student: Tensor, teacher: Tensor, label: Tensor, form: str) -> dict[str, float]:
    """The parts of the student's objective, sample by sample in plain numbers."""
    parts = {"l1": 0.0, "adversarial": 0.0, "label": 0.0}
    classes = student.shape[1]
    for s, t, y in zip(student, teacher, label, strict=True):
        scores = [math.exp(v) for v in critic(s[None])[0].tolist()]
        real, fake = scores[classes:]
        parts["l1"] += sum(abs(a - b) for a, b in zip(s.tolist(), t.tolist(), strict=True))
        parts["adversarial"] += math.log(fake / (real + fake)) if form == "minimax" else -math.log(real / (real + fake))
        parts["label"] -= math.log(scores[int(y)] / sum(scores[:classes]))
    return {name: value / len(student) for name, value in parts.items()}


@pytest.mark.parametrize("form", ["minimax", "nonsaturating"])
def test_conditional_parts_have_their_weights(form: str) -> None:
    torch.manual_seed(0)
    critic = LogitCritic(5, width=7)
    student, teacher = logits(1), logits(2)
    parts = by_hand(critic, student, teacher, LABEL, form)
    for weights in ((1.0, 1.0, 1.0), (0.1, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 3.0)):
        expected = sum(w * part for w, part in zip(weights, parts.values(), strict=True))
        value = ConditionalAdversarial(form, *weights, critic=critic)(student, teacher, label=LABEL)
        assert value.item() == pytest.approx(expected, rel=1e-5)


def test_pixels_are_samples() -> None:
    torch.manual_seed(0)
    critic = LogitCritic(5)
    student, teacher = logits(1, 2, 5, 3, 4), logits(2, 2, 5, 3, 4)
    label = torch.randint(5, (2, 3, 4))
    places = [(n, h, w) for n in range(2) for h in range(3) for w in range(4)]
    rows = [torch.stack([x[n, :, h, w] for n, h, w in places]) for x in (student, teacher)]
    labels = torch.stack([label[place] for place in places])
    for loss in (ConditionalAdversarial(critic=critic), ConditionalAdversarial("nonsaturating", critic=critic)):
        torch.testing.assert_close(loss(student, teacher, label=label), loss(*rows, label=labels))
        torch.testing.assert_close(
            loss.critic_loss(student, teacher, label=label), loss.critic_loss(*rows, label=labels)
        )


def test_rows_without_a_known_label_have_no_class_part() -> None:
    scores = logits(1)
    label = torch.tensor([255, 3, -1, 1])
    expected = F.cross_entropy(scores[[1, 3]], label[[1, 3]])
    torch.testing.assert_close(known_cross_entropy(scores, label), expected)
    scores = scores.requires_grad_()
    nothing = known_cross_entropy(scores, torch.full((4,), 255))
    nothing.backward()
    assert nothing == 0
    assert (scores.grad == 0).all()


def test_the_nonsaturating_form_has_a_gradient_while_the_critic_wins() -> None:
    class Sure(nn.Module):
        """Calls everything fake, the more so the larger the first logit."""

        def forward(self, inputs: Tensor) -> Tensor:
            zeros = torch.zeros_like(inputs)
            return torch.cat([zeros, zeros[:, :1], inputs[:, :1] + 30], dim=1)

    gradients = {}
    for form in ("minimax", "nonsaturating"):
        student = logits(1).requires_grad_()
        loss = ConditionalAdversarial(form, l1=0, label=0, critic=Sure())
        loss(student, logits(2), label=LABEL).backward()
        gradients[form] = student.grad.abs().max()
    assert gradients["minimax"] < 1e-10
    assert gradients["nonsaturating"] == pytest.approx(0.25)


def test_large_logits_outweigh_the_rest_through_the_l1_part_alone() -> None:
    torch.manual_seed(0)
    critic = LogitCritic(5)
    student, teacher = logits(1), 100 * logits(2)
    whole = ConditionalAdversarial(critic=critic)(student, teacher, label=LABEL)
    rest = ConditionalAdversarial(l1=0, critic=critic)(student, teacher, label=LABEL)
    assert whole > 50 * rest.abs()
    expected = rest + 0.1 * (whole - rest)
    torch.testing.assert_close(ConditionalAdversarial(l1=0.1, critic=critic)(student, teacher, label=LABEL), expected)


def test_the_logit_critic_has_the_layers_asked_for() -> None:
    critic = LogitCritic(5, width=7, depth=3, dropout=0.5)
    shapes = [tuple(m.weight.shape) for m in critic.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(7, 5), (7, 7), (7, 7), (7, 7)]
    assert [m.p for m in critic.modules() if isinstance(m, nn.Dropout)] == [0.5] * 3
    loss = ConditionalAdversarial(width=7, depth=1, dropout=0.25)
    loss.prepare(logits(1), logits(2))
    shapes = [tuple(m.weight.shape) for m in loss.critic.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(7, 5), (7, 7)]
    assert [m.p for m in loss.critic.modules() if isinstance(m, nn.Dropout)] == [0.25]


# KDGAN


def test_concrete_samples_match_the_reference_and_become_labels() -> None:
    data = read("kdgan_gumbel_softmax")
    scores, uniform = (torch.from_numpy(data[f"in_{name}"]).double() for name in ("logits_s", "u"))
    expected = torch.from_numpy(data["out_sample"])
    torch.testing.assert_close(concrete_sample(scores, 0.7, uniform), expected, rtol=1e-9, atol=1e-12)
    cold = concrete_sample(scores, 1e-3, uniform)
    assert torch.equal(cold.argmax(1), expected.argmax(1))
    assert cold.max(1).values.min() > 0.99


def test_concrete_samples_are_finite_at_the_ends_of_the_interval() -> None:
    uniform = torch.tensor([[0.0, 1.0, 0.5, 0.0, 1.0]])
    for scale in (0.0, 1.0, 1e4):
        scores = (scale * logits(1, 1, 5)).requires_grad_()
        sample = concrete_sample(scores, 0.1, uniform)
        (gradient,) = torch.autograd.grad(sample[0, 0], scores)
        assert sample.isfinite().all()
        assert gradient.isfinite().all()


def test_concrete_samples_choose_labels_as_often_as_the_softmax_says() -> None:
    torch.manual_seed(0)
    scores = logits(4, 1, 5)
    chosen = concrete_sample(scores, 1.0, torch.rand(40000, 1, 5)).argmax(-1)
    shares = F.one_hot(chosen[:, 0], 5).float().mean(dim=0)
    torch.testing.assert_close(shares, F.softmax(scores, dim=1)[0], rtol=0, atol=0.01)


def expectation_gradient(student: Tensor, scores: Tensor) -> Tensor:
    """Gradient of `mean over samples of E_k log(1 - D(x, k))`, with the expectation as a sum over the classes."""
    student = student.detach().requires_grad_()
    value = (F.softmax(student, dim=1) * torch.log(1 - scores.sigmoid())).sum(dim=1).mean()
    (gradient,) = torch.autograd.grad(value, student)
    return gradient


def test_the_score_function_is_right_on_average() -> None:
    torch.manual_seed(0)
    student, scores = logits(1).double(), 2 * logits(2).double()
    loss = KDGAN(alpha=1.0, beta=0.0, draws=200000, critic=Scores(scores))
    student.requires_grad_()
    loss(student, logits(3).double(), image=IMAGE, label=LABEL).backward()
    expected = expectation_gradient(student, scores)
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_the_baseline_takes_variance_away() -> None:
    student, scores = logits(1).double(), logits(2).double() + 4
    loss = KDGAN(draws=1)
    spread = {}
    for shifted in (False, True):
        torch.manual_seed(0)
        gradients = []
        for _ in range(500):
            leaf = student.clone().requires_grad_()
            drawn = loss.draw(leaf.detach())
            rewards = F.logsigmoid(-scores).gather(1, drawn)
            value = (F.log_softmax(leaf, dim=1).gather(1, drawn) * rewards).mean()
            value = loss.score_function(leaf, drawn, rewards) if shifted else value
            gradients.append(torch.autograd.grad(value, leaf)[0])
        spread[shifted] = torch.stack(gradients).var(dim=0).sum()
    assert spread[True] < 0.25 * spread[False]


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_straight_through_goes_forward_by_labels_and_backward_by_the_relaxed_ones(temperature: float) -> None:
    torch.manual_seed(0)
    student, rewards, uniform = logits(1).double().requires_grad_(), logits(2).double(), torch.rand(3, 4, 5).double()
    value = KDGAN(temperature=temperature).straight_through(student, uniform, rewards)
    sample = concrete_sample(student, temperature, uniform)
    total = sum(float(rewards[n, sample[m, n].argmax()]) for m in range(3) for n in range(4))
    assert value.item() == pytest.approx(total / 12, rel=1e-12)
    (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
    (expected,) = torch.autograd.grad((sample * rewards).sum() / 12, student)
    torch.testing.assert_close(gradient, expected)


def test_small_temperatures_bring_variance() -> None:
    """The trade-off that the paper anneals the temperature for."""
    rewards = logits(2)
    spread = []
    for temperature in (10.0, 1.0, 0.1):
        torch.manual_seed(0)
        loss = KDGAN(temperature=temperature)
        gradients = []
        for _ in range(300):
            leaf = logits(1).requires_grad_()
            gradients.append(torch.autograd.grad(loss.straight_through(leaf, torch.rand(1, 4, 5), rewards), leaf)[0])
        spread.append(torch.stack(gradients).var(dim=0).sum())
    assert spread[0] < spread[1] < spread[2]


def test_drawn_labels_follow_the_softmax_also_where_a_class_has_no_chance() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([[0.0, math.log(3.0), -1e4]])
    drawn = KDGAN(draws=20000).draw(scores)
    assert drawn.shape == (1, 20000)
    shares = F.one_hot(drawn[0], 3).float().mean(dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.75, 0.0]), rtol=0, atol=0.01)
    assert shares[2] == 0


def test_the_critic_of_three_players_by_hand() -> None:
    student, teacher, scores = logits(1), logits(2), logits(3)
    total = 0.0
    for n in range(4):
        p_s, p_t, d = (F.softmax(student[n], 0), F.softmax(teacher[n], 0), scores[n].sigmoid())
        total -= math.log(d[LABEL[n]])
        for k in range(5):
            total -= (0.3 * float(p_s[k]) + 0.7 * float(p_t[k])) * math.log(1 - d[k])
    classifier = KDGAN(alpha=0.3, critic=Scores(scores))
    assert classifier.critic_loss(student, teacher, image=IMAGE, label=LABEL).item() == pytest.approx(total / 4)
    tutor = KDGAN("teacher", alpha=0.3, critic=Scores(scores))
    assert tutor.critic_loss(teacher, student, image=IMAGE, label=LABEL).item() == pytest.approx(total / 4)


def test_the_critic_of_the_code_draws_from_both_players() -> None:
    """Players that are sure of one label each, so that the draws are known."""
    scores = logits(3)
    student, teacher = (1e3 * F.one_hot(torch.full((4,), k), 5).float() for k in (2, 4))
    expected = 0.0
    for share, k in ((0.3, 2), (0.7, 4)):
        true = F.softplus(-scores.gather(1, LABEL[:, None])).sum() * 5
        false = F.softplus(scores[:, k]).sum() * 20
        expected += share * float(true + false) / 100
    for loss, first, second in (
        (KDGAN(estimator="code", alpha=0.3, critic=Scores(scores)), student, teacher),
        (KDGAN("teacher", "code", alpha=0.3, critic=Scores(scores)), teacher, student),
    ):
        value = loss.critic_loss(first, second, image=IMAGE, label=LABEL)
        assert value.item() == pytest.approx(expected, rel=1e-5)


def test_each_player_has_its_own_share_and_weight() -> None:
    torch.manual_seed(0)
    student, teacher, scores = logits(1), logits(2), logits(3)
    squares = (student - teacher).square()
    context = {"image": IMAGE, "label": LABEL}

    def value(player: str, estimator: str) -> float:
        loss = KDGAN(player, estimator, alpha=0.3, beta=2.0, gamma=5.0, critic=Scores(scores))
        torch.manual_seed(0)
        whole = loss(student, teacher, **context)
        torch.manual_seed(0)
        game = loss.proposal(student, scores)
        share = 0.3 if player == "student" else 0.7
        return float(whole - share * game)

    assert value("student", "paper") == pytest.approx(2.0 * 0.5 * float(squares.sum()) / 4, rel=1e-5)
    assert value("teacher", "concrete") == pytest.approx(5.0 * 0.5 * float(squares.sum()) / 4, rel=1e-5)
    assert value("teacher", "code") == pytest.approx(5.0 * float(squares.sum()) / 20 / 4, rel=1e-4)


def test_the_game_alone_moves_the_student_to_labels_that_the_critic_believes() -> None:
    scores = torch.full((4, 5), -2.0)
    scores[torch.arange(4), LABEL] = 2.0
    for estimator in ("paper", "concrete", "code"):
        torch.manual_seed(0)
        student = logits(1).requires_grad_()
        loss = KDGAN(estimator=estimator, alpha=1.0, beta=0.0, critic=Scores(scores))
        optimiser = torch.optim.Adam([student], lr=0.2)
        for _ in range(60):
            optimiser.zero_grad()
            loss(student, logits(2), image=IMAGE, label=LABEL).backward()
            optimiser.step()
        assert torch.equal(student.argmax(1), LABEL), estimator


def test_the_label_critic_takes_pictures_of_any_size_and_number_of_channels() -> None:
    for shape in ((2, 1, 28, 28), (2, 3, 5, 9), (2, 4, 1, 1)):
        assert LabelCritic(shape[1], 7, width=4)(torch.randn(shape)).shape == (2, 7)


# MEAL


def test_pooled_maps_match_the_reference() -> None:
    data = read("meal")
    maps = torch.from_numpy(data["in_fmap"]).double()
    for pooling in ("avg", "max"):
        expected = torch.from_numpy(data[f"aux_block_pool_{pooling}_7"])
        torch.testing.assert_close(MEAL(pooling=pooling).pool(maps, 7), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("length", [1, 6, 35, 100])
def test_pooling_averages_overlapping_windows_of_positions(length: int) -> None:
    maps = logits(1, 2, 3, 5, 7).double()
    positions = maps.flatten(2)
    windows = [(35 * i // length, -(-35 * (i + 1) // length)) for i in range(length)]
    mean = torch.stack([positions[:, :, a:b].mean(dim=2) for a, b in windows], dim=2).mean(dim=1)
    most = torch.stack([positions[:, :, a:b].amax(dim=2) for a, b in windows], dim=2).amax(dim=1)
    torch.testing.assert_close(MEAL().pool(maps, length), mean)
    torch.testing.assert_close(MEAL(pooling="max").pool(maps, length), most)


def test_the_length_is_that_of_the_smallest_map_unless_given() -> None:
    student = [logits(1, 2, 4, 6, 5), logits(2, 2, 7)]
    teacher = [logits(3, 2, 8, 3, 3), logits(4, 2, 7), logits(5, 2, 9, 4, 2), logits(6, 2, 7)]
    assert MEAL(teachers=2).sizes(student, teacher) == [8, 7]
    assert MEAL().sizes(student, teacher[:2]) == [9, 7]
    assert MEAL(lengths=4).sizes(student, teacher[:2]) == [4, 7]
    assert MEAL(lengths=[12, 7]).sizes(student, teacher[:2]) == [12, 7]
    loss = MEAL(teachers=2)
    loss.prepare(student, teacher)
    assert [block[0].in_features for block in loss.critic.blocks] == [8, 7]
    larger = [logits(1, 2, 4, 60, 50), student[1]]
    assert loss(larger, [logits(3, 2, 8, 33, 33), *teacher[1:]]).isfinite()


def test_one_of_several_teachers_is_drawn_in_every_step_and_the_first_out_of_training() -> None:
    student = logits(1)
    teachers = [logits(k) for k in (2, 3, 4)]
    loss = MEAL("l2", eta=0.0, teachers=3)
    loss.prepare(student, teachers)
    single = [round(float(F.mse_loss(student, t)), 5) for t in teachers]
    torch.manual_seed(0)
    values = [round(loss(student, teachers).item(), 5) for _ in range(300)]
    assert set(values) == set(single)
    assert all(70 < values.count(value) < 130 for value in single)
    loss.eval()
    assert {round(loss(student, teachers).item(), 5) for _ in range(20)} == {single[0]}


def test_a_drawn_teacher_brings_all_its_blocks() -> None:
    student = [torch.zeros(2, 5), torch.zeros(2, 3)]
    teachers = [torch.full((2, 5), 1.0), torch.full((2, 3), 1.0), torch.full((2, 5), 2.0), torch.full((2, 3), 2.0)]
    loss = MEAL("l1", eta=0.0, teachers=2)
    loss.prepare(student, teachers)
    torch.manual_seed(0)
    assert {loss(student, teachers).item() for _ in range(50)} == {2.0, 4.0}


def game_by_hand(loss: MEAL, student: Tensor, target: tuple[float, float]) -> float:
    """`1 / 2 * mean BCE` of a single block's scores, sample by sample."""
    total = 0.0
    for row in student:
        for score, wanted in zip(loss.critic([row[None]])[0][0].tolist(), target, strict=True):
            p = 1 / (1 + math.exp(-score))
            total -= wanted * math.log(p) + (1 - wanted) * math.log(1 - p)
    return total / (2 * len(student)) / 2


def test_the_forms_of_the_game_by_hand() -> None:
    torch.manual_seed(0)
    student, teacher = logits(1), logits(2)
    values = {}
    for form in ("minimax", "nonsaturating", "cooperative"):
        torch.manual_seed(0)
        loss = MEAL(form=form, gamma=0.0, eta=3.0)
        loss.prepare(student, teacher)
        values[form] = loss(student, teacher).item()
    recognised, fooled = game_by_hand(loss, student, (1, 0)), game_by_hand(loss, student, (0, 1))
    assert values["cooperative"] == pytest.approx(3 * recognised, rel=1e-5)
    assert values["minimax"] == pytest.approx(-3 * recognised, rel=1e-5)
    assert values["nonsaturating"] == pytest.approx(3 * fooled, rel=1e-5)
    critic = loss.critic_loss(student, teacher).item()
    assert critic == pytest.approx(3 * (recognised + game_by_hand(loss, teacher, (0, 1))), rel=1e-5)


def test_scores_behind_a_relu_can_die_and_others_cannot() -> None:
    for relu_scores in (True, False):
        torch.manual_seed(0)
        loss = MEAL(relu_scores=relu_scores)
        loss.prepare(logits(1), logits(2))
        last = [m for m in loss.critic.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.constant_(last.bias, -50.0)
        loss.critic_loss(logits(1), logits(2)).backward()
        assert (last.bias.grad == 0).all() == relu_scores


def test_narrow_blocks_have_a_critic_as_well() -> None:
    assert [x.shape for x in BlockCritics([1, 2, 3])([torch.ones(2, n) for n in (1, 2, 3)])] == [(2, 2)] * 3


# In a distiller


SEVERAL = {"a": {"type": "ToyNet", "width": 6}, "b": {"type": "ToyNet", "width": 8}}
RECIPES: dict[str, dict[str, Any]] = {
    "ConditionalAdversarial": {"transfers": {"game": {"on": "logits", "loss": {"type": "ConditionalAdversarial"}}}},
    "KDGAN": {"transfers": {"game": {"on": "logits", "loss": {"type": "KDGAN", "width": 4}}}},
    "MEAL": {
        "teacher": None,
        "teachers": SEVERAL,
        "task_weight": 0.0,
        "transfers": {
            "game": {
                "student": ["stage1", "stage2", "logits"],
                "teacher": [f"{name}.{tap}" for name in SEVERAL for tap in ("stage1", "stage2", "logits")],
                "loss": {"type": "MEAL", "teachers": 2},
            }
        },
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_of_the_distiller_moves_the_student_and_a_critic_that_was_sized_by_the_probe(name: str) -> None:
    model = toys.distiller(**RECIPES[name]).train()
    both = {"optimizer": {"type": "SGD", "lr": 0.1}, "critic": {"optimizer": {"type": "SGD", "lr": 0.1}}}
    optimisers = build_optimisers(model, both)
    (critic,) = model.critics
    held = {id(p) for group in optimisers["critic"].param_groups for p in group["params"]}
    assert held == {id(p) for p in critic.parameters()}
    before = [{k: v.clone() for k, v in part.named_parameters()} for part in (model.network, critic)]
    log = model.train_step(toys.batch(), optimisers)
    assert log["kd.game"].isfinite()
    assert log["critic.game"].isfinite()
    for part, old in zip((model.network, critic), before, strict=True):
        assert any(not torch.equal(v, old[k]) for k, v in part.named_parameters())
    assert model.critics[0] is critic


# What is refused


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConditionalAdversarial("saturating"), "ConditionalAdversarial: form"),
        (lambda: ConditionalAdversarial(l1=-1.0), "ConditionalAdversarial: l1"),
        (lambda: ConditionalAdversarial(adversarial=-1.0), "ConditionalAdversarial: adversarial"),
        (lambda: ConditionalAdversarial(label=math.nan), "ConditionalAdversarial: label"),
        (lambda: ConditionalAdversarial(width=0), "ConditionalAdversarial: width"),
        (lambda: ConditionalAdversarial(depth=0), "ConditionalAdversarial: depth"),
        (lambda: ConditionalAdversarial(dropout=1.5), "ConditionalAdversarial: dropout"),
        (lambda: KDGAN("critic"), "KDGAN: player"),
        (lambda: KDGAN(estimator="papers"), "KDGAN: estimator"),
        (lambda: KDGAN(alpha=1.2), "KDGAN: alpha"),
        (lambda: KDGAN(beta=-1.0), "KDGAN: beta"),
        (lambda: KDGAN(gamma=-1.0), "KDGAN: gamma"),
        (lambda: KDGAN(draws=0), "KDGAN: draws"),
        (lambda: KDGAN(positives=0), "KDGAN: positives"),
        (lambda: KDGAN(temperature=0.0), "KDGAN: temperature"),
        (lambda: KDGAN(width=0), "KDGAN: width"),
        (lambda: MEAL("kl"), "MEAL: distance"),
        (lambda: MEAL(form="grl"), "MEAL: form"),
        (lambda: MEAL(pooling="mean"), "MEAL: pooling"),
        (lambda: MEAL(teachers=0), "MEAL: teachers"),
        (lambda: MEAL(gamma=[1.0, -1.0]), "MEAL: gamma"),
        (lambda: MEAL(eta=-1.0), "MEAL: eta"),
        (lambda: MEAL(lengths=[5, 0]), "MEAL: lengths"),
    ],
)
def test_settings_without_meaning_are_refused(build: Callable[[], AdversarialLoss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "student", "teacher"),
    [
        (ConditionalAdversarial, (4, 5), (4, 6)),
        (ConditionalAdversarial, (4, 5, 2, 2), (4, 5, 3, 3)),
        (KDGAN, (4, 5), (4, 6)),
        (KDGAN, (4, 5, 2, 2), (4, 5, 2, 2)),
        (MEAL, (4, 5), (4, 6)),
        (MEAL, (4, 5), (4, 5, 2, 2)),
        (MEAL, (4, 5, 2, 2), (3, 5, 2, 2)),
        (MEAL, (4, 5, 2), (4, 5, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_named_both(
    build: type[AdversarialLoss], student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    context = {"label": LABEL, "image": IMAGE}
    for call in (build().prepare, build(), build().critic_loss):
        with pytest.raises(ValueError, match=build.__name__) as error:
            call(torch.zeros(student), torch.zeros(teacher), **context)
        assert str(student) in str(error.value)
        assert str(teacher) in str(error.value)


def test_blocks_and_teachers_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 teachers with 2 blocks.*4 tensors.*has 3"):
        MEAL(teachers=2)([logits(1)] * 2, [logits(2)] * 3)
    with pytest.raises(ValueError, match=r"gamma has 3 values, but there are 2 blocks"):
        MEAL(gamma=[1.0, 1.0, 1.0])([logits(1)] * 2, [logits(2)] * 2)
    with pytest.raises(ValueError, match=r"lengths has 1 values, but there are 2 blocks"):
        MEAL(lengths=[3]).prepare([logits(1)] * 2, [logits(2)] * 2)


def test_labels_that_do_not_fit_are_refused() -> None:
    loss = ConditionalAdversarial(critic=LogitCritic(5))
    with pytest.raises(ValueError, match=r"ConditionalAdversarial.*labels' shape is \(4,\).*\(4, 5, 2, 2\)"):
        loss(logits(1, 4, 5, 2, 2), logits(2, 4, 5, 2, 2), label=LABEL)


def test_label_maps_of_another_size_are_resized_by_nearest_neighbour() -> None:
    loss = ConditionalAdversarial(critic=LogitCritic(5))
    sides = logits(1, 4, 5, 2, 3), logits(2, 4, 5, 2, 3)
    small = torch.randint(0, 5, (4, 2, 3), generator=torch.Generator().manual_seed(0))
    small[0, 1, 2] = 255
    large = small.repeat_interleave(4, dim=1).repeat_interleave(2, dim=2)
    assert loss(*sides, label=large) == loss(*sides, label=small)
    assert loss.critic_loss(*sides, label=large) == loss.critic_loss(*sides, label=small)


def test_critics_with_other_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ConditionalAdversarial: the critic gives \(4, 5\).*not \(4, 7\)"):
        ConditionalAdversarial(critic=Unable(4, 5))(logits(1), logits(2), label=LABEL)
    with pytest.raises(ValueError, match=r"KDGAN: the critic gives \(4, 1\).*\(4, 5\)"):
        KDGAN(critic=Unable(4, 1))(logits(1), logits(2), image=IMAGE, label=LABEL)
    with pytest.raises(ValueError, match=r"KDGAN.*'image'"):
        KDGAN().prepare(logits(1), logits(2))
