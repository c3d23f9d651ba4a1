"""Losses on relations: of samples with samples, and of the positions of a map."""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.losses.base import Loss, RelationalLoss, check_maps, check_option, check_positive, check_same_shape
from kd_tasks.losses.contrast import NoiseContrast, last_of_each, similarities
from kd_tasks.losses.gather import all_gather
from kd_tasks.losses.gram import (
    RESOLUTION,
    SMALL,
    AngleDifference,
    EdgeDifference,
    LogDistance,
    centred,
    centred_distances,
    cosines,
    directions,
    edge_shares,
    gram,
    inverse_sqrt,
    mean_logarithm,
    pooled,
    safe_sqrt,
    squared_distances,
    unit_rows,
)

EPS = 1e-7  # The authors' constant in CRD's quotients.


class PairWise(Loss):
    """Pair-wise distillation of structured knowledge distillation: how alike the regions of a map are.

    Both maps are pooled to a grid of nodes; `a_ij` is the cosine between nodes i and j. With E connected pairs:
    `1 / (N E) * sum over samples and pairs of (a_ij of the student - a_ij of the teacher)^2`.

    Liu et al. 2019, the pair-wise term (arXiv 1903.04197), and the connection range of the journal version.

    Args:
        scale: height and width of a node as a share of the map's, above 0 and below 1, rounded down to whole pixels.
            The last nodes of a row or column take what is left: half of 65 gives 3 x 3 nodes, as in the authors' code.
        pool: height and width of a node in pixels instead, the paper's beta.
        pooling: `max` as in the authors' code, `avg` as in the paper.
        neighbours: connect each node with this many nearest ones, itself among them, the paper's alpha. Nearest by the
            Chebyshev distance on the grid, and the first in row-major order of equal ones. None: all with all.
        detach_norm: treat the length of a node's feature as a constant, as the authors' code does; the gradient then
            also has a part along the feature. False: the gradient of the cosine, as in the paper.

    Shapes: maps (N, C, H, W) whose grids of nodes agree; channels are free, sizes need not be even or square. Invariant
    to the batch size.

    The defaults are the authors' code. The paper: `PairWise(pool=2, pooling='avg', neighbours=..., detach_norm=False)`.

    *Deviations*: the defaults, see above. A node whose feature is zero, or below 1e-6 of the longest of its map, has no
    direction and gets no gradient; the authors' code gives it one of the order of 1e8. The paper's factor beta / (W' H'
    alpha) is read as the mean over connected pairs. The gradient can be taken once.
    """

    Pooling = Literal["max", "avg"]

    paper: ClassVar[str] = "Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 0.5
    usual_tap: ClassVar[str] = "backbone.layer4"

    def __init__(
        self,
        scale: float = 0.5,
        pool: int | None = None,
        pooling: Pooling = "max",
        neighbours: int | None = None,
        detach_norm: bool = True,
    ) -> None:
        super().__init__()
        check_option(pooling, get_args(self.Pooling), "pooling", self)
        if not 0 < scale < 1:
            raise ValueError(f"PairWise: scale is a share of the map, above 0 and below 1, not {scale!r}.")
        if pool is not None and pool < 1:
            raise ValueError(f"PairWise: pool is a number of pixels, at least 1, not {pool!r}.")
        if neighbours is not None and neighbours < 1:
            raise ValueError(f"PairWise: neighbours must be at least 1, not {neighbours!r}.")
        self.scale = scale
        self.pool = pool
        self.pooling = pooling
        self.neighbours = neighbours
        self.detach_norm = detach_norm

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_maps(student, teacher, self)
        nodes_s, nodes_t = self.nodes(student), self.nodes(teacher)
        grid = nodes_s.shape[2:]
        if grid != nodes_t.shape[2:]:
            raise ValueError(
                f"PairWise compares grids of nodes, but the student's shape {tuple(student.shape)} gives "
                f"{tuple(grid)} nodes and the teacher's {tuple(teacher.shape)} gives {tuple(nodes_t.shape[2:])}. "
                f"A connector can bring the student's map to the teacher's size."
            )
        count = math.prod(grid)
        if count == 1:
            raise ValueError(
                f"PairWise compares nodes with each other, but maps of shape {tuple(student.shape)} give only one node."
            )
        squares = (self.affinity(nodes_s) - self.affinity(nodes_t)).square()
        if self.neighbours is None or self.neighbours >= count:
            return squares.mean()
        connected = connections(*grid, self.neighbours, squares.device)
        return (squares * connected).mean() * (count / self.neighbours)

    def nodes(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) pooled to nodes (N, C, h, w)."""
        height, width = features.shape[2:]
        kernel = [min(self.pool or max(1, int(self.scale * size)), size) for size in (height, width)]
        if self.pooling == "max":
            return F.max_pool2d(features, kernel, kernel, ceil_mode=True)
        return F.avg_pool2d(features, kernel, kernel, ceil_mode=True)

    def affinity(self, nodes: Tensor) -> Tensor:
        """Cosines between all nodes, (N, h * w, h * w)."""
        return cosines(nodes.flatten(2).transpose(1, 2), self.detach_norm)


class RKDDistance(RelationalLoss):
    """Relational distillation of distances: how far apart two samples are, in units of the mean distance.

    With `psi_ij = ||e_i - e_j|| / mu` and mu the mean distance of different samples:
    `1 / B^2 * sum over pairs of smooth_l1(psi_ij of the student - psi_ij of the teacher)`.

    Park et al. 2019, equations 5 to 7 (RKD-D, arXiv 1904.05068).

    Shapes: embeddings (N, D), D free; maps are flattened. The value belongs to the batch. Usual weight 25 beside 50 for
    the angles in classification, 1 beside 2 in metric learning, on embeddings that are not normalised.

    *Deviations*: mu is part of the student's gradient, as in the authors' code, and the zero diagonal counts in the
    mean. Equal samples have distance 0 and no gradient; the code counts them as 1e-6, which makes all distances of a
    batch of equal samples 1. Distances are computed in double precision from products of centred embeddings.
    """

    paper: ClassVar[str] = "Park et al., Relational Knowledge Distillation, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 25.0
    usual_tap: ClassVar[str] = "embedding"

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_batches(student, teacher, self)
        value = F.smooth_l1_loss(self.relative_distances(student), self.relative_distances(teacher))
        return value.to(student.dtype)

    def relative_distances(self, features: Tensor) -> Tensor:
        """Distances over the mean distance, (N, N), in double precision; zeros if all samples are equal."""
        distances = safe_sqrt(squared_distances(features))
        samples = len(distances)
        mean = distances.sum() / (samples * (samples - 1))
        return distances / mean.where(mean > 0, 1.0)


class RKDAngle(RelationalLoss):
    """Relational distillation of angles: at each sample, the angle between any two others.

    With `a_ijk` the cosine of the angle at `e_i` between `e_j - e_i` and `e_k - e_i`:
    `1 / B^3 * sum over triplets of smooth_l1(a_ijk of the student - a_ijk of the teacher)`.

    Park et al. 2019, equations 8 to 10 (RKD-A, arXiv 1904.05068).

    Shapes: embeddings (N, D), D free; maps are flattened. The value belongs to the batch. All B^3 triplets count, those
    with j = k and those without an angle (i = j, cosine 0) as well. Usual weight as in `RKDDistance`.

    Cost: B^3 / 2 cosines by the law of cosines, in parts of a few megabytes; B x B numbers are kept for the backward
    pass. Nothing of the size B x B x D is made. The gradient can be taken once.

    *Deviations*: samples nearer than 1e-6 of the root mean square distance count as equal and give no direction. With
    the 1e-12 of the authors' code the gradient at equal rows of the student reaches 4e9.
    """

    paper: ClassVar[str] = "Park et al., Relational Knowledge Distillation, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 50.0
    usual_tap: ClassVar[str] = "embedding"

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_batches(student, teacher, self)
        value: Tensor = AngleDifference.apply(squared_distances(student), squared_distances(teacher))
        return value.to(student.dtype)


class HardDarkRank(RelationalLoss):
    """Cross-sample ranking: the student should order the neighbours of each sample as the teacher does.

    With scores `s_ij = -alpha * ||e_i - e_j||^beta` and n_1, n_2, ... the teacher's nearest neighbours of sample i:
    `1 / B * sum over i and m <= L of log(sum over l >= m of exp(s_i,n_l)) - s_i,n_m`, scores of the student.

    Chen et al. 2018, hard transfer (DarkRank, arXiv 1707.01220).

    Args:
        alpha: factor of the score.
        beta: exponent of the distance, at least 1.
        permute_len: L, the length of the ranking; at most all other samples.
        normalise: bring both sides to length 1 first. Without it the value grows as the size of the embeddings to the
            power of beta, and float16 features of a size of 100 and more may have infinite gradients.

    Shapes: embeddings (N, D), N at least 3, D free; maps are flattened. The value belongs to the batch.

    *Deviations*: the defaults are those of the code beside RKD, which normalises in its networks; the paper's list is
    the whole batch. A sample is never its own neighbour; the code drops the nearest one, which is another sample if two
    are equal. Equal rows have no gradient.
    """

    paper: ClassVar[str] = "Chen et al., DarkRank: Accelerating Deep Metric Learning, AAAI 2018"
    year: ClassVar[int] = 2018
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "embedding"
    smallest_batch: ClassVar[int] = 3

    def __init__(
        self,
        alpha: float = 3.0,
        beta: float = 3.0,
        permute_len: int = 4,
        normalise: bool = True,
        gather: bool = False,
    ) -> None:
        super().__init__(gather)
        check_positive(alpha, "alpha", self)
        if not beta >= 1:
            raise ValueError(f"HardDarkRank: beta must be at least 1, not {beta!r}.")
        if permute_len < 2:
            raise ValueError(f"HardDarkRank: permute_len must be at least 2, not {permute_len!r}.")
        self.alpha = alpha
        self.beta = beta
        self.permute_len = permute_len
        self.normalise = normalise

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_batches(student, teacher, self)
        others = self.distances(teacher).fill_diagonal_(math.inf)
        length = min(self.permute_len, len(others) - 1)
        nearest = others.topk(length, dim=1, largest=False).indices
        scores = -self.alpha * self.distances(student).pow(self.beta)
        ranked = scores.gather(1, nearest)
        rest = ranked.flip(1).logcumsumexp(dim=1).flip(1)
        return (rest - ranked).sum(dim=1).mean().to(student.dtype)

    def distances(self, features: Tensor) -> Tensor:
        """Distances of all samples, (N, N), in double precision."""
        rows = features.flatten(1)
        return safe_sqrt(squared_distances(directions(rows) if self.normalise else rows))


class CCKD(RelationalLoss):
    """Correlation congruence: the student should have the teacher's matrix of correlations between samples.

    `1 / B^2 * ||C_s - C_t||_F^2` with `c_ij = sum over p = 0 ... P of exp(-2 g) (2 g)^p / p! * (x_i . x_j)^p` of
    embeddings of length 1 (`gaussian`); `c_ij = exp(-g ||x_i - x_j||^2)` (`gaussian_exact`); or `c_ij = f_i . f_j` of
    embeddings as they are (`bilinear`).

    Peng et al. 2019, equations 4 to 7 (arXiv 1904.01802).

    Args:
        kernel: see the formula; or `author`, which is another loss, `mean over samples b of |d_b| . |d_b+1|` with
            d = s - t: what the authors gave to RepDistiller. It depends on the order of the samples and needs equal D.
        gamma: g of the Gaussian kernels.
        order: P, the degree of the Taylor series.
        width: map both sides to this width first, each by a linear layer, as in the paper (128). Both layers train: the
            teacher's side too may shrink what is compared, with `bilinear` and `author` down to nothing. None: compare
            the embeddings as they come.

    Shapes: embeddings (N, D), D free; maps are flattened. The value belongs to the batch. Usual weight 0.003 in
    torchdistill, 0.02 in RepDistiller with `author`.

    *Deviations*: a row of zeros has no direction, and its correlation is the constant term of the series. No linear
    layers by default. torchdistill's norm that is not squared, of embeddings that are not normalised, is not offered.
    The gradient of the Gaussian kernels can be taken once.
    """

    Kernel = Literal["gaussian", "gaussian_exact", "bilinear", "author"]

    paper: ClassVar[str] = "Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 0.003
    usual_tap: ClassVar[str] = "embedding"

    def __init__(
        self,
        kernel: Kernel = "gaussian",
        gamma: float = 0.4,
        order: int = 2,
        width: int | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__(gather)
        check_option(kernel, get_args(self.Kernel), "kernel", self)
        check_positive(gamma, "gamma", self)
        if order < 1:
            raise ValueError(f"CCKD: order must be at least 1, not {order!r}.")
        if width is not None and width < 1:
            raise ValueError(f"CCKD: width must be at least 1, not {width!r}.")
        self.kernel = kernel
        self.gamma = gamma
        self.order = order
        self.width = width
        self.project_student: nn.Module = nn.Identity()
        self.project_teacher: nn.Module = nn.Identity()

    def prepare(self, student: Tensor, teacher: Tensor, **context: Any) -> None:
        if self.width is not None:
            self.project_student = nn.Linear(student[0].numel(), self.width, device=student.device)
            self.project_teacher = nn.Linear(teacher[0].numel(), self.width, device=teacher.device)

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_batches(student, teacher, self)
        student, teacher = self.project_student(student.flatten(1)), self.project_teacher(teacher.flatten(1))
        if self.kernel == "author":
            check_same_shape(student, teacher, self)
            difference = (student - teacher).abs()
            return (difference[:-1] * difference[1:]).sum(dim=1).mean()
        return F.mse_loss(self.correlation(student), self.correlation(teacher))

    def correlation(self, embeddings: Tensor) -> Tensor:
        """Correlations between all samples, (N, N)."""
        if self.kernel == "bilinear":
            return gram(embeddings)
        products = cosines(embeddings)
        if self.kernel == "gaussian_exact":
            return torch.exp(2 * self.gamma * (products - 1))
        terms = [math.exp(-2 * self.gamma) * (2 * self.gamma) ** p / math.factorial(p) for p in range(self.order + 1)]
        value = products * terms[-1] + terms[-2]
        for term in terms[-3::-1]:
            value = (value * products).add_(term)
        return value


class SimilarityPreserving(RelationalLoss):
    """Similarity-preserving distillation: samples alike for the teacher are alike for the student.

    With `G = Q Q^T` of the flattened maps Q, each row of G divided by its length: `1 / B^2 * ||G_s - G_t||_F^2`.

    Tung and Mori 2019, equations 2 to 4 (SP, arXiv 1907.09682).

    Shapes: maps (N, C, H, W) or embeddings (N, D), of any sizes on either side; maps are flattened. The value belongs
    to the batch. It does not depend on the size of the features.

    *Deviations*: none in the value. A row of similarities below 1e-6 of the largest similarity is left zero and has no
    direction; a sample of zeros else gets a gradient of 2e10.
    """

    paper: ClassVar[str] = "Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 3000.0
    usual_tap: ClassVar[str] = "backbone.layer4"

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_batches(student, teacher, self)
        return F.mse_loss(self.similarity(student), self.similarity(teacher))

    def similarity(self, features: Tensor) -> Tensor:
        """Similarities between all samples, (N, N), with rows of length 1."""
        products = gram(features.flatten(1))
        products = products / products.detach().abs().amax().clamp_min(torch.finfo(products.dtype).tiny)
        squares = products.square().sum(dim=1, keepdim=True)
        return products * inverse_sqrt(squares, squares > RESOLUTION**2)


class PKT(RelationalLoss):
    """Probabilistic knowledge transfer: the chance of each sample to pick each other as its neighbour.

    With `k_ij = (cos(e_i, e_j) + 1) / 2` and `p_ij = k_ij / sum over j of k_ij`:
    `1 / B^2 * sum over pairs of p_ij of the teacher * log(p_ij of the teacher / p_ij of the student)`.

    Passalis and Tefas 2018, section 3 (arXiv 1803.10837).

    Args:
        eps: added to both probabilities in the logarithm.

    Shapes: embeddings (N, D), D free; maps are flattened. The value belongs to the batch.

    *Deviations*: from the paper those of the authors' code: the diagonal is kept, where the paper leaves out i = j, and
    the sum is divided by B^2. A row of zeros has cosine 0 with all and gets no gradient, where the code gives NaN. The
    gradient can be taken once.
    """

    paper: ClassVar[str] = (
        "Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018"
    )
    year: ClassVar[int] = 2018
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 30000.0
    usual_tap: ClassVar[str] = "embedding"

    def __init__(self, eps: float = 1e-7, gather: bool = False) -> None:
        super().__init__(gather)
        check_positive(eps, "eps", self)
        self.eps = eps

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_batches(student, teacher, self)
        of_student, of_teacher = self.probabilities(student), self.probabilities(teacher)
        return (of_teacher * ((of_teacher + self.eps).log() - (of_student + self.eps).log())).mean()

    def probabilities(self, features: Tensor) -> Tensor:
        """Chances of each sample to pick each, (N, N), with rows of sum 1."""
        kernel = 1 + cosines(features.flatten(1))
        return kernel / kernel.sum(dim=1, keepdim=True)


class AbsoluteTeacher(Loss):
    """Absolute teacher: each embedding of the student at the place of the teacher's.

    `1 / N * sum over samples of ||s_i - t_i||`, the distance, not its square.

    Yu et al. 2019, the absolute teacher (arXiv 1904.03624).

    Shapes: embeddings (N, D), the same for both, of length 1 in the paper; maps are flattened. Invariant to the batch
    size. Usual weight 1 to 2.

    *Deviations*: the authors' code adds 1e-6 to each difference, which leaves a gradient where both are equal; here
    that gradient is 0.
    """

    paper: ClassVar[str] = "Yu et al., Learning Metrics from Teachers: Compact Networks for Image Embedding, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "embedding"

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        return (student - teacher).flatten(1).norm(dim=1).mean()


class RelativeTeacher(RelationalLoss):
    """Relative teacher: distances between the student's embeddings as between the teacher's.

    With `d_ij = ||e_i - e_j||`: `||D_s - D_t||_F` over the matrices of all pairs (`frobenius`), or
    `mean over pairs i < j of |d_ij of the student - d_ij of the teacher|` (`pairs`).

    Yu et al. 2019, the relative teacher (arXiv 1904.03624).

    Args:
        reduction: `frobenius` as in the authors' code, which grows about as the batch size; `pairs` does not, and is
            the per-pair difference of the paper.

    Shapes: embeddings (N, D), of length 1 in the paper, D free; maps are flattened. The value belongs to the batch.
    Usual weight 0.1 to 1 with `frobenius`.

    *Deviations*: the default is the norm of the authors' code. Where both matrices are equal it has no gradient; it is
    0 there. Equal samples have distance 0 and no gradient, where the code counts them as 1e-6. Distances are computed
    in double precision from products of centred embeddings.
    """

    Reduction = Literal["frobenius", "pairs"]

    paper: ClassVar[str] = "Yu et al., Learning Metrics from Teachers: Compact Networks for Image Embedding, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 0.3
    usual_tap: ClassVar[str] = "embedding"

    def __init__(self, reduction: Reduction = "frobenius", gather: bool = False) -> None:
        super().__init__(gather)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.reduction = reduction

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_batches(student, teacher, self)
        difference = safe_sqrt(squared_distances(student)) - safe_sqrt(squared_distances(teacher))
        if self.reduction == "frobenius":
            return difference.norm().to(student.dtype)
        samples = len(difference)
        return (difference.abs().sum() / (samples * (samples - 1))).to(student.dtype)


class LogEuclidean(RelationalLoss):
    """Similarity distillation of re-identification: matrices of cosines, compared by the log-Euclidean metric.

    With X the features after ReLU, each of length 1, and `A = X^T X + eps I`:
    `sum over teachers k of alpha_k * ||log A_S - log A_k||_F^2`, the matrix logarithm.

    Wu et al. 2019, section 3.2 and the sum over teachers of section 4.

    Args:
        weights: alpha, one weight a teacher; None: the same for all, with sum 1. They are kept in the buffer `weights`,
            which may be rewritten between steps.
        eps: added to the eigenvalues, which are 0 where the batch is larger than the width.

    Shapes: the student's embeddings (N, D); the teacher's (N, D'), or a list of those of several teachers; widths are
    free, maps are flattened. The value belongs to the batch, and is a sum over its N^2 pairs.

    Cost: one eigendecomposition of an N x N matrix a network, in double precision. The gradient is the one of Daleckii
    and Krein, which equal eigenvalues do not disturb; it can be taken once.

    *Deviations*: eps and the missing factor 1 / N^2 are ours; the paper's text was not at hand and no official code is
    known. Features that ReLU leaves all zero are similar to nothing, and get no gradient. The logarithms of the
    teachers are averaged before they are compared, which gives the same value.
    """

    paper: ClassVar[str] = "Wu et al., Distilled Person Re-Identification: Towards a More Scalable System, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "embedding"
    weights: Tensor | None

    def __init__(self, weights: Sequence[float] | None = None, eps: float = 1e-3, gather: bool = False) -> None:
        super().__init__(gather)
        check_positive(eps, "eps", self)
        if weights is not None and not (len(weights) and all(w >= 0 for w in weights)):
            raise ValueError(f"LogEuclidean: weights must be one number a teacher, not below zero, not {weights!r}.")
        self.eps = eps
        self.register_buffer("weights", None if weights is None else torch.tensor(weights, dtype=torch.float64))

    def compute(self, student: Tensor, teacher: Tensor | list[Tensor]) -> Tensor:
        teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
        for one in teachers:
            check_batches(student, one, self)
        count = len(teachers) if self.weights is None else len(self.weights)
        if count != len(teachers):
            raise ValueError(f"LogEuclidean has {count} weights, but is given {len(teachers)} teachers.")
        uniform = torch.full((count,), 1 / count, dtype=torch.float64, device=student.device)
        weights = uniform if self.weights is None else self.weights.double()
        mean, spread = mean_logarithm(torch.stack([self.similarity(one) for one in teachers]), weights, self.eps)
        distance: Tensor = LogDistance.apply(self.similarity(student), mean, self.eps)
        return (weights.sum() * distance + spread).to(student.dtype)

    def similarity(self, features: Tensor) -> Tensor:
        """Cosines between all samples after ReLU, (N, N), in double precision."""
        return cosines(features.flatten(1).relu().double())


class IRGVertex(Loss):
    """Vertices of the instance relationship graph: the student's scores of each sample are to be the teacher's.

    `mean over samples and classes of (z of the student - z of the teacher)^2`.

    Liu et al. 2019, the part L_logits of the multi-type knowledge: vertices are compared at the logits alone. The whole
    method takes `IRGEdge` and `IRGTransformation` beside it.

    Shapes: logits (N, K) or (N, K, H, W) of one shape. Invariant to the batch size; samples are not compared with each
    other, so that there is nothing to gather over ranks.

    *Deviations*: the paper sums squares. The mean is that of Knowledge-Distillation-Zoo, whose weight is 0.1; the
    prototxt files that the authors released have no such part.
    """

    paper: ClassVar[str] = "Liu et al., Knowledge Distillation via Instance Relationship Graph, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 0.1
    usual_tap: ClassVar[str] = "logits"

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        return F.mse_loss(student, teacher)


class IRGEdge(RelationalLoss):
    """Edges of the instance relationship graph: how far apart the samples of a batch are in feature space.

    `A_ij = ||f_i - f_j||^2 / max over i, j`, and the loss is
    `1 / (2 N) * sum over i, j of (A_ij of the student - A_ij of the teacher)^2`.

    Liu et al. 2019, the part L_GE; the division by the largest distance is the authors' code (BatchEuclideanMap).

    The paper's modes are a choice of taps. One-to-one: a transfer for each pair of layers, student's and teacher's, for
    networks of one design. One-to-many: a transfer for each chosen layer of the student, all with the teacher's last.

    Args:
        pool: average maps over their positions first, as the authors' code does; off, maps are flattened, as in
            Knowledge-Distillation-Zoo.
        reduction: `half_row_sum` is the formula above; `mean` is the mean over all pairs; `sum` the sum, the paper's.
        detach_max: take the largest distance as a constant in the gradient, as the authors' code does.
        gather: join the batches of all ranks first.

    Shapes: maps (N, C, H, W) or features (N, D), whose sizes are free on both sides. `half_row_sum` grows with the
    batch size, `sum` with its square, `mean` does not.

    *Deviations*: the default reduction is the authors' code's. The backward pass of that code adds only one of the two
    terms in which a sample takes part, so that its gradient is exactly half of what it should be; ours is the right
    one. A batch whose rows are all equal has no distances, and no gradient; the code divides zero by zero there.
    """

    Reduction = Literal["half_row_sum", "mean", "sum"]

    paper: ClassVar[str] = IRGVertex.paper
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 0.005
    usual_tap: ClassVar[str] = "backbone.layer4"

    def __init__(
        self,
        pool: bool = True,
        reduction: Reduction = "half_row_sum",
        detach_max: bool = True,
        gather: bool = False,
    ) -> None:
        super().__init__(gather)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.pool = pool
        self.reduction = reduction
        self.detach_max = detach_max

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_batches(student, teacher, self)
        count = len(student)
        scale = {"half_row_sum": 1 / (2 * count), "mean": 1 / count**2, "sum": 1.0}[self.reduction]
        value: Tensor = EdgeDifference.apply(self.rows(student), self.edges(teacher), scale, self.detach_max)
        return value

    def rows(self, features: Tensor) -> Tensor:
        """What the distances are taken between, (N, D)."""
        return (pooled(features) if self.pool else features).flatten(1)

    def edges(self, features: Tensor) -> Tensor:
        """Squared distances between samples as shares of the largest, (N, N)."""
        return edge_shares(self.rows(features))[0]


class IRGTransformation(RelationalLoss):
    """Transformation of the instance relationship graph: how far each sample moves between two layers.

    `L_i = ||f of layer 1 - f of layer 2||^2 / max over i` of each sample, and the loss is
    `1 / 2 * sum over i of (L_i of the student - L_i of the teacher)^2`.

    Liu et al. 2019, the part of the vertex transformation; the edge transformation of the paper is left out there as
    well. The division by the largest distance is the authors' code (BatchEuclideanVector).

    Args:
        pool: average maps over their positions first, as the authors' code does. Off: maps are compared position by
            position, as in Knowledge-Distillation-Zoo.
        reduction: `half_sum` is the formula above, `mean` the mean over samples, `sum` the sum, the paper's.
        detach_max: take the largest distance as a constant in the gradient, as the authors' code does.
        gather: join the batches of all ranks first.

    Shapes: two tensors on each side, maps (N, C, H, W) or features (N, D). Two layers of one network may differ in
    size: maps are averaged down to the smaller height and width, and neighbouring channels of the wider layer are
    averaged, whose number must then be a multiple of the other's. `half_sum` and `sum` grow with the batch size.

    *Deviations*: the default reduction is the authors' code's. Averaging neighbouring channels is
    Knowledge-Distillation-Zoo's way; the paper takes layers of one width. A batch in which nothing moves has no
    distances, and no gradient.
    """

    Reduction = Literal["half_sum", "mean", "sum"]

    paper: ClassVar[str] = IRGVertex.paper
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "several maps"
    usual_weight: ClassVar[float] = 0.005
    usual_tap: ClassVar[str] = "backbone.layer3, backbone.layer4"

    def __init__(
        self, pool: bool = True, reduction: Reduction = "half_sum", detach_max: bool = True, gather: bool = False
    ) -> None:
        super().__init__(gather)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.pool = pool
        self.reduction = reduction
        self.detach_max = detach_max

    def compute(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        for name, side in (("student", student), ("teacher", teacher)):
            if isinstance(side, Tensor) or len(side) != 2:
                count = 1 if isinstance(side, Tensor) else len(side)
                raise ValueError(f"IRGTransformation compares two layers, but the {name} has {count}.")
        check_batches(student[0], teacher[0], self)
        ours, theirs = self.moves(*student), self.moves(*teacher)
        total = F.mse_loss(ours, theirs, reduction="mean" if self.reduction == "mean" else "sum")
        return total / 2 if self.reduction == "half_sum" else total

    def moves(self, first: Tensor, second: Tensor) -> Tensor:
        """Squared distances between two layers as shares of the largest, (N,)."""
        check_batches(first, second, self)
        if self.pool:
            first, second = pooled(first), pooled(second)
        first, second = self.of_one_size(first, second)
        distances = (first - second).flatten(1).square().sum(1)
        largest = (distances.detach() if self.detach_max else distances).amax()
        return distances / largest.masked_fill(largest <= SMALL, torch.inf)

    def of_one_size(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both layers with the smaller number of channels, height and width of the two."""
        channels = min(first.shape[1], second.shape[1])
        if first.ndim != second.ndim or any(x.shape[1] % channels for x in (first, second)):
            raise ValueError(
                f"IRGTransformation compares two layers of one network, but {tuple(first.shape)} and "
                f"{tuple(second.shape)} cannot be brought to one size: the channels of one must be a multiple."
            )
        size = [min(sizes) for sizes in zip(first.shape[2:], second.shape[2:], strict=True)]
        return fewer_channels(smaller(first, size), channels), fewer_channels(smaller(second, size), channels)


class RelativeDissimilarity(RelationalLoss):
    """Relative dissimilarity: of two samples, the one that most teachers find nearer to a third is to be nearer.

    Teachers vote in each triplet (i; j, k) on which of j and k is nearer to i by `d(i, j) = ||f_i - f_j||^2`, and the
    loss is the mean over triplets of `max(0, d(i, near) - d(i, far) + margin)` with the student's d.

    You et al. 2017, the intermediate part of learning from multiple teachers. The output part is the averaged soft
    targets of several teachers.

    Args:
        margin: by how much the farther sample is to be farther, in squared distance.
        triplets: how many triplets to draw at random, anew in each call. None: all N (N - 1) (N - 2) / 2.
        ties: what becomes of triplets with as many votes on either side: `drop` them, or let the `margin` decide, the
            sum over teachers of the difference of distances, in units of each teacher's mean distance.
        normalise: bring the features of both sides to unit length first, so that the margin means the same for features
            of any size. Off: distances as they are.
        gather: join the batches of all ranks first. Ranks then draw triplets of their own if they are drawn.

    Shapes: the student's features (N, D), and a list of the teachers', (N, D') each, or one tensor; maps are flattened,
    and widths are free. A mean over triplets, yet a larger batch has harder ones. Memory with all triplets: some 20
    bytes times N^3, 5 MB for 64 samples, 340 MB for 256; drawn triplets cost 80 bytes each.

    *Deviations*: no code was published; squared Euclidean distance, unit length, margin 1 and the mean over triplets
    are a reconstruction. Triplets on which no order can be told are not counted.
    """

    Ties = Literal["drop", "margin"]

    paper: ClassVar[str] = "You et al., Learning from Multiple Teacher Networks, KDD 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "several embeddings"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "embedding"
    smallest_batch: ClassVar[int] = 3

    def __init__(
        self,
        margin: float = 1.0,
        triplets: int | None = None,
        ties: Ties = "drop",
        normalise: bool = True,
        gather: bool = False,
    ) -> None:
        super().__init__(gather)
        check_option(ties, get_args(self.Ties), "ties", self)
        if margin < 0:
            raise ValueError(f"RelativeDissimilarity: margin must not be below zero, not {margin!r}.")
        if triplets is not None and triplets < 1:
            raise ValueError(f"RelativeDissimilarity: triplets must be at least 1, or None for all, not {triplets!r}.")
        self.margin = margin
        self.triplets = triplets
        self.ties = ties
        self.normalise = normalise

    def compute(self, student: Any, teacher: Any) -> Tensor:
        student, teachers = self.sides(student, teacher)
        drawn = None if self.triplets is None else random_triplets(len(student), self.triplets, student.device)
        return self.of_triplets(student, teachers, drawn)

    def sides(self, student: Any, teacher: Any) -> tuple[Tensor, list[Tensor]]:
        """The student's tensor and the teachers' list, checked."""
        if not isinstance(student, Tensor):
            if len(student) != 1:
                raise ValueError(f"RelativeDissimilarity reads one tap of the student, not {len(student)}.")
            student = student[0]
        teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
        for one in teachers:
            check_batches(student, one, self)
        return student, teachers

    def of_triplets(self, student: Tensor, teachers: Sequence[Tensor], triplets: Tensor | None = None) -> Tensor:
        """The loss of `triplets` (T, 3), rows (i, j, k) of different samples; None: of all."""
        order = self.order([self.distances(t) for t in teachers], triplets)
        gaps = differences(self.distances(student), triplets)
        hinge = F.relu(self.margin - order * gaps) * order.abs()
        return hinge.sum() / order.abs().sum(dtype=gaps.dtype).clamp_min(1)

    def distances(self, features: Tensor) -> Tensor:
        """Squared distances between samples, (N, N)."""
        rows = features.flatten(1)
        return centred_distances(centred(unit_rows(rows) if self.normalise else rows))

    def order(self, distances: Sequence[Tensor], triplets: Tensor | None = None) -> Tensor:
        """By the teachers, 1 where j is nearer to i than k is, -1 where it is farther, 0 where nobody can tell.

        For all triplets it is (N, N, N), with zeros where two of the three are the same sample.
        """
        votes = torch.zeros((), dtype=torch.int8, device=distances[0].device)
        margins = torch.zeros((), device=distances[0].device)
        for d in distances:
            gaps = differences(d, triplets)
            rounding = 32 * torch.finfo(d.dtype).eps * d.amax()
            votes = votes + (gaps > rounding).to(torch.int8) - (gaps < -rounding).to(torch.int8)
            if self.ties == "margin":
                margins = margins + gaps.where(gaps.abs() > rounding, 0.0) / d.mean().clamp_min(SMALL)
        order = votes.sign()
        if self.ties == "margin":
            order = torch.where(order == 0, margins.sign().to(order.dtype), order)
        if triplets is not None:
            return order
        same = torch.eye(len(order), dtype=torch.bool, device=order.device)
        return order.masked_fill(same[:, :, None] | same[:, None, :], 0)


class CRD(RelationalLoss):
    """Contrastive representation distillation: tell a sample's own feature of the other network from other samples'.

    With unit embeddings s and t of a sample, a memory of M embeddings of either network, K negatives out of it and
    `x = exp(embedding . memory / temperature) / Z`, `c = K / M + 1e-7`, the part of the student is the batch mean of
    `-log(x+ / (x+ + c)) - sum over negatives of log((K / M) / (x + c))`, s scored against the memory of the teacher.
    The part of the teacher scores t against the memory of the student; the loss is the sum of both.

    Tian et al. 2020, the contrastive objective with its critic, in the form of the authors' code (RepDistiller).

    The embeddings are linear layers; both are trained, although the teacher's features are constants. In training, rows
    of the memories move towards the embeddings after they were scored, `m * old + (1 - m) * new` to unit length; of
    several rows of one sample in a batch the last one counts. Z is a constant: the mean of the first training batch
    times M. In eval mode nothing is kept; before any training Z is that of the batch at hand.

    Args:
        samples: M, how many samples the data set has.
        width: of the embeddings.
        negatives: K, drawn for each sample.
        temperature: of the scores.
        momentum: m, what stays of a row of memory.
        gather: join the batches of all ranks first. It is not needed for the memories: they follow the rows of all
            ranks either way, and are the same on all.

    Context: `index` (N,), the place of each sample in the data set, 0 to M - 1. `label` (N,), its class, or none;
    labels of pixels are passed over. `contrast_index` (N, K + 1), the places to contrast with, the sample's own first;
    or none, and negatives are drawn: uniformly, with replacement, from the samples of other classes. A sample's class
    is known once it was in a batch with `label`; a sample not seen yet counts as of another class.

    Shapes: features (N, D), maps are flattened; widths are free. Invariant to the batch size, but for Z.

    The state dict holds both memories, M * width numbers each, with Z and the classes known. Scores are N * M numbers
    where M is at most 12 K, else memory rows are read in parts of 64 MB; the gradient is taken in the forward pass, so
    that none of it stays until the backward pass.

    *Deviations*: negatives are drawn here, and with replacement; the authors' data set draws them without, and knows
    all classes beforehand. The logarithms are taken in one piece, so that no score overflows, and a zero embedding has
    a zero score. The order of repeated samples is defined. The memories start equal on all ranks.
    """

    paper: ClassVar[str] = "Tian et al., Contrastive Representation Distillation, ICLR 2020"
    year: ClassVar[int] = 2020
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 0.8
    usual_tap: ClassVar[str] = "embedding"
    smallest_batch: ClassVar[int] = 1

    embed_student: nn.Linear
    embed_teacher: nn.Linear
    memory_v1: Tensor
    memory_v2: Tensor
    log_z: Tensor
    started: Tensor
    classes: Tensor
    by_class: Tensor

    def __init__(
        self,
        samples: int,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        gather: bool = False,
    ) -> None:
        super().__init__(gather)
        for name, value in (("width", width), ("negatives", negatives), ("temperature", temperature)):
            check_positive(value, name, self)
        if samples < 2:
            raise ValueError(f"CRD: samples is the size of the data set, at least 2, not {samples!r}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"CRD: momentum must be at least 0 and below 1, not {momentum!r}.")
        self.samples = samples
        self.width = width
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum

    def prepare(self, student: Tensor, teacher: Tensor, **context: Any) -> None:
        self.embed_student = nn.Linear(student[0].numel(), self.width)
        self.embed_teacher = nn.Linear(teacher[0].numel(), self.width)
        limit = (3 / self.width) ** 0.5
        self.register_buffer("memory_v1", torch.empty(self.samples, self.width).uniform_(-limit, limit))
        self.register_buffer("memory_v2", torch.empty(self.samples, self.width).uniform_(-limit, limit))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("classes", torch.full((self.samples,), -1))
        self.register_buffer("by_class", torch.arange(self.samples))

    def compute(
        self,
        student: Tensor,
        teacher: Tensor,
        index: Tensor,
        label: Tensor | None = None,
        contrast_index: Tensor | None = None,
    ) -> Tensor:
        self.check(student, teacher, index)
        ours = unit_rows(self.embed_student(student.flatten(1)))
        theirs = unit_rows(self.embed_teacher(teacher.flatten(1)))
        if contrast_index is None:
            chosen = self.drawn(index, self.class_labels(label, index))
        else:
            chosen = self.given(contrast_index, index)
        started = bool(self.started)
        if self.training and not started:
            self.start(ours.detach(), theirs.detach(), chosen)
        log_z = self.log_z if started or self.training else self.batch_z(ours.detach(), theirs.detach(), chosen)
        value = self.contrast(ours, self.memory_v2, chosen, log_z[0])
        value = value + self.contrast(theirs, self.memory_v1, chosen, log_z[1])
        if self.training:
            self.remember(ours.detach(), theirs.detach(), index)
        return value

    def check(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        """Raise `ValueError` for tensors that do not fit, or an index outside the data set."""
        if not hasattr(self, "embed_student"):
            raise ValueError("CRD has no layers yet: call prepare(student, teacher) once before.")
        check_batches(student, teacher, self)
        widths = student[0].numel(), teacher[0].numel()
        prepared = self.embed_student.in_features, self.embed_teacher.in_features
        if widths != prepared:
            raise ValueError(
                f"CRD was prepared for {prepared[0]} and {prepared[1]} features, but the student's shape is "
                f"{tuple(student.shape)} and the teacher's {tuple(teacher.shape)}."
            )
        if index.shape != student.shape[:1]:
            raise ValueError(
                f"CRD: index has shape {tuple(index.shape)}, but the student's shape is {tuple(student.shape)}."
            )
        self.check_places(index, "index")

    def check_places(self, places: Tensor, name: str) -> None:
        """Raise `ValueError` unless all `places` are of samples of the data set."""
        low, high = torch.stack(places.aminmax()).tolist()
        if low < 0 or high >= self.samples:
            raise ValueError(
                f"CRD: {name} runs from {low} to {high}, but samples={self.samples} allows 0 to {self.samples - 1}."
            )

    def given(self, contrast_index: Tensor, index: Tensor) -> Tensor:
        """The places to contrast with as they are given, checked."""
        wanted = (len(index), self.negatives + 1)
        if contrast_index.shape != wanted:
            raise ValueError(f"CRD: contrast_index has shape {tuple(contrast_index.shape)}, and not {wanted}.")
        self.check_places(contrast_index, "contrast_index")
        return contrast_index

    def class_labels(self, label: Tensor | None, index: Tensor) -> Tensor | None:
        """`label`, if it has one class for each sample; none for labels of pixels."""
        if label is None or label.ndim != 1:
            return None
        if len(label) != len(index):
            raise ValueError(f"CRD: label has shape {tuple(label.shape)}, but index has shape {tuple(index.shape)}.")
        return label.long()

    def drawn(self, index: Tensor, label: Tensor | None) -> Tensor:
        """Places to contrast with, (N, K + 1): the sample's own, then K of other classes."""
        classes, by_class = self.classes, self.by_class
        if label is not None:
            if self.training:
                self.learn(self.everywhere(index), self.everywhere(label))
            classes, by_class = self.with_labels(index, label)
        own = classes[index]
        known = own >= 0
        in_order = classes[by_class]
        first = torch.where(known, torch.searchsorted(in_order, own), index)
        count = torch.where(known, torch.searchsorted(in_order, own, right=True) - first, 1)
        others = self.samples - count
        if not (others > 0).all():
            raise ValueError(f"CRD: all {self.samples} samples are of one class, so that there are no negatives.")
        places = torch.rand(len(index), self.negatives, dtype=torch.float64, device=index.device)
        places = places.mul_(others[:, None]).long()
        places += (places >= first[:, None]) * count[:, None]
        negatives = torch.where(known[:, None], by_class[places], places)
        return torch.cat([index[:, None], negatives], dim=1)

    def learn(self, index: Tensor, label: Tensor) -> None:
        """Keep the classes of some samples."""
        classes, by_class = self.with_labels(index, label)
        if classes is not self.classes:
            self.classes.copy_(classes)
            self.by_class.copy_(by_class)

    def with_labels(self, index: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The classes of all samples with those of a batch, and the samples in the order of their classes."""
        if torch.equal(self.classes[index], label):
            return self.classes, self.by_class
        classes = self.classes.index_copy(0, index, label[last_of_each(index)])
        return classes, classes.argsort(stable=True)

    def everywhere(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks, which a gathered batch has already."""
        return tensor if self.gather else all_gather(tensor)

    def start(self, ours: Tensor, theirs: Tensor, chosen: Tensor) -> None:
        """Fix Z by the first batch, and give every rank the memories of the first one."""
        for memory in (self.memory_v1, self.memory_v2):
            for part in memory.split(4096):
                part.copy_(all_gather(part)[: len(part)])
        of_ranks = all_gather(self.batch_z(ours, theirs, chosen)[None])
        self.log_z.copy_(of_ranks.logsumexp(0) - math.log(len(of_ranks)))
        self.started.fill_(True)

    def batch_z(self, ours: Tensor, theirs: Tensor, chosen: Tensor) -> Tensor:
        """Logarithms of Z of both sides, by one batch: the mean of exp(score / temperature) times M."""
        sides = ((ours, self.memory_v2), (theirs, self.memory_v1))
        scores = [similarities(rows, memory, chosen)[0].flatten() / self.temperature for rows, memory in sides]
        return torch.stack([s.logsumexp(0) + math.log(self.samples / s.numel()) for s in scores])

    def contrast(self, rows: Tensor, memory: Tensor, chosen: Tensor, log_z: Tensor) -> Tensor:
        """The part of one side: `rows` scored against the other side's memory."""
        noise = self.negatives / self.samples
        value: Tensor = NoiseContrast.apply(rows, memory, chosen, log_z + math.log(noise + EPS), self.temperature)
        return value + self.negatives * math.log1p(EPS / noise)

    def remember(self, ours: Tensor, theirs: Tensor, index: Tensor) -> None:
        """Move the rows of the samples of all ranks towards their embeddings."""
        index = self.everywhere(index)
        last = last_of_each(index)
        for memory, rows in ((self.memory_v1, ours), (self.memory_v2, theirs)):
            mixed = self.momentum * memory[index] + (1 - self.momentum) * self.everywhere(rows)[last]
            memory.index_copy_(0, index, unit_rows(mixed))


def check_batches(student: Tensor, teacher: Tensor, loss: nn.Module) -> None:
    """Raise `ValueError` with both shapes unless both are batches (N, ...) of one size."""
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ValueError(
            f"{type(loss).__name__} compares the samples of a batch, (N, D) or (N, C, H, W) with one N, but the "
            f"student's shape is {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}."
        )


@functools.lru_cache(maxsize=16)
def connections(height: int, width: int, neighbours: int, device: torch.device) -> Tensor:
    """Which nodes of a grid are connected, (h * w, h * w) of bool: row i holds the `neighbours` nearest of node i."""
    with torch.inference_mode(False):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
        distances = (places[:, None] - places[None]).abs().amax(dim=2)
        nearest = distances.argsort(dim=1, stable=True)[:, :neighbours]
        return torch.zeros_like(distances, dtype=torch.bool).scatter_(1, nearest, True).to(device)


def smaller(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps averaged down to `size`; features (N, D) as they are."""
    return maps if list(maps.shape[2:]) == list(size) else F.adaptive_avg_pool2d(maps, (size[0], size[1]))


def fewer_channels(features: Tensor, channels: int) -> Tensor:
    """Means of neighbouring channels, so that `channels` of them are left."""
    return features if features.shape[1] == channels else features.unflatten(1, (channels, -1)).mean(2)


def differences(distances: Tensor, triplets: Tensor | None) -> Tensor:
    """How much farther k is from i than j is, of `triplets` (T, 3) of rows (i, j, k) or of all, (N, N, N)."""
    if triplets is None:
        return distances[:, None, :] - distances[:, :, None]
    i, j, k = triplets.unbind(1)
    return distances[i, k] - distances[i, j]


def random_triplets(batch: int, count: int, device: torch.device) -> Tensor:
    """Random rows (i, j, k) of three different samples, (count, 3)."""
    i = torch.randint(batch, (count,), device=device)
    to_j = torch.randint(1, batch, (count,), device=device)
    to_k = torch.randint(1, batch - 1, (count,), device=device)
    to_k = to_k + (to_k >= to_j)
    return torch.stack([i, (i + to_j) % batch, (i + to_k) % batch], dim=1)
