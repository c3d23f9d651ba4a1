"""From heatmaps or coordinates to points of the original picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kd_tasks.errors import UserError
from kd_tasks.losses.base import full_precision
from kd_tasks.registry import DECODERS
from kd_tasks.vision.heatmaps import HeatmapCodec


@DECODERS.register
class LandmarkDecoder:
    """Points in pixels of the original pictures, by one computation for the whole batch.

    Args:
        codec: reads the points off `heatmaps`; the same as the criterion's. None for a network that gives `points`.
    """

    def __init__(self, codec: HeatmapCodec | None = None) -> None:
        self.codec = codec

    @torch.no_grad()
    def __call__(self, outputs: Mapping[str, Tensor], meta: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """One `dict(points=float32 (K, 2), scores=float32 (K,))` a face, on the outputs' device.

        Scores are what the codec says of its maps; 1 for a network that gives `points`.

        Args:
            outputs: `heatmaps` (N, C, h, w) or `points` (N, K, 2), from a network or from an exported artefact.
            meta: N dicts with `input_size` (or, where pictures were padded, `padded_size`), and `to_input`, the affine
                map (2, 3) from the original picture to the input; without it the whole picture was resized from
                `original_size`.

        Raises:
            UserError: if the network lacks what is to be decoded, or a picture's `to_input` cannot be inverted.
        """
        if not meta:
            return []
        points, scores = self.in_input(outputs, input_size(meta))
        points = to_original(points.double(), meta).float()
        return [{"points": p, "scores": s} for p, s in zip(points, scores.float(), strict=True)]

    def in_input(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Points (N, K, 2) in pixels of inputs of (height, width) `size`, and scores (N, K)."""
        name = "points" if self.codec is None else "heatmaps"
        if name not in outputs:
            raise UserError(
                f"LandmarkDecoder: the network gives {', '.join(outputs)}, but no {name}. It needs a codec for "
                "heatmaps, and none for points."
            )
        found = full_precision(outputs[name])
        if self.codec is not None:
            return self.codec.decode(found, size)
        return found * found.new_tensor((size[1], size[0])) - 0.5, torch.ones_like(found[..., 0])


def input_size(meta: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(height, width) of the tensor that the network saw: a batch has one.

    Raises:
        UserError: if the samples say several.
    """
    sizes = {tuple(m.get("padded_size", m["input_size"])) for m in meta}
    if len(sizes) != 1:
        raise UserError(f"the faces of a batch have one size, but these have {sorted(sizes)}.")
    height, width = sizes.pop()
    return int(height), int(width)


def to_original(points: Tensor, meta: Sequence[Mapping[str, Any]]) -> Tensor:
    """Points (N, K, 2) of the inputs as pixels of the original pictures, by the inverse of each one's `to_input`.

    Raises:
        UserError: for a map that cannot be inverted; names the picture.
    """
    affine = torch.tensor([_to_input(m) for m in meta], dtype=torch.float64)
    linear, shift = affine[:, :, :2], affine[:, :, 2]
    determinants = torch.linalg.det(linear)
    for m, determinant in zip(meta, determinants.tolist(), strict=True):
        if determinant == 0 or determinant != determinant:
            raise UserError(f"{m.get('path', 'a face')}: its box has no area, so that points cannot be placed in it.")
    inverse = torch.linalg.inv(linear).to(points)
    return (points - shift.to(points)[:, None]) @ inverse.mT


def _to_input(meta: Mapping[str, Any]) -> Sequence[Sequence[float]]:
    if "to_input" in meta:
        return meta["to_input"]
    height, width = (new / old for new, old in zip(meta["input_size"], meta["original_size"], strict=True))
    return [[width, 0.0, (width - 1) / 2], [0.0, height, (height - 1) / 2]]
