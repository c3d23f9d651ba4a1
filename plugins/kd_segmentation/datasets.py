"""Cityscapes, CamVid, ADE20K, VOC 2012, and images with masks of one's own.

Every loader gives masks with the values 0 to C - 1, and 255 where a pixel is ignored, whatever the files hold. Values
that the benchmark does not have are an error that names the file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from mmengine.registry import DATASETS

from kd_segmentation import classes as names
from kd_tasks.errors import UserError, nearest
from kd_tasks.vision.augment import IGNORED, declare
from kd_tasks.vision.cards import SplitReport
from kd_tasks.vision.dataset import Progress, VisionDataset, first_of, missing_files
from kd_tasks.vision.images import IMAGE_SUFFIXES, Array, image_size, read_image, read_labels

Colours = Sequence[Sequence[int]]

_INVALID = 254  # in a table: a stored value that means nothing
_LARGEST = 254  # number of classes that fit beside it

declare("RandomScaleCrop", "kd_segmentation.transforms:RandomScaleCrop")


@dataclass(frozen=True)
class Pair:
    """An image and its label map."""

    image: Path
    label: Path


def label_table(meanings: Mapping[int, int]) -> Array:
    """The look-up table, uint8 (256,), from stored values to classes; values without a meaning are marked invalid."""
    table = np.full(256, _INVALID, dtype=np.uint8)
    for stored, meaning in meanings.items():
        table[stored] = meaning
    return table


class SegmentationDataset(VisionDataset):
    """Images with label maps. A subclass says where the pairs are and what the stored values mean.

    Targets: `mask` uint8 (H, W), 0 to C - 1 or 255. `meta` has also `label_path`, relative to the root. In testing the
    mask keeps the size of the file.
    """

    table: Array

    def find(self) -> Iterable[Pair]:
        """The image and the label file of each sample, in a fixed order; the files need not exist."""
        raise NotImplementedError

    def check(self) -> None:
        """All images and labels exist."""
        for what in ("image", "label"):
            absent = missing_files(getattr(pair, what) for pair in self.items)
            if absent:
                raise UserError(
                    f"{type(self).__name__}: of {len(self)} samples of the split {self.split!r}, the {what} of "
                    f"{len(absent)} is missing below {self.root}: {first_of(absent, self.root)}. {self.expected()}"
                )

    def load(self, index: int) -> dict[str, Any]:
        """Image, mask and meta of a sample; see the class."""
        pair = self.items[index]
        image, mask = read_image(pair.image), self.meaning(self.stored(pair.label), pair.label)
        if image.shape[:2] != mask.shape:
            raise UserError(
                f"{pair.image} has {_size(image)} pixels, but its label map {pair.label} has {_size(mask)} "
                "(height x width). One of them belongs to another version of the data."
            )
        meta = {"path": self.relative(pair.image), "label_path": self.relative(pair.label)}
        return {"image": image, "mask": mask, "meta": meta}

    def stored(self, path: Path) -> Array:
        """The label map as it is stored, uint8 or uint16 (H, W)."""
        return read_labels(path)

    def meaning(self, stored: Array, path: Path) -> Array:
        """Stored values as classes, uint8 (H, W).

        Raises:
            UserError: if a value belongs to no class; names the file, the value and what is allowed.
        """
        mask = cv2.LUT(np.minimum(stored, 255).astype(np.uint8, copy=False), self.table)
        faulty = (mask == _INVALID) | (stored > 255)
        if faulty.any():
            raise UserError(self.wrong_value(stored, faulty, path))
        return mask

    def wrong_value(self, stored: Array, faulty: Array, path: Path) -> str:
        """What to say about values that belong to no class."""
        values = np.unique(stored[faulty])
        row, column = np.argwhere(faulty)[0]
        more = f" and {len(values) - 1} other values are" if len(values) > 1 else " is"
        return (
            f"{path}: label value {stored[row, column]} (row {row}, column {column}){more} not one of "
            f"{type(self).__name__}'s: {_ranges(np.flatnonzero(self.table != _INVALID).tolist())}."
        )

    @classmethod
    def survey(cls, root: str | Path, split: str, progress: Progress | None = None, **options: Any) -> SplitReport:
        """Look at every pair of a split: sizes, ends of files, label values. Images are not decoded."""
        report = SplitReport()
        try:
            dataset = type(cls.__name__, (cls,), {"check": lambda self: None})(root, split, test_mode=True, **options)
        except UserError as error:
            report.faults.append(str(error))
            return report
        pairs = dataset.items
        absent = set(missing_files([p for pair in pairs for p in (pair.image, pair.label)]))
        report.found = sum(pair.image not in absent for pair in pairs)
        report.missing = sorted(dataset.relative(path) for path in absent)
        for done, pair in enumerate(pairs, start=1):
            if pair.image not in absent:
                report.images.append(pair.image)
            if not absent.intersection((pair.image, pair.label)):
                dataset.look_at(pair, report)
            if progress is not None:
                progress(done, len(pairs))
        report.unpaired = [dataset.relative(path) for path in dataset.unpaired_labels()]
        return report

    def look_at(self, pair: Pair, report: SplitReport) -> None:
        """Add what one pair holds to `report`."""
        try:
            size, stored = image_size(pair.image), self.stored(pair.label)
        except UserError as error:
            report.faults.append(str(error))
            return
        report.sizes[size] += 1
        if size != stored.shape:
            report.faults.append(f"{pair.image}: {size[0]}x{size[1]}, but its label map is {_size(stored)}")
        counts = np.bincount(stored.ravel())
        found = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
        report.values.update(found)
        for value in found:
            if value > 255 or self.table[value] == _INVALID:
                report.out_of_range.setdefault(value, []).append(self.relative(pair.label))

    def unpaired_labels(self) -> list[Path]:
        """Files in the label folders that belong to no image of the split."""
        known = {pair.label for pair in self.items}
        suffixes = {pair.label.suffix for pair in self.items}
        folders = sorted({path.parent for path in known})
        files = (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()))
        return [path for path in files if path.suffix in suffixes and path not in known and self.is_label(path)]

    def is_label(self, path: Path) -> bool:
        """Whether a file in a label folder is a label map of this split, and not something else that lies there."""
        return True


@DATASETS.register_module()
class Cityscapes(SegmentationDataset):
    """Cityscapes (Cordts et al., CVPR 2016), fine annotations: 19 classes of street scenes.

    The labels of the split `test` hold no class: they are void by intent. The label path in `meta` leads an evaluator
    to the `instanceIds` beside it.

    Args:
        data_root: the folder with `leftImg8bit` and `gtFine`.
        split: `train`, `val` or `test`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
        label_type: `labelIds`, the files that the benchmark brings, mapped to train ids when read; or
            `labelTrainIds`, which its scripts write.
    """

    classes = names.CITYSCAPES_CLASSES
    palette = names.CITYSCAPES_PALETTE
    card = "cityscapes"
    tables: ClassVar[dict[str, Array]] = {
        "labelIds": label_table(
            {
                **dict.fromkeys((*names.CITYSCAPES_ALL_IDS, 255), IGNORED),
                **{stored: train_id for train_id, stored in enumerate(names.CITYSCAPES_IDS)},
            }
        ),
        "labelTrainIds": label_table({**{value: value for value in range(19)}, 255: IGNORED}),
    }

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        label_type: str = "labelIds",
    ) -> None:
        if label_type not in self.tables:
            hint = nearest(label_type, self.tables)
            raise UserError(f"Cityscapes: label_type is {label_type!r}; it can be {' or '.join(self.tables)}.{hint}")
        self.label_type = label_type
        self.table = self.tables[label_type]
        super().__init__(data_root, split, transforms, test_mode)

    def find(self) -> Iterable[Pair]:
        """All images of the split's cities, sorted by city and name."""
        ending = "_leftImg8bit.png"
        images = sorted((self.root / "leftImg8bit" / self.split).glob(f"*/*{ending}"))
        labels = self.root / "gtFine" / self.split
        for image in images:
            stem = image.name.removesuffix(ending)
            yield Pair(image, labels / image.parent.name / f"{stem}_gtFine_{self.label_type}.png")

    def is_label(self, path: Path) -> bool:
        """Whether it is a label map of the kind that is read."""
        return path.name.endswith(f"_gtFine_{self.label_type}.png")


