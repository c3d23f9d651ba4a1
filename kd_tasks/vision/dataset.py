"""The base of data sets of images: checked when built, seeded by sample, errors that name the file."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import Dataset

from kd_tasks.engine.randomness import sample_seed, seeded
from kd_tasks.errors import UserError, nearest
from kd_tasks.paths import data_root as resolved
from kd_tasks.vision.augment import Augment
from kd_tasks.vision.cards import SplitReport, read_card
from kd_tasks.vision.images import read_image

Progress = Callable[[int, int], None]

SIZING = ("Resize", "LongestMaxSize", "SmallestMaxSize", "PadIfNeeded", "CenterCrop", "CenterCropOrPad")
GEOMETRIC = ("mask", "keypoints", "boxes", "labels")


class DataError(UserError):
    """A fault in one sample. Raised through a loader's worker, it is still the one message and no traceback.

    torch raises a worker's exception again with the worker's traceback as its text, of which the message is the end.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__qualname__}: ")[2].strip() or message)


class VisionDataset(Dataset[dict[str, Any]]):
    """A split of a benchmark. A subclass says what it consists of (`find`) and how a sample is read (`load`).

    An item is `dict(inputs, targets, meta)`: `inputs` uint8 RGB (3, H, W); `targets` tensors by name; `meta` with
    `path` (of the image, relative to the root), `index`, `original_size` and `input_size` (height, width).

    In training, masks, keypoints, boxes and labels go through the transforms with the image. In testing the image
    alone does: targets stay in the coordinates of the original image, as the decoder's predictions are.

    Args:
        data_root: the data set's folder; a relative one may lie below the folder that `KD_TASKS_DATA` names.
        split: such as `train`, `val` or `test`.
        transforms: see `kd_tasks.vision.augment.Augment`.
        test_mode: transform the image alone.

    Raises:
        UserError: if the split is unknown, or folders, lists or labels are missing; shows the tree that is expected.
    """

    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    splits: tuple[str, ...] = ("train", "val", "test")
    card: str | None = None
    layout: str = ""
    keypoint_swaps: Sequence[int] | None = None

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
    ) -> None:
        name = type(self).__name__
        if self.splits and split not in self.splits:
            known = ", ".join(self.splits)
            raise UserError(f"{name}: there is no split {split!r}.{nearest(split, self.splits)} It has: {known}.")
        self.root = resolved(data_root)
        self.split = split
        self.test_mode = test_mode
        if not self.root.is_dir():
            raise UserError(f"{name}: {self.root}: no such folder. {self.expected()}")
        self.items = list(self.find())
        if not self.items:
            raise UserError(f"{name}: {self.root} holds no sample of the split {split!r}. {self.expected()}")
        self.check()
        self.augment = Augment(transforms, self.keypoint_swaps)

    def find(self) -> Iterable[Any]:
        """The samples of the split, in a fixed order, each as `load` needs it.

        Raises:
            UserError: if a folder or a list is missing.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Look at `items` before any is loaded.

        Raises:
            UserError: if files of the samples are missing.
        """

    def load(self, index: int) -> dict[str, Any]:
        """One sample from the disk: `image` (H, W, 3) uint8, targets as arrays by name, and `meta` with `path`.

        Raises:
            UserError: if a file of the sample is faulty.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample `index`, augmented as (seed, epoch, index) demand; see `EpochIndex`.

        Raises:
            DataError: if a file of the sample is faulty or a transform cannot be applied.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{type(self).__name__} has {len(self)} samples; there is none at {index}.")
        seed = sample_seed(index)
        with seeded(seed):
            try:
                sample = self.load(int(index))
            except UserError as error:
                raise DataError(str(error)) from None
            sample["meta"] = {
                "index": int(index),
                "original_size": tuple(sample["image"].shape[:2]),
                **sample.get("meta", {}),
            }
            return self.pack(self._augmented(sample, seed))

    @property
    def metainfo(self) -> dict[str, Any]:
        """`classes`, a list of names, and `palette`, a list of [r, g, b], for metrics and drawing."""
        return {"classes": list(self.classes), "palette": [list(colour) for colour in self.palette]}

    def pack(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Arrays to contiguous tensors, in the shape of an item."""
        image = sample["image"]
        if image.dtype != np.uint8:
            raise DataError(
                f"{type(self).__name__}: transforms left the image as {image.dtype}; it must stay uint8, since the "
                "model's preprocessor normalises."
            )
        targets = {key: as_tensor(value) for key, value in sample.items() if key not in ("image", "meta")}
        meta = {**sample["meta"], "input_size": tuple(image.shape[:2])}
        return {"inputs": as_tensor(image.transpose(2, 0, 1)), "targets": targets, "meta": meta}

    def plain(self) -> Self:
        """The same samples as in training, targets in the pixels of `inputs`, without what is drawn at random.

        Of the transforms those stay that bring each picture to a size (`SIZING`).
        """
        view = copy.copy(self)
        view.test_mode = False
        kept = [t for t in self.augment.transforms if t["type"] in SIZING and t.get("p", 1) == 1]
        view.augment = Augment(kept, self.keypoint_swaps)
        return view

    @classmethod
    def of_pictures(cls, root: Path, pictures: Sequence[Path], config: Mapping[str, Any]) -> Self:
        """Pictures without annotation, prepared like those of a data set of this class in test mode.

        Only `find`, `check` and `load` are replaced: what else a class does with a picture on its way, such as cutting
        off its sky, it does here too, in `_augmented`. `targets` are empty, and `meta` has what needs no annotation.

        Args:
            root: a folder above all pictures.
            pictures: the files.
            config: of the data set, with `split` and `transforms`; `type`, `data_root` and `test_mode` are not read.
        """

        def load(self: Self, index: int) -> dict[str, Any]:
            path = self.items[index]
            return {"image": read_image(path), "meta": {"path": path.relative_to(root).as_posix()}}

        replaced: dict[str, Any] = {"find": lambda _: list(pictures), "check": lambda _: None, "load": load}
        options = {name: value for name, value in config.items() if name not in ("type", "data_root", "test_mode")}
        return type(cls.__name__, (cls,), replaced)(data_root=root.absolute(), test_mode=True, **options)

    def relative(self, path: Path) -> str:
        """`path` relative to the root, with slashes."""
        return path.relative_to(self.root).as_posix()

    def expected(self) -> str:
        """What the data set's folder should look like, and how to get a small synthetic one."""
        return expected_layout(self.card, self.layout, self.root)

    @classmethod
    def survey(cls, root: str | Path, split: str, progress: Progress | None = None, **options: Any) -> SplitReport:
        """Read a whole split and report what is wrong with it, instead of stopping at the first fault.

        Args:
            root: the data set's folder.
            split: the split.
            progress: is called with the samples read and their number.
            options: further arguments of the class.
        """
        report = SplitReport()
        try:
            dataset = cls(root, split, test_mode=True, **options)
        except UserError as error:
            report.faults.append(str(error))
            return report
        report.found = len(dataset)
        for index in range(len(dataset)):
            try:
                sample = dataset.load(index)
            except UserError as error:
                report.faults.append(str(error))
            else:
                report.sizes[tuple(sample["image"].shape[:2])] += 1
            if progress is not None:
                progress(index + 1, len(dataset))
        return report

    def _augmented(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        names = () if self.test_mode else GEOMETRIC
        given = {name: sample[name] for name in names if name in sample}
        try:
            result = self.augment(sample["image"], seed=seed, **given)
        except UserError as error:
            raise DataError(f"{sample['meta'].get('path', '')}: {error}") from error.__cause__
        result.pop("kept", None)
        return {**sample, **result}


def as_tensor(value: Any) -> Any:
    """An array as a contiguous tensor of its own memory; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    contiguous = np.ascontiguousarray(value)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


def expected_layout(card: str | None, layout: str = "", root: Path | None = None) -> str:
    """The tree that a data set should have, as its card shows it, and the command for a synthetic one."""
    if card is None:
        return f"Expected there:\n{layout}" if layout else ""
    known = read_card(card)
    command = f"kd-tasks data synth {known.twin} {root or 'FOLDER'}"
    hint = f"\nA small synthetic one in the same format: {command}" if known.twin else ""
    where = f"\nWhere to get it: {known.source}" if known.source else ""
    return f"Expected there:\n{known.layout}{where}{hint}"


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that do not exist. Each folder is listed once, which beats a question for every file."""
    listings: dict[Path, frozenset[str]] = {}
    absent = []
    for path in paths:
        folder = path.parent
        if folder not in listings:
            listings[folder] = frozenset(p.name for p in folder.iterdir()) if folder.is_dir() else frozenset()
        if path.name not in listings[folder]:
            absent.append(path)
    return absent


def first_of(paths: Sequence[Path], root: Path) -> str:
    """The first of several paths, relative to `root`, and how many more there are."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0].relative_to(root).as_posix()}{more}"
