"""Losses on feature maps, each sample by itself."""

from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from kd_tasks.losses.base import Loss, check_option, check_positive, check_same_shape, check_same_size
from kd_tasks.losses.logits import softened_kl


class Hint(Loss):
    """Regression of a student feature onto a teacher feature, the hint.

    `mean of (s - t)^2`; the paper: `1 / (2 N) * sum over samples of ||s - t||^2`. Where the shapes differ, a connector
    on the student is the paper's regressor.

    Romero et al. 2015, equation 3 (FitNets, arXiv 1412.6550).

    Args:
        reduction: `mean` over all elements, as in RepDistiller, where the usual weight is 100; `half_sum` as in the
            paper: half the sum over all but the batch, which grows with the size of the feature; `half_channel_sum` as
            in the authors' code for channels in axis 1: half the sum over channels, the mean over the rest.

    Shapes: (N, C, ...), the same for both. Invariant to the batch size.

    *Deviations*: the default is the element mean, not the paper's sum, so that a weight holds for features of any size.
    The authors' released configs keep rows in axis 1 and sum over them; that reduction is not offered.
    """

    Reduction = Literal["mean", "half_sum", "half_channel_sum"]

    paper: ClassVar[str] = "Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015"
    year: ClassVar[int] = 2015
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 100.0
    usual_tap: ClassVar[str] = "backbone.layer2"

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.reduction = reduction

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        squares = (student - teacher).square()
        if self.reduction == "mean":
            return squares.mean()
        if self.reduction == "half_sum":
            return 0.5 * squares.flatten(1).sum(dim=1).mean()
        return 0.5 * squares.sum(dim=1).mean()


class AttentionTransfer(Loss):
    """Attention transfer: where the features are strong, whatever the channels.

    With `Q(f) = vec(mean over channels of |f|^p)` and `q = Q / ||Q||_2`, per sample:
    `mean over samples and pixels of (q_s - q_t)^2`; the paper: `mean over samples of ||q_s - q_t||_2`.

    Zagoruyko and Komodakis 2017, equation 2 (arXiv 1612.03928).

    Args:
        p: exponent of the attention map, at least 1.
        form: `code` as the authors released it, usual weight 1000; `paper` as in equation 2, whose half belongs to the
            weight.

    Shapes: maps (N, C, H, W) with the same N, H, W; the numbers of channels are free. Invariant to the batch size. The
    form `code` divides by H * W as well.

    *Deviations*: the norm in the form `paper` is Euclidean for every p. Features beyond 1 in size are scaled down
    before the power, which changes neither value nor gradient and keeps large features from overflowing.
    Maps of different sizes are an error here; some libraries pool the larger *features*, which a connector can do.
    """

    Form = Literal["code", "paper"]

    paper: ClassVar[str] = "Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 1000.0
    usual_tap: ClassVar[str] = "backbone.layer4"

    def __init__(self, p: float = 2.0, form: Form = "code") -> None:
        super().__init__()
        check_option(form, get_args(self.Form), "form", self)
        if p < 1:
            raise ValueError(f"AttentionTransfer: p must be at least 1, not {p!r}.")
        self.p = p
        self.form = form

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_size(student, teacher, self)
        difference = self.attention(student) - self.attention(teacher)
        if self.form == "paper":
            return difference.norm(dim=1).mean()
        return difference.square().mean()

    def attention(self, features: Tensor) -> Tensor:
        """Attention maps of length 1, (N, H * W), of features (N, C, H, W)."""
        largest = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1.0)
        maps = (features / largest).abs().pow(self.p).mean(dim=1)
        return F.normalize(maps.flatten(1), dim=1)


class ChannelWise(Loss):
    """Channel-wise distillation: each channel is a distribution over positions.

    `T^2 / (N C) * sum over samples and channels of KL(softmax(t / T) || softmax(s / T))`, softmax and sum over H * W.

    Shu et al. 2021 (CWD, arXiv 2011.13256).

    Args:
        temperature: T, above 0.

    Shapes: maps or logits (N, C, H, W), the same for both. Invariant to the batch size. Usual weight 3 on logits, 50 on
    features.

    *Deviations*: none in the value. The logarithm is taken of the softmax in one step, where the authors' code gives
    infinity for a peaked student map.
    """

    paper: ClassVar[str] = "Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021"
    year: ClassVar[int] = 2021
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 3.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_size(student, teacher, self)
        check_same_shape(student, teacher, self)
        return softened_kl(student.flatten(2), teacher.flatten(2), self.temperature, dim=2).mean()
