"""Pictures of segmentation: masks in the palette, overlays, legends, error maps; and masks as files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kd_segmentation.metrics import as_bytes, label_ids
from kd_tasks.errors import UserError
from kd_tasks.vision.drawing import Entry, Image, Panel, distinct_colours, overlay
from kd_tasks.vision.images import write_labels

IGNORED = 255
IGNORED_COLOUR = (0, 0, 0)
WRONG = (220, 30, 40)
RIGHT = (70, 160, 90)

Mask = npt.NDArray[np.uint8]


class SegmentationDrawing:
    """Masks in the colours of their data set.

    Args:
        metainfo: of the data set: `classes`, and `palette` with their RGB colours; distinct ones are made without it.
        alpha: how opaque masks lie over the image, 0 to 1.

    Raises:
        UserError: if there are not as many colours as classes.
    """

    def __init__(self, metainfo: Mapping[str, Any], alpha: float = 0.6) -> None:
        self.classes = list(metainfo.get("classes", ()))
        colours = list(metainfo.get("palette", ())) or distinct_colours(len(self.classes))
        if len(colours) != len(self.classes):
            raise UserError(f"the data set names {len(self.classes)} classes, but {len(colours)} colours.")
        self.palette = [(int(r), int(g), int(b)) for r, g, b in colours]
        self.alpha = alpha
        self._table = np.zeros((256, 3), np.uint8)
        self._table[: len(colours)] = np.array(self.palette, np.uint8).reshape(-1, 3)

    def panels(self, image: Image, targets: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> list[Panel]:
        """`image`; `label` if the targets have a `mask`; `prediction`; and `errors` if there is both.

        Masks of another size than the image are brought to its size.
        """
        panels = [("image", image)]
        labels = _sized(targets["mask"], image) if "mask" in targets else None
        if labels is not None:
            panels.append(("label", self.overlay(image, labels)))
        if prediction is None:
            return panels
        mask = _sized(prediction["mask"], image)
        panels.append(("prediction", self.overlay(image, mask)))
        if labels is not None:
            panels.append(("errors", error_map(image, labels, mask)))
        return panels

    def legend(self) -> list[Entry]:
        """Names and colours of the classes."""
        return list(zip(self.classes, self.palette, strict=True))

    def colour(self, mask: Mask) -> Image:
        """A mask (H, W) in the colours of its classes (H, W, 3); what is no class is black."""
        return self._table[mask]

    def overlay(self, image: Image, mask: Mask) -> Image:
        """`image` with the mask over it; where the mask is ignored, the image itself."""
        return overlay(image, self.colour(mask), self.alpha, where=mask != IGNORED)

    def save_mask(self, mask: Mask, path: str | Path) -> None:
        """Write a mask (H, W) as PNG whose numbers are the classes and whose palette is the data set's."""
        write_labels(path, as_bytes(mask, {"path": str(path)}), self._table.tolist())


def error_map(image: Image, labels: Mask, mask: Mask) -> Image:
    """Where a mask is right (pale green over the grey image), wrong (red), or not labelled (black)."""
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.uint8)
    picture = overlay(grey, np.full_like(grey, RIGHT), alpha=0.35)
    picture[labels != mask] = WRONG
    picture[labels == IGNORED] = IGNORED_COLOUR
    return picture


def save_cityscapes_result(mask: Mask, folder: str | Path, image_path: str | Path) -> Path:
    """Write a mask of train ids (H, W) as a PNG of label ids, as Cityscapes' evaluation and server take it.

    Args:
        mask: train ids.
        folder: where the file goes, as `<city>_<sequence>_<frame>_labelIds.png`.
        image_path: the image, `<city>_<sequence>_<frame>_leftImg8bit.png`.

    Returns:
        the file.
    """
    path = Path(folder) / f"{Path(image_path).stem.removesuffix('_leftImg8bit')}_labelIds.png"
    write_labels(path, label_ids(as_bytes(mask, {"path": str(image_path)})))
    return path


def _sized(mask: Any, image: Image) -> Mask:
    values, size = as_bytes(mask, {}), image.shape[:2]
    if values.shape == size:
        return values
    return np.asarray(cv2.resize(values, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
