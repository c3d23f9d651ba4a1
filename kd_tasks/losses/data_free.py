"""Losses on a teacher's outputs for pictures that are being made, for distillation without the training data.

Their first argument is what the *teacher* gives for the pictures, with gradient back to them: freeze the teacher's
parameters, but do not run it under `torch.no_grad`. There is no second side.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.losses.base import Loss, RelationalLoss, check_option, check_positive
from kd_tasks.losses.gather import all_gather

SMALLEST_CONCENTRATION = 1e-4


class DAFLOneHot(Loss):
    """One-hot loss of DAFL: the teacher is to be sure of a made picture.

    `mean over samples of -log softmax(z)_k`, `k = argmax z`, z the teacher's logits for the picture; for maps the mean
    runs over samples and pixels.

    Chen et al. 2019, the one-hot loss (arXiv 1904.01186). The published weights of the three terms one-hot, entropy
    and activation are 1, 5, 0.1 (MNIST), 0.05, 5, 0.01 (CIFAR-10) and 0.5, 20, 0.1 (CIFAR-100).

    Shapes: logits (N, K) or (N, K, ...), called as `loss(logits)`. Invariant to the batch size.

    *Deviations*: none.
    """

    paper: ClassVar[str] = "Chen et al., Data-Free Learning of Student Networks, ICCV 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"
    reads_teacher: ClassVar[bool] = False

    def compute(self, student: Tensor, teacher: None) -> Tensor:
        return F.cross_entropy(student, student.argmax(dim=1))


class DAFLActivation(Loss):
    """Activation loss of DAFL: a made picture is to excite the teacher's features.

    `-mean of |f|`, f the teacher's pooled features for the picture; the paper: `-1 / N * sum over samples of ||f||_1`.

    Chen et al. 2019, the activation loss (arXiv 1904.01186).

    Args:
        reduction: `mean` over samples and features, as in the authors' code, to which the published weights of 0.01 to
            0.1 belong; `sum` over the features, the mean over samples, as in the paper: D times as much.

    Shapes: features (N, D), or maps, called as `loss(features)`. Invariant to the batch size. The value is negative and
    has no lower bound.

    *Deviations*: the default is the mean of the authors' code. A feature of exactly zero gets no gradient.
    """

    Reduction = Literal["mean", "sum"]

    paper: ClassVar[str] = DAFLOneHot.paper
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "embeddings"
    usual_weight: ClassVar[float] = 0.1
    usual_tap: ClassVar[str] = "embedding"
    reads_teacher: ClassVar[bool] = False

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.reduction = reduction

    def compute(self, student: Tensor, teacher: None) -> Tensor:
        if self.reduction == "mean":
            return -student.abs().mean()
        return -student.abs().flatten(1).sum(dim=1).mean()


class DAFLEntropy(RelationalLoss):
    """Information entropy loss of DAFL: a batch of made pictures is to show all classes equally often.

    `sum over classes of p log10 p`, `p = mean over samples of softmax(z)`; the paper: `1 / K * sum of p log p`. For
    maps the mean runs over samples and pixels.

    Chen et al. 2019, the information entropy loss (arXiv 1904.01186).

    Args:
        form: `code` as the authors released it, to which the published weights of 5 and 20 belong; `paper` with the
            natural logarithm and the factor 1 / K: log(10) / K of the code's.
        gather: take the mean over the batches of all ranks.

    Shapes: logits (N, K) or (N, K, ...), called as `loss(logits)`. The value belongs to the batch. It lies between
    -log10 K, for classes in balance, and 0.

    *Deviations*: the default is the authors' code. A class that no picture shows adds 0; the authors' code gives NaN
    there. The paper's form is known at second hand.
    """

    Form = Literal["code", "paper"]

    paper: ClassVar[str] = DAFLOneHot.paper
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 5.0
    usual_tap: ClassVar[str] = "logits"
    reads_teacher: ClassVar[bool] = False
    smallest_batch: ClassVar[int] = 1

    def __init__(self, form: Form = "code", gather: bool = False) -> None:
        super().__init__(gather)
        check_option(form, get_args(self.Form), "form", self)
        self.form = form

    def compute(self, student: Tensor, teacher: None) -> Tensor:
        rows = F.log_softmax(student, dim=1).transpose(0, 1).flatten(1)
        log_mean = rows.logsumexp(dim=1) - math.log(rows.shape[1])
        negative_entropy = (log_mean.exp() * log_mean).sum()
        return negative_entropy / (math.log(10) if self.form == "code" else len(log_mean))


class BatchNormStatistics(RelationalLoss):
    """Batch statistics of DeepInversion: in the teacher's eyes made pictures have the statistics of the real ones.

    `sum over layers of ||mean(x) - m||_2 + ||var(x) - v||_2`, x the input of a BatchNorm layer, mean and (biased)
    variance per channel over samples and pixels, m and v the layer's running mean and variance.

    Yin et al. 2020, the feature regularisation (DeepInversion, arXiv 1912.08795).

    Args:
        gather: take the statistics over the batches of all ranks. Only the statistics travel, not the maps.

    `read_teacher(modules)` takes m and v from the teacher's BatchNorm layers, one for each map, before the first call.

    Shapes: inputs (N, C, ...) of the BatchNorm layers, a list of them for several layers, called as `loss(inputs)`. The
    value belongs to the batch; one sample will do where maps have several pixels.

    *Deviations*: none. Both norms are not squared, as in the authors' code; where a mean or variance is met exactly,
    its gradient is 0. Weights per layer are left to one transfer a layer.
    """

    paper: ClassVar[str] = "Yin et al., Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion, CVPR 2020"
    year: ClassVar[int] = 2020
    taps: ClassVar[str] = "several maps"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "backbone.bn1:in"
    reads_teacher: ClassVar[bool] = False
    smallest_batch: ClassVar[int] = 1

    def __init__(self, gather: bool = False) -> None:
        super().__init__(gather)
        self.statistics = nn.ModuleList()

    def read_teacher(self, modules: Sequence[nn.Module]) -> None:
        """Copy the running statistics of BatchNorm layers. They stay out of the state dict, as the teacher does.

        Raises:
            ValueError: if there is none, or one that keeps no running statistics.
        """
        if not modules:
            raise ValueError("BatchNormStatistics reads BatchNorm layers of the teacher, but is shown none.")
        for module in modules:
            if not isinstance(getattr(module, "running_var", None), Tensor):
                raise ValueError(
                    f"BatchNormStatistics reads BatchNorm layers with running statistics, and {type(module).__name__} "
                    "has none."
                )
        self.statistics = nn.ModuleList(_Statistics(module) for module in modules)

    def batch(self, student: Any, teacher: Any, context: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        return student, teacher, context

    def compute(self, student: Tensor | Sequence[Tensor], teacher: None) -> Tensor:
        maps = [student] if isinstance(student, Tensor) else list(student)
        if len(maps) != len(self.statistics):
            raise ValueError(
                f"BatchNormStatistics knows the statistics of {len(self.statistics)} layers and is given {len(maps)} "
                "inputs. read_teacher takes the teacher's BatchNorm layers, one for each input."
            )
        return torch.stack([self.layer(x, known) for x, known in zip(maps, self.statistics, strict=True)]).sum()

    def layer(self, maps: Tensor, known: Any) -> Tensor:
        """The term of one layer."""
        if maps.ndim < 2 or maps.shape[1] != len(known.mean):
            raise ValueError(
                f"BatchNormStatistics: an input of shape {tuple(maps.shape)} does not fit the running statistics of "
                f"{len(known.mean)} channels."
            )
        mean, variance = self.moments(maps)
        return torch.linalg.vector_norm(mean - known.mean) + torch.linalg.vector_norm(variance - known.variance)

    def moments(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of every channel, over the batches of all ranks if they are gathered."""
        columns = maps.transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(columns, dim=1, correction=0)
        if not self.gather:
            return mean, variance
        means, variances = all_gather(mean[None]), all_gather(variance[None])
        sizes = all_gather(mean.new_full((1, 1), columns.shape[1]))
        shares = sizes / sizes.sum()
        whole = (shares * means).sum(dim=0)
        return whole, (shares * (variances + (means - whole).square())).sum(dim=0)


