"""Folders of images, CIFAR-10 and CIFAR-100, and the digits that come with scikit-learn. The target is `label`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.registry import DATASETS

from kd_classification import cifar
from kd_tasks.errors import UserError, nearest
from kd_tasks.vision.dataset import VisionDataset
from kd_tasks.vision.images import IMAGE_SUFFIXES, Array, read_image


class Sample(NamedTuple):
    """An image file and its class."""

    path: Path
    label: int


@DATASETS.register_module()
class ImageFolder(VisionDataset):
    """One's own images, a folder for each class: `<data_root>/<split>/<class>/*.jpg`.

    Labels number the class folders of the `train` split in sorted order, or of the split itself if there is no
    `train`, so that a class means the same number in every split. Images may lie deeper inside their class folder;
    folders and files whose names begin with a dot are passed over.

    Raises:
        UserError: if a class folder holds no image, or a split has a class that `train` lacks.
    """

    card = "imagefolder"
    splits = ()

    def find(self) -> Iterator[Sample]:
        """The images by class, sorted; sets `classes`."""
        names = self._class_names(self.split)
        training = self._class_names("train") or names
        self.classes = tuple(training)
        for name in names:
            if name not in training:
                raise UserError(
                    f"{self.root / self.split / name}: the split 'train' has no such class.{nearest(name, training)} "
                    "Add it there, or take this folder away."
                )
            yield from self._samples(name)

    def load(self, index: int) -> dict[str, Any]:
        """`image` (H, W, 3) uint8 RGB and its `label`, 0 to C - 1."""
        path, label = self.items[index]
        return {"image": read_image(path), "label": torch.tensor(label), "meta": {"path": self.relative(path)}}

    def _class_names(self, split: str) -> list[str]:
        folder = self.root / split
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))

    def _samples(self, name: str) -> Iterator[Sample]:
        folder = self.root / self.split / name
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
        if not files:
            raise UserError(
                f"{folder}: this class has no images ({', '.join(IMAGE_SUFFIXES)}). Add some, or take the folder away."
            )
        label = self.classes.index(name)
        return (Sample(path, label) for path in files)


class CIFAR(VisionDataset):
    """Pictures of 32x32 from the authors' archives, unpacked in `data_root`: the pickled or the binary edition.

    The pickles are read without running anything that they name.
    """

    splits = ("train", "test")
    layouts: ClassVar[tuple[cifar.Layout, ...]]

    def find(self) -> list[int]:
        """The samples by number; reads the split into memory and sets `classes`."""
        folder, layout = cifar.find_layout(self.root, self.layouts)
        self.classes = tuple(cifar.read_names(folder, layout))
        self.images, self.labels = cifar.read_split(folder, layout, self.split)
        highest = int(self.labels.max(initial=0))
        if highest >= len(self.classes):
            raise UserError(f"{folder}: there is a label {highest}, but {layout.names} names {len(self.classes)}.")
        return list(range(len(self.labels)))

    def load(self, index: int) -> dict[str, Any]:
        """`image` (32, 32, 3) uint8 RGB and its `label`, 0 to C - 1."""
        meta = {"path": f"{self.split}/{index:05d}"}
        return {"image": self.images[index], "label": torch.tensor(int(self.labels[index])), "meta": meta}


@DATASETS.register_module()
class CIFAR10(CIFAR):
    """CIFAR-10: 10 classes, 50 000 images for training and 10 000 for testing (Krizhevsky 2009)."""

    card = "cifar10"
    layouts = cifar.CIFAR10


@DATASETS.register_module()
class CIFAR100(CIFAR):
    """CIFAR-100 with its 100 fine labels: 50 000 images for training and 10 000 for testing (Krizhevsky 2009)."""

    card = "cifar100"
    layouts = cifar.CIFAR100


@DATASETS.register_module()
class Digits(VisionDataset):
    """The handwritten digits that come with scikit-learn: 1797 pictures of 8x8, enlarged to 32x32, in RGB.

    The split is fixed and stratified: of every five pictures of a class, in the file's order, three are for training,
    the fourth for validation, the fifth for testing.

    Args:
        data_root: not read; scikit-learn brings the file.
        split: `train`, `val` or `test`.
        transforms: see `kd_tasks.vision.augment.Augment`.
        test_mode: without effect, since there is no target to transform.
        per_class: take the first so many pictures of each class, for experiments with few samples; all by default.

    Raises:
        UserError: if scikit-learn is not installed.
    """

    card = "digits"
    classes = tuple("0123456789")

    def __init__(
        self,
        data_root: str | Path = ".",
        split: str = "train",
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        per_class: int | None = None,
    ) -> None:
        self.per_class = per_class
        super().__init__(data_root, split, transforms, test_mode)

    def find(self) -> list[int]:
        """Positions in scikit-learn's file."""
        self.pictures, self.labels = read_digits()
        split = fifths(self.labels) == self.split
        chosen = [np.flatnonzero(split & (self.labels == label))[: self.per_class] for label in range(10)]
        return sorted(np.concatenate(chosen).tolist())

    def load(self, index: int) -> dict[str, Any]:
        """`image` (32, 32, 3) uint8 and its `label`, 0 to 9."""
        place = self.items[index]
        large = cv2.resize(self.pictures[place], (32, 32), interpolation=cv2.INTER_LINEAR)
        meta = {"path": f"digits/{place:04d}"}
        return {
            "image": np.repeat(large[..., None], 3, axis=2),
            "label": torch.tensor(int(self.labels[place])),
            "meta": meta,
        }


def read_digits() -> tuple[Array, Array]:
    """All digits, uint8 (1797, 8, 8) in 0 to 255, and their labels, int64 (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("Digits needs scikit-learn: pip install 'kd-tasks[classification]'.") from None
    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def fifths(labels: Array) -> Array:
    """The split of each sample, by its position among those of its class."""
    turn = np.array(["train", "train", "train", "val", "test"])
    result = np.empty(len(labels), dtype=turn.dtype)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        result[places] = turn[np.arange(len(places)) % len(turn)]
    return result
