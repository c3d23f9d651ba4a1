"""Reference values and settings of the losses with a critic."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kd_tasks.losses import KDGAN, MEAL, WGANGP, AdversarialLoss, ConditionalAdversarial, LogitRegression
from kd_tasks.losses.adversarial import BlockCritics, LogitCritic, concrete_sample
from loss_cases import Case

Arrays = Mapping[str, Tensor]


class Objective(nn.Module):
    """One side's formula of an adversarial loss as the forward pass of a module, so that its weights can be replaced.

    Args:
        loss: the loss.
        side: name of the method, `compute` or `compute_critic`; the second without detaching the student here.
    """

    def __init__(self, loss: AdversarialLoss, side: str) -> None:
        super().__init__()
        self.loss = loss
        self.side = side

    def forward(self, *inputs: Any) -> Tensor:
        value: Tensor = getattr(self.loss, self.side)(*inputs)
        return value


def conditional(x: Arrays, form: str, side: str) -> Tensor:
    loss = ConditionalAdversarial(form, critic=LogitCritic(4, width=6, depth=1)).double()
    weights = {
        "loss.critic.layers.0.weight": x["param_W1"].T,
        "loss.critic.layers.0.bias": x["param_b1"],
        "loss.critic.layers.3.weight": x["param_W2"].T,
        "loss.critic.layers.3.bias": x["param_b2"],
    }
    return functional_call(Objective(loss, side), weights, (x["logits_s"], x["logits_t"], x["label"]))


def conditional_student(x: Arrays, form: str) -> Tensor:
    return F.cross_entropy(x["logits_s"], x["label"]) + conditional(x, form, "compute")


def player(x: Arrays, name: str, ours: str, theirs: str, **settings: Any) -> Tensor:
    """The loss of a player as in the code, with the drawn labels of the fixture, four rows of five."""
    loss = KDGAN(name, "code", **settings)
    drawn, rewards = x["sample_index"][:, 1].reshape(4, 5), x["reward"].reshape(4, 5)
    share, weight = (loss.alpha, loss.beta) if name == "student" else (1 - loss.alpha, loss.gamma)
    return share * loss.imitation(x[ours], drawn, rewards) + weight * loss.distance(x[ours], x[theirs])


def code_student(x: Arrays) -> Tensor:
    task = 2.0 * 0.7 / 4 * F.cross_entropy(x["logits_s"], x["label_onehot"])
    return 100 / 4 * (player(x, "student", "logits_s", "logits_t", beta=2.0 * 0.3) + task)


def code_teacher(x: Arrays) -> Tensor:
    task = 1e-4 * 0.7 / 4 * F.cross_entropy(x["logits_t"], x["label_onehot"])
    return player(x, "teacher", "logits_t", "logits_s", gamma=1e-4 * 0.3) + task


def code_critic(x: Arrays) -> Tensor:
    loss = KDGAN(estimator="code", draws=3, positives=2)
    drawn = {key: x[key][:, 1].reshape(4, 5) for key in ("gen_index", "tch_index")}
    label = drawn["gen_index"][:, 0]
    return loss.separation(x["logits_d"], label, drawn["gen_index"][:, 2:], drawn["tch_index"][:, 2:])


def mimic(x: Arrays) -> Tensor:
    task = F.cross_entropy(x["logits_s"], x["label_onehot"])
    return 0.7 * task + 0.3 * LogitRegression()(x["logits_s"], x["logits_t"])


def paper_student(x: Arrays) -> Tensor:
    loss = KDGAN()
    game = loss.score_function(x["logits_s"], x["sampled"], torch.log1p(-x["p_dis"]))
    return loss.alpha * game + loss.beta * loss.distance(x["logits_s"], x["logits_t"])


def relaxed(x: Arrays) -> Tensor:
    return (x["cotangent"] * concrete_sample(x["logits_s"], 0.7, x["u"])).sum()


STUDENT, TEACHER = ["o1_s", "o2_s", "o3_s"], ["o1_t", "o2_t", "o3_t"]


def block_weights(x: Arrays, blocks: int, first: int) -> dict[str, Tensor]:
    """Weights of block critics; the fixture numbers the layers from `first`."""
    weights = {}
    for block, layer in itertools.product(range(blocks), range(3)):
        place = f"loss.critic.blocks.{block}.{2 * layer}"
        weights[f"{place}.weight"] = x[f"param_d{block}_w{layer + first}"].flatten(1)
        weights[f"{place}.bias"] = x[f"param_d{block}_b{layer + first}"]
    return weights


def meal(x: Arrays, side: str, form: str = "cooperative", hold_student: bool = False) -> Tensor:
    """One side of MEAL with the critics of the fixture: 1x1 convolutions there, linear layers here."""
    critic = BlockCritics([16, 12, 10], relu_scores=True)
    loss = MEAL(form=form, gamma=[0.1, 0.5, 1.0], eta=[1, 1, 1], critic=critic).double()
    student = [x[key].detach() if hold_student else x[key] for key in STUDENT]
    teacher = [x[key].detach() for key in TEACHER]
    return functional_call(Objective(loss, side), block_weights(x, 3, first=1), (student, teacher))


def together(x: Arrays) -> Tensor:
    """Both sides descend the critics' loss, as in the authors' code; the student's part has its own half of it."""
    loss = MEAL(gamma=[0.1, 0.5, 1.0])
    return loss.similarity([x[k] for k in STUDENT], [x[k].detach() for k in TEACHER]) + meal(x, "compute_critic")


