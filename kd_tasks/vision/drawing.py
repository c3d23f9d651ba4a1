"""What a person looks at: the protocol of a task's drawing, and the parts that drawings are made of.

Pictures are uint8 RGB arrays (H, W, 3).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Colour = Sequence[int]
Panel = tuple[str, Image]
Entry = tuple[str, tuple[int, int, int]]

WHITE = (255, 255, 255)
BLACK = (20, 20, 20)
FONT = cv2.FONT_HERSHEY_SIMPLEX


class Drawing(Protocol):
    """How a task shows a sample. Built with a data set's `metainfo`."""

    def __init__(self, metainfo: Mapping[str, Any]) -> None: ...

    def panels(self, image: Image, targets: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> list[Panel]:
        """Titled pictures of one sample; those without the prediction are called `image`, `input` or `label`.

        Args:
            image: uint8 RGB (H, W, 3).
            targets: the targets of the sample, none if it has none, and its `meta` where that is known.
            prediction: what the decoder gave, if there is a prediction.
        """
        ...

    def legend(self) -> list[Entry]:
        """Names and colours; empty where colours mean nothing."""
        ...


class Row(NamedTuple):
    """Pictures that belong together, with what they have in common as their title."""

    title: str
    panels: list[Panel]


@runtime_checkable
class SetDrawing(Drawing, Protocol):
    """A drawing whose predictions mean nothing one by one, such as a ranking: it is shown the whole test data."""

    explanation: str
    """Which samples are shown, and what one sees; for the report card."""

    def gallery(
        self,
        picture: Callable[[int], Image],
        samples: Sequence[Mapping[str, Any]],
        predictions: Mapping[str, Sequence[Mapping[str, Any]]],
        count: int,
    ) -> list[Row]:
        """Pictures of predictions, the most telling ones first, at most `count` rows.

        Args:
            picture: the image uint8 RGB (H, W, 3) of a sample, at its original size.
            samples: `targets` and `meta` of every sample.
            predictions: what the decoder gave for every sample, by model; the first model decides what is shown.
            count: rows at most.
        """
        ...


def overlay(image: Image, colours: Image, alpha: float = 0.5, where: npt.NDArray[np.bool_] | None = None) -> Image:
    """`image` with `colours` over it, `alpha` opaque; only where `where` (H, W) is true, if given."""
    mixed = np.asarray(cv2.addWeighted(image, 1 - alpha, colours, alpha, 0), np.uint8)
    return mixed if where is None else np.where(where[..., None], mixed, image)


def fitted(image: Image, height: int, width: int) -> Image:
    """`image` (h, w, 3) scaled to fit into (height, width, 3), in its proportions, on white."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    canvas = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    canvas[top : top + size[0], left : left + size[1]] = resized(image, *size)
    return canvas


def resized(image: Image, height: int, width: int) -> Image:
    """`image` at (height, width): averaged where it shrinks, sharp pixels where it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def titled(image: Image, title: str, bar: int = 22) -> Image:
    """`image` (H, W, 3) under a white bar with its title: (H + bar, W, 3)."""
    strip = np.full((bar, image.shape[1], 3), 255, np.uint8)
    put_text(strip, title, (4, bar - 7), image.shape[1] - 8)
    return np.concatenate([strip, image])


def put_text(image: Image, text: str, origin: tuple[int, int], width: int, colour: Colour = BLACK) -> None:
    """Write `text` into `image` with its baseline at `origin` (x, y), small enough for `width` pixels.

    The font has ASCII only; accents are dropped from other letters.
    """
    plain = text.encode("ascii", "replace").decode()
    (needed, _), _ = cv2.getTextSize(plain, FONT, 0.45, 1)
    scale = 0.45 * min(1.0, width / max(needed, 1))
    cv2.putText(image, plain, origin, FONT, scale, tuple(map(int, colour)), 1, cv2.LINE_AA)


def grid(panels: Sequence[Panel], columns: int | None = None, gap: int = 6) -> Image:
    """Panels side by side under their titles, row by row, each scaled to the size of the first.

    Args:
        panels: at least one.
        columns: panels in a row; all in one row if not given.
        gap: white pixels between panels.
    """
    height, width = panels[0][1].shape[:2]
    columns = min(columns or len(panels), len(panels))
    tiles = [titled(fitted(image, height, width), title) for title, image in panels]
    tile = tiles[0].shape
    rows = math.ceil(len(tiles) / columns)
    canvas = np.full((rows * (tile[0] + gap) - gap, columns * (tile[1] + gap) - gap, 3), 255, np.uint8)
    for i, picture in enumerate(tiles):
        top, left = i // columns * (tile[0] + gap), i % columns * (tile[1] + gap)
        canvas[top : top + tile[0], left : left + tile[1]] = picture
    return canvas


def legend_picture(entries: Sequence[Entry], columns: int = 4, width: int = 150) -> Image:
    """A picture of names beside their colours, row by row.

    Args:
        entries: at least one.
        columns: entries in a row.
        width: pixels of an entry.
    """
    line, swatch = 20, 12
    columns = min(columns, len(entries))
    canvas = np.full((line * math.ceil(len(entries) / columns), width * columns, 3), 255, np.uint8)
    for i, (name, colour) in enumerate(entries):
        top, left = i // columns * line, i % columns * width
        canvas[top + 4 : top + 4 + swatch, left + 4 : left + 4 + swatch] = colour
        put_text(canvas, name, (left + swatch + 10, top + 15), width - swatch - 14)
    return canvas


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """`count` colours that are told apart: hues a golden angle apart, in three lightnesses."""
    pixels = [[(i * 137.508 % 360) / 2, 200, (230, 160, 100)[i % 3]] for i in range(count)]
    colours = cv2.cvtColor(np.array([pixels], np.uint8).reshape(1, -1, 3), cv2.COLOR_HSV2RGB)[0]
    return [(int(r), int(g), int(b)) for r, g, b in colours]


def png_bytes(image: Image) -> bytes:
    """`image`, RGB, as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
