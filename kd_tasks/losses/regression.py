"""Losses of students that regress numbers: poses, heatmaps."""

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from kd_tasks.losses.base import Loss, check_option, check_positive, check_same_shape
from kd_tasks.losses.gather import all_gather


class _Attentive(Loss):
    """A loss that trusts the teacher where it does well on the training set."""

    lowest: Tensor
    highest: Tensor

    def __init__(self, spread: float | None, clamp: bool) -> None:
        super().__init__()
        if spread is not None:
            check_positive(spread, "spread", self)
        self.spread = spread
        self.clamp = clamp
        self.register_buffer("lowest", torch.tensor(torch.inf))
        self.register_buffer("highest", torch.tensor(-torch.inf))

    def weights(self, errors: Tensor) -> Tensor:
        """The trust in every sample, (N,), of the teacher's errors (N,)."""
        return attentive_weights(errors, self.extent(errors) if self.spread is None else self.spread, self.clamp)

    @torch.no_grad()
    def extent(self, errors: Tensor) -> Tensor:
        """Largest less smallest error seen so far, on all ranks, with these errors; kept while training."""
        ends = torch.stack([errors.min(), errors.max()])[None]
        ends = all_gather(ends) if self.training else ends
        lowest = torch.minimum(self.lowest, ends[:, 0].min())
        highest = torch.maximum(self.highest, ends[:, 1].max())
        if self.training:
            self.lowest.copy_(lowest)
            self.highest.copy_(highest)
        return highest - lowest

    def measured(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The teacher's errors (N,) of its outputs."""
        if outputs.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__} measures the teacher's error by targets of the shape of its outputs, but the "
                f"outputs' shape is {tuple(outputs.shape)} and the target's {tuple(target.shape)}."
            )
        return squared_distances(outputs, target).detach()

    def given(self, teacher_error: Tensor, rows: int) -> Tensor:
        """The errors (N,) that a recipe gives."""
        if teacher_error.shape != (rows,):
            raise ValueError(
                f"{type(self).__name__}: teacher_error holds one number a sample, ({rows},), not "
                f"{tuple(teacher_error.shape)}."
            )
        return teacher_error.detach()


class AttentiveImitation(_Attentive):
    """Attentive imitation for pose regression: the label, and the teacher as far as it can be trusted.

    `alpha / N * sum ||s - y||^2 + (1 - alpha) / N * sum Phi ||s - t||^2` over samples, `Phi = 1 - e / eta`,
    `e = ||t - y||^2` the teacher's error and `eta` its largest less its smallest error in the whole training set.

    Saputra et al. 2019, equations 8 to 10 (arXiv 1908.00858).

    Args:
        alpha: share of the label, from 0 to 1. With 0 the imitation alone remains, for use beside a task loss.
        form: `attentive`; or what the paper compares with it: `additive` with Phi = 1; `minimum`, per sample the
            smaller of `||s - y||^2` and `||s - t||^2`, without alpha; `upper_bound`, additive, but a student nearer to
            the label than the teacher no longer imitates it.
        spread: eta, above 0. None: the largest less the smallest error seen so far in training on any rank, this batch
            included, kept in the buffers `lowest` and `highest`. In evaluation they are read, not changed.
        clamp: keep Phi from 0 to 1. Off: it may be negative and then drives the student away from the teacher, as the
            formula has it for the worst samples; the worse the smallest error, the more of them. While few errors have
            been seen eta is small and Phi can be far below 0: with small batches clamp, or give `spread`.

    Context: `target` (N, D), the labels y. `teacher_error` (N,), the errors e where they were measured beforehand;
    without it they are measured on the batch.

    Shapes: outputs (N, D), the same for both and for the target. Invariant to the batch size, given eta.

    *Deviations*: eta is a running value unless given; it can only grow. If all errors seen are equal, Phi is 1. The
    paper's alpha is not known to us; the default is ours. Its probabilistic variant is not offered.
    """

    Form = Literal["attentive", "additive", "minimum", "upper_bound"]

    paper: ClassVar[str] = "Saputra et al., Distilling Knowledge From a Deep Pose Regressor Network, ICCV 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "outputs"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "pose"

    def __init__(
        self, alpha: float = 0.5, form: Form = "attentive", spread: float | None = None, clamp: bool = False
    ) -> None:
        super().__init__(spread, clamp)
        check_option(form, get_args(self.Form), "form", self)
        if not 0 <= alpha <= 1:
            raise ValueError(f"AttentiveImitation: alpha is a share, from 0 to 1, not {alpha!r}.")
        self.alpha = alpha
        self.form = form

    def compute(self, student: Tensor, teacher: Tensor, target: Tensor, teacher_error: Tensor | None = None) -> Tensor:
        check_same_shape(student, teacher, self)
        errors = self.measured(teacher, target)
        if teacher_error is not None:
            errors = self.given(teacher_error, len(student))
        to_label, to_teacher = squared_distances(student, target), squared_distances(student, teacher)
        if self.form == "minimum":
            return torch.minimum(to_label, to_teacher).mean()
        if self.form == "attentive":
            to_teacher = self.weights(errors) * to_teacher
        elif self.form == "upper_bound":
            to_teacher = torch.where(to_label > errors, to_teacher, 0.0)
        return (self.alpha * to_label + (1 - self.alpha) * to_teacher).mean()