@DATASETS.register_module()
class CamVid(SegmentationDataset):
    """CamVid (Brostow et al., 2009) with the 11 classes, and in the folders, of SegNet; the value 11 is ignored.

    Pairs come from `<split>.txt`, of whose paths the last two parts count (they begin with a folder of their
    authors); without that file, from the folders `<split>` and `<split>annot`.

    Args:
        data_root: the folder with `train`, `trainannot`, …
        split: `train`, `val` or `test`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
    """

    classes = names.CAMVID_CLASSES
    palette = names.CAMVID_PALETTE
    card = "camvid"
    table = label_table({**{value: value for value in range(names.CAMVID_VOID)}, names.CAMVID_VOID: IGNORED})

    def find(self) -> Iterable[Pair]:
        """The pairs of the list, in its order, or of the folders, sorted."""
        listed = self.root / f"{self.split}.txt"
        if listed.is_file():
            return [self._listed(line, f"{listed}:{number}") for number, line in _lines(listed)]
        images = sorted((self.root / self.split).glob("*.png"))
        return [Pair(image, self.root / f"{self.split}annot" / image.name) for image in images]

    def _listed(self, line: str, where: str) -> Pair:
        paths = [Path(word) for word in line.split()]
        if len(paths) != 2 or any(len(path.parts) < 2 for path in paths):
            raise UserError(f"{where}: {line!r} is not a pair '<folder>/<image> <folder>/<label>'.")
        image, label = (self.root.joinpath(*path.parts[-2:]) for path in paths)
        return Pair(image, label)


