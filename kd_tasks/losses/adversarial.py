"""Losses with a critic that learns to tell the teacher's outputs from the student's."""

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kd_tasks.losses.base import AdversarialLoss, check_option, check_positive, check_same_shape
from kd_tasks.losses.logits import check_not_negative, check_share, labels_of_size

TINY = 1e-20


class CriticLoss(AdversarialLoss):
    """What the adversarial losses share: scores by the critic, and the student's term `-mean D(s)`.

    Args:
        critic: module that scores samples, `critic(logits) -> (N, ...)`, higher for the teacher's. If it has a true
            attribute `conditional`, it is called as `critic(logits, image)`, and the context `image` is needed. A
            method `prepare(student, teacher, image)` of it can create its layers when the sizes are known.
    """

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def prepare(self, student: Tensor, teacher: Tensor, **context: Any) -> None:
        check_same_shape(student, teacher, self)
        prepare_critic(self.critic, student, teacher, context)

    def compute(self, student: Tensor, teacher: Tensor, image: Tensor | None = None) -> Tensor:
        check_same_shape(student, teacher, self)
        scores: Tensor = frozen(self.critic, *self._inputs(student, image))
        return -scores.mean()

    def scores(self, logits: Tensor, image: Tensor | None) -> Tensor:
        """The critic's scores, of any shape that starts with N."""
        scores: Tensor = self.critic(*self._inputs(logits, image))
        return scores

    def _inputs(self, logits: Tensor, image: Tensor | None) -> tuple[Tensor, ...]:
        if not getattr(self.critic, "conditional", False):
            return (logits,)
        if image is None:
            raise ValueError(f"{type(self).__name__}: the critic is conditional and needs the context 'image'.")
        return (logits, image)


