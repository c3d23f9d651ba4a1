"""Codecs with a Gaussian a point, whose maximum is read: plain and distribution-aware (DARK)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_tasks.registry import CODECS
from kd_tasks.vision.heatmaps.base import HeatmapCodec, Size, maxima, offsets, one_of, positive, strides
from kd_tasks.vision.heatmaps.smoothing import blur_size, log_block, taylor

RULES = ("mmpose", "hrnet")
QUARTER = 0.25  # pixels of the map


@CODECS.register
class GaussianHeatmap(HeatmapCodec):
    """A Gaussian with peak 1 around the nearest pixel of the map (Xiao et al., Simple Baselines, ECCV 2018).

    Pixel x of the input is x / stride in the map. `decode` takes the maximum and goes a quarter of a pixel towards the
    larger of the two neighbours in x and in y, so that a round trip errs by at most half a pixel of the map in each.

    Args:
        sigma: in pixels of the map; the Gaussian is cut off at 3 sigma.
        rule: where two code bases differ. `mmpose`: the step in x needs 1 < x < w - 1 and 0 < y, likewise in y; a map
            without a positive value gives (-1, -1) in the map. `hrnet`: both steps need 1 < x < w - 1 and
            1 < y < h - 1; such a map gives (0, 0).
        shift: whether the maps of a mirrored picture are moved one column to the right before they are averaged, which
            makes up for most of the 1 - 1 / stride pixels that lie between them.

    *Deviations*: a map whose maximum is not finite counts as one without a positive value, with score 0. A Gaussian
    that ends just beside the map has weight 0, where the code bases keep a blank map with weight 1.
    """

    def __init__(self, sigma: float = 2.0, rule: str = "mmpose", shift: bool = True) -> None:
        self.sigma = positive(self, "sigma", sigma)
        self.rule = one_of(self, "rule", rule, RULES)
        self.shift = shift

    def to_map(self, points: Tensor, input_size: Size, map_size: Size) -> Tensor:
        return points / points.new_tensor(strides(input_size, map_size))

    def to_input(self, points: Tensor, input_size: Size, map_size: Size) -> Tensor:
        return points * points.new_tensor(strides(input_size, map_size))

    def draw(self, centres: Tensor, usable: Tensor, input_size: Size, map_size: Size) -> tuple[Tensor, Tensor]:
        middles = (centres + 0.5).trunc()
        return cut_gaussians(middles, middles, usable, self.sigma, map_size)

    @torch.no_grad()
    def read(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        peaks, scores = maxima(maps)
        points = peaks + self._step(maps, peaks)
        found = (scores > 0)[..., None]
        return torch.where(found, points, -1 if self.rule == "mmpose" else 0).to(maps), scores

    def mirror(self, maps: Tensor, swaps: Sequence[int]) -> Tensor:
        mirrored = super().mirror(maps, swaps)
        return torch.cat((mirrored[..., :1], mirrored[..., :-1]), dim=-1) if self.shift else mirrored

    def _step(self, maps: Tensor, peaks: Tensor) -> Tensor:
        """Quarter of a pixel towards the larger neighbours, (N, K, 2)."""
        height, width = maps.shape[-2:]
        x, y = peaks.unbind(-1)
        steps = torch.tensor((1, -1, width, -width), device=maps.device)
        around = ((y * width + x)[..., None] + steps).clamp(0, height * width - 1)
        right, left, below, above = maps.flatten(2).gather(2, around).unbind(-1)
        inner_x, inner_y = (x > 1) & (x < width - 1), (y > 1) & (y < height - 1)
        inner = (inner_x & (y > 0), inner_y & (x > 0)) if self.rule == "mmpose" else (inner_x & inner_y,) * 2
        signs = torch.stack((right - left, below - above), dim=-1).sign()
        return torch.where(torch.stack(inner, dim=-1), QUARTER * signs, 0)


@CODECS.register
class DarkHeatmap(GaussianHeatmap):
    """A Gaussian around the point itself, and a Taylor step on the logarithm (Zhang et al., DARK, CVPR 2020).

    Pixel x of the input is x / stride in the map. A round trip errs by less than 0.001 pixels of the map with sigma 2
    and 0.01 with sigma 1, for points at least blur / 2 + 2 pixels inside; the smoothing draws others outwards.

    Args:
        sigma: in pixels of the map.
        blur: size of the Gaussian that smooths a map before the step, odd; None: the size whose own sigma is nearest.
        rule: what a map without a positive value gives: (-1, -1) for `mmpose`, (0, 0) for `hrnet`, in the map.
        shift: as in `GaussianHeatmap`.

    *Deviations*: a step longer than `blur` is not taken. A map whose maximum is not finite counts as one without a
    positive value, with score 0.
    """

    def __init__(self, sigma: float = 2.0, blur: int | None = None, rule: str = "mmpose", shift: bool = True) -> None:
        super().__init__(sigma, rule, shift)
        self.blur = blur_size(self, blur, sigma)

    def draw(self, centres: Tensor, usable: Tensor, input_size: Size, map_size: Size) -> tuple[Tensor, Tensor]:
        x, y = offsets(centres, map_size)
        reach = 3 * self.sigma
        size = centres.new_tensor(map_size[::-1])
        usable = usable & ((centres - reach < size) & (centres + reach + 1 >= 0)).all(dim=-1)
        return outer(x, y, self.sigma) * usable[..., None, None], usable.to(centres)

    def _step(self, maps: Tensor, peaks: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        block = log_block(maps, peaks, self.blur, reach=2, floor=1e-10)
        dx, dy = (block[..., 2, 3] - block[..., 2, 1]) / 2, (block[..., 3, 2] - block[..., 1, 2]) / 2
        dxx = (block[..., 2, 4] - 2 * block[..., 2, 2] + block[..., 2, 0]) / 4
        dyy = (block[..., 4, 2] - 2 * block[..., 2, 2] + block[..., 0, 2]) / 4
        dxy = (block[..., 3, 3] - block[..., 1, 3] - block[..., 3, 1] + block[..., 1, 1]) / 4
        x, y = peaks.unbind(-1)
        inner = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
        return torch.where(inner[..., None], taylor(dx, dy, dxx, dyy, dxy, self.blur), 0)


def cut_gaussians(
    centres: Tensor, middles: Tensor, usable: Tensor, sigma: float, map_size: Size
) -> tuple[Tensor, Tensor]:
    """Gaussians (N, K, h, w) around `centres` in the square of 3 sigma around `middles`, and their weights (N, K)."""
    sides = []
    for offset, distance in zip(offsets(centres, map_size), offsets(middles, map_size), strict=True):
        sides.append((offset**2 / (-2 * sigma**2)).exp() * (distance.abs() <= 3 * sigma))
    columns, rows = sides
    maps = rows[..., None] * columns[..., None, :] * usable[..., None, None]
    weights = usable & (columns > 0).any(dim=-1) & (rows > 0).any(dim=-1)
    return maps, weights.to(centres)


def outer(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Gaussians (N, K, h, w) at distances x (N, K, w) and y (N, K, h)."""
    columns, rows = ((offset**2 / (-2 * sigma**2)).exp() for offset in (x, y))
    return rows[..., None] * columns[..., None, :]
