"""What all codecs share: the interface, the maximum of a map, and how its pixels lie on those of the input."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_tasks.errors import UserError, nearest

Size = tuple[int, int]


class HeatmapCodec(ABC):
    """What all codecs have in common.

    Attributes:
        logits: whether the maps of a network are logits of a distribution over the positions.
    """

    maps_per_point = 1
    logits = False

    def channels(self, points: int) -> int:
        """Number of maps for so many points."""
        return self.maps_per_point * points

    @abstractmethod
    def to_map(self, points: Tensor, input_size: Size, map_size: Size) -> Tensor:
        """Points (..., 2) in pixels of the map, from pixels of the input."""

    @abstractmethod
    def to_input(self, points: Tensor, input_size: Size, map_size: Size) -> Tensor:
        """Points (..., 2) in pixels of the input, from pixels of the map."""

    @abstractmethod
    def draw(self, centres: Tensor, usable: Tensor, input_size: Size, map_size: Size) -> tuple[Tensor, Tensor]:
        """Maps (N, C, h, w) and weights (N, C) of centres (N, K, 2) in pixels of the map."""

    @abstractmethod
    def read(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """What `locate` returns; the maps are float32 or float64, and autocast is off."""

    @torch.no_grad()
    def encode(self, points: Tensor, visible: Tensor, input_size: Size, map_size: Size) -> tuple[Tensor, Tensor]:
        """The maps that a network is to predict.

        Args:
            points: (N, K, 2), pixels of the input.
            visible: bool (N, K); a point that is not visible, or not finite, has blank maps and weight 0.
            input_size: (height, width) of the input.
            map_size: (height, width) of a map.

        Returns:
            Maps (N, C, h, w) and their weights (N, C), 0 or 1.
        """
        points = precise(points)
        usable = visible.bool() & points.isfinite().all(dim=-1)
        centres = self.to_map(torch.where(usable[..., None], points, 0), input_size, map_size)
        return self.draw(centres, usable, input_size, map_size)

    def locate(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, K, 2) in pixels of the map and scores (N, K), the maxima, of maps (N, C, h, w).

        Points and scores are finite whatever the maps hold. They are float64 for maps of float64, else float32.

        Raises:
            UserError: if the number of maps is not that of any number of points.
        """
        if maps.shape[1] % self.maps_per_point:
            raise UserError(
                f"{type(self).__name__}: {maps.shape[1]} maps are not {self.maps_per_point} for every point."
            )
        with torch.autocast(maps.device.type, enabled=False):
            return self.read(precise(maps))

    def decode(self, maps: Tensor, input_size: Size) -> tuple[Tensor, Tensor]:
        """Points (N, K, 2) in pixels of the input and scores (N, K) of maps (N, C, h, w); see `locate`."""
        points, scores = self.locate(maps)
        return self.to_input(points, input_size, (maps.shape[-2], maps.shape[-1])), scores

    def as_output(self, drawn: Tensor) -> Tensor:
        """Maps that `encode` drew, as a network that predicts them perfectly would give them."""
        return drawn

    def pictures(self, maps: Tensor, input_size: Size) -> Tensor:
        """A network's maps (N, C, h, w) as `encode` would draw them with peaks of 1, to be looked at or judged."""
        return maps

    def mirror(self, maps: Tensor, swaps: Sequence[int]) -> Tensor:
        """The maps of a mirrored picture, mirrored back: left and right exchanged, in place and in name.

        Args:
            maps: (N, C, h, w).
            swaps: for every point the index of its mirrored partner.

        Raises:
            UserError: if `swaps` is for another number of points than the maps.
        """
        if self.channels(len(swaps)) != maps.shape[1]:
            raise UserError(
                f"swaps: {len(swaps)} points need {self.channels(len(swaps))} maps, not {maps.shape[1]}; "
                "give the mirrored partner of every point."
            )
        return maps[:, self._partners(swaps)].flip(-1)

    def merge_flipped(self, maps: Tensor, flipped: Tensor, swaps: Sequence[int]) -> Tensor:
        """Mean of the maps of a picture and those of the mirrored picture, (N, C, h, w) both."""
        return 0.5 * (maps + self.mirror(flipped, swaps))

    def _partners(self, swaps: Sequence[int]) -> list[int]:
        each = self.maps_per_point
        return [each * partner + i for partner in swaps for i in range(each)]


def strides(input_size: Size, map_size: Size) -> tuple[float, float]:
    """Pixels of the input in one of the map, in x and y."""
    return input_size[1] / map_size[1], input_size[0] / map_size[0]


def offsets(centres: Tensor, map_size: Size) -> tuple[Tensor, Tensor]:
    """Distance of every column (N, K, w) and row (N, K, h) from centres (N, K, 2)."""
    x, y = (torch.arange(n, device=centres.device, dtype=centres.dtype) for n in map_size[::-1])
    return x - centres[..., :1], y - centres[..., 1:]


def maxima(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Position (N, K, 2) of the first maximum of every map, int64, and its value; value 0 where that is not finite."""
    flat = maps.flatten(2)
    at = argmax(flat.detach())
    values = flat.gather(2, at[..., None])[..., 0]
    width = maps.shape[-1]
    return torch.stack((at % width, at // width), dim=-1), torch.where(values.isfinite(), values, 0)


def argmax(values: Tensor) -> Tensor:
    """Index of the first maximum along the last axis; by numpy on a CPU, where torch takes several times as long."""
    return torch.from_numpy(values.numpy().argmax(axis=-1)) if values.is_cpu else values.argmax(dim=-1)


def precise(values: Tensor) -> Tensor:
    """Half precision and integers as float32; the rest as it is."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def positive(owner: object, name: str, value: float) -> float:
    """`value` of the argument `name`, if it is more than 0."""
    if not value > 0:
        raise UserError(f"{type(owner).__name__}: {name} must be more than 0, not {value!r}.")
    return value


def whole(owner: object, name: str, value: int) -> int:
    """`value` of the argument `name`, if it is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{type(owner).__name__}: {name} must be a whole number of at least 1, not {value!r}.")
    return value


def one_of(owner: object, name: str, value: str, known: Sequence[str]) -> str:
    """`value` of the argument `name`, if it is known."""
    if value not in known:
        hint = f"{nearest(str(value), known)} Known: {', '.join(known)}."
        raise UserError(f"{type(owner).__name__}: {name} {value!r} is not known.{hint}")
    return value