@DATASETS.register_module()
class ADE20K(SegmentationDataset):
    """ADE20K, the scene parsing benchmark of 2016 (Zhou et al., CVPR 2017): 150 classes, pictures of any size.

    The files hold 0 for "other", which is ignored, and 1 to 150; these become 0 to 149, here and nowhere else. A
    stored 255 is ignored as well.

    Args:
        data_root: `ADEChallengeData2016`, or the folder that holds it.
        split: `train` or `val`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
    """

    classes = names.ADE20K_CLASSES
    palette = names.ADE20K_PALETTE
    splits = ("train", "val")
    card = "ade20k"
    table = label_table({0: IGNORED, 255: IGNORED, **{value: value - 1 for value in range(1, 151)}})
    folders: ClassVar[dict[str, str]] = {"train": "training", "val": "validation"}

    def find(self) -> Iterable[Pair]:
        """All images of the split, sorted."""
        base = _inner(self.root, "ADEChallengeData2016")
        folder = self.folders[self.split]
        for image in sorted((base / "images" / folder).glob("*.jpg")):
            yield Pair(image, base / "annotations" / folder / f"{image.stem}.png")


@DATASETS.register_module()
class VOC2012(SegmentationDataset):
    """PASCAL VOC 2012 (Everingham et al.), 21 classes with the background; 255, the borders, is ignored.

    Label maps are palette images, of which the indices count. `train_aug` is the enlarged training set with the
    labels of SBD (Hariharan et al., ICCV 2011), in `SegmentationClassAug`.

    Args:
        data_root: `VOC2012`, or a folder that holds it or `VOCdevkit`.
        split: `train`, `val`, `trainval` or `train_aug`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
    """

    classes = names.VOC_CLASSES
    palette = names.VOC_PALETTE
    splits = ("train", "val", "trainval", "train_aug")
    card = "voc2012"
    table = label_table({**{value: value for value in range(21)}, 255: IGNORED})

    def find(self) -> Iterable[Pair]:
        """The names of the split's list, in its order."""
        base = _inner(_inner(self.root, "VOCdevkit"), "VOC2012")
        listed = base / "ImageSets" / "Segmentation" / f"{self.split}.txt"
        if not listed.is_file():
            raise UserError(f"VOC2012: {listed}: no such list. {self.expected()}")
        labels = base / ("SegmentationClassAug" if self.split == "train_aug" else "SegmentationClass")
        for _, line in _lines(listed):
            stem = Path(line.split()[0]).stem
            yield Pair(base / "JPEGImages" / f"{stem}.jpg", labels / f"{stem}.png")

    def is_label(self, path: Path) -> bool:
        """No: the folders hold the labels of all splits, so that none is too many."""
        return False


