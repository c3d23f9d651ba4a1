"""Pictures with their true and their predicted class written below."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

Image = np.ndarray
Colour = tuple[int, int, int]

INK: Colour = (40, 40, 40)
RIGHT: Colour = (0, 114, 178)
WRONG: Colour = (213, 94, 0)
SIDE, LINE = 160, 22


class ClassificationDrawing:
    """Draws samples of one data set.

    Args:
        metainfo: of the data set, with `classes`.
    """

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
        self.classes = list(metainfo.get("classes", ()))

    def legend(self) -> list[tuple[str, Colour]]:
        """What the colours of a caption mean, RGB."""
        return [("right class", RIGHT), ("wrong class", WRONG)]

    def panels(
        self, image: Image, targets: Mapping[str, Any], prediction: Mapping[str, Any] | None
    ) -> list[tuple[str, Image]]:
        """Titled pictures, uint8 RGB: `label`, and `prediction` if there is one.

        Args:
            image: (H, W, 3), uint8 RGB.
            targets: with `label`; empty if the image has none.
            prediction: of the decoder: `label` (k,) and `scores` (k,).
        """
        truth = int(targets["label"]) if "label" in targets else None
        panels = [("image", image) if truth is None else ("label", captioned(image, self._name(truth), INK))]
        if prediction is None:
            return panels
        best, score = int(prediction["label"][0]), float(prediction["scores"][0])
        colour = INK if truth is None else RIGHT if best == truth else WRONG
        return [*panels, ("prediction", captioned(image, f"{self._name(best)} {score:.0%}", colour))]

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)


def captioned(image: Image, text: str, colour: Colour) -> Image:
    """`image`, enlarged if it is small, with a line of text below."""
    scale = max(1, -(-SIDE // image.shape[1]))
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)
    framed = cv2.copyMakeBorder(large, 0, LINE, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    place = (4, framed.shape[0] - 6)
    return cv2.putText(framed, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
