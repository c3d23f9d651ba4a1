"""Relation and kernel losses against their formulas, each written as it is published, in plain autograd.

A call is the loss and its gradient in the student's features, and in the parameters of the loss if it has any. Both
sides get the same numbers and must agree in value and gradient before anything is timed.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks import losses
from kd_tasks.losses import Loss
from tests.benchmarks import Row, geometric_mean, in_turns
from tests.benchmarks.memory import peak_bytes

SLOWEST = 1 / 0.95
MEAN = 1 / 2
ACCURACY = 1e-4
Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One loss on one size of inputs.

    Attributes:
        name: what the rows say.
        ours: the loss; its parameters are moved along with those of the formula.
        by_hand: the formula, with the same arguments.
        student: features that get a gradient.
        teacher: features of the teacher, or of several.
        context: what else both sides read.
        parameters: of ours, then of the formula: what gets a gradient beside the student.
        faster: the ratio of times that is promised.
        smaller: the ratio of memory that is promised; None if it is only reported.
        rounds: how often the two are timed.
        counts: whether it is this case that stands for the loss in the geometric mean.
    """

    name: str
    ours: Loss
    by_hand: Callable[..., Tensor]
    student: Tensor
    teacher: Any
    context: dict[str, Any] = field(default_factory=dict)
    parameters: tuple[list[Tensor], list[Tensor]] = ([], [])
    faster: float = SLOWEST
    smaller: float | None = None
    rounds: int = 15
    counts: bool = True

    def calls(self) -> tuple[Call, Call]:
        """Ours and the formula, each with its gradients."""
        first, second = self.parameters
        return self.call(self.ours, first), self.call(self.by_hand, second)

    def call(self, loss: Callable[..., Tensor], parameters: list[Tensor]) -> Call:
        """The value of `loss`, then its gradients."""
        student = self.student.requires_grad_()

        def value_and_gradients() -> tuple[Tensor, ...]:
            value = loss(student, self.teacher, **self.context)
            return value.detach(), *torch.autograd.grad(value, [student, *parameters])

        return value_and_gradients


def run(small: bool = False) -> list[Row]:
    """Speed, then memory of every case, then the error of RKD-angle in float32.

    Args:
        small: tiny inputs and one round, for trying the code out.
    """
    speed, memory, counted = [], [], []
    for make in CASES:
        case = make(small)
        memory.append(agreed(case))
        speed.append(in_turns(case.name, *case.calls(), case.faster, 1 if small else case.rounds, warm_up=0))
        counted += [speed[-1]] if case.counts else []
    mean = geometric_mean(f"geometric mean of {len(counted)} losses", counted, MEAN)
    return [*speed, mean, *memory, *accuracy(small)]


def agreed(case: Case) -> Row:
    """Memory of both sides, whose values and gradients must agree.

    Raises:
        ValueError: if they do not.
    """
    results: list[tuple[Tensor, ...]] = []
    ours, by_hand = (peak_bytes(lambda call=call: results.append(call())) for call in case.calls())
    for which, (one, other) in enumerate(zip(*results, strict=True)):
        error = ((one - other).norm() / other.norm()).item()
        if not error <= (1e-3 if which else 1e-4):
            what = f"gradient {which}" if which else "value"
            raise ValueError(f"{case.name}: ours and the formula differ in their {what} by {error:.2e}, relative.")
    return Row(f"memory: {case.name}", [ours], [by_hand], case.smaller, "B")