@DATASETS.register_module()
class ImageMaskFolder(SegmentationDataset):
    """One's own data: `images/<split>/` and `masks/<split>/`, files of equal stem belonging together.

    Without folders by split, `<split>.txt` names the stems, one a line; the split `all` takes every image.

    Args:
        data_root: the folder with `images` and `masks`.
        split: the name of a subfolder or list, or `all`.
        classes: names in the order of the class indices.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
        palette: a colour [r, g, b] of each class; those of PASCAL VOC if not given.
        label_map: stored value to class, for values that are not class indices already; 255 means ignored. `{}` says
            that none is needed, and turns the test for masks of 0 and 255 off.
        ignore_index: the stored value that is ignored, unless `label_map` says otherwise.
        mask_suffix: what the name of a mask has after the stem of its image, such as `_mask`.
        colour_masks: masks are RGB images in the colours of `palette`.
        ignored_colours: with `colour_masks`, colours that are ignored.
    """

    splits = ()
    card = "folder"

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        classes: Sequence[str],
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        palette: Colours | None = None,
        label_map: Mapping[int, int] | None = None,
        ignore_index: int = 255,
        mask_suffix: str = "",
        colour_masks: bool = False,
        ignored_colours: Colours = (),
    ) -> None:
        if colour_masks and palette is None:
            raise UserError("ImageMaskFolder: colour_masks needs the palette: a colour [r, g, b] of each class.")
        self.classes = tuple(classes)
        self.palette = _checked_palette(palette, self.classes)
        self.table = _folder_table(len(self.classes), label_map or {}, ignore_index)
        self.mask_suffix = mask_suffix
        self.may_be_binary = label_map is None and ignore_index == 255 and not colour_masks
        self.codes = _colour_codes(self.palette, ignored_colours) if colour_masks else None
        super().__init__(data_root, split, transforms, test_mode)

    def find(self) -> Iterable[Pair]:
        """All images of the split, sorted by path below `images`, or in the order of the list."""
        images, masks = (self._folder(name) for name in ("images", "masks"))
        by_stem = _by_stem(images)
        labels = _by_stem(masks)
        for stem in self._stems(by_stem):
            label = stem + self.mask_suffix
            image = by_stem.get(stem, images / f"{stem}.png")
            yield Pair(image, labels.get(label, masks / f"{label}.png"))

    def check(self) -> None:
        """All files exist, and masks do not look like black and white pictures."""
        super().check()
        if self.may_be_binary and len(self.classes) > 1 and self._looks_binary():
            raise UserError(
                f"{self.root / 'masks'}: the masks hold only the values 0 and 255, and 255 means ignored, so nothing "
                "but class 0 is left to learn. If 255 is a class, set label_map={255: 1}; if it is meant to be "
                "ignored, set label_map={}."
            )

    def stored(self, path: Path) -> Array:
        """The mask as stored; of a colour mask, the index of each colour in the palette."""
        if self.codes is None:
            return read_labels(path)
        return _indices_of(read_image(path), *self.codes, path)

    def wrong_value(self, stored: Array, faulty: Array, path: Path) -> str:
        """What to say about values that belong to no class, with the way out."""
        return f"{super().wrong_value(stored, faulty, path)} Map stored values with label_map={{stored: class}}."

    def is_label(self, path: Path) -> bool:
        """Whether it is a mask of the images' split."""
        return path.suffix.lower() in IMAGE_SUFFIXES and path.stem.endswith(self.mask_suffix)

    @classmethod
    def survey(cls, root: str | Path, split: str, progress: Progress | None = None, **options: Any) -> SplitReport:
        """As of the other data sets; without `classes`, every label value is allowed and only counted."""
        any_class = [str(index) for index in range(_LARGEST)]
        return super().survey(root, split, progress, **{"classes": any_class, "label_map": {}, **options})

    def _folder(self, name: str) -> Path:
        below = self.root / name / self.split
        return below if below.is_dir() else self.root / name

    def _stems(self, images: Mapping[str, Path]) -> list[str]:
        listed = self.root / f"{self.split}.txt"
        if (self.root / "images" / self.split).is_dir() or self.split == "all":
            return sorted(images)
        if listed.is_file():
            return [line for _, line in _lines(listed)]
        raise UserError(
            f"ImageMaskFolder: {self.root} has neither a folder images/{self.split} nor a list {self.split}.txt. "
            f"{self.expected()}"
        )

    def _looks_binary(self) -> bool:
        step = -(-len(self.items) // 8)
        values = {int(v) for pair in self.items[::step] for v in np.unique(self.stored(pair.label))}
        return 255 in values and values <= {0, 255}


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not blank, with their numbers."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _inner(root: Path, name: str) -> Path:
    return root / name if (root / name).is_dir() else root


def _by_stem(folder: Path) -> dict[str, Path]:
    """Images below a folder by their path without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise UserError(f"{path} and {found[stem].name} have the same stem; remove one of them.")
        found[stem] = path
    return found


def _checked_palette(palette: Colours | None, classes: tuple[str, ...]) -> tuple[names.Colour, ...]:
    if not 0 < len(classes) <= _LARGEST:
        raise UserError(f"ImageMaskFolder: classes names {len(classes)} classes; there can be 1 to {_LARGEST}.")
    if palette is None:
        return names.voc_palette(len(classes))
    if len(palette) != len(classes) or any(len(colour) != 3 for colour in palette):
        raise UserError(
            f"ImageMaskFolder: palette needs one colour [r, g, b] for each of the {len(classes)} classes; "
            f"it has {len(palette)}."
        )
    return tuple((int(r), int(g), int(b)) for r, g, b in palette)


def _folder_table(count: int, label_map: Mapping[int, int], ignore_index: int) -> Array:
    for stored, meaning in label_map.items():
        if not 0 <= int(stored) <= 255 or not (0 <= meaning < count or meaning == IGNORED):
            raise UserError(
                f"ImageMaskFolder: label_map: {stored}: {meaning}: stored values are 0 to 255, classes 0 to "
                f"{count - 1}, or {IGNORED} for ignored."
            )
    ignored = {ignore_index: IGNORED} if 0 <= ignore_index <= 255 else {}
    mapped = {int(stored): meaning for stored, meaning in label_map.items()}
    return label_table({**{value: value for value in range(count)}, **ignored, **mapped})


def _colour_codes(palette: Colours, ignored: Colours) -> tuple[Array, Array]:
    """Colours as sorted numbers, and the class index of each, or 255."""
    codes = np.array([_code(colour) for colour in [*palette, *ignored]])
    indices = np.array([*range(len(palette)), *[IGNORED] * len(ignored)], dtype=np.uint8)
    order = np.argsort(codes, kind="stable")
    if len(np.unique(codes)) != len(codes):
        raise UserError("ImageMaskFolder: palette: two classes have the same colour, or one is also ignored.")
    return codes[order], indices[order]


def _code(colour: Sequence[int]) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _indices_of(image: Array, codes: Array, indices: Array, path: Path) -> Array:
    pixels = image.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    places = np.minimum(np.searchsorted(codes, pixels), len(codes) - 1)
    unknown = codes[places] != pixels
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        raise UserError(
            f"{path}: the colour {image[row, column].tolist()} (row {row}, column {column}) is not in the palette. Add "
            "it to ignored_colours, or convert the masks without smoothing."
        )
    return indices[places]


def _size(pixels: Array) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"


def _ranges(values: Sequence[int]) -> str:
    """Sorted numbers in short: `0-10, 255`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
