"""CULane, TuSimple and BDD100K: pictures, lane masks and annotated lanes as the benchmarks have them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from mmengine.registry import DATASETS

from kd_lanes import bdd
from kd_lanes.culane import CATEGORIES, category_file
from kd_lanes.frames import Bytes, Frame, LaneDataset, Lanes
from kd_lanes.lane_files import Lane, lines_path, read_lines
from kd_lanes.slots import drawn_lanes, lane_classes, lane_palette, lane_slots, mirrored_slots
from kd_lanes.tusimple import lane_rows, numbered_records, sample_rows
from kd_tasks.errors import UserError, nearest
from kd_tasks.vision.images import Array

Floats = npt.NDArray[np.float64]


class Listed(NamedTuple):
    """A line of a list.

    Attributes:
        words: what stands in it.
        where: file and line number, for messages.
    """

    words: list[str]
    where: str


def read_listed(path: Path, hint: Callable[[], str]) -> list[Listed]:
    """The lines of a list that are not blank.

    Args:
        path: the file.
        hint: gives what a message about a missing list ends with.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such list. {hint()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list: {error}.") from None
    split = ((number, line.split()) for number, line in enumerate(lines, start=1))
    return [Listed(words, f"{path}, line {number}") for number, words in split if words]


# --- CULane ----------------------------------------------------------------------------------------------------------

FAULT_RULES = {
    "error": "a line of numbers that is no lane is an error",
    "official": "lines are taken as the official evaluator takes them",
}


@DATASETS.register_module()
class CULane(LaneDataset):
    """CULane (Pan et al., AAAI 2018): four lane slots; far left, left, right and far right of the camera.

    `train` and `val` are the lists with existence (`list/train_gt.txt`); `test` has no masks, so that a sample has
    neither `mask` nor `exist`, but `category` in `meta`, by the nine lists of `list/test_split`. `lanes` in `meta` are
    those of `.lines.txt`, in the order of the file, bottom to top, points beside the picture included, on which the
    evaluation's splines depend.

    Args:
        data_root: the folder of the drivers, `laneseg_label_w16` and `list`.
        split: `train`, `val` or `test`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
        size: see `LaneDataset`.
        crop_top: see `LaneDataset`; papers cut 240 of the 590 rows.
        exist_pixels: see `LaneDataset`.
        faults: `error`, lines of `.lines.txt` that are blank, or have an odd count of numbers or a point twice in a
            row, are errors that name file and line; `official`, they are taken as the official evaluator takes them: a
            lane without points, without the last number, a lane that nothing matches.
    """

    classes = ("background", "lane 1", "lane 2", "lane 3", "lane 4")
    palette = lane_palette(4)
    swaps = mirrored_slots(4)
    card = "culane"

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        size: Sequence[int] | None = None,
        crop_top: int = 0,
        exist_pixels: int = 1,
        faults: str = "error",
    ) -> None:
        if faults not in FAULT_RULES:
            known = " or ".join(FAULT_RULES)
            raise UserError(f"CULane: faults is {faults!r}; it can be {known}.{nearest(faults, FAULT_RULES)}")
        self.faults = faults
        super().__init__(data_root, split, transforms, test_mode, size, crop_top, exist_pixels)

    def frames(self) -> Iterator[Listed]:
        """The lines of the split's list."""
        folder = self.root / "list"
        if self.split == "test":
            self._categories = self._of_test()
            yield from read_listed(folder / "test.txt", self.expected)
            return
        yield from read_listed(folder / f"{self.split}_gt.txt", self.expected)

    def frame(self, entry: Listed) -> Frame:
        """The picture of a line."""
        name = entry.words[0].lstrip("/")
        lines = {"lines file": lines_path(self.root, name)}
        image = self.root / name
        if self.split == "test":
            return Frame(image, name, entry.where, files=lines, extra={"category": self._category(name, entry)})
        mask, exist = _mask_and_bits(entry, len(self.classes) - 1)
        return Frame(image, name, entry.where, self.root / mask, exist, lines)

    def annotated_lanes(self, frame: Frame) -> list[Lane]:
        """The lanes of the picture's `.lines.txt`."""
        path = frame.files["lines file"]
        if self.faults == "official":
            return read_lines(path, odd="drop")
        lanes = read_lines(path)
        for number, lane in enumerate(lanes, start=1):
            _check_line(lane, f"{path}, line {number}")
        return lanes

    def _of_test(self) -> dict[str, str]:
        """The category of each picture of the test lists."""
        categories: dict[str, str] = {}
        for category in CATEGORIES:
            path = self.root / "list" / "test_split" / category_file(category)
            for line in read_listed(path, self.expected):
                name = line.words[0].lstrip("/")
                if categories.setdefault(name, category) != category:
                    self.refuse(UserError(f"{line.where}: {name} is in the list of {categories[name]!r}, too."))
        return categories

    def _category(self, name: str, entry: Listed) -> str:
        if name not in self._categories:
            raise UserError(f"{entry.where}: {name} is in none of the nine lists of {self.root / 'list/test_split'}.")
        return self._categories[name]


