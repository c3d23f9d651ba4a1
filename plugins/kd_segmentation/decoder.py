"""From logits to a mask of the original image's size."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kd_tasks.errors import UserError
from kd_tasks.losses.base import full_precision
from kd_tasks.registry import DECODERS
from kd_tasks.task import resized_logits

# Logits that are enlarged at once: 256 MB in float32.
ELEMENTS_AT_ONCE = 2**26
CLASSES_AT_MOST = 255
GEOMETRY = ("input_size", "padded_size", "original_size")


@DECODERS.register
class SegmentationDecoder:
    """The most probable class of each pixel, after the logits are brought to the original size.

    Logits are resized, not masks: padding is cut off, then bilinear interpolation to `original_size`.

    Args:
        align_corners: how logits are enlarged; as in the criterion.
    """

    def __init__(self, align_corners: bool = True) -> None:
        self.align_corners = align_corners

    @torch.no_grad()
    def __call__(self, outputs: Mapping[str, Tensor], meta: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """One `dict(mask=uint8 (H, W))` a sample, on the logits' device.

        Args:
            outputs: `logits` (N, C, h, w), from a network or from an exported artefact.
            meta: N dicts with `original_size` and `input_size`, and `padded_size` if the image was padded.
        """
        logits = full_precision(outputs["logits"])
        if logits.shape[1] > CLASSES_AT_MOST:
            raise UserError(f"masks are uint8 and 255 is no class: {logits.shape[1]} classes are more than 255.")
        geometry = [tuple(tuple(m.get(key, ())) for key in GEOMETRY) for m in meta]
        step = self._samples_at_once(logits, meta) if len(set(geometry)) == 1 else 1
        predictions: list[dict[str, Tensor]] = []
        for start in range(0, len(meta), step):
            maps = resized_logits(logits[start : start + step], dict(meta[start]), self.align_corners)
            predictions += [{"mask": mask} for mask in maps.max(dim=1).indices.to(torch.uint8)]
        return predictions

    @staticmethod
    def _samples_at_once(logits: Tensor, meta: Sequence[Mapping[str, Any]]) -> int:
        height, width = meta[0]["original_size"]
        return max(1, ELEMENTS_AT_ONCE // (logits.shape[1] * height * width))
