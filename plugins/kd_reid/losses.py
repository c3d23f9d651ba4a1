"""Losses of re-identification alone: the batch-hard triplet, and fast-reid's distillation of identity logits."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_tasks.losses.base import Loss, RelationalLoss, check_positive, check_same_shape
from kd_tasks.registry import LOSSES

SMALLEST_SQUARE = 1e-12


@LOSSES.register
class JSDivergence(Loss):
    """Distillation of class probabilities, drawn both ways, as fast-reid has it.

    `T^2 / (2 N) * sum over samples of KL(softmax(t / T) || softmax(s / T)) + KL(softmax(s / T) || softmax(t / T))`

    fast-reid's name for it is JS divergence; it is half of Jeffreys' symmetric divergence, not that of Jensen and
    Shannon, which compares both with their mean. The library fast-reid (He et al., ACM MM 2023; arXiv 2006.02631),
    project FastDistill; fixture `reid_jsdiv`.

    Args:
        temperature: T, above 0.

    Shapes: logits (N, K) or (N, K, ...), the same for both; for maps the mean runs over pixels as well. Invariant to
    the batch size.

    *Deviations*: none from the code in value. The sum is taken as `(p_t - p_s) * (log p_t - log p_s)`, which is the
    same number.
    """

    paper: ClassVar[str] = "He et al., FastReID: A Pytorch Toolbox for General Instance Re-identification, 2020"
    year: ClassVar[int] = 2020
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, temperature: float = 16.0) -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        log_student, log_teacher = (F.log_softmax(x / self.temperature, dim=1) for x in (student, teacher))
        terms = (log_teacher.exp() - log_student.exp()) * (log_teacher - log_student)
        return 0.5 * self.temperature**2 * terms.sum(dim=1).mean()


@LOSSES.register
class BatchHardTriplet(RelationalLoss):
    """Triplet loss on the hardest pairs of each batch: nearest stranger against farthest picture of the same person.

    `mean over anchors a of max(0, m + max over p of d(a, p) - min over n of d(a, n))`, d the Euclidean distance, p the
    samples with the anchor's label and n those with another; the soft margin is `log(1 + exp(d(a, p) - d(a, n)))`.

    Hermans, Beyer and Leibe 2017, equation 5 and section 2 (arXiv 1703.07737); the usual form of re-identification is
    margin 0.3 on features that are not normalised; fixture `reid_triplet_ce`. It reads the student alone: in a recipe
    it is `dict(student='features', loss=dict(type='BatchHardTriplet'))`.

    Args:
        margin: m, above 0; None for the soft margin.
        normalise: scale the features to length 1 first.
        gather: join the batches of all ranks first, see `RelationalLoss`.

    Context: `label` (N,), the identity; a sample with a negative label takes no part.

    Shapes: features (N, D); maps are flattened. A batch that is taken twice over has another value, since the anchors
    that had no partner find one. Memory: a few matrices (N, N).

    *Deviations* from the paper's code and fast-reid: an anchor without another picture of its person, or without a
    stranger, is left out, where they compare it with itself; a batch without any complete anchor gives 0 with a zero
    gradient. Distances come from one matrix product of centred features; below 1e-6 they have no gradient.
    """

    paper: ClassVar[str] = "Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "features"
    reads_teacher: ClassVar[bool] = False

    def __init__(self, margin: float | None = 0.3, normalise: bool = False, gather: bool = False) -> None:
        super().__init__(gather)
        if margin is not None:
            check_positive(margin, "margin", self)
        self.margin = margin
        self.normalise = normalise

    def compute(self, student: Tensor, teacher: None, label: Tensor) -> Tensor:
        features = student.flatten(1)
        if label.shape != features.shape[:1]:
            raise ValueError(
                f"BatchHardTriplet needs one label a sample, but the features' shape is {tuple(student.shape)} and the "
                f"labels' {tuple(label.shape)}."
            )
        distances = euclidean(F.normalize(features) if self.normalise else features)
        same, known = label[:, None] == label, (label >= 0)
        counted = known[:, None] & known
        others = ~torch.eye(len(label), dtype=torch.bool, device=label.device)
        positives, negatives = same & counted & others, ~same & counted
        farthest = distances.where(positives, 0).amax(dim=1)
        nearest = distances.where(negatives, torch.inf).amin(dim=1)
        complete = positives.any(dim=1) & negatives.any(dim=1)
        gap = torch.where(complete, farthest - nearest.where(complete, 0), 0)
        terms = F.softplus(gap) if self.margin is None else F.relu(gap + self.margin)
        return terms.where(complete, 0).sum() / complete.sum().clamp(min=1)


def euclidean(features: Tensor) -> Tensor:
    """Distances (N, N) between the rows of (N, D); those below 1e-6 are 1e-6, without a gradient."""
    centred = features - features.detach().mean(dim=0)  # no distance depends on it
    squares = centred.square().sum(dim=1)
    products = centred @ centred.T
    return (squares[:, None] + squares - 2 * products).clamp(min=SMALLEST_SQUARE).sqrt()
