"""The codec of the landmark detectors of Dong et al.: the middle of the mass around a peak."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_tasks.registry import CODECS
from kd_tasks.vision.heatmaps.base import HeatmapCodec, Size, maxima, offsets, positive, strides, whole
from kd_tasks.vision.heatmaps.gaussian import outer


@CODECS.register
class PeakHeatmap(HeatmapCodec):
    """A Gaussian sampled at the middles of the map's cells, read by a soft-argmax around the peak (Dong et al.).

    Supervision by Registration (CVPR 2018) and Teacher Supervises Students (ICCV 2019). Pixel x of the input is
    (x + 0.5) / stride - 0.5 in the map. `decode` is differentiable in the values of the patch, and of the scores in the
    peak's. Mirroring is exact. A round trip errs by less than 0.02 pixels of the map where sigma is at most a third of
    the radius and the patch is inside; a peak that the patch or the border cuts is drawn to the middle of what is left.

    Args:
        sigma: in pixels of the *input*.
        background: whether one more map holds 1 less the largest of the points' maps.
        radius: of the patch around the peak, pixels of the map; 4 gives 9 x 9.
        cutoff: values of the target below it are 0.
        threshold: values up to it have no part in `decode`.
    """

    def __init__(
        self,
        sigma: float = 4.0,
        background: bool = False,
        radius: int = 4,
        cutoff: float = 0.01,
        threshold: float = 1e-6,
    ) -> None:
        self.sigma = positive(self, "sigma", sigma)
        self.background = background
        self.radius = whole(self, "radius", radius)
        self.cutoff = cutoff
        self.threshold = threshold

    def channels(self, points: int) -> int:
        return points + self.background

    def to_map(self, points: Tensor, input_size: Size, map_size: Size) -> Tensor:
        return (points + 0.5) / points.new_tensor(strides(input_size, map_size)) - 0.5

    def to_input(self, points: Tensor, input_size: Size, map_size: Size) -> Tensor:
        return (points + 0.5) * points.new_tensor(strides(input_size, map_size)) - 0.5

    def draw(self, centres: Tensor, usable: Tensor, input_size: Size, map_size: Size) -> tuple[Tensor, Tensor]:
        x, y = (
            offset * stride
            for offset, stride in zip(offsets(centres, map_size), strides(input_size, map_size), strict=True)
        )
        maps = outer(x, y, self.sigma) * usable[..., None, None]
        maps = torch.where(maps < self.cutoff, 0, maps)
        weights = usable.to(centres)
        if not self.background:
            return maps, weights
        rest = 1 - maps.amax(dim=1, keepdim=True)
        return torch.cat((maps, rest), dim=1), torch.cat((weights, weights.amax(dim=1, keepdim=True)), dim=1)

    def read(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        maps = maps[:, : maps.shape[1] - self.background]
        height, width = maps.shape[-2:]
        peaks, scores = maxima(maps)
        steps = torch.arange(-self.radius, self.radius + 1, device=maps.device)
        columns, rows = (peaks[..., axis, None] + steps for axis in (0, 1))
        inside = ((columns >= 0) & (columns < width))[..., None, :] & ((rows >= 0) & (rows < height))[..., None]
        at = rows.clamp(0, height - 1)[..., None] * width + columns.clamp(0, width - 1)[..., None, :]
        patch = maps.flatten(2).gather(2, at.flatten(2)).view(at.shape)
        counted = inside & (patch > self.threshold)
        patch = torch.where(counted, patch, torch.finfo(torch.float64).eps)
        total = patch.sum(dim=(-2, -1))
        x, y = ((patch.sum(dim=axis) * steps).sum(dim=-1) / total for axis in (-2, -1))
        way = torch.stack((x, y), dim=-1)
        return peaks + torch.where(way.isfinite(), way, 0), scores

    def _partners(self, swaps: Sequence[int]) -> list[int]:
        return [*swaps, *([len(swaps)] if self.background else [])]
