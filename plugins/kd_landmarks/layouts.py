"""The files of the benchmarks: `.pts`, box lists of 300-W, lists of WFLW, the `.mat` files of AFLW-19 and COFW.

Coordinates come out 0-based, as pixel centres; boxes as x, y, width, height (float64).
"""

import os
import re
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from kd_tasks.errors import UserError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

WFLW_ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
WFLW_POINTS = 98
AFLW_POINTS = 19
COFW_POINTS = 29

_AGAIN = "Copy or unpack it again."
_DECLARED = re.compile(r"n_points\s*:\s*(\d+)", re.IGNORECASE)


def read_pts(path: Path, points: int | None = None) -> Floats:
    """The points (K, 2) of a `.pts` file, which counts pixels from 1; here they count from 0.

    Args:
        path: the file; blank lines, trailing blanks and any number of blanks between values are fine.
        points: how many there must be; None takes what the file says.

    Raises:
        UserError: if the file is missing, has no braces, another number of points, or a point that is not two finite
            numbers; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error
    head, opening, rest = text.partition("{")
    body, closing, _ = rest.partition("}")
    if not opening or not closing:
        raise UserError(f"{path}: lacks the braces '{{' and '}}' around the points. {_AGAIN}")
    declared = _DECLARED.search(head)
    found = _numbers(body)
    if found is None:
        found = _by_line(path, body, head.count("\n") + 1)
    if declared is not None and len(found) != int(declared[1]):
        raise UserError(f"{path}: says n_points: {declared[1]}, but holds {len(found)} points. {_AGAIN}")
    if points is not None and len(found) != points:
        raise UserError(f"{path}: holds {len(found)} points; it should hold {points}, as the other files do.")
    return found - 1.0


def read_300w_boxes(path: Path) -> dict[str, tuple[Floats, Floats]]:
    """The boxes of the detector and of the annotation by `key_300w` of the picture.

    Raises:
        UserError: if the file is missing or is not one of 300-W's box lists.
    """
    entries = np.atleast_1d(_matlab(path, "bounding_boxes"))
    boxes = {}
    for number, entry in enumerate(entries, start=1):
        try:
            detector, truth = (
                np.asarray(getattr(entry, f), np.float64).ravel() for f in ("bb_detector", "bb_ground_truth")
            )
            boxes[key_300w(str(entry.imgName))] = (_from_corners(detector) - _ONE, _from_corners(truth) - _ONE)
        except (AttributeError, ValueError, TypeError) as error:
            raise UserError(f"{path}: entry {number} lacks imgName, bb_detector or bb_ground_truth: {error}.") from None
    return boxes


def key_300w(name: str) -> str:
    """A picture's name without suffix and blanks: some lists leave blanks out that the file has."""
    return re.sub(r"\s", "", Path(name.strip()).stem)


class WflwLine(NamedTuple):
    """A face of a WFLW list.

    Attributes:
        name: of the picture, below `WFLW_images`.
        points: (98, 2).
        box: x, y, width, height.
        attributes: those that are set.
    """

    name: str
    points: Floats
    box: Floats
    attributes: tuple[str, ...]


def parse_wflw(line: str, where: str) -> WflwLine:
    """A line of `list_98pt_rect_attr_*.txt`: 196 coordinates, x_min y_min x_max y_max, 6 attributes, the picture.

    Raises:
        UserError: if fields are missing or are not numbers.
    """
    coordinates, box, bits = 2 * WFLW_POINTS, 4, len(WFLW_ATTRIBUTES)
    numbers = coordinates + box + bits
    fields = line.split(maxsplit=numbers)
    if len(fields) != numbers + 1:
        raise UserError(f"{where}: has {len(fields)} fields; a line has {numbers} numbers and the picture. {_AGAIN}")
    try:
        values = np.array(fields[:numbers], np.float64)
    except ValueError as error:
        raise UserError(f"{where}: a field is not a number: {error}. {_AGAIN}") from None
    flags = values[coordinates + box :]
    return WflwLine(
        fields[numbers].strip(),
        values[:coordinates].reshape(-1, 2),
        _from_corners(values[coordinates : coordinates + box]),
        tuple(name for name, flag in zip(WFLW_ATTRIBUTES, flags, strict=True) if flag),
    )


class AflwTable(NamedTuple):
    """What `AFLWinfo_release.mat` says.

    Attributes:
        names: of the pictures, below `flickr`.
        points: (N, 19, 2); zeros where they are not visible.
        visible: (N, 19).
        boxes: (N, 4).
        order: (N,), the faces in their official order, the training ones first.
    """

    names: list[str]
    points: Floats
    visible: Mask
    boxes: Floats
    order: npt.NDArray[np.int64]

    def frontal(self) -> Mask:
        """Whether (N,) all points of a face are visible and inside its box."""
        low, high = self.boxes[:, None, :2], self.boxes[:, None, :2] + self.boxes[:, None, 2:]
        inside = np.all((self.points >= low) & (self.points <= high), axis=-1)
        return np.all(self.visible & inside, axis=-1)


