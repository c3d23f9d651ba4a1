"""Losses on logits, of whole images (N, K) or of every pixel (N, K, H, W)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.losses.base import (
    AdversarialLoss,
    Loss,
    RelationalLoss,
    check_maps,
    check_option,
    check_positive,
    check_same_shape,
    check_same_size,
)

Over = Literal["classes", "positions"]
Form = Literal["kl", "cross_entropy"]


class SoftTargets(Loss):
    """Knowledge distillation with softened class probabilities.

    `T^2 * mean over samples of KL(softmax(t / T) || softmax(s / T))`, the sum over the K classes. For maps the mean
    runs over samples and pixels, so that the weight means the same at every resolution.

    Hinton, Vinyals and Dean 2015, section 2 (arXiv 1503.02531). Several teachers: You et al. 2017, the output layer.
    At temperature 1 with `form='cross_entropy'`: born-again networks, Furlanello et al. 2018, equation 2.

    Args:
        temperature: T, above 0. The factor T^2 keeps the gradient's size when T changes.
        form: `kl`, or `cross_entropy` between the same distributions: higher by the teacher's entropy, which is what
            Hinton et al. and the born-again networks write. The gradient is the same.
        over: what is a distribution. `classes`: the K classes, at every pixel. `positions`: the H * W positions of
            each of the K maps, for heatmaps; the mean then runs over samples and maps.

    Shapes: logits (N, K) or (N, K, ...), the same for both; a list of such as teacher stands for several teachers: the
    mean of their softened probabilities is the target, not that of their logits. Invariant to the batch size.

    *Deviations*: KL by default instead of the paper's cross-entropy. The default temperature is the one common in code
    (RepDistiller), as the paper names none. You et al. do not print a factor T^2; it is here with several teachers too.
    """

    paper: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    year: ClassVar[int] = 2015
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 0.9
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, temperature: float = 4.0, form: Form = "kl", over: Over = "classes") -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        check_option(form, get_args(Form), "form", self)
        check_option(over, get_args(Over), "over", self)
        self.temperature = temperature
        self.form = form
        self.over = over

    def compute(self, student: Tensor, teacher: Tensor | Sequence[Tensor]) -> Tensor:
        teachers = [distributions(t, self.over, self) for t in checked_peers(student, teacher, self)]
        log_student = F.log_softmax(distributions(student, self.over, self) / self.temperature, dim=1)
        log_target = log_mean_softmax([t / self.temperature for t in teachers])
        if self.form == "cross_entropy":
            return self.temperature**2 * cross_entropy(log_student, log_target).mean()
        return self.temperature**2 * divergence(log_student, log_target).mean()


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

    *Deviations*: the default is the sum over the batch of the authors' code, where the paper writes the loss of one
    picture; cross-entropy as in their code, where the paper writes KL: the value is higher by the teacher's entropy,
    the gradient is the same. The factor T^2 is ours and is 1 at the default.
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


class GeneralisedDistillation(Loss):
    """Generalised distillation: soft targets of a teacher that saw privileged information.

    `mean over samples of -softmax(t / T) * log softmax(s)`, the sum over the K classes: the teacher alone is softened.
    The paper's objective is `1 - lambda` times the task loss and `lambda`, the transfer's weight, times this one. For
    maps the mean runs over samples and pixels.

    Lopez-Paz et al. 2016, equation 6 (arXiv 1511.03643).

    Args:
        temperature: T, above 0. The paper tries 1 to 50, and takes 1 in its first four experiments.
        form: `paper`, or `code` with a factor T^2 as in the authors' code.

    Shapes: logits (N, K) or (N, K, ...), the same for both. Invariant to the batch size.

    *Deviations*: none from either form. The student is not softened, so that large T asks it for a flat output: the
    authors' own logs show it near chance on CIFAR-10 from T = 10. In the authors' regression experiment the teacher's
    outputs are divided by T as well; that shrinks the target and is left out. Regress with `LogitRegression('mean')`.
    """

    GeneralisedForm = Literal["paper", "code"]

    paper: ClassVar[str] = "Lopez-Paz et al., Unifying Distillation and Privileged Information, ICLR 2016"
    year: ClassVar[int] = 2016
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 0.5
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, temperature: float = 1.0, form: GeneralisedForm = "paper") -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        check_option(form, get_args(self.GeneralisedForm), "form", self)
        self.temperature = temperature
        self.form = form

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        log_target = F.log_softmax(teacher / self.temperature, dim=1)
        loss = cross_entropy(F.log_softmax(student, dim=1), log_target).mean()
        return self.temperature**2 * loss if self.form == "code" else loss


class NoisyTeacher(Loss):
    """Regression onto logits of a teacher that noise makes into many.

    `1 / (2 N) * sum over samples of ||s - (1 + xi) t||^2`. With the probability alpha a sample's xi is drawn from a
    normal distribution with mean 0 and standard deviation sigma, otherwise it is 0; one number for all logits of a
    sample. For maps the mean runs over samples and pixels, with one number for the whole map.

    Sau and Balasubramanian 2016, section 3 (arXiv 1610.09650).

    Args:
        alpha: probability of noise in a sample, from 0 to 1.
        sigma: standard deviation of the noise, from 0.

    Noise is drawn in training mode alone; in eval mode this is `LogitRegression()`.

    Shapes: logits (N, K) or (N, K, ...), the same for both. Invariant to the batch size, up to the draw.

    *Deviations*: none known. One number for all logits of a sample, and sigma as a standard deviation, are our reading.
    The defaults lie within the ranges that the paper tries. Code in circulation adds the number instead, which no
    softmax would see, or draws it once a batch or for every logit.
    """

    paper: ClassVar[str] = "Sau and Balasubramanian, Deep Model Compression: Distilling from Noisy Teachers, 2016"
    year: ClassVar[int] = 2016
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, alpha: float = 0.5, sigma: float = 0.5) -> None:
        super().__init__()
        check_share(alpha, "alpha", self)
        check_not_negative(sigma, "sigma", self)
        self.alpha = alpha
        self.sigma = sigma

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        target = teacher * (1 + self.noise(teacher)) if self.training else teacher
        return 0.5 * (student - target).square().sum(dim=1).mean()

    def noise(self, teacher: Tensor) -> Tensor:
        """xi of every sample, (N, 1, ...), 0 where a sample stays as it is."""
        shape = (len(teacher),) + (1,) * (teacher.ndim - 1)
        xi = self.sigma * torch.randn(shape, dtype=teacher.dtype, device=teacher.device)
        return xi * (torch.rand(shape, device=teacher.device) < self.alpha)


class LabelSmoothing(Loss):
    """Cross-entropy with smoothed labels, in place of the task's own.

    `mean over samples of -sum_k q_k * log softmax(s)_k` with `q = (1 - alpha) * onehot(label) + alpha / K`: alpha is
    spread over all K classes, the true one among them. For maps the mean runs over all labelled pixels.

    Mueller, Kornblith and Hinton 2019, section 1 (arXiv 1906.02629).

    Args:
        alpha: share of the label that is spread, from 0 to 1.
        ignore_index: label that takes no part. With more than 255 classes 255 is a class and takes part.

    Context: `label` (N,), or (N, H, W) for maps; maps of another size are resized by nearest neighbour.

    Shapes: logits (N, K) or (N, K, H, W); there is no teacher's side. Invariant to the batch size, as far as the share
    of ignored pixels is.

    *Deviations*: a class whose logit is minus infinity, as a mask leaves it, is none: alpha is spread over the others.
    By the formula the loss would be infinite; it is so here only if the true class is masked. Without any labelled
    pixel the loss is 0.
    """

    paper: ClassVar[str] = "Mueller et al., When Does Label Smoothing Help?, NeurIPS 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"
    reads_teacher: ClassVar[bool] = False

    def __init__(self, alpha: float = 0.1, ignore_index: int = 255) -> None:
        super().__init__()
        check_share(alpha, "alpha", self)
        self.alpha = alpha
        self.ignore_index = ignore_index

    def compute(self, student: Tensor, teacher: None, label: Tensor) -> Tensor:
        label, counts = labels_at(student, label, self.ignore_index, self)
        logs = F.log_softmax(student, dim=1)
        present = student > -math.inf
        uniform = -logs.where(present, 0.0).sum(dim=1) / present.sum(dim=1)
        hard = -logs.gather(1, label.unsqueeze(1)).squeeze(1)
        return mean_of((1 - self.alpha) * hard + self.alpha * uniform, counts)


class CWTM(RelationalLoss):
    """Born-again networks' control CWTM, confidence-weighted by teacher max: labels, weighted by its certainty.

    `sum over samples of w / (sum of all w) * -log softmax(s)_label` with `w = max_k softmax(t)_k`, also where the
    teacher's class is wrong. For maps the sums run over all labelled pixels.

    Furlanello et al. 2018, equation 10 (arXiv 1805.04770).

    Args:
        ignore_index: label that takes no part. With more than 255 classes 255 is a class and takes part.
        gather: see `RelationalLoss`; the weights are relative to the batch.

    Context: `label` (N,), or (N, H, W) for maps; maps of another size are resized by nearest neighbour.

    Shapes: logits (N, K) or (N, K, H, W), the same for both. Invariant to the batch size; a batch of one is the plain
    cross-entropy.

    *Deviations*: none. The paper leaves a factor 1 / N open; the weights sum to one here.
    """

    paper: ClassVar[str] = "Furlanello et al., Born Again Neural Networks, ICML 2018"
    year: ClassVar[int] = 2018
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"
    smallest_batch: ClassVar[int] = 1

    def __init__(self, ignore_index: int = 255, gather: bool = False) -> None:
        super().__init__(gather)
        self.ignore_index = ignore_index

    def compute(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        label, counts = labels_at(student, label, self.ignore_index, self)
        weights = F.softmax(teacher, dim=1).amax(dim=1).where(counts, 0.0)
        hard = -F.log_softmax(student, dim=1).gather(1, label.unsqueeze(1)).squeeze(1)
        return (weights * hard).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


class DKPP(Loss):
    """Born-again networks' control DKPP, dark knowledge with permuted predictions: certainty without classes.

    `mean over samples of -pi(softmax(t)) * log softmax(s)`, the sum over the K classes. pi keeps the largest
    probability in its place and permutes the others at random. For maps the mean runs over samples and pixels.

    Furlanello et al. 2018, equation 11 (arXiv 1805.04770).

    Shapes: logits (N, K) or (N, K, ...), the same for both. Invariant to the batch size, up to the draw. Sorting the
    draws takes an index of 8 bytes for each logit, three times.

    *Deviations*: none known. Every sample, and every pixel of a map, gets a permutation of its own, drawn afresh in
    every step; the paper does not say how often it draws.
    """

    paper: ClassVar[str] = "Furlanello et al., Born Again Neural Networks, ICML 2018"
    year: ClassVar[int] = 2018
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        log_target = F.log_softmax(teacher, dim=1).gather(1, self.permutation(teacher))
        return cross_entropy(F.log_softmax(student, dim=1), log_target).mean()

    def permutation(self, teacher: Tensor) -> Tensor:
        """Where each class takes its probability from, an index in the shape of `teacher`."""
        top = teacher.argmax(dim=1, keepdim=True)
        classes = torch.arange(teacher.shape[1], device=teacher.device).view(-1, *[1] * (teacher.ndim - 2))
        in_order = classes.expand_as(teacher).scatter(1, top, -1).argsort(dim=1)
        draws = torch.rand(teacher.shape, device=teacher.device)
        shuffled = draws.scatter(1, top, -1.0).argsort(dim=1)
        return torch.empty_like(in_order).scatter(1, in_order, shuffled)


class MutualLearning(Loss):
    """Deep mutual learning: a network mimics its peers, which learn at the same time.

    `mean over peers of mean over samples of KL(softmax(peer) || softmax(s))`, the sum over the K classes. For maps the
    mean runs over samples and pixels as well.

    Zhang et al. 2018, equations 5 and 8 (arXiv 1706.00384).

    Args:
        peers: how several peers are joined. `mean` as in the paper; `sum` of their terms as in the authors' code, the
            same for two networks; `averaged`: one term with the mean of the peers' probabilities, the paper's DML_e.
        over: what is a distribution, see `SoftTargets`.

    Shapes: logits (N, K) or (N, K, ...), the same for all; the teacher's side is one peer's, or a list of all peers'.
    Peers get no gradient from here: each has a transfer of its own. Invariant to the batch size.

    *Deviations*: KL through log-softmax; the authors' code adds 1e-8 within the logarithm.
    """

    Peers = Literal["mean", "sum", "averaged"]

    paper: ClassVar[str] = "Zhang et al., Deep Mutual Learning, CVPR 2018"
    year: ClassVar[int] = 2018
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, peers: Peers = "mean", over: Over = "classes") -> None:
        super().__init__()
        check_option(peers, get_args(self.Peers), "peers", self)
        check_option(over, get_args(Over), "over", self)
        self.peers = peers
        self.over = over

    def compute(self, student: Tensor, teacher: Tensor | Sequence[Tensor]) -> Tensor:
        peers = [distributions(t, self.over, self) for t in checked_peers(student, teacher, self)]
        log_student = F.log_softmax(distributions(student, self.over, self), dim=1)
        if self.peers == "averaged":
            return divergence(log_student, log_mean_softmax(peers)).mean()
        terms = torch.stack([divergence(log_student, F.log_softmax(peer, dim=1)).mean() for peer in peers])
        return terms.sum() if self.peers == "sum" else terms.mean()


class ONE(Loss):
    """On-the-fly native ensemble: the branches of one network learn from their gated ensemble.

    `sum_i CE(z_i, label) + CE(z_e, label) + w T^2 sum_i KL(softmax(z_e / T) || softmax(z_i / T))`, each the mean over
    samples, with `z_e = sum_i g_i z_i` and the gate `g = softmax(ReLU(BN(FC(mean over positions of the trunk))))`.

    Lan et al. 2018, equations 5 to 9 (arXiv 1806.04606). All label terms of the method are here: the task loss needs
    the weight 0.

    Args:
        temperature: T, above 0.
        kl_weight: w, from 0.

    Context: `label` (N,).

    Shapes: the student's side is a list of the branches' logits (N, K); the teacher's side is the student's own
    features from which the branches start, (N, C) or (N, C, H, W), and is trained through. Invariant to the batch size
    as far as batch normalisation is, which needs two samples. The gate is created for C and the number of branches.

    `ensemble` gives z_e, the output that the paper calls ONE-E.

    *Deviations*: the authors' code adds 1e-7 to the target without a new normalisation, pools windows of 16 x 16
    whatever the features' size, and ramps w up over the first 80 epochs. w is constant here, as in the paper. The
    target of the KL gets no gradient, as in the code.
    """

    paper: ClassVar[str] = "Lan et al., Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018"
    year: ClassVar[int] = 2018
    taps: ClassVar[str] = "several logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"
    smallest_batch: ClassVar[int] = 2
    detach_teacher: ClassVar[bool] = False

    def __init__(self, temperature: float = 3.0, kl_weight: float = 1.0) -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        check_not_negative(kl_weight, "kl_weight", self)
        self.temperature = temperature
        self.kl_weight = kl_weight
        self.gate: nn.Sequential | None = None

    def prepare(self, student: Sequence[Tensor], teacher: Tensor, **context: Any) -> None:
        self._check(student, teacher)
        branches, device = len(student), teacher.device
        linear = nn.Linear(teacher.shape[1], branches, device=device)
        self.gate = nn.Sequential(linear, nn.BatchNorm1d(branches, device=device))

    def compute(self, student: Sequence[Tensor], teacher: Tensor, label: Tensor) -> Tensor:
        ensemble = self.ensemble(student, teacher)
        hard = torch.stack([F.cross_entropy(logits, label) for logits in (*student, ensemble)]).sum()
        target = ensemble.detach()
        soft = torch.stack([softened_kl(branch, target, self.temperature, dim=1).mean() for branch in student]).sum()
        return hard + self.kl_weight * soft

    def ensemble(self, branches: Sequence[Tensor], trunk: Tensor) -> Tensor:
        """Logits of the gated ensemble, (N, K)."""
        self._check(branches, trunk)
        if self.gate is None:
            raise ValueError("ONE has no gate yet: call prepare(student, teacher) first.")
        pooled = trunk.flatten(2).mean(dim=2) if trunk.ndim > 2 else trunk
        gates = F.softmax(F.relu(self.gate(pooled)), dim=1)
        return (gates.unsqueeze(2) * torch.stack(list(branches), dim=1)).sum(dim=1)

    def _check(self, branches: Sequence[Tensor], trunk: Tensor) -> None:
        shapes = [tuple(branch.shape) for branch in branches] if not isinstance(branches, Tensor) else []
        if len(shapes) < 2 or len(set(shapes)) > 1 or len(shapes[0]) != 2 or len(trunk) != shapes[0][0]:
            found = ", ".join(map(str, shapes)) or "one tensor"
            raise ValueError(
                f"ONE reads a list of at least two branches' logits (N, K) and the trunk's features (N, C, ...), but "
                f"is given {found} and {tuple(trunk.shape)}."
            )


class Consistency(Loss):
    """Consistency with a mean teacher: two views of a sample shall have one prediction.

    `mean over samples of 1 / K * ||softmax(s) - softmax(t)||^2`, or `mean over samples of
    KL(softmax(t) || softmax(s))`, over labelled and unlabelled samples alike. For maps the mean runs over samples and
    pixels.

    Tarvainen and Valpola 2017, section 2 (arXiv 1703.01780).

    Args:
        form: `mse` as in the paper, or `kl`, which the paper compares it with.
        over: what is a distribution, see `SoftTargets`; over positions K is their number.

    The authors' weight is 100 after a ramp-up of sigmoid shape over the first epochs, which the transfer's schedule
    gives.

    Shapes: logits (N, K) or (N, K, ...), the same for both. Invariant to the batch size.

    *Deviations*: the division by K is in the authors' code and not in the paper's formula.
    """

    ConsistencyForm = Literal["mse", "kl"]

    paper: ClassVar[str] = "Tarvainen and Valpola, Mean Teachers Are Better Role Models, NeurIPS 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 100.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, form: ConsistencyForm = "mse", over: Over = "classes") -> None:
        super().__init__()
        check_option(form, get_args(self.ConsistencyForm), "form", self)
        check_option(over, get_args(Over), "over", self)
        self.form = form
        self.over = over

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        student, teacher = distributions(student, self.over, self), distributions(teacher, self.over, self)
        if self.form == "kl":
            return softened_kl(student, teacher, temperature=1.0, dim=1).mean()
        return F.mse_loss(F.softmax(student, dim=1), F.softmax(teacher, dim=1))


class LogitDistance(Loss):
    """Distance of two heads of one network, of which one meets the labels and the other a mean teacher.

    `mean over samples of 1 / K * ||a - b||^2` of the heads' logits, with gradient to both. For maps the mean runs over
    samples and pixels.

    Tarvainen and Valpola 2017, the authors' code (`--logit-distance-cost`).

    Shapes: logits (N, K) or (N, K, ...), the same for both; the teacher's side is the student's own other head
    (`target=`) and is trained through. Invariant to the batch size.

    *Deviations*: none.
    """

    paper: ClassVar[str] = "Tarvainen and Valpola, Mean Teachers Are Better Role Models, NeurIPS 2017"
    year: ClassVar[int] = 2017
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 0.01
    usual_tap: ClassVar[str] = "logits"
    detach_teacher: ClassVar[bool] = False

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        return F.mse_loss(student, teacher)


class PatientPrediction(Loss):
    """The prediction loss of patient knowledge distillation.

    `T^2 / (N K) * sum over samples of KL(softmax(t / T) || softmax(s / T))`, the sum over the K classes. The paper's
    objective is `1 - alpha` times the task loss, `alpha` times this one, and the patience loss. For maps the mean runs
    over samples and pixels.

    Sun et al. 2019, equation 5 (arXiv 1908.09355).

    Args:
        temperature: T, above 0. The paper tries 5, 10 and 20.
        reduction: over the classes: `mean` as in the authors' code, which their weights assume; `sum` as in the paper,
            K times as much.

    Shapes: logits (N, K) or (N, K, ...), the same for both. Invariant to the batch size.

    *Deviations*: the default is the mean of the authors' code. KL as in their code, where the paper writes the
    cross-entropy; the gradient is the same. The factor T^2 is the code's too. The authors cast the result to float16,
    which ours stays clear of.
    """

    Reduction = Literal["mean", "sum"]

    paper: ClassVar[str] = "Sun et al., Patient Knowledge Distillation for BERT Model Compression, EMNLP 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 0.5
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, temperature: float = 10.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.temperature = temperature
        self.reduction = reduction

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        value = softened_kl(student, teacher, self.temperature, dim=1).mean()
        return value / student.shape[1] if self.reduction == "mean" else value


class DKD(Loss):
    """Decoupled knowledge distillation: certainty about the true class apart from the shares of the others.

    `T^2 * mean over samples of (alpha * KL(b_t || b_s) + beta * KL(o_t || o_s))`: b is the probability of the true
    class against all others, o the softmax of the others among themselves, both of logits / T. For maps the mean runs
    over all labelled pixels.

    Zhao et al. 2022, equation 7 (arXiv 2203.08679).

    Args:
        alpha: weight of the true class against the others, from 0.
        beta: weight of the others, from 0; 2 to 8 for the authors' pairs on CIFAR-100, 0.5 with T = 1 on ImageNet.
        temperature: T, above 0.
        ignore_index: label that takes no part. With more than 255 classes 255 is a class and takes part.

    The authors' warm-up, `min(epoch / 20, 1)`, is the transfer's schedule.

    Context: `label` (N,), or (N, H, W) for maps; maps of another size are resized by nearest neighbour.

    Shapes: logits (N, K) or (N, K, H, W), the same for both, K from 2. Invariant to the batch size, as far as the share
    of ignored pixels is. It takes an index of 8 bytes for each logit.

    *Deviations*: the sum of the others is taken in logarithms and the true class is left out, where the authors' code
    takes logarithms of a softmax and lowers the true logit by 1000: the values agree, and logits far apart stay finite.
    """

    paper: ClassVar[str] = "Zhao et al., Decoupled Knowledge Distillation, CVPR 2022"
    year: ClassVar[int] = 2022
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, ignore_index: int = 255
    ) -> None:
        super().__init__()
        check_not_negative(alpha, "alpha", self)
        check_not_negative(beta, "beta", self)
        check_positive(temperature, "temperature", self)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.ignore_index = ignore_index

    def compute(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        check_several(student, 1, "classes", self)
        label, counts = labels_at(student, label, self.ignore_index, self)
        true = label.unsqueeze(1)
        places = torch.arange(student.shape[1] - 1, device=student.device).view(-1, *[1] * (student.ndim - 2))
        others = places + (places >= true)
        ours, theirs = self.parts(student, true, others), self.parts(teacher, true, others)
        terms = [softened_kl(s, t, self.temperature, dim=1) for s, t in zip(ours, theirs, strict=True)]
        return mean_of(self.alpha * terms[0] + self.beta * terms[1], counts)

    def parts(self, logits: Tensor, true: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the true class and of all others as one, (N, 2, ...), and of the others, (N, K - 1, ...)."""
        rest = logits.gather(1, others)
        joined = self.temperature * torch.logsumexp(rest / self.temperature, dim=1, keepdim=True)
        return torch.cat([logits.gather(1, true), joined], dim=1), rest


