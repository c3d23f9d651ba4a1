"""Means over the regions of a map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def region_means(maps: Tensor, height: int, width: int) -> Tensor:
    """Means over `height x width` regions of maps (N, C, h, w), as adaptive average pooling has them.

    While a network is exported, the means are two matrix products, which ONNX can say in two nodes at any size; so they
    are in deterministic mode, since the gradient of the pooling is refused then on a GPU.
    """
    if not (torch.compiler.is_exporting() or torch.are_deterministic_algorithms_enabled()):
        return F.adaptive_avg_pool2d(maps, (height, width))
    sizes = zip(maps.shape[-2:], (height, width), strict=True)
    rows, columns = (averaging_matrix(length, bins).to(maps) for length, bins in sizes)
    return rows @ maps @ columns.T


def averaging_matrix(length: int, bins: int) -> Tensor:
    """Matrix (bins, length) whose rows average the overlapping regions of adaptive average pooling."""
    matrix = torch.zeros(bins, length)
    for row in range(bins):
        start, end = row * length // bins, -(-(row + 1) * length // bins)
        matrix[row, start:end] = 1 / (end - start)
    return matrix
