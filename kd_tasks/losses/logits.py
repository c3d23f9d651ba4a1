"""Losses on logits, of whole images (N, K) or of every pixel (N, K, H, W)."""

from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from kd_tasks.losses.base import Loss, check_option, check_positive, check_same_shape, check_same_size


class SoftTargets(Loss):
    """Knowledge distillation with softened class probabilities.

    `T^2 * mean over samples of KL(softmax(t / T) || softmax(s / T))`, the sum over the K classes. For maps the mean
    runs over samples and pixels, so that the weight means the same at every resolution.

    Hinton, Vinyals and Dean 2015, section 2 (arXiv 1503.02531).

    Args:
        temperature: T, above 0. The factor T^2 keeps the gradient's size when T changes.

    Shapes: logits (N, K) or (N, K, ...), the same for both. Invariant to the batch size.

    *Deviations*: KL instead of the paper's cross-entropy; they differ by the teacher's entropy, which has no gradient.
    The default temperature is the one common in code (RepDistiller), as the paper names none.
    """

    paper: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    year: ClassVar[int] = 2015
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 0.9
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        return softened_kl(student, teacher, self.temperature, dim=1).mean()


class LogitRegression(Loss):
    """Regression of the student's logits onto the teacher's.

    `1 / (2 N) * sum over samples of ||s - t||^2`, the sum over the K classes; for maps the mean runs over samples and
    pixels.

    Ba and Caruana 2014, equation 1.

    Args:
        reduction: `half_sum` as in the paper; `mean` over classes as well, without the half: 2 / K of the paper's.

    Shapes: logits (N, K) or (N, K, ...), the same for both. Invariant to the batch size.

    *Deviations*: none. Logits are not centred: an offset that the softmax would not see is penalised, as in the paper.
    """

    Reduction = Literal["half_sum", "mean"]

    paper: ClassVar[str] = "Ba and Caruana, Do Deep Nets Really Need to be Deep?, NeurIPS 2014"
    year: ClassVar[int] = 2014
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, reduction: Reduction = "half_sum") -> None:
        super().__init__()
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.reduction = reduction

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        squares = (student - teacher).square()
        if self.reduction == "mean":
            return squares.mean()
        return 0.5 * squares.sum(dim=1).mean()


class PixelWise(Loss):
    """Pixel-wise distillation of structured knowledge distillation: cross-entropy with the teacher's soft labels.

    `T^2 / (H W) * sum over samples, classes, pixels of -softmax(t / T) * log softmax(s / T)`. Every pixel counts, those
    with an ignored label as well.

    Liu et al. 2019, the pixel-wise term (arXiv 1903.04197).

    Args:
        temperature: T, above 0.
        reduction: `batch_sum` divides by H * W alone, as the authors' code does: the value grows with the batch size.
            `mean` divides by N as well and is invariant to the batch size. `batch_sum` is N times `mean`: the
            authors' weight of 10 at batch 8 is 80 with `mean`, and 10 * 8 / N with `batch_sum` at batch N.

    Shapes: logits (N, K, H, W), the same for both.

    *Deviations*: cross-entropy as in the authors' code, where the paper writes KL; the value is higher by the teacher's
    entropy, the gradient is the same. The factor T^2 is ours and is 1 at the default.
    """

    Reduction = Literal["batch_sum", "mean"]

    paper: ClassVar[str] = "Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 10.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, temperature: float = 1.0, reduction: Reduction = "batch_sum") -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.temperature = temperature
        self.reduction = reduction

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_size(student, teacher, self)
        check_same_shape(student, teacher, self)
        soft_labels = F.softmax(teacher / self.temperature, dim=1)
        mean = self.temperature**2 * F.cross_entropy(student / self.temperature, soft_labels)
        return mean * len(student) if self.reduction == "batch_sum" else mean


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))` along `dim`, which is summed away."""
    log_student = F.log_softmax(student / temperature, dim=dim)
    log_teacher = F.log_softmax(teacher / temperature, dim=dim)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=dim)