def _mask_and_bits(entry: Listed, lanes: int) -> tuple[str, tuple[int, ...]]:
    """The path of the mask and the existence of each slot."""
    shown = "picture, mask and " + f"{lanes} bits, such as " + " ".join("0110"[:lanes])
    bits = entry.words[2:]
    if len(entry.words) < 2 or len(bits) != lanes:
        raise UserError(f"{entry.where}: has {len(bits)} existence bits for {lanes} lane slots; a line is {shown}.")
    if not set(bits) <= {"0", "1"}:
        wrong = next(bit for bit in bits if bit not in ("0", "1"))
        raise UserError(f"{entry.where}: {wrong!r} is no existence bit, which is 0 or 1; a line is {shown}.")
    return entry.words[1].lstrip("/"), tuple(map(int, bits))


def _check_line(lane: Lane, where: str) -> None:
    """Raise UserError for a lane that the official evaluator cannot draw a spline through."""
    hint = "Take it out; faults='official' takes it as the official evaluator does."
    if not len(lane):
        raise UserError(f"{where}: is blank, which counts as a lane without points. {hint}")
    repeated = np.flatnonzero((lane[1:] == lane[:-1]).all(axis=1))
    if len(repeated):
        x, y = lane[repeated[0]]
        raise UserError(f"{where}: has the point ({x:g}, {y:g}) twice in a row, which breaks the spline. {hint}")


# --- TuSimple --------------------------------------------------------------------------------------------------------

_LABELS = {
    "train": ("label_data_0313.json", "label_data_0601.json"),
    "val": ("label_data_0531.json",),
    "trainval": ("label_data_0313.json", "label_data_0531.json", "label_data_0601.json"),
    "test": ("test_label.json",),
}
_FOLDERS = ("", "train_set", "test_set")


class Record(NamedTuple):
    """An annotated picture of TuSimple.

    Attributes:
        values: the object in the label file.
        where: file and line number, for messages.
        folder: below which `raw_file` lies.
    """

    values: dict[str, Any]
    where: str
    folder: Path


