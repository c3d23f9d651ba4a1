"""The codec of unbiased data processing (UDP)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_tasks.registry import CODECS
from kd_tasks.vision.heatmaps.base import HeatmapCodec, Size, maxima, offsets, one_of, positive
from kd_tasks.vision.heatmaps.gaussian import cut_gaussians
from kd_tasks.vision.heatmaps.smoothing import blur_size, blurred, log_block, taylor

KINDS = ("gaussian", "combined")


@CODECS.register
class UDPHeatmap(HeatmapCodec):
    """Unbiased data processing (Huang et al., UDP, CVPR 2020): the first and last pixels of input and map coincide.

    Pixel x of the input is x (w - 1) / (W - 1) in the map. Mirroring is exact and needs no shift.

    Args:
        kind: `gaussian`: a Gaussian around the point itself, and a Taylor step on the logarithm. `combined`: three maps
            a point, a disc and the way to the point in x and y, in radii; a loss counts the ways within the disc alone.
        sigma: of the Gaussian, in pixels of the map.
        blur: size of the Gaussian that smooths a map before the step, odd; None: the size whose own sigma is nearest.
            The disc is smoothed with one of size 2 blur + 1 before its maximum is taken.
        radius: of the disc, as a share of the longer side of the map.

    A round trip errs by less than 0.0001 pixels of the map with sigma 2 and 0.002 with sigma 1, for points at least
    blur / 2 + 1 pixels inside; the smoothing draws others outwards, by up to a pixel at the border. With `combined` it
    is exact for every point in the map.

    *Deviations*: a map without a positive value, or whose maximum is not finite, gives (-1, -1) in the map, where the
    official code reads beside the map. A step longer than `blur` is not taken. mmpose scales by W / (w - 1), which
    suits its own crop; (W - 1) / (w - 1) is what it encodes with. A Gaussian that ends just beside the map has weight
    0, where the code bases keep a blank map with weight 1.
    """

    def __init__(
        self, kind: str = "gaussian", sigma: float = 2.0, blur: int | None = None, radius: float = 0.0546875
    ) -> None:
        self.kind = one_of(self, "kind", kind, KINDS)
        self.sigma = positive(self, "sigma", sigma)
        self.blur = blur_size(self, blur, sigma)
        self.radius = positive(self, "radius", radius)
        self.maps_per_point = 3 if kind == "combined" else 1

    def to_map(self, points: Tensor, input_size: Size, map_size: Size) -> Tensor:
        return points / points.new_tensor(corner_strides(input_size, map_size))

    def to_input(self, points: Tensor, input_size: Size, map_size: Size) -> Tensor:
        return points * points.new_tensor(corner_strides(input_size, map_size))

    def draw(self, centres: Tensor, usable: Tensor, input_size: Size, map_size: Size) -> tuple[Tensor, Tensor]:
        if self.kind == "gaussian":
            return cut_gaussians(centres, (centres + 0.5).trunc(), usable, self.sigma, map_size)
        radius = self.radius * max(map_size)
        x, y = (-offset / radius for offset in offsets(centres, map_size))
        x, y = torch.broadcast_tensors(x[..., None, :], y[..., None])
        maps = torch.stack(((x**2 + y**2 <= 1).to(x), x, y), dim=2) * usable[..., None, None, None]
        return maps.flatten(1, 2), usable.to(centres).repeat_interleave(3, dim=1)

    @torch.no_grad()
    def read(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        points, scores = self._from_discs(maps) if self.kind == "combined" else self._from_gaussians(maps)
        return torch.where((scores > 0)[..., None], points, -1).to(maps), scores

    def _from_gaussians(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        peaks, scores = maxima(maps)
        block = log_block(maps, peaks, self.blur, reach=1, floor=1e-3, ceiling=50.0)
        middle = block[..., 1, 1]
        right, left, below, above = block[..., 1, 2], block[..., 1, 0], block[..., 2, 1], block[..., 0, 1]
        dxx, dyy = right - 2 * middle + left, below - 2 * middle + above
        dxy = (block[..., 2, 2] - right - below + 2 * middle - left - above + block[..., 0, 0]) / 2
        eps = torch.finfo(torch.float32).eps
        step = taylor((right - left) / 2, (below - above) / 2, dxx + eps, dyy + eps, dxy, self.blur)
        return peaks + step, scores

    def _from_discs(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        discs, ways_x, ways_y = maps.unflatten(1, (-1, 3)).unbind(2)
        peaks, scores = maxima(blurred(discs, 2 * self.blur + 1, reflect=True))
        at = (peaks[..., 1] * maps.shape[-1] + peaks[..., 0])[..., None]
        ways = torch.cat([way.flatten(2).gather(2, at) for way in (ways_x, ways_y)], dim=-1)
        steps = self.radius * max(maps.shape[-2:]) * ways
        return peaks + torch.where(steps.isfinite(), steps, 0), scores

    def mirror(self, maps: Tensor, swaps: Sequence[int]) -> Tensor:
        mirrored = super().mirror(maps, swaps)
        if self.kind == "gaussian":
            return mirrored
        signs = mirrored.new_tensor((1, -1, 1)).repeat(len(swaps))
        return mirrored * signs[:, None, None]


def corner_strides(input_size: Size, map_size: Size) -> tuple[float, float]:
    """Pixels of the input in one of the map, in x and y, where the middles of their corner pixels coincide."""
    x, y = ((i - 1) / max(m - 1, 1) for i, m in zip(input_size[::-1], map_size[::-1], strict=True))
    return x or 1.0, y or 1.0