class DIST(RelationalLoss):
    """Distillation from a stronger teacher: the student's probabilities shall correlate with the teacher's.

    `T^2 * (beta * (1 - mean over samples of r) + gamma * (1 - mean over classes of r))` of the probabilities
    `softmax(logits / T)`: r is Pearson's correlation of the student's with the teacher's, for a sample over the
    classes, for a class over the batch. In maps every pixel is a sample.

    Huang et al. 2022, equations 8 to 11 (arXiv 2205.10536).

    Args:
        beta: weight of the relation between classes, from 0.
        gamma: weight of the relation within a class, from 0.
        temperature: T, above 0; the paper's tau, 1 on ImageNet and 4 on CIFAR-100.
        gather: see `RelationalLoss`.

    Shapes: logits (N, K) or (N, K, H, W), the same for both. The relation within a class belongs to the batch and needs
    two samples or pixels. The authors' weight of 2 is the transfer's.

    *Deviations*: the factor T^2 is in the authors' code alone. 1e-8 is added to both squared lengths where the code
    adds it to the product of the lengths: the same for lengths that are alike, and the gradient at constant logits is
    bounded by 1e4 divided by their number, where the code's is a thousand times that.
    """

    EPS = 1e-8

    paper: ClassVar[str] = "Huang et al., Knowledge Distillation from a Stronger Teacher, NeurIPS 2022"
    year: ClassVar[int] = 2022
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 2.0
    usual_tap: ClassVar[str] = "logits"
    smallest_batch: ClassVar[int] = 1

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0, gather: bool = False) -> None:
        super().__init__(gather)
        check_not_negative(beta, "beta", self)
        check_not_negative(gamma, "gamma", self)
        check_positive(temperature, "temperature", self)
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        if student.numel() == student.shape[1]:
            raise ValueError(
                f"DIST needs at least 2 samples or pixels, but the logits' shape is {tuple(student.shape)}."
            )
        rows = (x.movedim(1, -1).flatten(0, -2) / self.temperature for x in (student, teacher))
        ours, theirs = (F.softmax(row, dim=1) for row in rows)
        between, within = (self.correlation(ours, theirs, dim).mean() for dim in (1, 0))
        return self.temperature**2 * (self.beta * (1 - between) + self.gamma * (1 - within))

    def correlation(self, ours: Tensor, theirs: Tensor, dim: int) -> Tensor:
        """Pearson's correlation along `dim`; 0 where one side is constant."""
        ours, theirs = (x - x.mean(dim=dim, keepdim=True) for x in (ours, theirs))
        lengths = (ours.square().sum(dim) + self.EPS) * (theirs.square().sum(dim) + self.EPS)
        return (ours * theirs).sum(dim) * lengths.rsqrt()


