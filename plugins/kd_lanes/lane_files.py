"""Files of CULane: `.lines.txt` with one lane a line, and lists of pictures."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_tasks.errors import UserError, nearest

Lane = npt.NDArray[np.float32]

SUFFIX = ".lines.txt"
ODD_RULES = {
    "error": "a line with an odd count of numbers is an error",
    "drop": "of a line with an odd count of numbers the last is left out (rule of the official evaluator)",
}
LARGEST = float(np.finfo(np.float32).max)


def lines_path(root: str | Path, picture: str) -> Path:
    """The lines file below `root` of a picture as lists name it, with or without a slash in front."""
    return Path(root) / Path(picture.lstrip("/")).with_suffix(SUFFIX)


def read_list(path: str | Path) -> list[str]:
    """The pictures of a list: the first word of each line, without the slash in front; blank lines are left out.

    Raises:
        UserError: if the file cannot be read.
    """
    words = (line.split() for line in _text(Path(path)).split("\n"))
    return [line[0].lstrip("/") for line in words if line]


def read_lines(path: str | Path, odd: str = "error") -> list[Lane]:
    """The lanes of a `.lines.txt`, one (P, 2) array of x, y in pixels for each line of the file.

    A blank line is a lane without points, as it is for the official evaluator; see `tidy`.

    Args:
        path: the file.
        odd: what a line with an odd count of numbers does: `error`; `drop`, its last number is left out.

    Raises:
        UserError: if the file cannot be read, or a line has something that is no finite number or, by `odd`, half a
            point; names file and line.
    """
    check_odd(odd)
    path = Path(path)
    lines = _text(path).split("\n")
    if not lines[-1]:
        lines.pop()
    return [_lane(line.split(), f"{path}, line {number}", odd) for number, line in enumerate(lines, start=1)]


def write_lines(path: str | Path, lanes: Iterable[npt.ArrayLike]) -> None:
    """Write lanes as the official evaluator reads them: bottom to top as given, `tidy`, with all digits of float32.

    Raises:
        UserError: if a lane is no (P, 2) array of finite numbers, or the file cannot be written.
    """
    path = Path(path)
    rows = (" ".join(map(_shown, lane.ravel())) + " \n" for lane in tidy(lanes, str(path)))
    text = "".join(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path}: lanes cannot be written there: {error}. Choose another folder.") from None


def tidy(lanes: Iterable[npt.ArrayLike], where: str = "lanes") -> list[Lane]:
    """Lanes that the official evaluator can draw: no point twice in a row, and at least two points.

    A point that stands twice in a row makes its spline nan; of a lane with fewer than two points it draws nothing.

    Args:
        lanes: (P, 2) arrays of x, y.
        where: what an error names.
    """
    distinct = (without_repeats(as_lane(lane, where)) for lane in lanes)
    return [lane for lane in distinct if len(lane) >= 2]


def without_repeats(lane: Lane) -> Lane:
    """The lane (P, 2) without points that are equal to the one before."""
    if len(lane) < 2:
        return lane
    return lane[np.append(True, (lane[1:] != lane[:-1]).any(axis=1))]


def as_lane(lane: Any, where: str = "a lane") -> Lane:
    """A lane as (P, 2) array of float32.

    Raises:
        UserError: if it has another shape, or values that are no finite numbers; begins with `where`.
    """
    points = np.asarray(lane, np.float64)
    if not points.size:
        return np.zeros((0, 2), np.float32)
    if points.ndim != 2 or points.shape[1] != 2:
        raise UserError(f"{where}: a lane has the shape {points.shape}; give points (P, 2) of x, y.")
    if not (np.abs(points) <= LARGEST).all():
        raise UserError(f"{where}: a lane has values that are not finite; leave out the points without a place.")
    return points.astype(np.float32)


def check_odd(odd: str) -> None:
    """Raise UserError if there is no such rule for an odd count of numbers."""
    if odd not in ODD_RULES:
        raise UserError(f"odd is {odd!r}.{nearest(odd, ODD_RULES)} Known: {', '.join(ODD_RULES)}.")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it cannot be read as text: {error}.") from None


def _lane(words: Sequence[str], where: str, odd: str) -> Lane:
    try:
        values = [float(word) for word in words]
    except ValueError:
        wrong = next(word for word in words if not _is_number(word))
        raise UserError(f"{where}: {wrong!r} is no number; a lane is x y x y ... in pixels.") from None
    for value in values:
        if not abs(value) <= LARGEST:
            raise UserError(f"{where}: {value} is no place in a picture; leave out the points without a place.")
    if len(values) % 2 and odd == "error":
        raise UserError(
            f"{where}: {len(values)} numbers, but a lane is pairs of x and y. Complete the last point or take it out; "
            "odd='drop' leaves it out, as the official evaluator does."
        )
    return np.array(values[: len(values) // 2 * 2], np.float32).reshape(-1, 2)


def _is_number(word: str) -> bool:
    try:
        return not math.isnan(float(word))
    except ValueError:
        return False


def _shown(value: np.float32) -> str:
    return np.format_float_positional(value, trim="-")