def accuracy(small: bool = False) -> Iterator[Row]:
    """Error of RKD-angle in float32, relative to the formula in float64 on the same numbers."""
    rows, width = (12, 40) if small else (256, 2048)
    student, teacher = (normal(seed, rows, width) for seed in (1, 2))
    base = normal(3, 1, width)
    inputs = {
        "normal": student,
        "normal + 10": student + 10,
        "all rows near one": base + 1e-2 * student,
        "rows in near pairs": student[: rows // 2].repeat(2, 1) + 1e-3 * normal(4, rows, width),
    }
    exact_t = vertex_angles(teacher)
    for name, embeddings in inputs.items():
        exact = vertex_loss(embeddings, exact_t)
        value = losses.RKDAngle()(embeddings, teacher).item()
        yield Row(f"error: RKD-angle, {rows} x {width}, {name}", [abs(value / exact - 1)], [ACCURACY], 1.0, "")


# --- The formulas ----------------------------------------------------------------------------------------------------


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines of all triplets, from the (B, B, D) tensor of differences."""

    def cosines(features: Tensor) -> Tensor:
        directions = F.normalize(features[None] - features[:, None], dim=2)
        return directions @ directions.transpose(1, 2)

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared MMD between channels with the kernel `(x.y)^2`, all pairs by broadcasting (B, C, C', HW)."""
    student, teacher = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x[:, :, None] * y[:, None]).sum(3).square().mean()

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def nst_products(student: Tensor, teacher: Tensor) -> Tensor:
    """The same with the pairs as a batched matrix product."""
    student, teacher = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.transpose(1, 2)).square().mean()

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def cckd(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Squared distance of the correlations `sum over p of e^(-2g) (2g)^p / p! (x.y)^p`, over B^2."""

    def correlation(features: Tensor) -> Tensor:
        features = F.normalize(features)
        cosines = features @ features.T
        factors = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
        return sum(factor * cosines**p for p, factor in enumerate(factors))

    return (correlation(student) - correlation(teacher)).square().mean()


def irg_edge(student: Tensor, teacher: Tensor) -> Tensor:
    """`1 / (2B)` of the squared distance of the edges `|f_i - f_j|^2` over their largest."""

    def edges(features: Tensor) -> Tensor:
        distances = (features[:, None] - features[None]).square().sum(2)
        return distances / distances.max().detach()

    return (edges(student) - edges(teacher)).square().sum() / (2 * len(student))


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the row-normalised similarities of the flattened maps, over B^2."""

    def similarity(features: Tensor) -> Tensor:
        features = features.flatten(1)
        return F.normalize(features @ features.T)

    return (similarity(student) - similarity(teacher)).square().mean()


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Divergence of the rows of cosines, shifted to 0 to 1 and divided by their sum; mean over all pairs."""

    def probabilities(features: Tensor) -> Tensor:
        features = F.normalize(features, eps=eps)
        shifted = (features @ features.T + 1) / 2
        return shifted / shifted.sum(1, keepdim=True)

    p_s, p_t = probabilities(student), probabilities(teacher)
    return (p_t * torch.log((p_t + eps) / (p_s + eps))).mean()


def pair_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosines of max-pooled regions, half the map a side; the length of a feature is a constant."""

    def affinity(features: Tensor) -> Tensor:
        kernel = [size // 2 for size in features.shape[2:]]
        nodes = F.max_pool2d(features, kernel, kernel, ceil_mode=True).flatten(2)
        nodes = nodes / (nodes.norm(dim=1, keepdim=True).detach() + 1e-8)
        return nodes.transpose(1, 2) @ nodes

    return (affinity(student) - affinity(teacher)).square().mean()


def pair_wise_paper(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosines of average-pooled regions of 2 x 2 pixels, all with all."""

    def affinity(features: Tensor) -> Tensor:
        nodes = F.normalize(F.avg_pool2d(features, 2, ceil_mode=True).flatten(2), eps=1e-8)
        return nodes.transpose(1, 2) @ nodes

    return (affinity(student) - affinity(teacher)).square().mean()


def log_euclidean(student: Tensor, teachers: list[Tensor], eps: float = 1e-3) -> Tensor:
    """Mean over teachers of the squared distance of the logarithms of the Gram matrices, in float64."""

    def logarithm(features: Tensor) -> Tensor:
        features = F.normalize(F.relu(features.double()))
        gram = features @ features.T + eps * torch.eye(len(features), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(gram)
        return vectors @ torch.diag(values.log()) @ vectors.T

    log_s = logarithm(student)
    return torch.stack([(log_s - logarithm(t)).square().sum() for t in teachers]).mean()


class Contrast:
    """CRD: embeddings, two banks of them, noise-contrastive estimation over the gathered (B, K+1, width) rows.

    Args:
        embed_student: from the student's features.
        embed_teacher: from the teacher's.
        bank_student: embeddings of every sample (samples, width) by the student; the call moves them on.
        bank_teacher: by the teacher.
    """

    def __init__(self, embed_student: nn.Linear, embed_teacher: nn.Linear, bank_student: Tensor, bank_teacher: Tensor):
        self.embed_student, self.embed_teacher = embed_student, embed_teacher
        self.bank_student, self.bank_teacher = bank_student, bank_teacher
        self.constants: dict[str, float] = {}

    def __call__(self, student: Tensor, teacher: Tensor, index: Tensor, contrast_index: Tensor) -> Tensor:
        student, teacher = F.normalize(self.embed_student(student)), F.normalize(self.embed_teacher(teacher))
        loss_s = self.estimation("student", student, self.bank_teacher, contrast_index)
        loss_t = self.estimation("teacher", teacher, self.bank_student, contrast_index)
        with torch.no_grad():
            self.bank_student[index] = F.normalize(0.5 * self.bank_student[index] + 0.5 * student)
            self.bank_teacher[index] = F.normalize(0.5 * self.bank_teacher[index] + 0.5 * teacher)
        return loss_s + loss_t

    def estimation(self, side: str, anchors: Tensor, bank: Tensor, contrast_index: Tensor) -> Tensor:
        """The term of one side; its constant Z is the first batch's."""
        rows = bank[contrast_index]
        scores = torch.bmm(rows, anchors[:, :, None]).squeeze(2).div(0.07).exp()
        if side not in self.constants:
            self.constants[side] = scores.mean().item() * len(bank)
        scores = scores / self.constants[side]
        noise = (contrast_index.shape[1] - 1) / len(bank)
        positive = torch.log(scores[:, 0] / (scores[:, 0] + noise + 1e-7)).sum()
        negative = torch.log(noise / (scores[:, 1:] + noise + 1e-7)).sum()
        return -(positive + negative) / len(anchors)


def vertex_angles(features: Tensor) -> Tensor:
    """Cosines of all triplets (B, B, B) in float64, one vertex after the other.

    The rows are turned into their common space first, which has B dimensions at the most and leaves angles as they are.
    """
    features = features.double()
    features = torch.linalg.qr((features - features[0]).T, mode="r").R.T.contiguous()
    cosines = torch.empty(len(features), len(features), len(features), dtype=torch.float64)
    for vertex, own in zip(features, cosines, strict=True):
        directions = F.normalize(features - vertex)
        torch.mm(directions, directions.T, out=own)
    return cosines


def vertex_loss(student: Tensor, cosines: Tensor) -> float:
    """RKD-angle in float64, to the teacher's `cosines`."""
    return F.smooth_l1_loss(vertex_angles(student), cosines).item()


# --- The sizes -------------------------------------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    """Normal numbers, the same for a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(batch: int, student: tuple[int, ...], teacher: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Features behind a ReLU, the student's and the teacher's."""
    return normal(0, batch, *student).relu(), normal(1, batch, *teacher).relu()


def rkd_angle_case(small: bool) -> Case:
    batch, width = (8, 16) if small else (256, 2048)
    inputs = features(batch, (width,), (width,))
    return Case(
        f"RKD-angle, {batch} x {width}",
        losses.RKDAngle(),
        rkd_angle,
        *inputs,
        faster=1 / 8,
        smaller=0.1,
        rounds=1,
    )


def rkd_angle_middle_case(small: bool) -> Case:
    batch, width = (6, 16) if small else (64, 512)
    inputs = features(batch, (width,), (width,))
    return Case(f"RKD-angle, {batch} x {width}", losses.RKDAngle(), rkd_angle, *inputs, rounds=10, counts=False)


def nst_case(small: bool) -> Case:
    batch, channels, size = (4, 8, 4) if small else (32, 128, 8)
    inputs = features(batch, (channels, size, size), (channels, size, size))
    name = f"NST, {batch} x {channels} x {size} x {size}"
    return Case(name, losses.NeuronSelectivity(), nst, *inputs, rounds=5)


def nst_products_case(small: bool) -> Case:
    batch, channels, size = (4, 8, 4) if small else (32, 64, 14)
    inputs = features(batch, (channels, size, size), (channels, size, size))
    name = f"NST, {batch} x {channels} x {size} x {size}, matrix products by hand too"
    return Case(name, losses.NeuronSelectivity(), nst_products, *inputs, counts=False)


def cckd_case(small: bool) -> Case:
    batch, width = (8, 16) if small else (256, 128)
    inputs = normal(0, batch, width), normal(1, batch, width)
    return Case(f"CCKD, {batch} x {width}", losses.CCKD(), cckd, *inputs, rounds=50)


def irg_case(small: bool) -> Case:
    batch, width = (8, 16) if small else (128, 512)
    inputs = features(batch, (width,), (width,))
    return Case(f"IRG edges, {batch} x {width}", losses.IRGEdge(), irg_edge, *inputs, rounds=10)


def sp_case(small: bool) -> Case:
    batch, channels, size = (8, 4, 4) if small else (64, 256, 8)
    inputs = features(batch, (channels, size, size), (channels, size, size))
    return Case(f"SP, {batch} x {channels} x {size} x {size}", losses.SimilarityPreserving(), sp, *inputs, rounds=30)


def pkt_case(small: bool) -> Case:
    batch, width = (8, 16) if small else (256, 512)
    inputs = features(batch, (width,), (width,))
    return Case(f"PKT, {batch} x {width}", losses.PKT(), pkt, *inputs, rounds=50)


def pair_wise_case(small: bool) -> Case:
    batch, channels, size = (2, 8, 9) if small else (8, 512, 65)
    inputs = features(batch, (channels, size, size), (channels, size, size))
    return Case(f"pair-wise, {batch} x {channels} x {size} x {size}", losses.PairWise(), pair_wise, *inputs, rounds=20)


def pair_wise_paper_case(small: bool) -> Case:
    batch, channels, size = (2, 8, 9) if small else (8, 512, 33)
    inputs = features(batch, (channels, size, size), (channels, size, size))
    ours = losses.PairWise(pool=2, pooling="avg", detach_norm=False)
    name = f"pair-wise as in the paper, {batch} x {channels} x {size} x {size}"
    return Case(name, ours, pair_wise_paper, *inputs, rounds=8, counts=False)


def log_euclidean_case(small: bool) -> Case:
    batch, width = (6, 16) if small else (64, 512)
    student, teacher = features(batch, (width,), (width,))
    teachers = [teacher, *(normal(seed, batch, width).relu() for seed in (2, 3))]
    return Case(
        f"log-Euclidean, 3 teachers, {batch} x {width}", losses.LogEuclidean(), log_euclidean, student, teachers
    )


def crd_case(small: bool, negatives: int = 16384, counts: bool = True) -> Case:
    batch, width, samples, embedded = (4, 16, 50, 8) if small else (64, 512, 50000, 128)
    negatives = negatives // 1000 if small else negatives
    student, teacher = features(batch, (width,), (width,))
    generator = torch.Generator().manual_seed(2)
    index = torch.randperm(samples, generator=generator)[:batch]
    others = torch.randint(0, samples, (batch, negatives), generator=generator)
    ours = losses.CRD(samples, width=embedded, negatives=negatives)
    ours.prepare(student, teacher, index=index)
    by_hand = Contrast(*copy.deepcopy((ours.embed_student, ours.embed_teacher, ours.memory_v1, ours.memory_v2)))
    embeddings = [nn.ModuleList([loss.embed_student, loss.embed_teacher]) for loss in (ours, by_hand)]
    return Case(
        f"CRD, {batch} x {negatives} negatives out of {samples}",
        ours,
        by_hand,
        student,
        teacher,
        {"index": index, "contrast_index": torch.cat([index[:, None], others], dim=1)},
        parameters=(list(embeddings[0].parameters()), list(embeddings[1].parameters())),
        rounds=4,
        counts=counts,
    )


def crd_fewer_case(small: bool) -> Case:
    return crd_case(small, 4096, counts=False)


CASES = (
    rkd_angle_case,
    nst_case,
    cckd_case,
    irg_case,
    sp_case,
    pkt_case,
    crd_case,
    pair_wise_case,
    log_euclidean_case,
    rkd_angle_middle_case,
    nst_products_case,
    crd_fewer_case,
    pair_wise_paper_case,
)