class AttentiveHint(_Attentive):
    """Attentive hints for pose regression: the teacher's feature, as far as its outputs can be trusted.

    `1 / N * sum over samples of Phi ||f_s - f_t||^2`, `Phi = 1 - e / eta`, `e` the teacher's squared error in its
    outputs and `eta` its largest less its smallest error in the whole training set.

    Saputra et al. 2019, equation 12 (arXiv 1908.00858).

    Args:
        spread: eta, above 0. None: the largest less the smallest error seen so far in training on any rank, this batch
            included, kept in the buffers `lowest` and `highest`. In evaluation they are read, not changed.
        clamp: keep Phi from 0 to 1. Off: it may be negative, see `AttentiveImitation`.

    Context: `target` (N, D), the labels, with the teacher's outputs as its second tensor; or `teacher_error` (N,), the
    errors e.

    Shapes: features (N, D) or maps, the same for both; the teacher's side may be the list of its feature and its
    outputs (N, D), by which e is measured: `teacher=['fc1', 'pose']` in a recipe. Invariant to the batch size, given
    eta.

    *Deviations*: eta is a running value unless given; it can only grow. If all errors seen are equal, Phi is 1.
    """

    paper: ClassVar[str] = AttentiveImitation.paper
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "embedding"
    one_of: ClassVar[tuple[str, ...]] = ("teacher_error", "target")

    def __init__(self, spread: float | None = None, clamp: bool = False) -> None:
        super().__init__(spread, clamp)

    def compute(
        self,
        student: Tensor,
        teacher: Tensor | Sequence[Tensor],
        target: Tensor | None = None,
        teacher_error: Tensor | None = None,
    ) -> Tensor:
        hint, *outputs = [teacher] if isinstance(teacher, Tensor) else teacher
        check_same_shape(student, hint, self)
        if teacher_error is not None:
            errors = self.given(teacher_error, len(student))
        elif outputs and target is not None:
            errors = self.measured(outputs[0], target)
        else:
            raise ValueError(
                "AttentiveHint needs the teacher's errors: teacher_error, or target and the teacher's outputs after "
                "its feature."
            )
        return (self.weights(errors) * squared_distances(student, hint)).mean()


class HeatmapMimicry(Loss):
    """Fast pose distillation: every stack of the student mimics the heatmaps of the teacher's last.

    `sum over stacks of 1 / K * sum over joints of 1/2 mean of (v s - v t)^2`, the mean over samples and pixels, v the
    visibility of the joint.

    Zhang, Zhu and Ye 2019 (FPD, arXiv 1811.05419), the mimicry term. The paper's total is 0.5 of it and 0.5 of the same
    loss with the heatmaps of the labels, which is the criterion's.

    Context: `visibility` (N, K), or (N, K, 1); 0 where a joint is not annotated: it then gives no signal, as in the
    authors' code. Left out, all joints count. Fractions weight by their square.

    Shapes: heatmaps (N, K, H, W), the same for both; a list of them for several stacks, of the teacher only the last is
    read. Invariant to the batch size.

    *Deviations*: none from the authors' code, whose half and mean over pixels the paper does not write. The paper's
    thought that the teacher fills in missing joints needs no visibility.
    """

    paper: ClassVar[str] = "Zhang et al., Fast Human Pose Estimation, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "outputs"
    usual_weight: ClassVar[float] = 0.5
    usual_tap: ClassVar[str] = "heatmaps"

    def compute(
        self, student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], visibility: Tensor | None = None
    ) -> Tensor:
        stacks = [student] if isinstance(student, Tensor) else list(student)
        last = teacher if isinstance(teacher, Tensor) else teacher[-1]
        for stack in stacks:
            check_same_shape(stack, last, self)
        if last.ndim != 4:
            raise ValueError(f"HeatmapMimicry reads heatmaps (N, K, H, W), not {tuple(last.shape)}.")
        weights = 1.0 if visibility is None else self.joints(visibility, last)
        return torch.stack([0.5 * (weights * (stack - last)).square().mean() for stack in stacks]).sum()

    def joints(self, visibility: Tensor, heatmaps: Tensor) -> Tensor:
        """The visibility as (N, K, 1, 1)."""
        flat = visibility.flatten(1)
        if flat.shape != heatmaps.shape[:2]:
            raise ValueError(
                f"HeatmapMimicry: visibility has the shape {tuple(visibility.shape)}, but there are heatmaps of "
                f"{tuple(heatmaps.shape[:2])} joints."
            )
        return flat[:, :, None, None].to(heatmaps.dtype)


def attentive_weights(errors: Tensor, spread: float | Tensor | None = None, clamp: bool = False) -> Tensor:
    """How far to trust the teacher in every sample: `1 - e / eta`, (N,), of its errors e (N,).

    With the errors of the whole training set and no `spread` these are the paper's weights. The best sample gets
    `1 - min(e) / eta`, the worst `-min(e) / eta`, which is 0 or less.

    Args:
        errors: squared errors, from 0.
        spread: eta; None: the largest less the smallest of `errors`. At 0 all weights are 1.
        clamp: keep the weights from 0 to 1.
    """
    extent = errors.max() - errors.min() if spread is None else spread
    eta = torch.as_tensor(extent, dtype=errors.dtype, device=errors.device)
    some = eta > 0
    weights = torch.where(some, 1 - errors / torch.where(some, eta, 1.0), 1.0)
    return weights.clamp(0, 1) if clamp else weights


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distances between the samples of two batches (N, ...), (N,)."""
    return (first - second).flatten(1).square().sum(dim=1)