def against(x: Arrays) -> Tensor:
    """The value of `together` with the student's own gradient in the game, and the critics' on detached tensors."""
    critics = meal(x, "compute_critic", hold_student=True)
    student = meal(x, "compute", "minimax")
    similarity = MEAL(gamma=[0.1, 0.5, 1.0]).similarity([x[k] for k in STUDENT], [x[k] for k in TEACHER])
    return critics + student + (similarity - student).detach()


def similarity(distance: str) -> Any:
    loss = MEAL(distance, gamma=[0.1, 0.5, 1.0])
    return lambda x: loss.similarity([x[k] for k in STUDENT], [x[k].detach() for k in TEACHER])


def between(distance: str) -> Any:
    return lambda x: MEAL(distance, gamma=[0.5, 1.0]).similarity([x["s1"], x["s2"]], [x["t1"], x["t2"]])


def recognition(x: Arrays) -> Tensor:
    loss = MEAL(eta=[1.0, 0.5], critic=BlockCritics([12, 8], relu_scores=True)).double()
    inputs = [x["s1"], x["s2"]], [x["t1"].detach(), x["t2"].detach()]
    return functional_call(Objective(loss, "compute_critic"), block_weights(x, 2, first=0), inputs)


CASES = [
    Case(
        "skd_adversarial",
        lambda x: WGANGP(nn.Identity(), 0.0).compute_critic(x["score_student"], x["score_teacher"]),
    ),
    Case("cgankd_student_minimax", lambda x: conditional_student(x, "minimax")),
    Case("cgankd_student_nonsaturating", lambda x: conditional_student(x, "nonsaturating")),
    Case("cgankd_discriminator", lambda x: conditional(x, "minimax", "compute_critic")),
    Case("kdgan_student_code", code_student),
    Case("kdgan_teacher_code", code_teacher),
    Case("kdgan_discriminator_code", code_critic),
    Case("kdgan_mimic_code", mimic),
    Case("kdgan_student_paper", paper_student),
    Case("kdgan_gumbel_softmax", relaxed),
    Case("meal", together),
    Case("meal", against, "grl"),
    Case("meal", similarity("l1"), "sim_l1"),
    Case("meal", similarity("l2"), "sim_l2"),
    Case("meal", similarity("l1_soft"), "sim_l1_soft"),
    Case("meal", similarity("l2_soft"), "sim_l2_soft"),
    Case("meal_between_ce", between("ce")),
    Case("meal_between_l1_soft", between("l1_soft")),
    Case("meal_between_l2_soft", between("l2_soft")),
    Case("meal_discriminator", recognition),
    Case("meal_feature_pool_avg", lambda x: (x["cotangent"] * MEAL().pool(x["feat"], 6)).sum()),
]


class TwoTeachers(MEAL):
    """With a name of its own, as the tests take shapes by the name of the class."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(teachers=2, **settings)


SETTINGS = {
    "ConditionalAdversarial-nonsaturating": lambda: ConditionalAdversarial("nonsaturating", width=8, depth=1),
    "KDGAN-teacher": lambda: KDGAN("teacher", gamma=1.0, width=4),
    "KDGAN-concrete": lambda: KDGAN(estimator="concrete", width=4),
    "KDGAN-code": lambda: KDGAN(estimator="code", width=4),
    "MEAL-two": lambda: TwoTeachers(form="nonsaturating", pooling="max", lengths=5, gamma=[0.1, 0.5, 1.0]),
    "MEAL-released": lambda: MEAL(form="cooperative", relu_scores=True),
    "MEAL-l1": lambda: MEAL("l1"),
    "MEAL-l2_soft": lambda: MEAL("l2_soft", eta=0.1),
}


def blocks(batch: int, size: tuple[int, int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Two maps, of other channels and sizes at the teacher, and logits."""
    height, width = size
    student = [(batch, 4, height, width), (batch, 6, (height + 1) // 2, (width + 1) // 2), (batch, 4)]
    teacher = [(batch, 5, height + 1, width), (batch, 6, (height + 1) // 2, (width + 1) // 2), (batch, 4)]
    return student, teacher


SHAPES = {
    "KDGAN": lambda batch, size: ((batch, 4), (batch, 4)),
    "MEAL": blocks,
    "TwoTeachers": lambda batch, size: (blocks(batch, size)[0], [*blocks(batch, size)[1], *blocks(batch, size)[0]]),
}

STOPPED = {"KDGAN-concrete": "the drawn label, which the relaxed one stands for"}

# The labels are drawn anew for every row, and the L2 part of `code` shrinks with the batch.
GROWS = {"KDGAN": None, "KDGAN-teacher": None, "KDGAN-concrete": None, "KDGAN-code": None}

# The floor is the teachers' entropy and the part of the game, which moves little beside it.
TRAINING = {
    "MEAL": {"scale": 3.0, "floor": 6.66 - 1.15},
    "MEAL-released": {"scale": 3.0, "floor": 6.66 + 1.1},
    "MEAL-two": {"scale": 3.0, "floor": 1.4 + 1.0},
    "MEAL-l1": {},
    "MEAL-l2_soft": {},
}