class LogitStandardisation(Loss):
    """Standardised logits for another loss: what counts is how the logits lie, not how large they are.

    `loss(z(s), z(t))` with `z(x) = (x - mean) / std` over the K classes of each sample, or of each pixel of a map.

    Sun et al. 2024, equation 13 (arXiv 2403.01427).

    Args:
        loss: the loss on the standardised logits; None is `SoftTargets(temperature=2.0)`. The authors' setting with
            decoupled distillation is `DKD(alpha=9.0, beta=72.0, temperature=2.0)` at the weight 1.
        over: what is standardised. `classes`, or `positions` for heatmaps: `loss` then sees every map (H * W positions)
            as a sample.

    Context: whatever `loss` reads.

    Shapes: logits (N, K) or (N, K, ...) as `loss` takes them, K from 2. As invariant to the batch size as `loss`.

    *Deviations*: the standard deviation is the unbiased one, as in the authors' code, but 1e-6 is added to its square
    and not 1e-7 to itself: logits that are all alike then have a gradient of at most 1e3 times that of `loss`, where
    the code's is 1e7 times. Logits with a standard deviation of 1 are shorter by 5e-7.
    """

    EPS = 1e-6

    paper: ClassVar[str] = "Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024"
    year: ClassVar[int] = 2024
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 9.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, loss: Loss | None = None, over: Over = "classes") -> None:
        super().__init__()
        check_option(over, get_args(Over), "over", self)
        self.loss = SoftTargets(temperature=2.0) if loss is None else loss
        if self.loss.taps != "logits" or not self.loss.reads_teacher or isinstance(self.loss, AdversarialLoss):
            raise ValueError(
                "LogitStandardisation: loss must compare the logits of a student with a teacher's, which "
                f"{type(self.loss).__name__} does not."
            )
        self.over = over

    def context_names(self) -> dict[str, bool]:  # type: ignore[override]
        return self.loss.context_names()

    def prepare(self, student: Tensor, teacher: Tensor, **context: Any) -> None:
        self.loss.prepare(self.standardised(student), self.standardised(teacher), **context)

    def compute(self, student: Tensor, teacher: Tensor | Sequence[Tensor], **context: Any) -> Tensor:
        targets = [self.standardised(t) for t in checked_peers(student, teacher, self)]
        target = targets[0] if isinstance(teacher, Tensor) else targets
        value: Tensor = self.loss(self.standardised(student), target, **context)
        return value

    def standardised(self, logits: Tensor) -> Tensor:
        """`logits` with mean 0 and standard deviation 1 along the axis 1."""
        logits = distributions(logits, self.over, self)
        check_several(logits, 1, "logits", self)
        variance, mean = torch.var_mean(logits, dim=1, keepdim=True)
        return (logits - mean) * (variance + self.EPS).rsqrt()


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))` along `dim`, which is summed away."""
    log_student = F.log_softmax(student / temperature, dim=dim)
    log_teacher = F.log_softmax(teacher / temperature, dim=dim)
    return temperature**2 * divergence(log_student, log_teacher, dim)


def divergence(log_student: Tensor, log_teacher: Tensor, dim: int = 1) -> Tensor:
    """`KL(teacher || student)` of log-probabilities along `dim`, which is summed away."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=dim)


def cross_entropy(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """`-sum of teacher * log student` of log-probabilities along the classes, axis 1."""
    return -(log_teacher.exp() * log_student).sum(dim=1)


def log_mean_softmax(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of the softmaxes of several logits, along the classes, axis 1."""
    logs = [F.log_softmax(one, dim=1) for one in logits]
    return logs[0] if len(logs) == 1 else torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs))


def distributions(logits: Tensor, over: Over, loss: nn.Module) -> Tensor:
    """Logits with what is one distribution along axis 1: as they are, or the maps (N, K, H, W) as (N * K, H * W)."""
    if over == "classes":
        return logits
    check_maps(logits, logits, loss)
    return logits.flatten(2).flatten(0, 1)


def labels_at(logits: Tensor, label: Tensor, ignore_index: int, loss: nn.Module) -> tuple[Tensor, Tensor]:
    """The classes at the places of `logits`, (N, ...), with 0 where they are ignored, and which places count.

    Label maps of another size are resized by nearest neighbour.

    Raises:
        ValueError: with both shapes, if they do not fit.
    """
    label = labels_of_size(logits, label, loss)
    if ignore_index == 255 and logits.shape[1] > 255:
        return label, torch.ones_like(label, dtype=torch.bool)
    counts = label != ignore_index
    return label.where(counts, 0), counts


def labels_of_size(logits: Tensor, label: Tensor, loss: nn.Module) -> Tensor:
    """The labels at the places of `logits`, (N, ...); label maps of another size are resized by nearest neighbour.

    Raises:
        ValueError: with both shapes, if they do not fit.
    """
    if len(label) != len(logits) or label.ndim != logits.ndim - 1:
        raise ValueError(
            f"{type(loss).__name__} reads one label for each sample or pixel, but the labels' shape is "
            f"{tuple(label.shape)} and the logits' {tuple(logits.shape)}."
        )
    for axis, (size, wanted) in enumerate(zip(label.shape[1:], logits.shape[2:], strict=True), start=1):
        if size != wanted:
            label = label.index_select(axis, torch.arange(wanted, device=label.device) * size // wanted)
    return label.long()


def mean_of(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of the `values` that count; 0 if none does."""
    return values.where(counts, 0.0).sum() / counts.sum().clamp(min=1)


def checked_peers(student: Tensor, teacher: Tensor | Sequence[Tensor], loss: nn.Module) -> list[Tensor]:
    """The teacher's side as a list, each of the student's shape."""
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if not teachers:
        raise ValueError(f"{type(loss).__name__} is given an empty list of teachers.")
    for one in teachers:
        check_same_shape(student, one, loss)
    return teachers


def check_several(logits: Tensor, dim: int, what: str, loss: nn.Module) -> None:
    """Raise `ValueError` with the shape if there is only one along `dim`."""
    if logits.shape[dim] < 2:
        raise ValueError(f"{type(loss).__name__} needs at least 2 {what}, but the shape is {tuple(logits.shape)}.")


def check_share(value: float, name: str, loss: nn.Module) -> None:
    """Raise `ValueError` if the argument `name` of `loss` is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{type(loss).__name__}: {name} must be from 0 to 1, not {value!r}.")


def check_not_negative(value: float, name: str, loss: nn.Module) -> None:
    """Raise `ValueError` if the argument `name` of `loss` is below zero."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{type(loss).__name__}: {name} must be zero or above, not {value!r}.")