class WGANGP(CriticLoss):
    """Holistic distillation of structured knowledge distillation: a Wasserstein critic with gradient penalty.

    Student: `-mean D(s)`. Critic: `mean D(s) - mean D(t) + c * mean (||grad of D at x||_2 - 1)^2`, with
    `x = a t + (1 - a) s` and one `a` uniform in (0, 1) for each sample.

    Liu et al. 2019, the holistic term (arXiv 1903.04197); gradient penalty: Gulrajani et al. 2017, equation 3.

    Args:
        critic: see `CriticLoss`; for segmentation `HolisticCritic`.
        gradient_penalty: c, from 0.

    Context: `image` (N, 3, H, W), read only by a conditional critic; the penalty is on the gradient to the logits.

    Shapes: logits (N, ...), the same for both. Invariant to the batch size as far as the critic is; batch statistics in
    it couple the samples.

    *Deviations*: the student's term leaves no gradient in the critic; in the authors' code it does, and is cleared.
    """

    paper: ClassVar[str] = "Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 0.1
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, critic: nn.Module, gradient_penalty: float = 10.0) -> None:
        super().__init__(critic)
        if gradient_penalty < 0:
            raise ValueError(f"WGANGP: gradient_penalty must not be negative, but is {gradient_penalty!r}.")
        self.gradient_penalty = gradient_penalty

    def compute_critic(self, student: Tensor, teacher: Tensor, image: Tensor | None = None) -> Tensor:
        check_same_shape(student, teacher, self)
        teacher_score = self.scores(teacher, image).mean()
        student_score = self.scores(student, image).mean()
        return student_score - teacher_score + self.penalty(student, teacher, image)

    def penalty(
        self, student: Tensor, teacher: Tensor, image: Tensor | None = None, alpha: Tensor | None = None
    ) -> Tensor:
        """The weighted gradient penalty; `alpha` (N, 1, ...) in 0..1 is the teacher's share, drawn if None."""
        if alpha is None:
            alpha = torch.rand(len(student), *[1] * (student.ndim - 1), dtype=student.dtype, device=student.device)
        between = (alpha * teacher + (1 - alpha) * student).detach().requires_grad_()
        with torch.enable_grad():
            scores = self.scores(between, image)
            (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
            lengths = gradient.flatten(1).norm(dim=1)
            return self.gradient_penalty * (lengths - 1).square().mean()


class Hinge(CriticLoss):
    """Adversarial distillation with the hinge objective, the alternative in the code of structured distillation.

    Student: `-mean D(s)`. Critic: `mean max(0, 1 + D(s)) + mean max(0, 1 - D(t))`.

    Lim and Ye 2017 (arXiv 1705.02894); as an option in the code of Liu et al. 2019.

    Args:
        critic: see `CriticLoss`.

    Context: `image` (N, 3, H, W), read only by a conditional critic.

    Shapes: logits (N, ...), the same for both. Invariant to the batch size as far as the critic is.

    *Deviations*: as for `WGANGP`.
    """

    paper: ClassVar[str] = "Lim and Ye, Geometric GAN, 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 0.1
    usual_tap: ClassVar[str] = "logits"

    def compute_critic(self, student: Tensor, teacher: Tensor, image: Tensor | None = None) -> Tensor:
        check_same_shape(student, teacher, self)
        teacher_term = F.relu(1 - self.scores(teacher, image)).mean()
        student_term = F.relu(1 + self.scores(student, image)).mean()
        return teacher_term + student_term


class PreparedCritic(AdversarialLoss):
    """What the losses share that make their critic themselves once the sizes are known, unless they are given one."""

    def __init__(self, critic: nn.Module | None) -> None:
        super().__init__()
        self.register_module("critic", critic)

    def prepare(self, student: Any, teacher: Any, **context: Any) -> None:
        self.check(student, teacher)
        if self._modules["critic"] is None:
            self.critic = self.default_critic(student, teacher, **context)
        else:
            prepare_critic(self.critic, student, teacher, context)

    def ready(self) -> nn.Module:
        """The critic; it is there from `prepare` on."""
        if self._modules["critic"] is None:
            raise ValueError(f"{type(self).__name__} has no critic yet: call `prepare` first, or give one.")
        return self.critic

    @abstractmethod
    def check(self, student: Any, teacher: Any) -> None:
        """Raise `ValueError` for shapes that do not fit."""

    @abstractmethod
    def default_critic(self, student: Any, teacher: Any, **context: Any) -> nn.Module:
        """A critic for inputs of these sizes."""


class LogitCritic(nn.Module):
    """A perceptron on a logit vector: scores of the K classes, of real and of fake.

    Args:
        classes: K.
        width: of the hidden layers.
        depth: number of hidden layers, from 1, each followed by a ReLU.
        dropout: probability that a hidden unit is dropped.

    Shapes: (N, K) -> (N, K + 2).
    """

    def __init__(self, classes: int, width: int = 64, depth: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [classes, *[width] * depth]
        hidden = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, classes + 2))

    def forward(self, logits: Tensor) -> Tensor:
        scores: Tensor = self.layers(logits)
        return scores


