"""Slots of lanes: their names, colours and order in a mirrored picture, and masks drawn from annotated lanes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

COLOURS = ((230, 60, 60), (70, 200, 80), (70, 120, 255), (250, 190, 40), (200, 80, 220), (60, 210, 220))

_SIDE = 3  # slots of TuSimple on each side of the camera


def lane_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The background and the lanes."""
    return ("background", *names)


def lane_palette(lanes: int) -> tuple[tuple[int, int, int], ...]:
    """Colours of the background and of the lanes."""
    return ((0, 0, 0), *(COLOURS[number % len(COLOURS)] for number in range(lanes)))


def mirrored_slots(lanes: int) -> tuple[int, ...]:
    """The background and, of lanes that are counted from left to right, the order in a mirrored picture."""
    return (0, *range(lanes, 0, -1))


def lane_slots(lanes: Sequence[Any]) -> dict[int, Floats]:
    """Lanes (P, 2), from bottom to top, by slot from 1 to 6; see `kd_lanes.datasets.TuSimple`."""
    drawable = [np.asarray(lane, np.float64) for lane in lanes if len(lane) > 1]
    angles = np.array([_angle(lane) for lane in drawable])
    order = np.argsort(angles, kind="stable")
    left = int(np.count_nonzero(angles <= 90))
    places = {_SIDE + 1 + number - left: drawable[lane] for number, lane in enumerate(order)}
    return {slot: lane for slot, lane in places.items() if 1 <= slot <= 2 * _SIDE}


def _angle(lane: Floats) -> float:
    """Degrees between the horizontal and the line from the lower to the upper end: below 90 leaning to the right."""
    across, up = lane[-1, 0] - lane[0, 0], lane[0, 1] - lane[-1, 1]
    return float(np.degrees(np.arctan2(up, across)))


def drawn_lanes(slots: Mapping[int, Floats], size: tuple[int, int], width: int) -> Bytes:
    """A mask (H, W) of lanes drawn from point to point; those of higher slots lie on top.

    Args:
        slots: (P, 2) by slot.
        size: height and width of the picture.
        width: in pixels.
    """
    mask = np.zeros(size, np.uint8)
    for slot in sorted(slots):
        cv2.polylines(mask, [np.rint(slots[slot]).astype(np.int32)], False, slot, width)
    return mask
