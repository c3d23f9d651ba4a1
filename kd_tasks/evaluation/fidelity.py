"""How faithful a student is to its teacher: agreement, divergence and similarity of features.

A student can be as accurate as its teacher and still be wrong on other samples; these numbers say how much it has
become the same function.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_tasks.errors import UserError, nearest

Features = Mapping[str, Tensor]
Observed = tuple[Mapping[str, Tensor], Features]
MINIMUM_GROUP = 4


@dataclass(frozen=True)
class Fidelity:
    """Agreement of a student with its teacher on a data set.

    Attributes:
        agreement: share in 0..1 of positions (pixels or samples) at which both have the same most likely class.
        divergence: mean Kullback-Leibler divergence of the student from the teacher, in nats a position, at least 0.
        similarity: linear CKA in about 0..1 by tap; not-a-number where a feature does not vary.
        positions: how many positions were compared.
    """

    agreement: float
    divergence: float
    similarity: dict[str, float] = field(default_factory=dict)
    positions: int = 0


class OutputFidelity:
    """Agreement and divergence of class scores, summed over batches."""

    def __init__(self) -> None:
        self.positions = 0
        self._equal = 0
        self._divergence = 0.0

    def update(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            student: class scores (logits), (N, C) or (N, C, h, w); maps of another size than the teacher's are resized
                to it bilinearly.
            teacher: class scores (N, C) or (N, C, H, W).
            mask: True where a position counts, (N,) or (N, H', W'); resized to the teacher's map by the nearest pixel.

        Raises:
            UserError: if the shapes do not fit; says both.
        """
        if student.dim() != teacher.dim() or student.shape[:2] != teacher.shape[:2]:
            raise UserError(
                f"fidelity: the student gives {tuple(student.shape)} and the teacher {tuple(teacher.shape)}; "
                "batch and classes must be the same."
            )
        student, teacher = student.detach().float(), teacher.detach().float().to(student.device)
        if student.shape != teacher.shape:
            student = F.interpolate(student, size=teacher.shape[2:], mode="bilinear", align_corners=False)
        log_student, log_teacher = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
        equal = student.argmax(1) == teacher.argmax(1)
        counts = torch.ones_like(equal) if mask is None else _fitted(mask.to(equal.device), equal)
        self.positions += int(counts.sum())
        self._equal += int((equal & counts).sum())
        self._divergence += float(divergence[counts].double().sum())

    def agreement(self) -> float:
        """Share of positions with the same most likely class; not-a-number before the first one."""
        return self._equal / self.positions if self.positions else math.nan

    def divergence(self) -> float:
        """Mean of KL(teacher || student) over positions, in nats; not-a-number before the first one."""
        return self._divergence / self.positions if self.positions else math.nan


def _fitted(mask: Tensor, like: Tensor) -> Tensor:
    if mask.shape == like.shape:
        return mask.bool()
    if mask.dim() != 3 or like.dim() != 3 or len(mask) != len(like):
        raise UserError(f"fidelity: the mask {tuple(mask.shape)} does not fit positions {tuple(like.shape)}.")
    return F.interpolate(mask[:, None].float(), size=like.shape[1:], mode="nearest-exact")[:, 0].bool()