class ConditionalAdversarial(PreparedCritic):
    """Conditional adversarial distillation: a critic of logit vectors that tells the class beside real and fake.

    Student: `l1 * mean |s - t|_1 + adversarial * mean log P(fake|s) - label * mean log P(y|s)`. Critic:
    `-mean [log P(real|t) + log P(fake|s) + log P(y|t) + log P(y|s)]`. P(y|.) is the softmax over the first K of the
    critic's K + 2 outputs, P(real|.) and P(fake|.) that over the last two; |.|_1 sums over the classes.

    Xu, Hsu and Huang 2017 (arXiv 1709.00513); the cross-entropy of the paper's objective is the task's own loss.

    The L1 part compares raw logits: with a teacher whose logits are large it outweighs all the rest, the task's loss
    as well. Then lower `l1`, to 0.1 for instance.

    Args:
        form: the student's adversarial part: `minimax` as above, or `nonsaturating`, `-mean log P(real|s)`, whose
            gradient does not vanish while the critic wins.
        l1: weight of the L1 part; 0 leaves it out.
        adversarial: weight of the adversarial part; 0 leaves it out.
        label: weight of the class part; 0 leaves it out.
        width, depth, dropout: of the critic, see `LogitCritic`.
        critic: another one, `critic(logits (M, K)) -> (M, K + 2)`.

    Context: `label` (N,), or (N, H, W) for maps; maps of another size are resized by nearest neighbour. Rows with a
    label outside 0..K-1 have no class part.

    Shapes: logits (N, K) or (N, K, H, W), the same for both; every pixel is a sample for the critic. Invariant to the
    batch size.

    Memory: for maps the critic's hidden layers hold `width / K` times the logits each.

    *Deviations*: there is no code of the authors, and these are our reading: two softmaxes instead of one over all
    outputs, the form, L1 summed over the classes, all weights 1, the critic's size, and no dropout in it by default,
    although the paper regularises the critic. Pixels as samples are ours.
    """

    Form = Literal["minimax", "nonsaturating"]

    paper: ClassVar[str] = (
        "Xu et al., Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional "
        "Adversarial Networks, 2017"
    )
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(
        self,
        form: Form = "minimax",
        l1: float = 1.0,
        adversarial: float = 1.0,
        label: float = 1.0,
        width: int = 64,
        depth: int = 2,
        dropout: float = 0.0,
        critic: nn.Module | None = None,
    ) -> None:
        super().__init__(critic)
        check_option(form, get_args(self.Form), "form", self)
        for value, name in ((l1, "l1"), (adversarial, "adversarial"), (label, "label")):
            check_not_negative(value, name, self)
        check_positive(width, "width", self)
        check_positive(depth, "depth", self)
        check_share(dropout, "dropout", self)
        self.form = form
        self.l1, self.adversarial, self.label = l1, adversarial, label
        self.sizes = {"width": width, "depth": depth, "dropout": dropout}

    def check(self, student: Tensor, teacher: Tensor) -> None:
        check_same_shape(student, teacher, self)

    def default_critic(self, student: Tensor, teacher: Tensor, **context: Any) -> nn.Module:
        return LogitCritic(student.shape[1], **self.sizes)  # type: ignore[arg-type]

    def compute(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        student, teacher, label = self.rows(student, teacher, label)
        classes, origin = self.heads(frozen(self.ready(), student), student)
        log_real, log_fake = F.log_softmax(origin, dim=1).unbind(1)
        fooled = log_fake.mean() if self.form == "minimax" else -log_real.mean()
        distance = (student - teacher).abs().sum(dim=1).mean()
        return self.l1 * distance + self.adversarial * fooled + self.label * known_cross_entropy(classes, label)

    def compute_critic(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        student, teacher, label = self.rows(student, teacher, label)
        critic = self.ready()
        loss = student.new_zeros(())
        for logits, is_fake in ((teacher, 0), (student, 1)):
            classes, origin = self.heads(critic(logits), logits)
            loss = loss - F.log_softmax(origin, dim=1)[:, is_fake].mean() + known_cross_entropy(classes, label)
        return loss

    def rows(self, student: Tensor, teacher: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (M, K) of both and labels (M,), where M counts samples, or the pixels of maps."""
        self.check(student, teacher)
        label = labels_of_size(student, label, self)
        first, second = (logits.movedim(1, -1).reshape(-1, logits.shape[1]) for logits in (student, teacher))
        return first, second, label.reshape(-1)

    def heads(self, scores: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's scores of the classes (M, K), and of real and fake (M, 2)."""
        rows, classes = logits.shape
        if scores.shape != (rows, classes + 2):
            raise ValueError(
                f"ConditionalAdversarial: the critic gives {tuple(scores.shape)} for logits {(rows, classes)}, "
                f"and not {(rows, classes + 2)}."
            )
        return scores[:, :classes], scores[:, classes:]


class LabelCritic(nn.Module):
    """A small convolutional network that scores every class of a picture: high where the class is the true label.

    Args:
        channels: of the pictures.
        classes: K.
        width: channels of the first of three layers; they double from layer to layer.

    Shapes: (N, channels, H, W) -> (N, K), for any H and W.
    """

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]
        layers = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2))
        ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.layers(image)
        return scores


