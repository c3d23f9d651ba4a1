"""Rows of a batch against each other: products, cosines, distances, angles, logarithms of matrices.

What the losses on relations are made of, with the backward passes that save time, memory or digits.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RESOLUTION = 1e-6
ANGLES_AT_ONCE = {"cpu": 2**18, "cuda": 2**21}
SMALL = 1e-12  # Squared distances up to here are no distance,
SHORT = 1e-8  # and rows up to this length have no direction.


def pooled(features: Tensor) -> Tensor:
    """Maps averaged over their positions, (N, C); features (N, D) as they are.

    The sum is divided, and not each number: the gradient then needs no pass over the maps.
    """
    if features.ndim == 2:
        return features
    return features.sum(dim=tuple(range(2, features.ndim))) / math.prod(features.shape[2:])


def gram(rows: Tensor) -> Tensor:
    """Products of all rows with each other: (..., N, D) to (..., N, N)."""
    products: Tensor = Gram.apply(rows)
    return products


def symmetric_product(rows: Tensor) -> Tensor:
    """`x x^T` of (..., N, D); of a large matrix on the CPU a little more than its lower half."""
    samples = rows.shape[-2]
    if rows.ndim > 2 or samples * rows.numel() < 2**24 or rows.device.type != "cpu":
        return rows @ rows.mT
    products = rows.new_empty(samples, samples)
    step = max(32, -(-samples // 4))
    for first in range(0, samples, step):
        last = first + step
        products[first:, first:last] = rows[first:] @ rows[first:last].T
        products[first:last, last:] = products[last:, first:last].T
    return products


def cosines(rows: Tensor, detach_norm: bool = False) -> Tensor:
    """Cosines of all rows with each other, (..., N, D) to (..., N, N).

    Zero, with no gradient, for rows shorter than 1e-6 of the longest one.
    """
    result: Tensor = Cosines.apply(rows, detach_norm)
    return result


def like(rows: Tensor, weights: Tensor) -> Tensor:
    """`weights @ rows`, in the memory order of `rows`."""
    return (rows.mT @ weights.mT).mT if rows.mT.is_contiguous() else weights @ rows


def directions(rows: Tensor) -> Tensor:
    """Rows (N, D) of length 1 in double precision; zero, with no gradient, where shorter than 1e-6 of the longest."""
    rows = rows.double()
    squares = rows.square().sum(dim=1, keepdim=True)
    return rows * inverse_sqrt(squares, squares > RESOLUTION**2 * squares.detach().amax())


def squared_distances(features: Tensor) -> Tensor:
    """Squared distances of all samples, (N, N), in double precision: exact enough for samples that nearly agree.

    Zero, with no gradient, for samples nearer than 1e-6 of the root mean square distance.
    """
    rows = features.flatten(1).double()
    products = gram(rows - rows.mean(dim=0))
    squares = products.diagonal()
    distances = squares.unsqueeze(1) + squares - 2 * products
    smallest = (RESOLUTION**2 * distances.detach().mean()).clamp_min(1e-24)
    return distances.where(distances > smallest, 0.0)


def safe_sqrt(values: Tensor) -> Tensor:
    """Square roots; of zero, zero with no gradient."""
    positive = values > 0
    return values.where(positive, 1.0).sqrt().where(positive, 0.0)


def inverse_sqrt(values: Tensor, alive: Tensor) -> Tensor:
    """`1 / sqrt` where `alive`; zero, with no gradient, elsewhere."""
    return values.where(alive, 1.0).rsqrt().where(alive, 0.0)


def angle_cosines(squares: Tensor, inverse: Tensor, j: slice, k: slice) -> Tensor:
    """Cosines at all samples i between some samples j and k, in the order (j, i, k)."""
    result = squares[None, :, k] - squares[j, None, k]
    result += squares[j, :, None]
    result *= inverse[j, :, None]
    result *= inverse[None, :, k]
    return result


def add_angle_gradient(gradient: Tensor, slope: Tensor, cosine: Tensor, inverse: Tensor, j: slice, k: slice) -> None:
    """Add what `slope` of the cosines brings to `gradient` of the squared distances; overwrites slope and cosine."""
    cosine *= slope
    gradient[j] -= cosine.sum(dim=2) * inverse[j].square()
    gradient[:, k] -= cosine.sum(dim=0) * inverse[:, k].square()
    slope *= inverse[j, :, None]
    slope *= inverse[None, :, k]
    gradient[j] += slope.sum(dim=2)
    gradient[:, k] += slope.sum(dim=0)
    gradient[j, k] -= slope.sum(dim=1)


def eigen(matrices: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of positive semi-definite matrices (..., N, N) plus eps, and the eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(matrices)
    return values.clamp_min(0) + eps, vectors


def mean_logarithm(matrices: Tensor, weights: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Weighted mean of the logarithms of matrices (K, N, N) plus eps I, and their weighted square distances to it.

    With both, `sum over k of weight_k * ||X - L_k||^2` is `sum of weights * ||X - mean||^2 + square distances`.
    """
    values, vectors = eigen(matrices, eps)
    logarithms = values.log()
    total = weights.sum()
    shares = weights / total.where(total > 0, 1.0)
    columns = vectors.transpose(0, 1).flatten(1)
    mean = columns * (shares.unsqueeze(1) * logarithms).flatten() @ columns.T
    lengths = weights @ logarithms.square().sum(dim=1)
    return mean, (lengths - total * mean.square().sum()).clamp_min(0)


