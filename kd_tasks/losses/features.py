"""Losses on feature maps, each sample by itself."""

import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.losses.base import (
    Loss,
    check_maps,
    check_option,
    check_positive,
    check_same_shape,
    check_same_size,
    full_precision,
)
from kd_tasks.losses.gram import pooled
from kd_tasks.losses.layers import (
    Fusion,
    Paraphraser,
    Reconstruction,
    averaged,
    factor_encoder,
    factor_width,
    reconstruction_error,
)
from kd_tasks.losses.logits import labels_at, softened_kl

EPS = 1e-12
SMALLEST_VARIANCE = 1e-4
SMALLEST_SPREAD = 1e-4
SHORTEST = 1e-6


class SizedLoss(Loss):
    """A loss with layers of its own; `prepare` creates them for the channels that it is shown."""

    channels: tuple[int, ...] | None = None

    def prepare(self, student: Any, teacher: Any, **context: Any) -> None:
        self.channels = channels_of(student, teacher)

    def check_channels(self, student: Any, teacher: Any) -> None:
        """Raise `ValueError` unless the layers were created for these channels."""
        if self.channels is None:
            raise ValueError(f"{type(self).__name__} has no layers yet: call prepare(student, teacher) once before.")
        if channels_of(student, teacher) != self.channels:
            raise ValueError(
                f"{type(self).__name__} was prepared for {joined(self.channels)} channels, but the student's shape is "
                f"{shapes_of(student)} and the teacher's {shapes_of(teacher)}."
            )


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

    *Deviations*: the default is the authors' code, a mean of squares. The norm in the form `paper` is Euclidean for
    every p. Features beyond 1 in size are scaled down before the power, which changes neither value nor gradient and
    keeps large features from overflowing. Maps of different sizes are an error here; some libraries pool the larger
    *features*, which a connector can do.
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


