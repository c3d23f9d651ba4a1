"""From maps of lane slots to lanes in pixels of the original picture, by the rules of the benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_tasks.errors import UserError, nearest
from kd_tasks.losses.base import full_precision
from kd_tasks.registry import DECODERS
from kd_tasks.task import resized_logits

Floats = npt.NDArray[np.float64]
Prediction = dict[str, Any]

# What each rule takes where an option is None.
RULES: Mapping[str, Mapping[str, Any]] = {
    "culane": {"threshold": 0.3, "smoothing": 9, "largest_component": False, "connect": False},
    "tusimple": {"threshold": 0.2, "smoothing": 9, "largest_component": True, "connect": True},
    "mask": {"threshold": None, "smoothing": 1, "largest_component": False, "connect": False},
}
TUSIMPLE_ROWS = tuple(range(160, 711, 10))
GEOMETRY = ("input_size", "padded_size", "original_size", "crop_top", "h_samples")


@DECODERS.register
class LaneDecoder:
    """The lanes of each picture: in each row of the rule the most probable column of each slot, if probable enough.

    The probability maps of the slots, at the size of the network's input, are smoothed by a box. A lane is given if
    the network holds it for existing and enough of its rows have a point. Column 0 is no point, as in the official
    code. Fixture `losses/lane_culane_decode`.

    Rules:
    - `culane`: rows every `row_step` px upward from the bottom of the original picture, at most `points`.
    - `tusimple`: the rows that the picture's `h_samples` name, 160 to 710 in steps of 10 where they are missing. Only
      the largest connected part of a slot counts, and rows between two points get the x of the line between them.
    - `mask`: no lanes, but the most probable class of each pixel, for data sets with masks such as BDD100K.

    *Deviations* from the official code of CULane: maps are smoothed before they are rounded to 8 bits, not after, and
    x are not rounded to whole pixels. From that of TuSimple, whose way to drop short parts and to join the rest is
    known in words alone: the rule above.

    Args:
        rule: `culane`, `tusimple` or `mask`.
        threshold: probability that a point must exceed; None, the rule's: 0.3 of culane, 0.2 of tusimple.
        exist_threshold: probability that the existence of a lane must exceed; not read if the network has no such
            output.
        smoothing: side of the box in pixels of the map, odd; 1 smooths nothing; None, the rule's: 9.
        row_step: rows of `culane` in pixels of the original picture.
        points: largest number of rows of `culane`.
        min_points: lanes with fewer points are dropped.
        largest_component: whether only the largest connected part of a slot above the threshold counts; None, the
            rule's.
        connect: whether rows between two points get one too; None, the rule's.
        mask: whether to give `mask` too; the rule `mask` always does.
        align_corners: how logits are enlarged; as in the criterion.

    Raises:
        UserError: for an unknown rule, or numbers that no rule can have.
    """

    def __init__(
        self,
        rule: str = "culane",
        threshold: float | None = None,
        exist_threshold: float = 0.5,
        smoothing: int | None = None,
        row_step: float = 20.0,
        points: int = 18,
        min_points: int = 2,
        largest_component: bool | None = None,
        connect: bool | None = None,
        mask: bool = False,
        align_corners: bool = True,
    ) -> None:
        if rule not in RULES:
            raise UserError(f"LaneDecoder: no rule {rule!r}.{nearest(rule, RULES)} It can be {', '.join(RULES)}.")
        given = {
            "threshold": threshold,
            "smoothing": smoothing,
            "largest_component": largest_component,
            "connect": connect,
        }
        chosen = {name: RULES[rule][name] if value is None else value for name, value in given.items()}
        if chosen["smoothing"] < 1 or chosen["smoothing"] % 2 == 0:
            raise UserError(f"LaneDecoder: smoothing is {smoothing}; the side of the box must be odd and at least 1.")
        if row_step <= 0 or points < 1 or min_points < 1:
            raise UserError(
                f"LaneDecoder: row_step {row_step}, points {points} and min_points {min_points} must be positive."
            )
        self.rule = rule
        self.threshold = 0.0 if chosen["threshold"] is None else float(chosen["threshold"])
        self.exist_threshold = exist_threshold
        self.smoothing = int(chosen["smoothing"])
        self.row_step = row_step
        self.points = points
        self.min_points = min_points
        self.largest_component = bool(chosen["largest_component"])
        self.connect = bool(chosen["connect"])
        self.mask = mask or rule == "mask"
        self.align_corners = align_corners

    @torch.no_grad()
    def __call__(self, outputs: Mapping[str, Tensor], meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """One dict a picture.

        `lanes`: arrays (P, 2) of float32, x and y in pixels of the original picture, from bottom to top; `scores`
        (lanes,), the probability that each exists, or without that output the mean probability of its points; `slots`
        (lanes,), from 1 on. `mask`, where asked for: uint8 (H, W) of the original size, 0 background, on the logits'
        device.

        Args:
            outputs: `logits` (N, L + 1, h, w), class 0 the background, and `exist` (N, L) logits where there are any.
            meta: N dicts with `original_size` and `input_size`; `padded_size` if pictures were padded, `crop_top` if
                rows were cut off the top of the original, `h_samples` for the rule `tusimple`.
        """
        logits = full_precision(outputs["logits"])
        predictions: list[Prediction] = [{"lanes": []} for _ in meta]
        if self.rule != "mask":
            exist = _checked(outputs.get("exist"), logits)
            for chosen in _alike(meta):
                found = None if exist is None else full_precision(exist[chosen]).sigmoid()
                for index, lanes in zip(chosen, self._lanes(logits[chosen], found, meta[chosen[0]]), strict=True):
                    predictions[index] = lanes
        if self.mask:
            for prediction, maps, m in zip(predictions, logits, meta, strict=True):
                prediction["mask"] = self._mask(maps, m)
        return predictions

    def rows(self, meta: Mapping[str, Any], height: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The rows of the rule: y in the original picture from bottom to top, and their rows in a map of `height`."""
        original, top = int(meta["original_size"][0]), int(meta.get("crop_top", 0))
        visible = original - top
        if self.rule == "culane":
            up = np.arange(self.points) * self.row_step
            y, row = original - up, height - up / visible * height - 1
        else:
            y = np.sort(np.asarray(meta.get("h_samples", TUSIMPLE_ROWS), np.float64))[::-1]
            row = (y - top) * height / visible
        inside = (row >= 0) & (row < height)
        return np.asarray(y[inside], np.float64), row[inside].astype(np.int64)

    def _lanes(self, logits: Tensor, exist: Tensor | None, meta: Mapping[str, Any]) -> list[Prediction]:
        """Lanes of pictures with one geometry, from logits (n, L + 1, h, w) and existence (n, L)."""
        at_input = {**meta, "original_size": tuple(meta["input_size"])}
        maps = smoothed(resized_logits(logits, at_input, self.align_corners).softmax(dim=1)[:, 1:], self.smoothing)
        height, width = maps.shape[-2:]
        y, rows = self.rows(meta, height)
        lines = maps[:, :, torch.from_numpy(rows).to(maps.device)].cpu().numpy()
        if self.largest_component:
            lines = lines * largest_components(maps.cpu().numpy() > self.threshold)[:, :, rows]
        columns, values = best_columns(lines, self.threshold)
        present = columns > 0
        kept = present.sum(axis=-1) >= self.min_points
        if exist is None:
            scores = np.sum(values, axis=-1, where=present) / np.maximum(present.sum(axis=-1), 1)
        else:
            scores = exist.cpu().numpy()
            kept &= scores > self.exist_threshold
        x = columns * (meta["original_size"][1] / width)
        return [self._picture(x[i], y, present[i], kept[i], scores[i]) for i in range(len(x))]

    def _picture(
        self, x: Floats, y: Floats, present: npt.NDArray[Any], kept: npt.NDArray[Any], scores: npt.NDArray[Any]
    ) -> Prediction:
        """The prediction for one picture: x (L, rows), y (rows,), present (L, rows), kept (L,), scores (L,)."""
        slots = np.flatnonzero(kept)
        lanes = [self._lane(x[slot], y, present[slot]) for slot in slots]
        return {"lanes": lanes, "scores": scores[slots].astype(np.float32), "slots": slots + 1}

    def _lane(self, x: Floats, y: Floats, present: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if self.connect:
            known = np.flatnonzero(present)
            filled = np.arange(known[0], known[-1] + 1)
            return np.stack([np.interp(-y[filled], -y[known], x[known]), y[filled]], axis=1).astype(np.float32)
        return np.stack([x[present], y[present]], axis=1).astype(np.float32)

    def _mask(self, logits: Tensor, meta: Mapping[str, Any]) -> Tensor:
        """The most probable class (H, W) at the original size; what was cut off above is background."""
        height, width = meta["original_size"]
        top = int(meta.get("crop_top", 0))
        maps = resized_logits(logits, {**meta, "original_size": (height - top, width)}, self.align_corners)
        classes = maps.max(dim=0).indices.to(torch.uint8)
        return F.pad(classes, (0, 0, top, 0)) if top else classes


def _checked(exist: Tensor | None, logits: Tensor) -> Tensor | None:
    if exist is not None and exist.shape[1] != logits.shape[1] - 1:
        raise UserError(
            f"LaneDecoder: the network tells of {exist.shape[1]} lanes whether they exist, but has maps of "
            f"{logits.shape[1] - 1} lanes and the background."
        )
    return exist


def _alike(meta: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The positions of samples, those with the same geometry together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, m in enumerate(meta):
        key = tuple(tuple(np.asarray(m.get(name)).ravel().tolist()) for name in GEOMETRY)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def smoothed(maps: Tensor, side: int) -> Tensor:
    """Maps (..., h, w) after the mean over a box of `side` x `side` pixels; beyond the border they are mirrored."""
    if side == 1:
        return maps
    half = side // 2
    flat = maps.flatten(0, -3)
    if half >= min(flat.shape[-2:]):
        raise UserError(
            f"LaneDecoder: a box of {side} pixels is too large for maps of {tuple(flat.shape[-2:])}; lower smoothing."
        )
    padded = F.pad(flat, (half, half, half, half), mode="reflect")
    return (_window_sums(_window_sums(padded, side, 1), side, 2) / side**2).view(maps.shape)


def _window_sums(maps: Tensor, side: int, dim: int) -> Tensor:
    """Sums over windows of `side` along one dimension; several times as fast as pooling on a CPU."""
    length = maps.shape[dim] - side + 1
    total = maps.narrow(dim, 0, length).clone()
    for start in range(1, side):
        total += maps.narrow(dim, start, length)
    return total


def best_columns(lines: npt.NDArray[Any], threshold: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """The column of the largest value of each line, 0 where it does not exceed `threshold`, and these values.

    Args:
        lines: probabilities (..., w).
        threshold: of these.
    """
    columns = lines.argmax(axis=-1)
    values = np.take_along_axis(lines, columns[..., None], axis=-1)[..., 0]
    return np.where(values > threshold, columns, 0), values


def largest_components(above: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Of each map (..., h, w) the largest part that hangs together, diagonals included; the first of equal ones."""
    maps = above.reshape(-1, *above.shape[-2:])
    return np.stack([_largest_component(one) for one in maps]).reshape(above.shape)


def _largest_component(above: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    count, parts, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    return above if count <= 2 else np.asarray(parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax(), bool)