class _Statistics(nn.Module):
    """What a BatchNorm layer has seen of every channel."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        for name, value in (("mean", layer.running_mean), ("variance", layer.running_var)):
            assert isinstance(value, Tensor)
            self.register_buffer(name, value.detach().clone(), persistent=False)


class DataImpression(Loss):
    """Data impressions of zero-shot distillation: a made picture is to get a drawn soft label from the teacher.

    `mean over samples of -sum over classes of y log softmax(z / T)`, y the soft label, z the teacher's logits for the
    picture.

    Nayak et al. 2019, section 3 (ZSKD, arXiv 1905.08114). `sample_soft_labels` draws the soft labels.

    Args:
        temperature: T, above 0.

    Context: `soft_label` (N, K), rows of probabilities.

    Shapes: logits (N, K) or (N, K, ...) like the soft labels, called as `loss(logits, soft_label=labels)`. Invariant to
    the batch size.

    *Deviations*: none.
    """

    paper: ClassVar[str] = "Nayak et al., Zero-Shot Knowledge Distillation in Deep Networks, ICML 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"
    reads_teacher: ClassVar[bool] = False

    def __init__(self, temperature: float = 20.0) -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: None, soft_label: Tensor) -> Tensor:
        if student.shape != soft_label.shape:
            raise ValueError(
                f"DataImpression compares logits with soft labels of one shape, but the logits' is "
                f"{tuple(student.shape)} and the soft labels' {tuple(soft_label.shape)}."
            )
        log_probabilities = F.log_softmax(student / self.temperature, dim=1)
        return -(soft_label.to(student.dtype) * log_probabilities).sum(dim=1).mean()


def class_similarity(weight: Tensor) -> Tensor:
    """Cosines between the classes' weight vectors, (K, K), of a final linear layer's weight (K, D); no bias.

    Weights stored as features x classes have to be transposed. A class with weights of zero is like no other: 0.
    """
    rows = F.normalize(weight.detach().double(), dim=1)
    return rows @ rows.T


def dirichlet_concentrations(similarity: Tensor, scales: Sequence[float] = (1.0, 0.1)) -> Tensor:
    """Parameters of the Dirichlet distributions of every scale and class, (S, K, K), float64.

    `scale * c + 1e-4`, c the row of the class's similarities brought to 0..1 by its smallest and largest; a row without
    any difference counts as 1 throughout. The added 1e-4 is the authors' code's: a parameter of 0 has no meaning.

    The authors' code brings the rows to 0..1 after the scale, which thereby is without effect; here it acts.

    Args:
        similarity: (K, K), as of `class_similarity`.
        scales: the paper's beta, above 0: the smaller, the nearer the labels to one class.

    Raises:
        ValueError: for scales that are not above 0, or a similarity that is not square.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"dirichlet_concentrations needs a similarity (K, K), not {tuple(similarity.shape)}.")
    if not scales or not all(scale > 0 for scale in scales):
        raise ValueError(f"dirichlet_concentrations: scales must be above zero, not {tuple(scales)!r}.")
    values = similarity.detach().double()
    lowest, highest = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    different = highest > lowest
    rows = torch.where(different, (values - lowest) / torch.where(different, highest - lowest, 1.0), 1.0)
    return torch.stack([scale * rows + SMALLEST_CONCENTRATION for scale in scales])