class NeuronSelectivity(Loss):
    """Neuron selectivity transfer: the places where channels fire, as two sets of points compared by their MMD.

    A point is the map of one channel, scaled to length 1. Per sample, over all pairs, and then the mean over samples:
    `mean of k(t, t') + mean of k(s, s') - 2 * mean of k(s, t)`. The kernel k is `(x y + c)^d`, `x y`, or
    `exp(-||x - y||^2 / (2 sigma^2))`.

    Huang and Wang 2017, section 4.1 (NST, arXiv 1707.01219).

    Args:
        kernel: `polynomial`, `linear` or `gaussian`.
        degree: d of the polynomial kernel, a whole number from 1 on.
        constant: c of the polynomial kernel, not below 0.
        variance: sigma^2 of the Gaussian kernel. None: in each sample the mean of `||s - t||^2` over its pairs, which
            gets no gradient.
        teacher_term: off, `mean of k(t, t')` is left out as in the authors' MXNet code. The gradient stays the same,
            and the value no longer ends at 0.

    Shapes: maps (N, C, H, W) with the same N, H, W; the numbers of channels are free. Invariant to the batch size.

    Takes memory for the products of all pairs of channels, or of positions where these are fewer (possible for d = 2
    and c = 0), and never for their products at every position. Linear: for the mean points only.

    *Deviations*: the default is the paper's polynomial kernel, and all pairs count, those of a point with itself too. A
    channel that is zero everywhere is the point 0 and gets no gradient. The half of the paper belongs to the weight; 50
    is RepDistiller's. The paper gives sigma^2 as the mean squared distance of the pairs; to take those between student
    and teacher, sample by sample and as a constant, is our reading; it is 1e-4 at least, which points that are all the
    same need. Maps of different sizes are an error here, where some libraries pool the larger; a connector can do that.
    """

    Kernel = Literal["polynomial", "linear", "gaussian"]

    paper: ClassVar[str] = "Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 50.0
    usual_tap: ClassVar[str] = "backbone.layer4"

    def __init__(
        self,
        kernel: Kernel = "polynomial",
        degree: int = 2,
        constant: float = 0.0,
        variance: float | None = None,
        teacher_term: bool = True,
    ) -> None:
        super().__init__()
        check_option(kernel, get_args(self.Kernel), "kernel", self)
        if degree < 1 or degree != int(degree):
            raise ValueError(f"NeuronSelectivity: degree must be a whole number from 1 on, not {degree!r}.")
        if not constant >= 0:
            raise ValueError(f"NeuronSelectivity: constant must not be below zero, it is {constant!r}.")
        if variance is not None:
            check_positive(variance, "variance", self)
        self.kernel = kernel
        self.degree = int(degree)
        self.constant = constant
        self.variance = variance
        self.teacher_term = teacher_term

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_size(student, teacher, self)
        ours, theirs = unit(student.flatten(2)), unit(teacher.flatten(2))
        if self.kernel == "linear":
            return self.between_means(ours.mean(dim=1), theirs.mean(dim=1))
        if self.kernel == "polynomial" and self.degree == 2 and self.constant == 0 and fewer_positions(ours, theirs):
            return self.between_means(mean_of_squares(ours), mean_of_squares(theirs))
        similarity = self.polynomial if self.kernel == "polynomial" else self.gaussian(ours.detach(), theirs)
        value = similarity(ours, ours) - 2 * similarity(ours, theirs)
        return (value + similarity(theirs, theirs) if self.teacher_term else value).mean()

    def between_means(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of kernel means that can be written out, (N, ...): their squared distance."""
        squares = (student - teacher).square()
        if not self.teacher_term:
            squares = squares - teacher.square()
        return squares.flatten(1).sum(dim=1).mean()

    def polynomial(self, first: Tensor, second: Tensor) -> Tensor:
        """The mean of `(x y + c)^d` over all pairs of points (N, C, P), sample by sample."""
        return (first @ second.mT + self.constant).pow(self.degree).mean(dim=(1, 2))

    def gaussian(self, student: Tensor, teacher: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The mean of the Gaussian kernel over all pairs of points, as wide as the distances of these make it."""
        if self.variance is None:
            variance = squared_distances(student, teacher).mean(dim=(1, 2), keepdim=True).clamp_min(SMALLEST_VARIANCE)
        else:
            variance = student.new_tensor(self.variance)
        return lambda first, second: (squared_distances(first, second) / (-2 * variance)).exp().mean(dim=(1, 2))


class FSP(Loss):
    """Flow of the solution procedure: how the channels of one layer go together with those of the next.

    With `G = F1 F2^T / (H W)` of two consecutive maps, an (M, K) matrix a sample:
    `sum over pairs of layers of the mean over samples and elements of (G_s - G_t)^2`; the paper: the sum over elements
    in place of their mean.

    Yim et al. 2017, equations 1 and 2.

    Args:
        pooling: how a map is brought to the height and width of its smaller neighbour: `avg` as in RepDistiller, `max`
            as in the paper.
        reduction: over the elements of G: `mean` as in RepDistiller, `sum` as in the paper, which grows with the
            numbers of channels.

    Shapes: two or more maps (N, C, H, W) a side, from shallow to deep, each with the student's and the teacher's
    numbers of samples and channels the same; heights and widths are free. Invariant to the batch size.

    The paper: `FSP(pooling='max', reduction='sum')`, alone in a first stage, and the task loss alone in a second.

    *Deviations*: the default is the element mean of RepDistiller, so that a weight holds for features of any size. The
    paper's weights of the pairs are equal and are the transfer's here. torchdistill's loss of that name sums the
    lengths of the columns of `G_s - G_t`, not the squares, and is not offered.
    """

    Pooling = Literal["avg", "max"]
    Reduction = Literal["mean", "sum"]

    paper: ClassVar[str] = "Yim et al., A Gift from Knowledge Distillation, CVPR 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "several maps"
    usual_weight: ClassVar[float] = 50.0
    usual_tap: ClassVar[str] = "backbone.layer1"

    def __init__(self, pooling: Pooling = "avg", reduction: Reduction = "mean") -> None:
        super().__init__()
        check_option(pooling, get_args(self.Pooling), "pooling", self)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.pooling = pooling
        self.reduction = reduction

    def compute(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        self.check(student, teacher)
        squares = [(s - t).square() for s, t in zip(self.flows(student), self.flows(teacher), strict=True)]
        if self.reduction == "mean":
            return torch.stack([square.mean() for square in squares]).sum()
        return torch.stack([square.sum(dim=(1, 2)).mean() for square in squares]).sum()

    def flows(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """G of each pair of consecutive maps, (N, M, K)."""
        return [self.flow(first, second) for first, second in itertools.pairwise(maps)]

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """G of two maps. It is divided before it is summed, so that it is no larger than the features make it."""
        height, width = (min(sizes) for sizes in zip(first.shape[2:], second.shape[2:], strict=True))
        first, second = (self.pooled(maps, (height, width)).flatten(2) for maps in (first, second))
        return first / (height * width) @ second.mT

    def pooled(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """`maps` with height and width brought down to `size`."""
        if maps.shape[2:] == size:
            return maps
        return F.adaptive_avg_pool2d(maps, size) if self.pooling == "avg" else F.adaptive_max_pool2d(maps, size)

    def check(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """Raise `ValueError` unless both sides are two or more maps whose batch and channels agree."""
        if isinstance(student, Tensor) or isinstance(teacher, Tensor) or not len(student) == len(teacher) >= 2:
            raise ValueError(f"FSP compares two or more maps a side, as many on both, not {counted(student, teacher)}.")
        for ours, theirs in zip(student, teacher, strict=True):
            check_maps(ours, theirs, self)
            if ours.shape[1] != theirs.shape[1]:
                raise ValueError(
                    f"FSP compares maps with one number of channels, but the student's shape is {tuple(ours.shape)} "
                    f"and the teacher's {tuple(theirs.shape)}."
                )
        if any(len(maps) != len(student[0]) for maps in student):
            raise ValueError(f"FSP reads maps of one batch, but their shapes are {[tuple(m.shape) for m in student]}.")


class SAD(Loss):
    """Self-attention distillation: a block of a network learns where the next block of the same network looks.

    With `G(A) = softmax over H * W of resize(sum over channels of |A|^p)`, both at the size of the shallower block:
    `mean over samples of the sum over pixels of (G(shallow) - G(deep))^2`.

    Hou et al. 2019, section 3 (lane detection, arXiv 1908.00821).

    Args:
        p: exponent of the attention map, at least 1.
        map_norm: what is done to the resized map before the softmax: `none` as in the paper; `mean` takes the mean over
            channels for their sum; `spatial_mean` divides the map by its mean over pixels; `zscore` takes that mean off
            and divides by the standard deviation over pixels.
        align_corners: of the bilinear resize; on as in Torch7, which the authors used.
        reduction: over pixels: `sum`, of which the author says not to divide it by H * W; `mean` as in
            InhwanBae/ENet-SAD_Pytorch, where that leaves values of 1e-4 to 1e-9.

    Shapes: maps (N, C, H, W) with the same N; the student's side is the shallower block and the teacher's the next, a
    `target` of the same network. Channels, heights and widths are free. One pair a transfer. Invariant to the batch
    size.

    The formula as printed can hardly train a network that begins at random weights. Measured on a full-width ENet just
    initialised, 64 x 160 pixels, three pairs, with `|| gradient of 0.1 SAD || / || gradient of the task ||` at the
    blocks E1, E2 and E3:

        none          loss 3.50, largest G 1.000,        3e-13, 1e-13, 0
        mean          loss 1.60, largest G 0.87 to 1.0,  16, 14, 9
        spatial_mean  loss .0006, largest G 0.02,        3e-4, 8e-5, 4e-5
        zscore        loss .037, largest G 0.13 to 0.21, .06, .04, .03

    The channel sums reach 3,000 to 26,000 there, and the softmax of such numbers is one pixel. The same with the
    lanes plugin's ENet-SAD, 80 x 208 pixels, batches of 8 synthetic roads, six seeds, the pairs E2-E3 and E3-E4: the
    entropy of G as a share of that of a uniform map, and the ratio of the gradients, smallest, median and largest:

        none          entropy 0,  0,  5e-5;    ratio 0,    0,   3e-3
        spatial_mean  entropy .5, .8, .95;     ratio 9e-4, .02, .1
        zscore        entropy .6, .65, .8;     ratio .02,  .04, .15

    `none` is not nil where two pixels happen to be equal but for 1 or 2 (35 at E1 in one of the six), and after 100
    steps of the task alone it was as one-hot as before. `zscore` is what a network can train with from the start;
    `none` needs features that are small, or a network that is trained already: the authors switch SAD on after two
    thirds of the training.

    *Deviations*: none at the defaults from the paper. The deeper map gets no gradient, which the third-party code gives
    it. The authors' released fragment has block 4 learn the labels and leaves block 2 out; and Torch7's softmax of a
    batch of maps is over the batch, while the author says that H * W is meant. `zscore` and `spatial_mean` leave a
    constant map with a uniform G and hardly any gradient.
    """

    MapNorm = Literal["none", "mean", "spatial_mean", "zscore"]
    Reduction = Literal["sum", "mean"]

    paper: ClassVar[str] = (
        "Hou et al., Learning Lightweight Lane Detection CNNs by Self Attention Distillation, ICCV 2019"
    )
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 0.1
    usual_tap: ClassVar[str] = "backbone.layer3"

    def __init__(
        self,
        p: float = 2.0,
        map_norm: MapNorm = "none",
        align_corners: bool = True,
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        if not p >= 1:
            raise ValueError(f"SAD: p must be at least 1, not {p!r}.")
        check_option(map_norm, get_args(self.MapNorm), "map_norm", self)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.p = p
        self.map_norm = map_norm
        self.align_corners = align_corners
        self.reduction = reduction

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_maps(student, teacher, self)
        size = (student.shape[2], student.shape[3])
        squares = (self.attention(student, size) - self.attention(teacher, size)).square()
        return squares.mean() if self.reduction == "mean" else squares.sum(dim=(1, 2)).mean()

    def attention(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """G of features (N, C, H, W), at `size`: (N, *size), each sample sums to 1."""
        power = features.abs().pow(self.p)
        maps = power.mean(dim=1, keepdim=True) if self.map_norm == "mean" else power.sum(dim=1, keepdim=True)
        if maps.shape[2:] != size:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=self.align_corners)
        return F.softmax(self.normalised(maps.flatten(1)), dim=1).unflatten(1, size)

    def normalised(self, maps: Tensor) -> Tensor:
        """Maps (N, P) as they enter the softmax."""
        if self.map_norm in ("none", "mean"):
            return maps
        mean = maps.mean(dim=1, keepdim=True)
        lit = mean > EPS
        maps = maps * torch.where(lit, 1 / torch.where(lit, mean, 1), 0)
        if self.map_norm == "spatial_mean":
            return maps
        centred = maps - maps.mean(dim=1, keepdim=True)
        return centred / (centred.square().mean(dim=1, keepdim=True) + SMALLEST_SPREAD**2).sqrt()


class BYOT(Loss):
    """Be your own teacher: the exits along a network learn from the labels and from the deepest exit.

    With the logits z and the feature f of every shallow exit, and those of the deepest as a target, z' and f': `sum
    over shallow exits of (1 - alpha) * CE(z, label) + alpha * soft(z, z') + beta * distance(A f, f')`. A is a linear
    layer. The cross-entropy of the deepest exit is the task's own loss and is not in here.

    Zhang et al. 2019, equations 3 to 6 (arXiv 1905.08094); the journal version is Zhang et al., TPAMI 2021.

    Args:
        form: what `soft` and `distance` are, and the defaults of the rest, see below.
        temperature: T of the soft targets, above 0. None: as the form has it.
        alpha: the share of the soft targets, from 0 to 1. None: as the form has it.
        beta: the weight of the distance of features, not below 0. None: as the form has it.
        skip_last: leave the feature of the last shallow exit, the one before the deepest, out. None: as the form has
            it.

    The forms, with `p = softmax(z' / T)` and the batch size N:

        journal      soft = cross-entropy of p and softmax(z / T), without T^2; distance = Euclidean, of the whole batch
                     at once, neither squared nor divided by N. T 3, alpha 0.3, beta 0.03, skip_last on.
        conference   soft = T^2 KL(p || softmax(z / T)); distance = squared Euclidean, the mean over samples. T 1, alpha
                     0.3, beta 0.03, skip_last off.
        luanyunteng  soft = T^2 times the cross-entropy; distance = the sum over the batch of squares, where f or f' is
                     above 0. T 3, alpha 0.1, beta 1e-6, skip_last off.

    Context: `label`, class indices (N,).

    Shapes: the student's side is a list, the logits (N, K) of the shallow exits from shallow to deep, then as many
    features in the same order; the teacher's side is `[z', f']`, as a rule the `target` of the same network. Features
    are (N, D), or maps (N, D, H, W), which are averaged over their positions. Widths are free: `prepare` makes A where
    a width differs from that of f', in the form `journal` for every feature that counts. `conference` is invariant to
    the batch size. In the others the features' term is not: it grows with the square root of N in `journal` and with N
    in `luanyunteng`.

    *Deviations*: the default is the authors' journal code as it stands; that it leaves out the features of the exit
    before the deepest, where its comment speaks of the shallowest, is kept and can be switched off. The reductions of
    `conference` are our reading of the paper, which names none. `luanyunteng` multiplies the deepest exit's
    cross-entropy by `1 - alpha` too, which is the task loss's weight here. The layers A exist before the optimiser
    does.
    """

    Form = Literal["journal", "conference", "luanyunteng"]

    paper: ClassVar[str] = "Zhang et al., Be Your Own Teacher, ICCV 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "several embeddings"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "exits.0"

    def __init__(
        self,
        form: Form = "journal",
        temperature: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        skip_last: bool | None = None,
    ) -> None:
        super().__init__()
        check_option(form, get_args(self.Form), "form", self)
        self.form = form
        self.temperature = (1.0 if form == "conference" else 3.0) if temperature is None else temperature
        self.alpha = (0.1 if form == "luanyunteng" else 0.3) if alpha is None else alpha
        self.beta = (1e-6 if form == "luanyunteng" else 0.03) if beta is None else beta
        self.skip_last = (form == "journal") if skip_last is None else skip_last
        check_positive(self.temperature, "temperature", self)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"BYOT: alpha must lie between 0 and 1, not at {alpha!r}.")
        if not self.beta >= 0:
            raise ValueError(f"BYOT: beta must not be below zero, it is {beta!r}.")
        self.adapters = nn.ModuleList()

    def prepare(self, student: Sequence[Tensor], teacher: Sequence[Tensor], **context: Any) -> None:
        _, features, _, target = self.parts(student, teacher)
        always = self.form == "journal"
        self.adapters = nn.ModuleList(
            nn.Linear(feature.shape[1], target.shape[1])
            if always or feature.shape[1] != target.shape[1]
            else nn.Identity()
            for feature in features
        )

    def compute(self, student: Sequence[Tensor], teacher: Sequence[Tensor], label: Tensor) -> Tensor:
        exits, features, deepest, target = self.parts(student, teacher)
        if len(self.adapters) != len(features):
            raise ValueError(
                f"BYOT has layers for {len(self.adapters)} features, but reads {len(features)}: call `prepare` first."
            )
        terms = [(1 - self.alpha) * F.cross_entropy(logits, label) for logits in exits]
        terms += [self.alpha * self.soft(logits, deepest) for logits in exits]
        adapted = [adapter(feature) for adapter, feature in zip(self.adapters, features, strict=True)]
        terms += [self.beta * self.distance(feature, target) for feature in adapted]
        return torch.stack(terms).sum()

    def soft(self, logits: Tensor, deepest: Tensor) -> Tensor:
        """The term of the soft targets of one exit."""
        if self.form == "conference":
            return softened_kl(logits, deepest, self.temperature, dim=1).mean()
        entropy = F.cross_entropy(logits / self.temperature, F.softmax(deepest / self.temperature, dim=1))
        return entropy if self.form == "journal" else self.temperature**2 * entropy

    def distance(self, feature: Tensor, target: Tensor) -> Tensor:
        """The term of the feature of one exit, (N, D) like the target."""
        check_same_shape(feature, target, self)
        if self.form == "journal":
            return (feature - target).norm()
        squares = (feature - target).square()
        if self.form == "conference":
            return squares.sum(dim=1).mean()
        return torch.where((feature > 0) | (target > 0), squares, 0).sum()

    def parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], list[Tensor], Tensor, Tensor]:
        """Logits of the shallow exits, those of their features that count as (N, D), and the two targets."""
        lists = not isinstance(student, Tensor) and not isinstance(teacher, Tensor)
        if not lists or len(student) < 2 or len(student) % 2 or len(teacher) != 2:
            raise ValueError(
                "BYOT reads the logits and then as many features of the shallow exits on the student's side, and the "
                f"logits and the feature of the deepest on the teacher's, not {counted(student, teacher)}."
            )
        count = len(student) // 2
        for logits in student[:count]:
            check_same_shape(logits, teacher[0], self)
        if teacher[0].ndim != 2:
            raise ValueError(f"BYOT reads logits (N, K), but their shape is {tuple(teacher[0].shape)}.")
        features = student[count:-1] if self.skip_last else student[count:]
        return student[:count], [pooled(f) for f in features], teacher[0], pooled(teacher[1])


class GradientAttention(Loss):
    """Gradient-based attention transfer: to which pixels the answer is sensitive.

    With `J = d CE(logits, label) / d image` of each sample: `mean over samples of ||J_s - J_t||_2`, or of its square.

    Zagoruyko and Komodakis 2017, equations 3 to 5 (arXiv 1612.03928).

    Args:
        squared: the square of the distance.
        ignore_index: label that takes no part. With more than 255 classes 255 is a class and takes part.

    Context: `image` (N, ...), which must require a gradient and be what both sides' logits were computed from; `label`,
    class indices (N,), or (N, H, W) for maps of logits, where the cross-entropy is summed over all labelled pixels;
    maps of another size are resized by nearest neighbour.

    Shapes: logits (N, K) or (N, K, H, W), the same for both. Invariant to the batch size, as far as the network
    computes each sample by itself: batch normalisation in training mode does not.

    Costs a backward pass of both networks, and a second differentiation of the student's; the teacher's side keeps its
    graph until then. The student's non-linearities need second derivatives; those of ReLU are 0.

    *Deviations*: none known; the authors never released code for it, nor is a weight reported. Half of beta is the
    transfer's weight. The teacher's J is a constant.
    """

    paper: ClassVar[str] = "Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"
    detach_teacher: ClassVar[bool] = False
    needs_image_gradient: ClassVar[bool] = True

    def __init__(self, squared: bool = False, ignore_index: int = 255) -> None:
        super().__init__()
        self.squared = squared
        self.ignore_index = ignore_index

    def choose(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """As for every loss, but the image stays the very tensor that the logits depend on."""
        return super().choose(context) | {"image": context["image"]}

    def compute(self, student: Tensor, teacher: Tensor, image: Tensor, label: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        labels = labels_at(student, label, self.ignore_index, self)
        ours = sensitivity(student, image, *labels, "GradientAttention: the student's logits")
        theirs = sensitivity(teacher, image, *labels, "GradientAttention: the teacher's logits", trained=False)
        return mean_length(ours - theirs, self.squared)


class GradientSymmetry(Loss):
    """Symmetry of gradients: the answer for a mirrored picture is sensitive to the mirrored pixels.

    With `J(x) = d CE(logits of x, label) / d x` of each sample and the left-right flip:
    `mean over samples of ||J(x) - flip(J(flip(x)))||_2`, or of its square. There is no teacher.

    Zagoruyko and Komodakis 2017, equation 6 (arXiv 1612.03928).

    Args:
        squared: the square of the distance.
        ignore_index: label that takes no part. With more than 255 classes 255 is a class and takes part.

    Context: `image` (N, C, H, W) and `mirrored`, the same flipped along W; both must require a gradient and be what the
    student's logits were computed from. `label`, class indices (N,), or (N, H, W) for maps of logits, where the
    cross-entropy is summed over all labelled pixels and the second logits are those of the flipped label; maps of
    another size are resized by nearest neighbour.

    Shapes: the student's side is a list, the logits (N, K) or (N, K, H, W) of `image` and those of `mirrored`.
    Invariant to the batch size, as far as the network computes each sample by itself.

    Costs a backward pass of the student for each picture, and a second differentiation.

    *Deviations*: none known; the authors never released code for it, nor is a weight reported. Both sides get a
    gradient.
    """

    paper: ClassVar[str] = "Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "several logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"
    reads_teacher: ClassVar[bool] = False
    needs_image_gradient: ClassVar[bool] = True

    def __init__(self, squared: bool = False, ignore_index: int = 255) -> None:
        super().__init__()
        self.squared = squared
        self.ignore_index = ignore_index

    def choose(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """As for every loss, but the pictures stay the very tensors that the logits depend on."""
        return super().choose(context) | {name: context[name] for name in ("image", "mirrored")}

    def compute(
        self, student: Sequence[Tensor], teacher: None, image: Tensor, mirrored: Tensor, label: Tensor
    ) -> Tensor:
        if isinstance(student, Tensor) or len(student) != 2:
            raise ValueError(f"GradientSymmetry reads the logits of two pictures, not {counted(student, ())}.")
        check_same_shape(student[0], student[1], self)
        labels = labels_at(student[0], label, self.ignore_index, self)
        label, counts = (x.flip(2) if x.ndim == 3 else x for x in labels)
        straight = sensitivity(student[0], image, *labels, "GradientSymmetry: the logits of the image")
        turned = sensitivity(student[1], mirrored, label, counts, "GradientSymmetry: the logits of the mirrored image")
        return mean_length(straight - turned.flip(-1), self.squared)


class VID(SizedLoss):
    """Variational information distillation: how likely the teacher's features are, given the student's.

    `mean over samples, channels and pixels of ((mu(s) - t)^2 / v_c + log v_c) / 2`, the negative log-likelihood of a
    Gaussian without its constant; `v_c = softplus(a_c) + eps` is trained for each channel, and mu is a trained
    regressor of three 1x1 convolutions with ReLU in between.

    Ahn et al. 2019, the form for intermediate layers (VID-I, arXiv 1904.05835).

    Args:
        variance: v_c at the start.
        eps: the smallest variance.

    Shapes: maps (N, C, H, W) with the same N, H, W; the numbers of channels are free, and the regressor is as wide as
    the teacher's map. Invariant to the batch size. The value is negative once the prediction is good.

    *Deviations*: none in the value. Maps of different sizes are an error, where RepDistiller pools the larger to a
    square; the connector `resize` brings the student's map to the teacher's size, as `teacher_connector` the other way
    round. The softplus does not overflow, and the variances are parameters: mdistiller keeps them in a list, so that
    they never train.
    """

    paper: ClassVar[str] = "Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "backbone.layer4"
    regressor: nn.Sequential
    raw_variance: nn.Parameter

    def __init__(self, variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        check_positive(eps, "eps", self)
        if not variance > eps:
            raise ValueError(f"VID: variance must be above eps, {eps!r}, not {variance!r}.")
        self.variance = variance
        self.eps = eps

    def prepare(self, student: Tensor, teacher: Tensor, **context: Any) -> None:
        check_same_size(student, teacher, self)
        super().prepare(student, teacher, **context)
        own, wide = student.shape[1], teacher.shape[1]
        sizes = zip((own, wide, wide), (wide, wide, wide), strict=True)
        first, second, third = (nn.Conv2d(*size, 1, bias=False) for size in sizes)
        self.regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        start = self.variance - self.eps
        self.raw_variance = nn.Parameter(torch.full((wide,), start + math.log(-math.expm1(-start))))

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_size(student, teacher, self)
        self.check_channels(student, teacher)
        variance = (F.softplus(self.raw_variance) + self.eps)[:, None, None]
        squares = (self.regressor(student) - teacher).square()
        return 0.5 * ((squares / variance).mean() + variance.log().mean())


class FactorTransfer(SizedLoss):
    """Factor transfer: the student's factor points where the teacher's does.

    `mean over samples and elements of |f_s / ||f_s||_2 - f_t / ||f_t||_2|` with the factors of each sample flattened:
    f_t is what a paraphraser makes of the teacher's map, f_s what a translator, trained here, makes of the student's.

    Kim et al. 2018, with the autoencoder of equation 1 (FT, arXiv 1802.04977).

    Args:
        rate: the factor's channels as a share of the teacher's, the paper's k.
        paraphraser: path of the weights (a state dict) of a trained `Paraphraser`, which stays as it is; this is the
            paper's procedure, and `fit_paraphraser` trains one. None: it is trained alongside the student.
        reconstruction: error by which it is trained alongside: `l1`, the element mean of the absolute difference, as in
            the authors' code; `mse`, the element mean of the squared one, as in equation 1.
        reconstruction_weight: weight of that error beside the factors' term. With the usual weight of the transfer, the
            default trains the paraphraser with weight 1.

    Shapes: maps (N, C, H, W) with the same N, H, W; the numbers of channels are free. Invariant to the batch size.

    *Deviations*: the reconstruction error is that of the authors' code, not of equation 1, unless asked for. The paper
    trains the paraphraser before the student. Without weights for it, the loss has the reconstruction error as a second
    term; the two do not mix: the factors' term never trains the paraphraser, and the reconstruction never reaches the
    student. A factor shorter than 1e-6 has no direction and gets no gradient; the authors' code gives it one of the
    order of 1e9. The translator has no batch normalisation, which RepDistiller adds; RepDistiller also averages the
    factor over channels first, which is another loss.
    """

    paper: ClassVar[str] = (
        "Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018"
    )
    year: ClassVar[int] = 2018
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 500.0
    usual_tap: ClassVar[str] = "backbone.layer4"
    paraphraser: Paraphraser
    translator: nn.Sequential

    def __init__(
        self,
        rate: float = 0.5,
        paraphraser: str | None = None,
        reconstruction: Reconstruction = "l1",
        reconstruction_weight: float = 0.002,
    ) -> None:
        super().__init__()
        check_positive(rate, "rate", self)
        check_option(reconstruction, get_args(Reconstruction), "reconstruction", self)
        check_positive(reconstruction_weight, "reconstruction_weight", self)
        self.rate = rate
        self.weights = paraphraser
        self.reconstruction = reconstruction
        self.reconstruction_weight = reconstruction_weight

    def prepare(self, student: Tensor, teacher: Tensor, **context: Any) -> None:
        check_same_size(student, teacher, self)
        super().prepare(student, teacher, **context)
        channels = teacher.shape[1]
        self.paraphraser = Paraphraser(channels, self.rate)
        self.translator = factor_encoder(student.shape[1], factor_width(channels, self.rate))
        if self.weights is not None:
            self.load_paraphraser(self.weights, channels)

    def load_paraphraser(self, path: str, channels: int) -> None:
        """Take the paraphraser's weights from a file, and freeze them."""
        try:
            self.paraphraser.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"FactorTransfer: {path} gives no paraphraser of {channels} channels with rate {self.rate}: {error}"
            ) from error
        self.paraphraser.requires_grad_(False)

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_size(student, teacher, self)
        self.check_channels(student, teacher)
        factor = self.paraphraser.encode(teacher)
        value = factor_difference(self.translator(student), factor.detach())
        if self.weights is not None:
            return value
        error = reconstruction_error(self.paraphraser.decoder(factor), teacher, self.reconstruction)
        return value + self.reconstruction_weight * error


class ActivationBoundaries(Loss):
    """Activation boundaries: each neuron of the student is on where the teacher's is, by a margin.

    `3/1000 * sum over layers of w_l / N * sum over all elements of max(0, m - s * sign(t))^2`, on the values before the
    ReLU, where sign(t) is -1 for t <= 0; w_l is 1 for the deepest layer and half as much for each one before it.

    Heo et al. 2019 (AB, arXiv 1811.03233), the alternative loss of the paper, with the weights of the authors' code.

    Args:
        margin: m, above 0.
        reduction: `sum` over the elements of a sample, as in the authors' code, with the factor 3/1000; `mean` over all
            elements, without it, as in KD-Zoo, whose margin is 2.

    Shapes: a list of maps (N, C, H, W) from shallow to deep, or one map; each the same for both. The student's is taken
    after a connector of a 1x1 convolution and batch normalisation. Invariant to the batch size; `sum` grows with the
    size of the maps.

    *Deviations*: none in the value. The authors train by this loss alone first, and then without it.
    """

    Reduction = Literal["sum", "mean"]

    paper: ClassVar[str] = (
        "Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019"
    )
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "several maps"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "backbone.layer4"

    def __init__(self, margin: float = 1.0, reduction: Reduction = "sum") -> None:
        super().__init__()
        check_positive(margin, "margin", self)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.margin = margin
        self.reduction = reduction

    def compute(self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> Tensor:
        terms = [self.layer(*pair) for pair in pairs(student, teacher, self)]
        return summed_by_depth(terms) * (0.003 if self.reduction == "sum" else 1.0)

    def layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The squared hinge of one layer, by `reduction`."""
        check_same_shape(student, teacher, self)
        sides = torch.where(teacher > 0, 1.0, -1.0).to(student)
        squares = F.relu(self.margin - student * sides).square()
        return squares.mean() if self.reduction == "mean" else squares.sum() / len(student)


class Overhaul(Loss):
    """Overhaul of feature distillation: the teacher's values before the ReLU, cut off below at a margin.

    `1/1000 * sum over layers of w_l / N * sum over all elements of (s - max(t, m_c))^2`, leaving out elements where
    `s <= max(t, m_c) <= 0`; `m_c = E[x | x < 0]` for x as the teacher's batch normalisation distributes channel c,
    normal with mean beta and deviation |gamma|, or `-3 |gamma|` where x < 0 is rarer than 1 in 1000. w_l is 1 for the
    deepest layer and half as much for each one before it.

    Heo et al. 2019 (OFD, arXiv 1904.01866), with the weights of the authors' code.

    Args:
        margin: `batchnorm`, of the tapped batch normalisation, which `read_teacher` reads; `batch`, the mean of the
            negative values of a channel in the batch (of this process), as in KD-Zoo, for a teacher without batch
            normalisation.
        reduction: `sum` over the elements of a sample, as in the authors' code; `mean` over all elements, without the
            divisor, as in KD-Zoo.
        divisor: of the sum: 1000 on CIFAR and 10000 on ImageNet in the authors' code; 1 in mdistiller, whose weight is
            0.001.

    Shapes: a list of maps (N, C, H, W) from shallow to deep, or one map; each the same for both. The student's is taken
    after a connector of a 1x1 convolution and batch normalisation, the teacher's tap is the batch normalisation before
    the ReLU. Invariant to the batch size; `sum` grows with the size of the maps.

    *Deviations*: a channel with gamma = 0 is a constant beta: its margin is beta if that is negative, else 0; the
    authors' code divides by zero. In ResNets the authors take the teacher's map after the residual sum, and the margin
    of the batch normalisation before it; a tap on that normalisation gives both before the sum, and `set_margins` takes
    margins for any other map. The authors keep the teacher's batch normalisation in training mode, which here is the
    teacher's `mode='batch_stats'` and not the default.
    """

    Margin = Literal["batchnorm", "batch"]
    Reduction = Literal["sum", "mean"]

    paper: ClassVar[str] = "Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "several maps"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "backbone.layer4.1.bn2"

    def __init__(self, margin: Margin = "batchnorm", reduction: Reduction = "sum", divisor: float = 1000.0) -> None:
        super().__init__()
        check_option(margin, get_args(self.Margin), "margin", self)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        check_positive(divisor, "divisor", self)
        self.margin = margin
        self.reduction = reduction
        self.divisor = divisor

    def read_teacher(self, modules: Sequence[nn.Module]) -> None:
        """Take the margins from the teacher's tapped modules, one for each map, after its weights were loaded.

        Raises:
            ValueError: if a module is no batch normalisation with weight and bias.
        """
        if self.margin != "batchnorm":
            return
        self.set_margins([margin_of(module, self) for module in modules])

    def set_margins(self, margins: Sequence[Tensor]) -> None:
        """Take these margins (C,), one for each map; they are buffers."""
        for name in [name for name in self._buffers if name.startswith("margin_")]:
            delattr(self, name)
        for index, margin in enumerate(margins):
            self.register_buffer(f"margin_{index}", margin.detach().clone())

    def compute(self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> Tensor:
        both = pairs(student, teacher, self)
        margins = self.margins_for([t for _, t in both])
        terms = [self.layer(s, t, margin) for (s, t), margin in zip(both, margins, strict=True)]
        return summed_by_depth(terms) / (self.divisor if self.reduction == "sum" else 1.0)

    def margins_for(self, teacher: Sequence[Tensor]) -> list[Tensor]:
        """The margins (C,) of the teacher's maps."""
        if self.margin == "batch":
            return [mean_of_negatives(maps) for maps in teacher]
        margins = [m for name, m in self._buffers.items() if name.startswith("margin_") and m is not None]
        if not margins:
            raise ValueError(
                "Overhaul takes its margins from the teacher's batch normalisation, and has read none: tap the "
                "BatchNorm module before the ReLU, call read_teacher or set_margins, or set margin='batch'."
            )
        if [len(margin) for margin in margins] != [maps.shape[1] for maps in teacher]:
            raise ValueError(
                f"Overhaul has margins of {joined([len(m) for m in margins])} channels, but the teacher's maps have "
                f"the shape {shapes_of(list(teacher))}."
            )
        return margins

    def layer(self, student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
        """The partial squared distance of one layer, by `reduction`."""
        check_same_shape(student, teacher, self)
        target = torch.maximum(teacher, margin.to(teacher)[:, None, None])
        counted = (student > target) | (target > 0)
        squares = (student - target).where(counted, 0.0).square()
        return squares.mean() if self.reduction == "mean" else squares.sum() / len(student)


class ReviewKD(SizedLoss):
    """Knowledge review: deep maps of the student help its shallow ones to reach the teacher's.

    From deep to shallow, `u_i = a * conv(s_i) + b * upsampled(u_(i+1))` with attention maps a and b made of both, then
    `sum over layers of HCL(conv(u_i), t_i)`. The hierarchical context loss HCL is the weighted mean over levels of the
    element mean of squared differences: the full maps with weight 1, then the maps averaged to 4 x 4, 2 x 2 and 1 x 1
    with weights 1/2, 1/4 and 1/8.

    Chen et al. 2021 (arXiv 2104.09044), with the weights of the authors' code.

    Args:
        mid_channels: of u; None for those of the student's deepest map, at most 512.

    Shapes: two lists of maps (N, C, H, W) from shallow to deep, as many for both; channels and sizes are free. The last
    may be embeddings (N, C), which count as maps of one pixel. The teacher's usually are values before the ReLU.
    Invariant to the batch size, but for batch normalisation.

    *Deviations*: a level of HCL is left out unless it is smaller than the map in height and in width, where the authors
    test the height alone; the weights of the levels that remain then follow each other, as theirs do. Maps need not be
    square, and u is brought to the size of the student's map and then of the teacher's, each to its nearest pixel. The
    warm-up over 20 epochs is a schedule of the transfer's weight.
    """

    paper: ClassVar[str] = "Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021"
    year: ClassVar[int] = 2021
    taps: ClassVar[str] = "several maps"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "backbone.layer1, ..., backbone.layer4, embedding"
    fusions: nn.ModuleList

    def __init__(self, mid_channels: int | None = None) -> None:
        super().__init__()
        if mid_channels is not None and mid_channels < 1:
            raise ValueError(f"ReviewKD: mid_channels must be at least 1, not {mid_channels!r}.")
        self.mid_channels = mid_channels

    def prepare(self, student: list[Tensor], teacher: list[Tensor], **context: Any) -> None:
        both = [(s.shape[1], t.shape[1]) for s, t in pairs(student, teacher, self)]
        super().prepare(student, teacher, **context)
        middle = self.mid_channels or min(512, both[-1][0])
        last = len(both) - 1
        self.fusions = nn.ModuleList(Fusion(own, middle, wanted, i < last) for i, (own, wanted) in enumerate(both))

    def compute(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        self.check_channels(student, teacher)
        both = pairs(student, teacher, self)
        targets = [as_map(t) for _, t in both]
        fused = self.fused([as_map(s) for s, _ in both], [t.shape[2:] for t in targets])
        terms = [self.hierarchical(s, t) for s, t in zip(fused, targets, strict=True)]
        return torch.stack(terms).sum()

    def fused(self, student: Sequence[Tensor], sizes: Sequence[torch.Size]) -> list[Tensor]:
        """What is compared with the teacher's maps, whose `sizes` these are, from shallow to deep."""
        results: list[Tensor] = []
        deeper: Tensor | None = None
        for maps, size, module in reversed(list(zip(student, sizes, self.fusions, strict=True))):
            self.check_statistics(maps, size)
            fusion = cast(Fusion, module)
            deeper = fusion(maps, deeper, size)
            results.insert(0, fusion.restore(deeper))
        return results

    def check_statistics(self, maps: Tensor, size: torch.Size) -> None:
        """Raise `ValueError` where batch normalisation would have one value a channel."""
        values = len(maps) * min(maps.shape[2:].numel(), size.numel())
        if self.training and values < 2:
            raise ValueError(
                f"ReviewKD normalises over samples and pixels, and a map of shape {tuple(maps.shape)} for a teacher's "
                f"of {tuple(size)} has one value a channel: it needs a batch of at least 2 in training."
            )

    def hierarchical(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The hierarchical context loss of two maps of one shape."""
        check_same_shape(student, teacher, self)
        difference = student - teacher
        value, weight, total = difference.square().mean(), 1.0, 1.0
        for level in (4, 2, 1):
            if level < min(difference.shape[2:]):
                weight /= 2
                total += weight
                value = value + weight * averaged(difference, level).square().mean()
        return value / total


class MGD(SizedLoss):
    """Masked generative distillation: what is left of the student's map under a mask must generate the teacher's.

    `1 / N * sum over all elements of (G(mask * align(s)) - t)^2` with a random mask of zeros and ones; G is a 3x3
    convolution, ReLU and another one, and align a 1x1 convolution where the numbers of channels differ; both train.

    Yang et al. 2022 (arXiv 2205.01529).

    Args:
        mask: `spatial`, of pixels, as the authors have it in detection and segmentation; `channel`, as they have it in
            classification.
        ratio: the share that is masked, the paper's lambda; None for 0.65 of the pixels or 0.15 of the channels. The
            authors take 0.75 of the pixels in some settings.

    Shapes: maps (N, C, H, W) with the same N, H, W; the numbers of channels are free. The sum is over channels and
    pixels, so that the value grows with the map; the mask is drawn for each sample. Usual weight 2e-5, with channels
    masked 7e-5.

    *Deviations*: none. The masks are drawn in evaluation as well; a seed of the torch generator repeats them.
    """

    Mask = Literal["spatial", "channel"]

    paper: ClassVar[str] = "Yang et al., Masked Generative Distillation, ECCV 2022"
    year: ClassVar[int] = 2022
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 2e-5
    usual_tap: ClassVar[str] = "backbone.layer4"
    align: nn.Module
    generator: nn.Sequential

    def __init__(self, mask: Mask = "spatial", ratio: float | None = None) -> None:
        super().__init__()
        check_option(mask, get_args(self.Mask), "mask", self)
        if ratio is not None and not 0 <= ratio < 1:
            raise ValueError(f"MGD: ratio is the share that is masked, at least 0 and below 1, not {ratio!r}.")
        self.mask = mask
        self.ratio = ratio if ratio is not None else {"spatial": 0.65, "channel": 0.15}[mask]

    def prepare(self, student: Tensor, teacher: Tensor, **context: Any) -> None:
        check_same_size(student, teacher, self)
        super().prepare(student, teacher, **context)
        own, wanted = student.shape[1], teacher.shape[1]
        self.align = nn.Identity() if own == wanted else nn.Conv2d(own, wanted, 1)
        first, second = (nn.Conv2d(wanted, wanted, 3, padding=1) for _ in range(2))
        self.generator = nn.Sequential(first, nn.ReLU(), second)

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_size(student, teacher, self)
        self.check_channels(student, teacher)
        aligned = self.align(student)
        generated = self.generator(aligned * self.kept(self.draw(aligned)))
        return (generated - teacher).square().sum() / len(student)

    def draw(self, maps: Tensor) -> Tensor:
        """Uniform random numbers, one for each pixel (N, 1, H, W) or each channel (N, C, 1, 1)."""
        count, channels, height, width = maps.shape
        shape = (count, 1, height, width) if self.mask == "spatial" else (count, channels, 1, 1)
        return torch.rand(shape, dtype=maps.dtype, device=maps.device)

    def kept(self, drawn: Tensor) -> Tensor:
        """The mask, 0 with the probability `ratio` and else 1, out of uniform random numbers."""
        kept = drawn <= 1 - self.ratio if self.mask == "spatial" else drawn >= self.ratio
        return kept.to(drawn.dtype)


def unit(points: Tensor) -> Tensor:
    """Points (N, C, P) scaled to length 1; one of length 0 stays there and gets no gradient."""
    length = points.norm(dim=2, keepdim=True)
    alive = length > EPS
    return points * torch.where(alive, 1 / torch.where(alive, length, 1), 0)


def fewer_positions(first: Tensor, second: Tensor) -> bool:
    """Whether products of positions are cheaper than products of channels, for points (N, C, P)."""
    a, b, positions = first.shape[1], second.shape[1], first.shape[2]
    return positions * (a + b) < a * a + a * b + b * b


def mean_of_squares(points: Tensor) -> Tensor:
    """The mean of `x x^T` over points (N, C, P): the kernel mean of `(x y)^2`, (N, P, P)."""
    return points.mT @ points / points.shape[1]


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances (N, C, D) of points (N, C, P) and (N, D, P)."""
    lengths = first.square().sum(dim=2)[:, :, None] + second.square().sum(dim=2)[:, None]
    return torch.baddbmm(lengths, first, second.mT, alpha=-2)


def sensitivity(
    logits: Tensor, image: Tensor, label: Tensor, counts: Tensor, what: str, trained: bool = True
) -> Tensor:
    """`d CE / d image` of each sample, of the labels that count, differentiable once more where it is `trained`.

    Raises:
        ValueError: if `logits`, called `what`, were not computed from `image` with a graph.
    """
    slope = None
    if image.requires_grad and logits.requires_grad:
        loss = F.cross_entropy(logits, label, reduction="none").where(counts, 0.0).sum()
        (slope,) = torch.autograd.grad(loss, image, retain_graph=True, create_graph=trained, allow_unused=True)
    if slope is None:
        raise ValueError(f"{what} do not depend on the picture given, or it requires no gradient.")
    return full_precision(slope)


def mean_length(differences: Tensor, squared: bool) -> Tensor:
    """The mean over samples of the length, or of its square; the gradient at length 0 is 0."""
    flat = differences.flatten(1)
    return flat.square().sum(dim=1).mean() if squared else flat.norm(dim=1).mean()


def counted(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> str:
    """How many tensors each side has, for messages."""
    ours, theirs = (1 if isinstance(side, Tensor) else len(side) for side in (student, teacher))
    return f"{ours} of the student and {theirs} of the teacher"


def factor_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """The element mean of the absolute difference between factors of length 1, each sample flattened."""
    return (direction(student) - direction(teacher)).abs().mean()


def direction(factor: Tensor) -> Tensor:
    """Factors (N, C, H, W) flattened to length 1; 0 without gradient for those that have none."""
    rows = factor.flatten(1)
    lengths = rows.norm(dim=1, keepdim=True)
    short = lengths <= SHORTEST
    return (rows / lengths.masked_fill(short, 1.0)).masked_fill(short, 0.0)


def margin_of(module: nn.Module, loss: nn.Module) -> Tensor:
    """The margins (C,) that a batch normalisation's weight and bias give."""
    named = [getattr(module, name, None) for name in ("weight", "bias", "running_var")]
    weight, bias, _ = named
    if not all(isinstance(tensor, Tensor) for tensor in named) or weight is None or bias is None:
        raise ValueError(
            f"{type(loss).__name__} takes its margins from a BatchNorm with weight and bias, not from "
            f"{type(module).__name__}: tap the BatchNorm module before the ReLU on the teacher's side, or set "
            f"margin='batch'."
        )
    with torch.no_grad():
        return mean_below_zero(bias.double(), weight.double().abs()).to(torch.promote_types(weight.dtype, torch.float))


def mean_below_zero(mean: Tensor, deviation: Tensor) -> Tensor:
    """`E[x | x < 0]` of normal x in double precision; -3 deviations where x < 0 has a probability of at most 1e-3."""
    constant = deviation == 0
    scaled = -mean / deviation.masked_fill(constant, 1.0)
    log_share = torch.special.log_ndtr(scaled)
    log_density = -scaled.square() / 2 - math.log(2 * math.pi) / 2
    below = mean - deviation * (log_density - log_share).exp()
    margin = torch.where(log_share > math.log(1e-3), below, -3 * deviation)
    return torch.where(constant, mean.clamp_max(0.0), margin)


def mean_of_negatives(maps: Tensor) -> Tensor:
    """The mean (C,) of each channel's negative values in maps (N, C, H, W); 0 for a channel without any."""
    negative = maps.clamp_max(0.0).sum(dim=(0, 2, 3))
    return negative / (maps < 0).sum(dim=(0, 2, 3)).clamp_min(1)


def pairs(student: Any, teacher: Any, loss: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's maps layer by layer; a single map is a list of one.

    Raises:
        ValueError: if one side has more maps than the other, or the batch sizes differ.
    """
    first, second = listed(student), listed(teacher)
    if not first or len(first) != len(second):
        raise ValueError(
            f"{type(loss).__name__} compares layer by layer, but the student has {len(first)} maps, of shape "
            f"{shapes_of(first)}, and the teacher {len(second)}, of shape {shapes_of(second)}."
        )
    both = list(zip(first, second, strict=True))
    for s, t in both:
        check_maps(as_map(s), as_map(t), loss)
    return both


def summed_by_depth(terms: Sequence[Tensor]) -> Tensor:
    """The sum of terms from shallow to deep: the last one whole, each one before it half as much."""
    return torch.stack([term / 2**depth for depth, term in enumerate(reversed(terms))]).sum()


def as_map(features: Tensor) -> Tensor:
    """Embeddings (N, C) as maps of one pixel; maps as they are."""
    return features[:, :, None, None] if features.ndim == 2 else features


def listed(side: Any) -> list[Tensor]:
    return list(side) if isinstance(side, list | tuple) else [side]


def channels_of(student: Any, teacher: Any) -> tuple[int, ...]:
    return tuple(tensor.shape[1] for tensor in (*listed(student), *listed(teacher)))


def shapes_of(side: Any) -> str:
    return joined([tuple(tensor.shape) for tensor in listed(side)])


def joined(parts: Iterable[object]) -> str:
    return ", ".join(map(str, parts))
