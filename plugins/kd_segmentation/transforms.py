"""What albumentations lacks for segmentation.

Padding, resizing, flips and colours are albumentations' own and used by their names: `RandomScale`, `PadIfNeeded`,
`RandomCrop`, `HorizontalFlip`, `ColorJitter`, …
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from kd_tasks.vision.augment import IGNORED, albumentations
from kd_tasks.vision.images import Array

_DualTransform: Any = albumentations().DualTransform
_Targets: Any = albumentations().core.type_definitions.Targets

_DRAWS = 10


class RandomScaleCrop(_DualTransform):
    """Scale by a random factor, cut out a random window, and pad what lies outside the image.

    The same as resizing the whole image and cropping then, but only the window is resized, which for Cityscapes is
    a small part. An image smaller than the window lies at a random place in it. A window in which one class takes too
    much is drawn again, at most ten times.

    Args:
        size: (height, width) of the result, in pixels.
        scale: smallest and largest factor; it is drawn uniformly between them.
        max_share: largest share, 0 to 1, of one class among the window's pixels that are not ignored; 1 turns it off.
        fill: RGB of what lies outside the image; ImageNet's mean colour.
        fill_mask: label of what lies outside the image.
        p: probability of being applied. Without it the image keeps its size, so that batches may not fit.
    """

    _targets = (_Targets.IMAGE, _Targets.MASK)

    def __init__(
        self,
        size: Sequence[int] = (512, 512),
        scale: Sequence[float] = (0.5, 2.1),
        max_share: float = 1.0,
        fill: Sequence[int] = (124, 116, 104),
        fill_mask: int = IGNORED,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size is {size!r}; it must be (height, width) in pixels")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale is {scale!r}; it must be (smallest, largest), both above 0")
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share is {max_share!r}; it must be above 0 and at most 1")
        self.size = (int(size[0]), int(size[1]))
        self.scale = (float(scale[0]), float(scale[1]))
        self.max_share = max_share
        self.fill = tuple(fill)
        self.fill_mask = fill_mask

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the factor and the window."""
        factor = self.py_random.uniform(*self.scale)
        mask = data.get("mask")
        place = self._place(params["shape"], factor)
        if mask is None or self.max_share == 1:
            return {"factor": factor, "place": place}
        for _ in range(_DRAWS):
            if _largest_share(self.apply_to_mask(mask, factor, place)) <= self.max_share:
                break
            place = self._place(params["shape"], factor)
        return {"factor": factor, "place": place}

    def apply(self, img: Array, factor: float, place: tuple[int, int], **params: Any) -> Array:
        """Cut the window out of the image."""
        return self._cut(img, factor, place, cv2.INTER_LINEAR, self.fill)

    def apply_to_mask(self, mask: Array, factor: float, place: tuple[int, int], **params: Any) -> Array:
        """Cut the window out of the mask, by nearest neighbour."""
        return self._cut(mask, factor, place, cv2.INTER_NEAREST, self.fill_mask)

    def _place(self, shape: Sequence[int], factor: float) -> tuple[int, int]:
        """Top left corner of the window in the scaled image; negative where the image is smaller than the window."""
        room = [round(length * factor) - wanted for length, wanted in zip(shape[:2], self.size, strict=True)]
        top, left = (self.py_random.randint(min(0, free), max(0, free)) for free in room)
        return top, left

    def _cut(self, pixels: Array, factor: float, place: tuple[int, int], interpolation: int, fill: Any) -> Array:
        height, width = self.size
        centre = (0.5 / factor) - 0.5
        back = np.array(
            [[1 / factor, 0, place[1] / factor + centre], [0, 1 / factor, place[0] / factor + centre]], dtype=np.float64
        )
        return cv2.warpAffine(
            pixels,
            back,
            (width, height),
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )


def _largest_share(mask: Array) -> float:
    counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)[:IGNORED]
    return float(counts.max() / max(counts.sum(), 1))
