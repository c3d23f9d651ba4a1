"""Maps under a Gaussian, as a whole or around their peaks alone, and the Taylor step from a peak."""

import functools
import math

import cv2
import torch
from torch import Tensor

from kd_tasks.errors import UserError
from kd_tasks.vision.heatmaps.base import whole


def log_block(maps: Tensor, peaks: Tensor, blur: int, reach: int, floor: float, ceiling: float = math.inf) -> Tensor:
    """Logarithm of the blurred maps around their peaks, (N, K, 2 reach + 1, 2 reach + 1).

    Equal up to a constant to blurring the whole maps with zeros around them, scaling each to its old maximum, clamping
    it to [floor, ceiling] and repeating its border; but only what the block depends on is read. The scale is a constant
    of the logarithm unless a value is clamped. Since it is at least 1, and the peak is the largest value, whether that
    can be is known without it, and only such maps are blurred as a whole.
    """
    height, width = maps.shape[-2:]
    x, y = peaks.unbind(-1)
    starts_x, weights_x = block_weights(width, blur, reach)
    starts_y, weights_y = block_weights(height, blur, reach)
    columns, rows = starts_x.to(maps.device)[x], starts_y.to(maps.device)[y]
    at = rows[..., None] * width + columns[..., None, :]
    patch = maps.flatten(2).gather(2, at.flatten(2)).view(at.shape)
    block = weights_y.to(maps)[y] @ patch @ weights_x.to(maps)[x].mT
    peak = maps.flatten(2).gather(2, (y * width + x)[..., None])[..., None]
    clamped = ((block.amin(dim=(-2, -1), keepdim=True) < floor) | (peak > ceiling))[..., 0, 0]
    if clamped.any():
        smoothed = blurred(maps[clamped], blur).amax(dim=(-2, -1), keepdim=True)
        block[clamped] = block[clamped] * (peak[clamped] / smoothed)
    return block.clamp(floor, ceiling).log()


@functools.lru_cache(maxsize=32)
def block_weights(length: int, blur: int, reach: int) -> tuple[Tensor, Tensor]:
    """For every position: the indices that its block reads (length, n), and the block's weights (length, b, n)."""
    count = min(blur + 2 * reach, length)
    positions = torch.arange(length)
    starts = (positions - blur // 2 - reach).clamp(0, length - count)
    indices = starts[:, None] + torch.arange(count)
    block = (positions[:, None] + torch.arange(-reach, reach + 1)).clamp(0, length - 1)
    weights = blur_matrix(length, blur, reflect=False)[block[..., None], indices[:, None]]
    return indices, weights


def blurred(maps: Tensor, blur: int, reflect: bool = False) -> Tensor:
    """Maps (..., h, w) under a Gaussian of OpenCV's size `blur`, with zeros around them or reflected."""
    rows, columns = (blur_matrix(n, blur, reflect).to(maps) for n in maps.shape[-2:])
    return rows @ maps @ columns.mT


@functools.lru_cache(maxsize=32)
def blur_matrix(length: int, blur: int, reflect: bool) -> Tensor:
    """Matrix (length, length) that blurs a row of so many values."""
    kernel = torch.from_numpy(cv2.getGaussianKernel(blur, 0)).flatten()
    result = torch.zeros(length, length, dtype=torch.float64)
    for row in range(length):
        for tap in range(blur):
            column = row + tap - blur // 2
            if reflect:
                column = reflected(column, length)
            if 0 <= column < length:
                result[row, column] += kernel[tap]
    return result


def reflected(index: int, length: int) -> int:
    """Where a reflection at the middles of the border pixels puts an index."""
    period = max(2 * (length - 1), 1)
    index %= period
    return min(index, period - index) if length > 1 else 0


def taylor(dx: Tensor, dy: Tensor, dxx: Tensor, dyy: Tensor, dxy: Tensor, limit: float) -> Tensor:
    """Step (..., 2) to the extremum of a quadratic; none where there is no such within `limit` in x and y."""
    determinant = dxx * dyy - dxy**2
    step = torch.stack((dxy * dy - dyy * dx, dxy * dx - dxx * dy), dim=-1) / determinant[..., None]
    return torch.where((step.abs() <= limit).all(dim=-1, keepdim=True), step, 0)


def blur_size(owner: object, blur: int | None, sigma: float) -> int:
    """An odd size; by default the one whose sigma, as OpenCV takes it, is nearest to `sigma`: 11 for 2, 17 for 3."""
    if blur is None:
        return 2 * max(1, round((sigma - 0.8) / 0.3 + 1)) + 1
    if whole(owner, "blur", blur) % 2 == 0:
        raise UserError(f"{type(owner).__name__}: blur must be odd, not {blur}.")
    return blur
