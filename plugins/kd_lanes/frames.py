"""The base of data sets of lanes: sky cut off, one size, lane slots that change places when a picture is mirrored."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from kd_tasks.errors import UserError
from kd_tasks.vision.cards import SplitReport
from kd_tasks.vision.dataset import DataError, Progress, VisionDataset, first_of, missing_files
from kd_tasks.vision.images import Array, image_size, read_image, read_labels

Bytes = npt.NDArray[np.uint8]
Lanes = Sequence[Any]

_BELOW = 1.1  # how far down, in heights of the picture, a point may lie


class Frame(NamedTuple):
    """A picture and what belongs to it.

    Attributes:
        image: the file.
        name: of the picture, as `path` in `meta`.
        where: the place of its annotation, for messages.
        mask: the file of lane slots; None if there is none.
        exist: which slots have a lane, as a list says; None where none says it.
        files: others that the annotation needs, by kind.
        lanes: annotated lanes that were read with the list, (P, 2) each.
        extra: what goes into `meta` besides.
    """

    image: Path
    name: str
    where: str
    mask: Path | None = None
    exist: tuple[int, ...] | None = None
    files: Mapping[str, Path] = {}
    lanes: Lanes = ()
    extra: Mapping[str, Any] = {}


class LaneDataset(VisionDataset):
    """Road pictures with lanes. A subclass says which there are (`frames`) and how the annotation of one is read.

    The upper `crop_top` rows are cut off first, in training and in testing; the rest is resized to `size`: pixels are
    areas, so that x goes to (x + 0.5) * w / W - 0.5, and labels take the value at that place. Transforms come after.

    Targets:
        mask: uint8 (H, W), 0 the background, 1 to L the lane slots, 255 ignored. In training it goes through all that
            the picture goes through; with `test_mode` it is that of the file, of the size of the original picture.
        exist: uint8 (L,), which slots have a lane. In training those that the annotation has and of which at least
            `exist_pixels` pixels are left in `mask`; with `test_mode` those of the annotation.

    Where transforms exchange left and right, the slots of `mask` and `exist` change places by `swaps`: for each class,
    the background included, the class that it is in a mirrored picture. `meta` has also
    `crop_top`, and `lanes`, the annotated lanes as lists of [x, y] in pixels of the original picture, untouched by
    transforms; a data set without them leaves them out, and so are `mask` and `exist` where there are no masks.

    Args:
        data_root: see `VisionDataset`.
        split: see the data set.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
        size: height and width of `inputs` before the transforms; None keeps that of the picture without its sky.
        crop_top: rows that are cut off the top of each picture.
        exist_pixels: of `mask`, of a lane that exists, at least 1; 0 takes the annotation's word for it.

    Raises:
        UserError: if a number is out of range, or folders, lists or files are missing.
    """

    swaps: tuple[int, ...]
    items: list[Frame]

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        size: Sequence[int] | None = None,
        crop_top: int = 0,
        exist_pixels: int = 1,
    ) -> None:
        name = type(self).__name__
        self.size = None if size is None else _height_width(size, name)
        for option, number in (("crop_top", crop_top), ("exist_pixels", exist_pixels)):
            if not isinstance(number, int) or number < 0:
                raise UserError(f"{name}: {option} {number!r} is no whole number of at least 0.")
        self.crop_top = crop_top
        self.exist_pixels = exist_pixels
        super().__init__(data_root, split, transforms, test_mode)
        self._exchange = np.arange(256, dtype=np.uint8)
        self._exchange[: len(self.swaps)] = self.swaps
        self._moves = self.swaps != tuple(range(len(self.swaps)))

    def frames(self) -> Iterable[Any]:
        """The pictures of the split, in a fixed order, each as `frame` needs it.

        Raises:
            UserError: if a folder or a list is missing.
        """
        raise NotImplementedError

    def frame(self, entry: Any) -> Frame:
        """One picture with its files, which need not exist.

        Raises:
            UserError: if its line in a list is faulty.
        """
        raise NotImplementedError

    def annotated_lanes(self, frame: Frame) -> Lanes | None:
        """The annotated lanes of a picture, (P, 2) each; None if the data set has masks alone.

        Raises:
            UserError: if the annotation is faulty.
        """
        return frame.lanes

    def stored_mask(self, frame: Frame) -> Bytes:
        """The mask of a picture as its file has it."""
        return read_labels(self._mask_file(frame))

    def slots(self, stored: Array, frame: Frame) -> Bytes:
        """Slots (H, W) from stored values.

        Raises:
            UserError: if a value is no slot; names file and value.
        """
        self.check_values(stored, frame)
        return stored.astype(np.uint8, copy=False)

    def labels(self, frame: Frame, size: tuple[int, int]) -> tuple[Bytes, npt.NDArray[np.uint8]] | None:
        """Mask (H, W) and existence (L,) of a picture of `size`; None if it has no mask."""
        if frame.mask is None:
            return None
        mask = self.slots(self.stored_mask(frame), frame)
        exist = self.found(mask) > 0 if frame.exist is None else frame.exist
        return mask, np.asarray(exist, np.uint8)

    @property
    def allowed(self) -> tuple[int, ...]:
        """Values that a stored mask can hold."""
        return tuple(range(len(self.classes)))

    @property
    def metainfo(self) -> dict[str, Any]:
        """`classes`, the background and the slots, `palette`, `swaps`, and `lanes`, the number of slots."""
        return {**super().metainfo, "swaps": list(self.swaps), "lanes": len(self.classes) - 1}

    def refuse(self, error: UserError) -> None:
        """What happens to a fault of a list: it is raised; a survey collects."""
        raise error

    def find(self) -> list[Frame]:
        """The pictures of the split."""
        found = []
        for entry in self.frames():
            try:
                found.append(self.frame(entry))
            except UserError as error:
                self.refuse(error)
        return found

    def check(self) -> None:
        """All files exist."""
        for kind, paths in self._files().items():
            absent = missing_files(paths)
            if absent:
                raise UserError(
                    f"{type(self).__name__}: of {len(self)} samples of the split {self.split!r}, the {kind} of "
                    f"{len(absent)} is missing below {self.root}: {first_of(absent, self.root)}. {self.expected()}"
                )

    def part(self, count: int) -> list[int]:
        """Places of `count` samples spread over the split: frames of one clip follow each other and look alike."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)).tolist()

    def load(self, index: int) -> dict[str, Any]:
        """Picture, `mask`, `exist` and meta of a sample as the files have them, sky included."""
        frame = self.items[index]
        image = read_image(frame.image)
        height, width = image.shape[:2]
        sample: dict[str, Any] = {"image": image, "meta": {"path": frame.name, **frame.extra}}
        labels = self.labels(frame, (height, width))
        if labels is not None:
            sample["mask"], sample["exist"] = labels
            _check_size(frame, (height, width), sample["mask"].shape)
        lanes = self.annotated_lanes(frame)
        if lanes is not None:
            self.check_lanes(lanes, frame, (height, width))
            sample["meta"]["lanes"] = [np.asarray(lane).tolist() for lane in lanes]
        return sample

    def found(self, mask: Bytes) -> npt.NDArray[np.int64]:
        """Pixels (L,) of each slot in a mask (H, W)."""
        counts = cv2.calcHist([np.ascontiguousarray(mask)], [0], None, [256], [0, 256])
        return counts.ravel()[1 : len(self.classes)].astype(np.int64)

    def check_values(self, stored: Array, frame: Frame) -> None:
        """Raise UserError if a stored mask has a value that is not `allowed`."""
        wrong = [value for value in _values(stored) if value not in self.allowed]
        if wrong:
            row, column = np.argwhere(stored == wrong[0])[0]
            more = f" and {len(wrong) - 1} other values are" if len(wrong) > 1 else " is"
            raise UserError(
                f"{frame.mask}: value {wrong[0]} (row {row}, column {column}){more} not one of "
                f"{type(self).__name__}'s: {_ranges(self.allowed)}. Was the mask resized with "
                "interpolation, or is it of another data set?"
            )

    def check_lanes(self, lanes: Lanes, frame: Frame, size: tuple[int, int]) -> None:
        """Look whether annotated lanes fit a picture of `size`.

        Raises:
            UserError: if a point is far below the picture, as it is with pictures that somebody has resized.
        """
        for number, lane in enumerate(lanes, start=1):
            lowest = max((y for _, y in lane), default=0.0)
            if lowest > _BELOW * size[0]:
                raise UserError(
                    f"{frame.where}, lane {number}: has a point at y = {lowest:g}, but {frame.image} has {size[0]} "
                    "rows. Were the pictures resized? Lanes are in pixels of the original ones."
                )

    @classmethod
    def survey(cls, root: str | Path, split: str, progress: Progress | None = None, **options: Any) -> SplitReport:
        """Look at lists, annotations, masks, and headers and ends of pictures. Pictures are not decoded."""
        report = SplitReport()
        gathering: dict[str, Callable[..., Any]] = {
            "refuse": lambda _, error: report.faults.append(str(error)),
            "check": lambda _: None,
        }
        try:
            dataset = type(cls.__name__, (cls,), gathering)(root, split, test_mode=True, **options)
        except UserError as error:
            report.faults.append(str(error))
            return report
        absent = set(missing_files(path for paths in dataset._files().values() for path in paths))
        report.missing = sorted(path.relative_to(dataset.root).as_posix() for path in absent)
        for done, frame in enumerate(dataset.items, start=1):
            if frame.image not in absent:
                report.found += 1
                report.images.append(frame.image)
                dataset._look_at(frame, absent, report)
            if progress is not None:
                progress(done, len(dataset))
        return report

    def _look_at(self, frame: Frame, absent: set[Path], report: SplitReport) -> None:
        """Add what one picture and its annotation hold to `report`."""
        try:
            size = image_size(frame.image)
        except UserError as error:
            report.faults.append(str(error))
            return
        report.sizes[size] += 1
        if absent.isdisjoint(frame.files.values()):
            _collect(report, lambda: self.check_lanes(self.annotated_lanes(frame) or (), frame, size))
        if frame.mask is not None and frame.mask not in absent:
            _collect(report, lambda: self._look_at_mask(frame, size, report))

    def _look_at_mask(self, frame: Frame, size: tuple[int, int], report: SplitReport) -> None:
        stored = self.stored_mask(frame)
        values = _values(stored)
        report.values.update(values)
        wrong = [value for value in values if value not in self.allowed]
        for value in wrong:
            report.out_of_range.setdefault(value, []).append(self.relative(self._mask_file(frame)))
        _check_size(frame, size, stored.shape)
        if not wrong and frame.exist is not None:
            _check_existence(frame, self.found(self.slots(stored, frame)))

    def _files(self) -> dict[str, list[Path]]:
        """All files of the split by kind."""
        files: dict[str, list[Path]] = {"picture": [frame.image for frame in self.items]}
        files["mask"] = [frame.mask for frame in self.items if frame.mask is not None]
        for frame in self.items:
            for kind, path in frame.files.items():
                files.setdefault(kind, []).append(path)
        return files

    @staticmethod
    def _mask_file(frame: Frame) -> Path:
        if frame.mask is None:
            raise UserError(f"{frame.where}: {frame.name} has no mask.")
        return frame.mask

    def _augmented(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        """The sample without its sky, at its size, after the transforms.

        Raises:
            DataError: if nothing is left of the picture, or a transform cannot be applied.
        """
        height = sample["image"].shape[0]
        if self.crop_top >= height:
            raise DataError(
                f"{sample['meta']['path']}: has {height} rows, but crop_top={self.crop_top} cuts off as many or more. "
                "Lower it for pictures of this size."
            )
        sample["meta"]["crop_top"] = self.crop_top
        sample["image"] = self._sized(sample["image"], _smooth)
        if self.test_mode or "mask" not in sample:
            return super()._augmented(sample, seed)
        mask = self._sized(sample["mask"], _nearest)
        height, width = mask.shape
        # The ends of a row tell whether the transforms exchange left and right.
        ends = np.array([[0, height / 2], [width - 1, height / 2]], np.float32)
        moves = bool(self.augment.transforms) and self._moves
        try:
            result = self.augment(sample["image"], mask=mask, keypoints=ends if moves else None, seed=seed)
        except UserError as error:
            raise DataError(f"{sample['meta']['path']}: {error}") from error.__cause__
        mask, exist = result["mask"], sample["exist"]
        if moves and result["keypoints"][0, 0] > result["keypoints"][1, 0]:
            mask = np.asarray(cv2.LUT(np.ascontiguousarray(mask), self._exchange), np.uint8)
            exist = exist[np.asarray(self.swaps[1:]) - 1]
        if self.exist_pixels:
            exist = exist * (self.found(mask) >= self.exist_pixels).astype(np.uint8)
        return {**sample, "image": result["image"], "mask": mask, "exist": exist}

    def _sized(self, pixels: Array, interpolation: Callable[[tuple[int, int], tuple[int, int]], int]) -> Array:
        """A picture or mask without its sky, resized to `size`."""
        kept = pixels[self.crop_top :]
        before = kept.shape[0], kept.shape[1]
        if self.size is None or before == self.size:
            return kept
        return cv2.resize(kept, self.size[::-1], interpolation=interpolation(before, self.size))


def _height_width(size: Sequence[int], name: str) -> tuple[int, int]:
    """`size` of the data set called `name`."""
    given = tuple(size) if isinstance(size, Sequence) else (size,)
    if len(given) != 2 or not all(isinstance(side, int) and side > 0 for side in given):
        raise UserError(f"{name}: size is {size!r}; it is (height, width) in pixels, such as (208, 976).")
    return given[0], given[1]


def _smooth(before: tuple[int, int], after: tuple[int, int]) -> int:
    """Bilinear; means over areas where a picture shrinks to half or less, as pixels would be left out otherwise."""
    shrinks = all(new <= old for old, new in zip(before, after, strict=True))
    halves = any(2 * new <= old for old, new in zip(before, after, strict=True))
    return cv2.INTER_AREA if shrinks and halves else cv2.INTER_LINEAR


def _nearest(before: tuple[int, int], after: tuple[int, int]) -> int:
    """The nearest pixel by its middle; INTER_NEAREST goes by its corner and is off by up to half a pixel."""
    return cv2.INTER_NEAREST_EXACT


def _values(stored: Array) -> dict[int, int]:
    """Pixels by value."""
    if stored.dtype == np.uint8:
        counts = cv2.calcHist([np.ascontiguousarray(stored)], [0], None, [256], [0, 256]).ravel()
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.unique(stored, return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def _ranges(values: Sequence[int]) -> str:
    """Ascending numbers in words, `0 to 63, 255`."""
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))


def _collect(report: SplitReport, look: Callable[[], None]) -> None:
    try:
        look()
    except UserError as error:
        report.faults.append(str(error))


def _check_size(frame: Frame, size: tuple[int, int], mask: tuple[int, ...]) -> None:
    if mask != size:
        raise UserError(
            f"{frame.image} has {size[0]}x{size[1]} pixels, but its mask {frame.mask} has {mask[0]}x{mask[1]} (height "
            "x width). One of them belongs to another version of the data."
        )


def _check_existence(frame: Frame, pixels: npt.NDArray[np.int64]) -> None:
    """Existence of a list against the pixels (L,) of the mask."""
    assert frame.exist is not None
    for slot, (bit, count) in enumerate(zip(frame.exist, pixels, strict=True), start=1):
        if bit and not count:
            raise UserError(f"{frame.where}: says that slot {slot} has a lane, but {frame.mask} has no pixel of it.")
        if count and not bit:
            raise UserError(
                f"{frame.where}: says that slot {slot} has no lane, but {frame.mask} has {count} pixels of it."
            )