def sample_soft_labels(
    similarity: Tensor,
    count: int,
    scales: Sequence[float] = (1.0, 0.1),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Soft labels (count, K), float64 on the CPU, for data impressions: Dirichlet draws around every class in turn.

    Label i belongs to class `i % K` and to scale `(i // K) % S`, so that classes and scales have equal shares.

    Args:
        similarity: (K, K), as of `class_similarity`.
        count: how many.
        scales: the paper's beta.
        generator: of the CPU; None: the global one.
    """
    concentrations = dirichlet_concentrations(similarity, scales).cpu()
    order = torch.arange(count)
    classes = concentrations.shape[1]
    return sample_dirichlet(concentrations[order // classes % len(scales), order % classes], generator)


def sample_dirichlet(concentration: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A draw from the Dirichlet distribution of every row of `concentration` (N, K), in its precision.

    The gamma variates are drawn as logarithms, by `log G(a) = log G(a + 1) + log(U) / a`: for concentrations as small
    as 1e-4 they leave the range of float64, and whole rows would be zero.
    """
    uniform = torch.rand(concentration.shape, dtype=concentration.dtype, generator=generator)
    gamma = torch._standard_gamma(concentration + 1, generator)
    smallest = torch.finfo(concentration.dtype).tiny
    return F.softmax(gamma.log() + uniform.clamp_min(smallest).log() / concentration, dim=1)