def log_slopes(values: Tensor) -> Tensor:
    """Divided differences of the logarithm, `(log a - log b) / (a - b)` for all pairs, and 1 / a for equal ones."""
    sums = values.unsqueeze(1) + values
    ratios = (values.unsqueeze(1) - values) / sums
    return 2 * torch.where(ratios == 0, 1.0, ratios.atanh() / ratios.where(ratios != 0, 1.0)) / sums


def unit_rows(rows: Tensor) -> Tensor:
    """Rows at unit length; a row of zeros stays, and has no gradient."""
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / lengths.masked_fill(lengths <= SHORT, torch.inf)


def centred_distances(rows: Tensor) -> Tensor:
    """Squared distances between rows, (N, N); rows have their mean taken off, see `centred`."""
    squares = rows.square().sum(1)
    return torch.addmm(squares[:, None] + squares, rows, rows.T, alpha=-2)


def centred(rows: Tensor) -> Tensor:
    """Rows less their mean: their distances are no longer small differences of large numbers."""
    return rows - rows.mean(0)


def edge_shares(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances between rows as shares of the largest, the largest, and the rows less their mean.

    Distances that may be rounding are none; the largest is then infinite.
    """
    mean = rows.mean(0)
    rows = rows - mean
    distances = centred_distances(rows)
    smallest = SMALL + (8 * torch.finfo(rows.dtype).eps) ** 2 * mean.dot(mean)
    largest = distances.amax()
    largest = largest.masked_fill(largest <= smallest, torch.inf)
    return distances / largest, largest, rows


class Gram(torch.autograd.Function):
    """`x x^T`, with one product in the backward pass instead of two."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return symmetric_product(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return like(rows, gradient + gradient.mT)


class Cosines(torch.autograd.Function):
    """Cosines of all rows with each other: only matrices (N, N) are scaled, and each pass takes one product."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, detach_norm: bool) -> Tensor:
        result = symmetric_product(rows)
        squares = result.diagonal(dim1=-2, dim2=-1)
        longest = squares.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(squares.dtype).tiny / RESOLUTION**2)
        inverse = inverse_sqrt(squares, squares > RESOLUTION**2 * longest)
        result.mul_(inverse.unsqueeze(-1)).mul_(inverse.unsqueeze(-2)).clamp_(-1, 1)
        ctx.save_for_backward(rows, result, inverse)
        ctx.detach_norm = detach_norm
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows, cosine, inverse = ctx.saved_tensors
        weights = gradient + gradient.mT
        along = (weights * cosine).sum(dim=-1) * inverse.square()
        weights.mul_(inverse.unsqueeze(-1)).mul_(inverse.unsqueeze(-2))
        if not ctx.detach_norm:
            weights.diagonal(dim1=-2, dim2=-1).sub_(along)
        return like(rows, weights), None


class AngleDifference(torch.autograd.Function):
    """Mean smooth-L1 difference of all cosines of angles, of the squared distances (N, N) of student and teacher.

    By the law of cosines `a_ijk = (S_ij + S_ik - S_jk) h_ij h_ik` with `h = 1 / sqrt(2 S)`. Triplets (i, j, k) with
    k > j count twice. The forward pass keeps the gradient with respect to the student's S, which has the size of S.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        samples = len(student)
        inverse_s, inverse_t = (inverse_sqrt(2 * squares, squares > 0) for squares in (student, teacher))
        step = max(1, ANGLES_AT_ONCE.get(student.device.type, ANGLES_AT_ONCE["cuda"]) // samples**2)
        total, gradient = student.new_zeros(()), torch.zeros_like(student)
        for first in range(0, samples, step):
            j, k = slice(first, min(first + step, samples)), slice(first, samples)
            counts = torch.where(torch.arange(samples - first, device=student.device) < step, 1.0, 2.0).to(student)
            cosines_s = angle_cosines(student, inverse_s, j, k)
            difference = cosines_s - angle_cosines(teacher, inverse_t, j, k)
            slope = difference.clamp(-1, 1)
            difference.sub_(slope, alpha=0.5)
            slope *= counts
            total += torch.dot(slope.flatten(), difference.flatten())
            if ctx.needs_input_grad[0]:
                add_angle_gradient(gradient, slope, cosines_s, inverse_s, j, k)
        ctx.save_for_backward(gradient.fill_diagonal_(0).div_(samples**3))
        return total / samples**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class LogDistance(torch.autograd.Function):
    """`||log(A + eps I) - L||_F^2` of symmetric matrices, computed where A is diagonal; L has no gradient."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, target: Tensor, eps: float) -> Tensor:
        values, vectors = eigen(matrix, eps)
        logarithms = values.log()
        difference = torch.diag(logarithms) - vectors.T @ target @ vectors
        ctx.save_for_backward(values, vectors, difference)
        return difference.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, vectors, difference = ctx.saved_tensors
        inner = 2 * gradient * difference * log_slopes(values)
        return vectors @ inner @ vectors.T, None, None


class EdgeDifference(torch.autograd.Function):
    """`scale * sum of (student's edges - teacher's)^2`; the gradient is taken in the forward pass, in one product."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, theirs: Tensor, scale: float, detach_max: bool) -> Tensor:
        ours, largest, rows = edge_shares(rows)
        difference = ours - theirs
        value = scale * difference.flatten().dot(difference.flatten())
        if ctx.needs_input_grad[0]:
            slopes = difference
            if not detach_max:
                at_largest = ours == ours.amax()
                at_largest = at_largest | at_largest.T  # Rounding may tell the two places of a pair apart.
                slopes = slopes - at_largest * ((slopes * ours).sum() / at_largest.sum())
            slopes = slopes * (8 * scale / largest)
            ctx.save_for_backward(torch.addmm(slopes.sum(1, keepdim=True) * rows, slopes, rows, alpha=-1))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None
