"""Losses with a critic that learns to tell the teacher's outputs from the student's."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kd_tasks.losses.base import AdversarialLoss, check_same_shape


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
        prepare = getattr(self.critic, "prepare", None)
        if prepare is not None:
            prepare(student, teacher, image=context.get("image"))

    def compute(self, student: Tensor, teacher: Tensor, image: Tensor | None = None) -> Tensor:
        check_same_shape(student, teacher, self)
        weights = {name: weight.detach() for name, weight in self.critic.named_parameters()}
        return -functional_call(self.critic, weights, self._inputs(student, image)).mean()

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