def read_aflw(path: Path) -> AflwTable:
    """The annotation of AFLW-19. Its coordinates are used as they are; its boxes are x1, **x2, y1**, y2.

    Raises:
        UserError: if the file is missing, or its tables are not those of AFLW-19.
    """
    names, data, mask, corners, order = (_matlab(path, key) for key in ("nameList", "data", "mask_new", "bbox", "ra"))
    data, corners, mask = np.atleast_2d(data), np.atleast_2d(corners), np.atleast_2d(mask)
    count = len(data)
    names = [str(name).strip() for name in np.atleast_1d(names)]
    order = np.atleast_1d(order).astype(np.int64) - 1
    shapes = (data.shape, mask.shape, corners.shape, len(names))
    if shapes != ((count, 2 * AFLW_POINTS), (count, AFLW_POINTS), (count, 4), count):
        raise UserError(f"{path}: data, mask_new, bbox and nameList do not belong together: {shapes}. {_AGAIN}")
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise UserError(f"{path}: ra should hold each of 1 to {count} once. {_AGAIN}")
    visible = mask == 1
    points = np.stack([data[:, :AFLW_POINTS], data[:, AFLW_POINTS:]], axis=-1).astype(np.float64)
    x1, x2, y1, y2 = corners.astype(np.float64).T
    boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)
    return AflwTable(names, np.where(visible[..., None], points, 0.0), visible, boxes, order)


class CofwFile:
    """A `COFW_*_color.mat`: pictures and annotation in one HDF5 file, opened once in each process that reads it.

    Args:
        path: the file.

    Raises:
        UserError: if the file is missing, is not HDF5, or lacks its tables.
    """

    _keys: ClassVar[tuple[dict[str, str], ...]] = (
        {"pictures": "IsTr", "points": "phisTr", "boxes": "bboxesTr"},
        {"pictures": "IsT", "points": "phisT", "boxes": "bboxesT"},
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, Any] | None = None
        file = self._file()
        self._names = next((keys for keys in self._keys if all(k in file for k in keys.values())), None)
        if self._names is None:
            wanted = " or ".join(", ".join(keys.values()) for keys in self._keys)
            raise UserError(f"{path}: lacks the tables {wanted}; it holds {', '.join(file)}.")
        table = np.asarray(file[self._names["points"]], np.float64).reshape(3, COFW_POINTS, -1)
        self.points: Floats = table[:2].transpose(2, 1, 0) - 1.0
        self.occluded: Mask = table[2].T == 1
        self.boxes: Floats = np.asarray(file[self._names["boxes"]], np.float64).reshape(4, -1).T - _ONE

    def __len__(self) -> int:
        return len(self.points)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """Picture `index` as uint8 RGB (H, W, 3); a grey one gets three equal channels."""
        try:
            stored = self._stored(index)[()]
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{self.path}: picture {index} cannot be read: {error}. {_AGAIN}") from error
        pixels = np.ascontiguousarray(stored.T)
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of picture `index`."""
        width, height = self._stored(index).shape[-2:]
        return int(height), int(width)

    def _stored(self, index: int) -> Any:
        """The stored array: (3, W, H), or (W, H) of a grey picture, since MATLAB counts along columns."""
        assert self._names is not None
        file = self._file()
        return file[np.asarray(file[self._names["pictures"]]).ravel()[index]]

    def _file(self) -> Any:
        """The open file. A forked worker must not share its parent's, so the process counts."""
        import h5py

        if self._open is not None and self._open[0] == os.getpid():
            return self._open[1]
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file.")
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            raise UserError(f"{self.path}: is not a MATLAB file of version 7.3 (HDF5): {error}. {_AGAIN}") from error
        self._open = (os.getpid(), file)
        return file


_ONE = np.array([1.0, 1.0, 0.0, 0.0])


def _from_corners(corners: Floats) -> Floats:
    x1, y1, x2, y2 = corners
    return np.array([x1, y1, x2 - x1, y2 - y1])


def _numbers(body: str) -> Floats | None:
    """The points of a body without fault; None if there is any."""
    try:
        values = np.array(body.split(), np.float64)
    except ValueError:
        return None
    if len(values) % 2 or not np.isfinite(values).all():
        return None
    return values.reshape(-1, 2)


def _by_line(path: Path, body: str, first: int) -> Floats:
    """The points one by one, until the line that is at fault."""
    points: list[list[float]] = []
    for number, line in enumerate(body.split("\n"), start=first):
        if not line.strip():
            continue
        try:
            point = [float(value) for value in line.split()]
        except ValueError:
            point = []
        if len(point) != 2 or not np.isfinite(point).all():
            raise UserError(f"{path}:{number}: point {len(points) + 1} is not two numbers: {line.strip()!r}.")
        points.append(point)
    return np.array(points, np.float64).reshape(-1, 2)


def _matlab(path: Path, key: str) -> Any:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        return loadmat(path, squeeze_me=True, struct_as_record=False, variable_names=[key])[key]
    except KeyError:
        raise UserError(f"{path}: holds no table {key!r}. {_AGAIN}") from None
    except (MatReadError, NotImplementedError, ValueError, TypeError, IndexError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a MATLAB file: {error}. {_AGAIN}") from error