class KDGAN(PreparedCritic):
    """Distillation among three players: classifier and teacher propose labels, a critic tells them from true ones.

    The classifier's loss: `alpha * E_{k ~ p_s} [log(1 - D(x, k))] + beta * 1 / (2 N) * sum ||s - t||^2`, the
    teacher's likewise with `1 - alpha`, p_t and `gamma`. Critic: `-mean [log D(x, y) + alpha * E_{k ~ p_s}
    log(1 - D(x, k)) + (1 - alpha) * E_{k ~ p_t} log(1 - D(x, k))]`. p is a softmax, D(x, k) the sigmoid of the
    critic's score of class k of picture x.

    Wang et al. 2018, the value function of the three players and algorithm 1.

    The labels k are drawn, so that no gradient passes through them. `estimator` says what stands for it:
    - `paper`: the score function, `mean log p(k) * (r - b)` with the reward r = log(1 - D(x, k)) and its mean b over
      the batch. The gradient is right on average, up to the factor 1 - 1 / (N * draws), as b holds the label's own
      reward; the value is no measure of progress.
    - `concrete`: labels drawn by the Gumbel trick, forward one label, backward its relaxed form `concrete_sample`.
    - `code`: what the authors' code does: the player's logits of the labels are drawn to D as to soft targets,
      `mean of -D log sigmoid(s_k) - (1 - D) log(1 - sigmoid(s_k))`, and the critic separates `positives` copies of
      the true label from `draws` labels of each player by binary cross-entropy. The L2 part is
      `beta / N * mean over samples and classes of (s - t)^2`.

    Args:
        player: who is trained, on the student's side of the transfer: `student`, the classifier; or `teacher`, in a
            training of its own in which the classifier is the frozen one. A teacher that nothing else holds to its
            task can collapse.
        estimator: see above.
        alpha: the classifier's share in the critic's negatives, 0..1; the teacher has the rest.
        beta: weight of the classifier's L2 part; 0 leaves room for another transfer on the logits.
        gamma: weight of the teacher's L2 part.
        draws: labels drawn from a player for each sample.
        positives: copies of the true label for each sample, of `code` alone.
        temperature: of the relaxed labels, of `concrete` alone. Small: little bias and much variance.
        width: of the critic, see `LabelCritic`.
        critic: another one, `critic(image) -> (N, K)`.

    Context: `image` (N, C, H, W), which the critic looks at; `label` (N,), 0..K-1.

    Shapes: logits (N, K), the same for both. Draws aside, invariant to the batch size, but for the L2 part of `code`.

    Memory: `concrete` holds `draws` times the logits.

    *Deviations*: players take turns within a step and not in phases of epochs. With `paper` and `concrete` the critic's
    expectations are sums over the classes instead of draws, as it scores all of them at once. The temperature is not
    annealed. From the authors' code we leave out the factor `training set size / N` of the classifier's loss, which is
    the transfer's weight, and the cross-entropy, which is the task's; its `kd_soft_pct` of 0.3 goes into beta and
    gamma; its temperature of the L2 part cancels out.
    """

    Player = Literal["student", "teacher"]
    Estimator = Literal["paper", "concrete", "code"]

    paper: ClassVar[str] = (
        "Wang et al., KDGAN: Knowledge Distillation with Generative Adversarial Networks, NeurIPS 2018"
    )
    year: ClassVar[int] = 2018
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(
        self,
        player: Player = "student",
        estimator: Estimator = "paper",
        alpha: float = 0.2,
        beta: float = 2.0,
        gamma: float = 1e-4,
        draws: int = 20,
        positives: int = 5,
        temperature: float = 1.0,
        width: int = 32,
        critic: nn.Module | None = None,
    ) -> None:
        super().__init__(critic)
        check_option(player, get_args(self.Player), "player", self)
        check_option(estimator, get_args(self.Estimator), "estimator", self)
        check_share(alpha, "alpha", self)
        check_not_negative(beta, "beta", self)
        check_not_negative(gamma, "gamma", self)
        for value, name in ((draws, "draws"), (positives, "positives"), (temperature, "temperature"), (width, "width")):
            check_positive(value, name, self)
        self.player, self.estimator = player, estimator
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.draws, self.positives, self.temperature, self.width = draws, positives, temperature, width

    def check(self, student: Tensor, teacher: Tensor) -> None:
        check_same_shape(student, teacher, self)
        if student.ndim != 2:
            raise ValueError(
                f"KDGAN reads logits (N, K) of whole pictures, but the student's shape is {tuple(student.shape)} and "
                f"the teacher's {tuple(teacher.shape)}."
            )

    def default_critic(
        self, student: Tensor, teacher: Tensor, image: Tensor | None = None, **context: Any
    ) -> nn.Module:
        if image is None:
            raise ValueError("KDGAN: the size of its critic is that of the context 'image'; give it to `prepare`.")
        return LabelCritic(image.shape[1], student.shape[1], self.width)

    def compute(self, student: Tensor, teacher: Tensor, image: Tensor, label: Tensor) -> Tensor:
        self.check(student, teacher)
        with torch.no_grad():
            scores = self.scores(image, student)
        share, weight = (self.alpha, self.beta) if self.player == "student" else (1 - self.alpha, self.gamma)
        return share * self.proposal(student, scores) + weight * self.distance(student, teacher)

    def compute_critic(self, student: Tensor, teacher: Tensor, image: Tensor, label: Tensor) -> Tensor:
        self.check(student, teacher)
        scores = self.scores(image, student)
        players = (student, teacher) if self.player == "student" else (teacher, student)
        if self.estimator == "code":
            first, second = (self.draw(logits) for logits in players)
            return self.separation(scores, label, first, second)
        rewards = F.logsigmoid(-scores)
        classifier, tutor = ((F.softmax(logits, dim=1) * rewards).sum(dim=1).mean() for logits in players)
        true = F.logsigmoid(scores).gather(1, label[:, None]).mean()
        return -(true + self.alpha * classifier + (1 - self.alpha) * tutor)

    def scores(self, image: Tensor, logits: Tensor) -> Tensor:
        """The critic's scores of all classes, (N, K); D is their sigmoid."""
        scores: Tensor = self.ready()(image.detach().to(logits.dtype))
        if scores.shape != logits.shape:
            raise ValueError(
                f"KDGAN: the critic gives {tuple(scores.shape)} for logits of shape {tuple(logits.shape)}; it must "
                "score every class of every picture."
            )
        return scores

    def draw(self, logits: Tensor) -> Tensor:
        """Labels drawn from the softmax of a player's logits, (N, draws)."""
        return torch.multinomial(F.softmax(logits, dim=1), self.draws, replacement=True)

    def proposal(self, logits: Tensor, scores: Tensor) -> Tensor:
        """The player's part in the game, by the estimator, with labels drawn now."""
        if self.estimator == "concrete":
            uniform = torch.rand(self.draws, *logits.shape, dtype=logits.dtype, device=logits.device)
            return self.straight_through(logits, uniform, F.logsigmoid(-scores))
        drawn = self.draw(logits.detach())
        if self.estimator == "code":
            return self.imitation(logits, drawn, scores.gather(1, drawn).sigmoid())
        return self.score_function(logits, drawn, F.logsigmoid(-scores).gather(1, drawn))

    def score_function(self, logits: Tensor, drawn: Tensor, rewards: Tensor) -> Tensor:
        """`mean log p(k) * (r - mean r)` over labels `drawn` (N, M) with their `rewards` (N, M)."""
        advantage = (rewards - rewards.mean()).detach()
        return (F.log_softmax(logits, dim=1).gather(1, drawn) * advantage).mean()

    def straight_through(self, logits: Tensor, uniform: Tensor, rewards: Tensor) -> Tensor:
        """The mean reward of labels drawn by `uniform` (M, N, K), out of the `rewards` (N, K) of all."""
        relaxed = concrete_sample(logits, self.temperature, uniform)
        chosen = torch.zeros_like(relaxed).scatter_(-1, relaxed.argmax(dim=-1, keepdim=True), 1.0)
        return ((chosen + (relaxed - relaxed.detach())) * rewards.detach()).sum(dim=-1).mean()

    def imitation(self, logits: Tensor, drawn: Tensor, rewards: Tensor) -> Tensor:
        """Binary cross-entropy of the logits of labels `drawn` (N, M) to D's probabilities `rewards` (N, M)."""
        return F.binary_cross_entropy_with_logits(logits.gather(1, drawn), rewards.detach())

    def separation(self, scores: Tensor, label: Tensor, classifier: Tensor, tutor: Tensor) -> Tensor:
        """The critic's binary cross-entropy: true labels against those of the players, (N, draws) each."""
        true = label[:, None].expand(-1, self.positives)
        return self.alpha * _told_apart(scores, true, classifier) + (1 - self.alpha) * _told_apart(scores, true, tutor)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The L2 part, in the reduction of the paper or of the code."""
        squares = (student - teacher).square()
        return squares.mean() / len(squares) if self.estimator == "code" else 0.5 * squares.sum(dim=1).mean()


class BlockCritics(nn.Module):
    """One perceptron for each block: two scores, high in the first for the student's output, else in the second.

    Args:
        sizes: lengths of the blocks' pooled outputs; the hidden layers have a half and a quarter of them.
        relu_scores: put a ReLU behind the scores as well.

    Shapes: a list of (N, size) -> a list of (N, 2).
    """

    def __init__(self, sizes: Sequence[int], relu_scores: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(size, max(size // 2, 1)),
                nn.ReLU(),
                nn.Linear(max(size // 2, 1), max(size // 4, 1)),
                nn.ReLU(),
                nn.Linear(max(size // 4, 1), 2),
                *([nn.ReLU()] if relu_scores else []),
            )
            for size in sizes
        )

    def forward(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        return [block(output) for block, output in zip(self.blocks, outputs, strict=True)]


class MEAL(PreparedCritic):
    """Adversarial learning from an ensemble: the blocks' outputs of a teacher drawn anew in every step.

    Student: `sum over blocks i of gamma_i * d(s_i, t_i) - eta_i / 2 * mean BCE(D_i(s_i), (1, 0))`. Critic:
    `sum over blocks of eta_i / 2 * [mean BCE(D_i(s_i), (1, 0)) + mean BCE(D_i(t_i), (0, 1))]`, the means over samples
    and both scores. With d = `ce`: `mean over samples of -softmax(t_i) . log softmax(s_i)`.

    Shen, He and Xue 2019, similarity loss and adversarial loss (arXiv 1812.02425).

    Maps become vectors first: their H W positions are pooled to a fixed length, then the channels to one, both by
    `pooling`. Vectors, such as logits, are taken as they are.

    Args:
        distance: d: `ce` as above; `l1` and `l2`, the mean of |s - t| or (s - t)^2 over samples and elements; `l1_soft`
            and `l2_soft`, the same of the softmax.
        form: the student's part in the game: `minimax` as above; `nonsaturating`,
            `+ eta_i / 2 * mean BCE(D_i(s_i), (0, 1))`; or `cooperative`, the opposite of `minimax`: the student helps
            the critics to recognise it, which the authors' code does unless `--grl` is set.
        gamma: weight of every block's distance, one for all or one for each.
        eta: weight of every block's critic, likewise.
        teachers: how many teachers the teacher's taps belong to. The list holds all blocks of the first, then all of
            the second, and so on.
        lengths: what maps are pooled to, one for all blocks or one for each; None: as many as there are positions in
            the smallest map of the block, of the student's and all teachers', when the training starts.
        pooling: `avg` or `max`.
        relu_scores: a ReLU behind the critics' scores, as in the authors' code. A critic of which both scores are
            negative for all samples then has no gradient and stays as it is.
        critic: another one, from a list of (N, length) to a list of (N, 2). The paper's hidden layers of a half and a
            quarter of the length can die where blocks are short, such as the logits of few classes.

    Shapes: lists of maps (N, C, H, W) or vectors (N, D), as many of the student as of each teacher, or one tensor for
    one block. Channels and sizes of the maps may differ; vectors must have one length. Invariant to the batch size.

    *Deviations*: as in the paper no label is read; give the task's losses the weight 0 for the paper's recipe. The
    critics are trained by an optimiser of their own, in turns with the student, and on a teacher drawn for
    themselves. The student's part leaves out the critics' term of the teacher, which is constant for it. The default
    scores have no ReLU. Out of training it is the first teacher that counts.
    """

    Distance = Literal["ce", "l1", "l2", "l1_soft", "l2_soft"]
    Form = Literal["minimax", "nonsaturating", "cooperative"]
    Pooling = Literal["avg", "max"]

    paper: ClassVar[str] = "Shen et al., MEAL: Multi-Model Ensemble via Adversarial Learning, AAAI 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "several maps"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "backbone.layer1, ..., backbone.layer4, logits"

    def __init__(
        self,
        distance: Distance = "ce",
        form: Form = "minimax",
        gamma: float | Sequence[float] = 1.0,
        eta: float | Sequence[float] = 1.0,
        teachers: int = 1,
        lengths: int | Sequence[int] | None = None,
        pooling: Pooling = "avg",
        relu_scores: bool = False,
        critic: nn.Module | None = None,
    ) -> None:
        super().__init__(critic)
        check_option(distance, get_args(self.Distance), "distance", self)
        check_option(form, get_args(self.Form), "form", self)
        check_option(pooling, get_args(self.Pooling), "pooling", self)
        check_positive(teachers, "teachers", self)
        for values, name in ((gamma, "gamma"), (eta, "eta")):
            for value in _listed(values):
                check_not_negative(value, name, self)
        for length in _listed(lengths if lengths is not None else 1):
            check_positive(length, "lengths", self)
        self.distance, self.form, self.pooling, self.relu_scores = distance, form, pooling, relu_scores
        self.gamma, self.eta, self.teachers, self.lengths = gamma, eta, teachers, lengths

    def check(self, student: Any, teacher: Any) -> None:
        ours, theirs = _listed(student), _listed(teacher)
        if len(theirs) != self.teachers * len(ours):
            raise ValueError(
                f"MEAL: {self.teachers} teachers with {len(ours)} blocks each, as the student has, are "
                f"{self.teachers * len(ours)} tensors, but the teacher's side has {len(theirs)}."
            )
        for position, target in enumerate(theirs):
            output = ours[position % len(ours)]
            alike = output.ndim == target.ndim == 4 or (output.ndim == 2 and output.shape[1:] == target.shape[1:])
            if not alike or len(output) != len(target):
                raise ValueError(
                    f"MEAL compares maps (N, C, H, W) with maps and vectors with vectors of the same length, but the "
                    f"student's shape is {tuple(output.shape)} and the teacher's {tuple(target.shape)}."
                )

    def prepare(self, student: Any, teacher: Any, **context: Any) -> None:
        self.check(student, teacher)
        self.lengths = self.sizes(student, teacher)
        super().prepare(student, teacher, **context)

    def default_critic(self, student: Any, teacher: Any, **context: Any) -> nn.Module:
        return BlockCritics(self.sizes(student, teacher), self.relu_scores)

    def compute(self, student: Any, teacher: Any) -> Tensor:
        ours, theirs = self.outputs(student, teacher)
        return self.similarity(ours, theirs) + self.game(ours)

    def compute_critic(self, student: Any, teacher: Any) -> Tensor:
        ours, theirs = self.outputs(student, teacher)
        critic = self.ready()
        return 0.5 * (self.recognition(critic(ours), 0) + self.recognition(critic(theirs), 1))

    def outputs(self, student: Any, teacher: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The pooled outputs of the student and of one teacher, drawn at random in training."""
        self.check(student, teacher)
        ours, theirs = _listed(student), _listed(teacher)
        sizes = self.sizes(student, teacher)
        drawn = int(torch.randint(self.teachers, ())) if self.training and self.teachers > 1 else 0
        theirs = theirs[drawn * len(ours) : (drawn + 1) * len(ours)]
        return self.pooled(ours, sizes), self.pooled(theirs, sizes)

    def sizes(self, student: Any, teacher: Any) -> list[int]:
        """The length of every block's pooled output."""
        ours, theirs = _listed(student), _listed(teacher)
        given = self.each(self.lengths, "lengths", len(ours)) if self.lengths is not None else [None] * len(ours)
        return [
            output.shape[1] if output.ndim == 2 else length or min(x[0, 0].numel() for x in (output, *targets))
            for length, output, targets in zip(
                given, ours, (theirs[block :: len(ours)] for block in range(len(ours))), strict=True
            )
        ]

    def pooled(self, outputs: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Vectors (N, size), of maps by pooling."""
        return [self.pool(x, size) if x.ndim == 4 else x for x, size in zip(outputs, sizes, strict=True)]

    def pool(self, maps: Tensor, length: int) -> Tensor:
        """Maps (N, C, H, W) as (N, length)."""
        positions = maps.flatten(2)
        if self.pooling == "avg":
            return F.adaptive_avg_pool1d(positions.mean(dim=1, keepdim=True), length).squeeze(1)
        return F.adaptive_max_pool1d(positions.max(dim=1, keepdim=True).values, length).squeeze(1)

    def similarity(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """`sum gamma_i * d(s_i, t_i)` of pooled outputs."""
        terms = [_distance(s, t, self.distance) for s, t in zip(student, teacher, strict=True)]
        return _weighted(terms, self.each(self.gamma, "gamma", len(terms)))

    def game(self, student: Sequence[Tensor]) -> Tensor:
        """The student's part in the game, of pooled outputs."""
        scores = frozen(self.ready(), student)
        if self.form == "nonsaturating":
            return 0.5 * self.recognition(scores, 1)
        return (-0.5 if self.form == "minimax" else 0.5) * self.recognition(scores, 0)

    def recognition(self, scores: Sequence[Tensor], column: int) -> Tensor:
        """`sum eta_i * mean BCE` of the critics' scores with the target 1 in `column` and 0 in the other."""
        terms = [
            F.softplus(torch.cat([-s[:, column : column + 1], s[:, 1 - column : 2 - column]], dim=1)).mean()
            for s in scores
        ]
        return _weighted(terms, self.each(self.eta, "eta", len(terms)))

    def each(self, values: Any, name: str, blocks: int) -> list[Any]:
        """One value for each block."""
        listed = _listed(values)
        if isinstance(values, int | float):
            return listed * blocks
        if len(listed) != blocks:
            raise ValueError(f"MEAL: {name} has {len(listed)} values, but there are {blocks} blocks.")
        return listed


def concrete_sample(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """A relaxed one-hot label drawn from `softmax(logits)`: `softmax((logits + g) / temperature)`, g Gumbel noise.

    Args:
        logits: (..., K).
        temperature: above 0; towards 0 the sample becomes one-hot.
        uniform: numbers in [0, 1), of a shape that `logits` can be brought to.

    Maddison et al. 2017, Jang et al. 2017.
    """
    gumbel = -torch.log(-torch.log(uniform + TINY) + TINY)
    return F.softmax((logits + gumbel) / temperature, dim=-1)


def frozen(critic: nn.Module, *inputs: Any) -> Any:
    """What `critic` gives, with gradients to `inputs` and none to its weights."""
    return functional_call(critic, {name: weight.detach() for name, weight in critic.named_parameters()}, inputs)


def prepare_critic(critic: nn.Module, student: Any, teacher: Any, context: Mapping[str, Any]) -> None:
    """Let a critic create its layers, if it has a method `prepare` for it."""
    prepare = getattr(critic, "prepare", None)
    if prepare is not None:
        prepare(student, teacher, image=context.get("image"))


def known_cross_entropy(scores: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of scores (M, K) over the rows with a label in 0..K-1; zero if there are none."""
    known = (label >= 0) & (label < scores.shape[1])
    terms = F.cross_entropy(scores, torch.where(known, label, 0), reduction="none")
    return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)


def _told_apart(scores: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """Binary cross-entropy of the scores of `true` labels to 1 and of `false` ones to 0."""
    terms = torch.cat([-scores.gather(1, true), scores.gather(1, false)], dim=1)
    return F.softplus(terms).mean()


def _distance(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    if kind == "ce":
        return F.cross_entropy(student, F.softmax(teacher, dim=1))
    if kind.endswith("_soft"):
        student, teacher = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
    return F.l1_loss(student, teacher) if kind.startswith("l1") else F.mse_loss(student, teacher)


def _weighted(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