class LinearCKA:
    """Linear centred kernel alignment of two features over many samples, without keeping all of them.

    Samples are gathered into groups; in each group the unbiased estimator of the Hilbert-Schmidt independence criterion
    with linear kernels is taken, averaged over groups, and combined to
    `mean HSIC(K, L) / sqrt(mean HSIC(K, K) · mean HSIC(L, L))`. The size of the loader's batches thus does not matter.
    The value is the same under rotations and reflections of either feature space and under scaling; identical features
    give 1; independent ones give about 0, at times below.

    Papers: "Similarity of Neural Network Representations Revisited" (Kornblith et al., 2019); the estimator is that of
    "Feature Selection via Dependence Maximization" (Song et al., 2012), eq. 5, and its use on minibatches that of "Do
    Wide and Deep Networks Learn the Same Things?" (Nguyen, Raghu, Kornblith, 2021), eq. 2-3.
    Deviations: groups of `group` samples in place of the loader's batches; spatial positions are averaged, if `pool`.

    Args:
        group: samples in a group, at least 4. A rest of fewer than 4 at the end is not used.
        pool: average over spatial positions (N, C, ...) or tokens (N, L, C) instead of flattening them.
    """

    def __init__(self, group: int = 64, pool: bool = True) -> None:
        if group < MINIMUM_GROUP:
            raise ValueError(f"group is {group}; the unbiased estimator needs at least {MINIMUM_GROUP} samples")
        self.group = group
        self.pool = pool
        self.groups = 0
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Add the features (N, ...) of the same N samples; the other dimensions need not be the same."""
        if len(student) != len(teacher):
            raise UserError(f"CKA: {len(student)} samples of the student and {len(teacher)} of the teacher.")
        self._waiting += zip(self._rows(student), self._rows(teacher), strict=True)
        while len(self._waiting) >= self.group:
            self._close(self.group)

    def compute(self) -> float:
        """The alignment so far; not-a-number if a feature does not vary or fewer than 4 samples were seen."""
        if len(self._waiting) >= MINIMUM_GROUP:
            self._close(len(self._waiting))
        between, student, teacher = self._sums.tolist()
        return between / math.sqrt(student * teacher) if student > 0 and teacher > 0 else math.nan

    def _close(self, size: int) -> None:
        chosen, self._waiting = self._waiting[:size], self._waiting[size:]
        kernels = [torch.stack(rows) @ torch.stack(rows).T for rows in zip(*chosen, strict=True)]
        pairs = ((0, 1), (0, 0), (1, 1))
        self._sums += torch.stack([unbiased_hsic(kernels[i], kernels[j]) for i, j in pairs])
        self.groups += 1

    def _rows(self, features: Tensor) -> Tensor:
        features = features.detach().cpu().double()
        if self.pool and features.dim() > 2:
            features = features.mean(1) if features.dim() == 3 else features.flatten(2).mean(2)
        return features.flatten(1)


def unbiased_hsic(kernel: Tensor, other: Tensor) -> Tensor:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion of two kernel matrices.

    Song et al. 2012, eq. 5, with the diagonals set to zero:
    `[tr(K L) + 1ᵀK1 · 1ᵀL1 / ((n-1)(n-2)) - 2/(n-2) · 1ᵀKL1] / (n(n-3))`.

    Args:
        kernel: symmetric, (n, n) with n of at least 4.
        other: symmetric, (n, n).
    """
    n = len(kernel)
    kernel, other = (matrix - torch.diag(matrix.diagonal()) for matrix in (kernel, other))
    trace = (kernel * other).sum()
    sums = kernel.sum() * other.sum() / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (kernel.sum(0) @ other.sum(0))
    return (trace + sums - cross) / (n * (n - 3))


@torch.no_grad()
def measure_fidelity(
    student: Callable[[Any], Observed],
    teacher: Callable[[Any], Observed],
    loader: Iterable[Any],
    output: str = "logits",
    taps: Sequence[tuple[str, str] | str] = (),
    mask: Callable[[Any], Tensor] | None = None,
    group: int = 64,
    pool: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Fidelity:
    """Compare student and teacher on the batches of `loader`.

    Args:
        student: from a batch to (outputs, features), two dicts of tensors; features may be empty.
        teacher: the same of the teacher.
        loader: batches, in whatever form both understand.
        output: name of the output with class scores.
        taps: features to compare by CKA: pairs (student's, teacher's), or one name for both.
        mask: from a batch to the positions that count, see `OutputFidelity.update`.
        group: see `LinearCKA`.
        pool: see `LinearCKA`.
        progress: called with the number of batches done.

    Raises:
        UserError: if an output or a tap is missing; names the nearest.
    """
    pairs = [(tap, tap) if isinstance(tap, str) else tap for tap in taps]
    scores = OutputFidelity()
    alignments = {pair: LinearCKA(group, pool) for pair in pairs}
    for count, batch in enumerate(loader, start=1):
        (student_outputs, student_features), (teacher_outputs, teacher_features) = student(batch), teacher(batch)
        scores.update(
            _named(student_outputs, output, "the student's outputs"),
            _named(teacher_outputs, output, "the teacher's outputs"),
            mask(batch) if mask is not None else None,
        )
        for (own, other), alignment in alignments.items():
            alignment.update(
                _named(student_features, own, "the student's taps"),
                _named(teacher_features, other, "the teacher's taps"),
            )
        if progress is not None:
            progress(count)
    similarity = {own if own == other else f"{own} ~ {other}": a.compute() for (own, other), a in alignments.items()}
    return Fidelity(scores.agreement(), scores.divergence(), similarity, scores.positions)


def _named(values: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in values:
        raise UserError(
            f"fidelity: {name!r} is not among {where}.{nearest(name, values)} There are: {', '.join(values)}."
        )
    return values[name]