@DATASETS.register_module()
class TuSimple(LaneDataset):
    """TuSimple's lane challenge (2017): up to five lanes in six slots, three on each side of the camera.

    TuSimple has no masks. They are drawn from the annotation at the size of the picture: straight lines from point to
    point, `lane_width` thick. Slots are given from left to right, as usual in the literature by the angle of the line
    from a lane's lower to its upper end: lanes left of the camera lean to the right. Of these, the steepest has slot 3,
    the others 2 and 1; of those that lean to the left the steepest has 4, the others 5 and 6. More than three on a side
    are not drawn, the flattest first, nor are lanes of one point.

    `meta` has `path`, the `raw_file` of the labels, `h_samples`, and `lanes`: the points of all annotated lanes from
    bottom to top, an empty list for one that is absent in all rows, which the official evaluation counts.

    The folders `train_set` and `test_set` of some copies are found.

    Args:
        data_root: the folder of the label files and `clips`.
        split: `train` (0313 and 0601), `val` (0531), `trainval` (all three) or `test`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
        size: see `LaneDataset`.
        crop_top: see `LaneDataset`.
        exist_pixels: see `LaneDataset`.
        lane_width: the thickness that OpenCV draws lanes with, in pixels of the original picture; they come out up to
            2 px wider.
        masks: a folder with masks made beforehand, such as `seg_label`, where that of `clips/<name>.jpg` is
            `<name>.png` or `clips/<name>.png`; values 0 to 6. None draws them.
    """

    classes = ("background", "lane 1", "lane 2", "lane 3", "lane 4", "lane 5", "lane 6")
    palette = lane_palette(6)
    swaps = mirrored_slots(6)
    splits = ("train", "val", "trainval", "test")
    card = "tusimple"

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        size: Sequence[int] | None = None,
        crop_top: int = 0,
        exist_pixels: int = 1,
        lane_width: int = 15,
        masks: str | None = None,
    ) -> None:
        if not isinstance(lane_width, int) or lane_width < 1:
            raise UserError(f"TuSimple: lane_width is {lane_width!r}; it is a whole number of pixels, at least 1.")
        self.lane_width = lane_width
        self.masks = masks
        super().__init__(data_root, split, transforms, test_mode, size, crop_top, exist_pixels)

    def frames(self) -> Iterator[Record]:
        """The records of the split's label files."""
        if self.masks is not None and not (self.root / self.masks).is_dir():
            raise UserError(f"TuSimple: {self.root / self.masks}: no such folder of masks; masks=None draws them.")
        for name in _LABELS[self.split]:
            path = self._label_file(name)
            records = numbered_records(path)
            folder = self._folder_of(path, [values for _, values in records])
            for place, values in records:
                yield Record(values, str(place), folder)

    def frame(self, entry: Record) -> Frame:
        """The picture of a record."""
        name = str(entry.values["raw_file"]).lstrip("/")
        rows = sample_rows(entry.values["h_samples"], entry.where)
        lanes = [_points(x, rows) for x in lane_rows(entry.values["lanes"], len(rows), entry.where)]
        return Frame(
            entry.folder / name,
            str(entry.values["raw_file"]),
            entry.where,
            mask=None if self.masks is None else self._mask_path(name),
            lanes=lanes,
            extra={"h_samples": rows.tolist()},
        )

    def labels(self, frame: Frame, size: tuple[int, int]) -> tuple[Bytes, Bytes]:
        """Mask and existence, drawn or from a file."""
        stored = super().labels(frame, size)
        if stored is not None:
            return stored
        slots = lane_slots(frame.lanes)
        mask = drawn_lanes(slots, size, self.lane_width)
        return mask, np.array([slot in slots for slot in range(1, len(self.classes))], np.uint8)

    def check_lanes(self, lanes: Lanes, frame: Frame, size: tuple[int, int]) -> None:
        """Raise UserError if rows of `h_samples` are below the picture, as they are with resized pictures."""
        lowest = max(frame.extra["h_samples"])
        if lowest >= size[0]:
            raise UserError(
                f"{frame.where}: h_samples go down to {lowest:g}, but {frame.image} has {size[0]} rows. Were the "
                "pictures resized? Labels are in pixels of the original ones."
            )

    def _label_file(self, name: str) -> Path:
        places = [self.root / folder / name for folder in _FOLDERS]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise UserError(f"TuSimple: {places[0]}: there is no such label file. {self.expected()}")
        return found

    def _folder_of(self, path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
        """The folder that pictures are named from: the first that has one of them, else that of the label file."""
        name = str(records[0]["raw_file"]).lstrip("/") if records else ""
        places = (path.parent, *(self.root / folder for folder in _FOLDERS))
        return next((place for place in places if (place / name).is_file()), path.parent)

    def _mask_path(self, name: str) -> Path:
        """The mask of a picture, with or without the folder `clips`."""
        assert self.masks is not None
        inside = Path(name).with_suffix(".png")
        full = self.root / self.masks / inside
        return full if full.is_file() else self.root / self.masks / Path(*inside.parts[inside.parts[0] == "clips" :])


def _points(x: Floats, rows: Floats) -> Floats:
    """The points (P, 2) of a lane (rows,) that are there, from bottom to top."""
    present = np.flatnonzero(x >= 0)
    present = present[np.argsort(-rows[present], kind="stable")]
    return np.stack([x[present], rows[present]], axis=1)


# --- BDD100K ---------------------------------------------------------------------------------------------------------

LANE = "lane"
ENCODINGS = {"classes": "numbers of classes", "bytes": "the bytes of BDD100K"}


@DATASETS.register_module()
class BDD100KLanes(LaneDataset):
    """BDD100K (Yu et al., CVPR 2020), lane markings: masks, no lanes as points and no slots.

    The official masks have a byte a pixel; see `kd_lanes.bdd`. `mask` has 0 for the background and the classes of
    `task` from 1 on; with `encoding='bytes'` it has the bytes, 255 for the background, as the official scores need
    them; a criterion then takes the background for ignored. `exist` says which classes a picture has.

    Papers on lane detection (Hou et al., ICCV 2019) use binary masks with the centre line of each lane drawn 8 px wide
    in the training split and 2 px in the others. Their lists name a picture, a mask and four existence bits, which are
    dummies and not read; masks hold 0, and 1 or 255 on lanes. Name the list by `list_file`.

    Args:
        data_root: the folder of `images/100k` and `labels/lane/masks`, or what the paths of the list start from.
        split: `train` or `val`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
        size: see `LaneDataset`.
        crop_top: see `LaneDataset`.
        exist_pixels: see `LaneDataset`.
        task: `lane`, one class for all markings; `direction`, `style` or `category`, the classes of that task.
        encoding: `classes` or `bytes`, as of `BDDLaneMetric`.
        list_file: a list of pictures and binary masks, relative to the root; None takes the official masks.
    """

    splits = ("train", "val")
    card = "bdd100k_lanes"
    tasks: ClassVar[dict[str, tuple[str, ...]]] = {LANE: (LANE,), **bdd.TASKS}

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        size: Sequence[int] | None = None,
        crop_top: int = 0,
        exist_pixels: int = 1,
        task: str = LANE,
        encoding: str = "classes",
        list_file: str | None = None,
    ) -> None:
        for name, value, known in (("task", task, self.tasks), ("encoding", encoding, ENCODINGS)):
            if value not in known:
                raise UserError(
                    f"BDD100KLanes: {name} is {value!r}; it can be {', '.join(known)}.{nearest(value, known)}"
                )
        if list_file is not None and (task, encoding) != (LANE, "classes"):
            raise UserError("BDD100KLanes: the masks of a list are binary: leave task and encoding as they are.")
        self.task, self.encoding, self.list_file = task, encoding, list_file
        self.classes = lane_classes(self.tasks[task])
        self.palette = lane_palette(len(self.classes) - 1)
        self.swaps = tuple(range(len(self.classes)))
        self._table = self._class_table()
        super().__init__(data_root, split, transforms, test_mode, size, crop_top, exist_pixels)

    def frames(self) -> Iterator[Any]:
        """The pictures of the split's folder by name, or the lines of the list."""
        if self.list_file is not None:
            yield from read_listed(self.root / self.list_file, self.expected)
            return
        folder = self.root / "images" / "100k" / self.split
        if not folder.is_dir():
            raise UserError(f"BDD100KLanes: {folder}: no such folder. {self.expected()}")
        yield from sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))

    def frame(self, entry: Path | Listed) -> Frame:
        """A picture and its mask."""
        if isinstance(entry, Path):
            mask = self.root / "labels" / "lane" / "masks" / self.split / f"{entry.stem}.png"
            return Frame(entry, self.relative(entry), str(mask), mask)
        if len(entry.words) < 2:
            raise UserError(f"{entry.where}: has one word; a line is picture, mask, and bits that are not read.")
        image, mask_name = (word.lstrip("/") for word in entry.words[:2])
        return Frame(self.root / image, image, entry.where, self.root / mask_name)

    def annotated_lanes(self, frame: Frame) -> None:
        """There are none."""

    @property
    def allowed(self) -> tuple[int, ...]:
        """Values that a stored mask can hold."""
        return (0, 1, 255) if self.list_file is not None else (*range(64), bdd.EMPTY)

    def slots(self, stored: Array, frame: Frame) -> Bytes:
        """Classes, or with `encoding='bytes'` the bytes."""
        values = super().slots(stored, frame)
        if self.encoding == "bytes":
            return values
        return np.asarray(cv2.LUT(values, self._table), np.uint8)

    def found(self, mask: Bytes) -> npt.NDArray[np.int64]:
        """Pixels of each class in a mask."""
        if self.encoding == "bytes":
            mask = np.asarray(cv2.LUT(np.ascontiguousarray(mask), self._table), np.uint8)
        return super().found(mask)

    def _class_table(self) -> Bytes:
        """For each stored value (256,) its class."""
        table = np.zeros(256, np.uint8)
        if self.list_file is not None:
            table[[1, 255]] = 1
            return table
        value = np.arange(256, dtype=np.uint8)
        names = self.tasks[self.task]
        first = bdd.FIRST_BIT.get(self.task, 0)
        classes = 1 + (value >> first) % len(names)
        return np.where(bdd.is_marking(value), classes, 0).astype(np.uint8)
