"""The base of data sets of faces: one face an item, cut out exactly, augmented, with the affine that says how.

Coordinates are 0-based pixel centres: (0, 0) is the middle of the upper left pixel.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import cv2
import numpy as np
import numpy.typing as npt
import torch

from kd_landmarks.markup import Markup, metainfo_of
from kd_tasks.engine.randomness import mixed_seed
from kd_tasks.errors import UserError, nearest
from kd_tasks.vision.cards import SplitReport
from kd_tasks.vision.dataset import DataError, Progress, VisionDataset, first_of, missing_files
from kd_tasks.vision.images import image_size, read_image

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]

INEXACT = (
    *("Resize", "RandomScale", "LongestMaxSize", "SmallestMaxSize", "CropAndPad", "RandomResizedCrop"),
    *("RandomSizedCrop", "RandomSizedBBoxSafeCrop"),
)

_BENT = 0.05  # pixels by which a transform may be off from an affine one


class Face(NamedTuple):
    """A face, in pixels of its picture.

    Attributes:
        path: the file that holds the picture.
        points: (K, 2).
        visible: (K,), annotated and usable.
        occluded: (K,), annotated though something covers it.
        box: x, y, width, height; None stands for the extent of the visible points.
        subsets: what the face is counted under, such as `common`.
        where: the annotation's place, for messages.
        number: of the picture in a file that holds many.
    """

    path: Path
    points: Floats
    visible: Mask
    occluded: Mask
    box: Floats | None
    subsets: tuple[str, ...]
    where: str
    number: int = 0


def face_of(path: Path, points: Floats, box: Floats | None, subsets: tuple[str, ...], where: str) -> Face:
    """A face with all points annotated and none known to be covered."""
    everywhere = np.ones(len(points), bool)
    return Face(path, points, everywhere, ~everywhere, box, subsets, where)


class FaceDataset(VisionDataset):
    """Faces with K points. A subclass says which there are (`entries`) and how one is read (`face`).

    An item is one face: `inputs` uint8 (3, H, W), the face's box cut out of the picture by one exact affine, then
    transformed. The side that is too short for the shape of `size` grows, so that pixels stay square; what lies outside
    of the picture is black. The annotation is checked when the data set is built, a picture's size when it is read.

    Targets:
        points: float32 (K, 2); pixels of `inputs`, or with `test_mode` pixels of the original picture.
        visible: bool (K,), annotated and usable.
        occluded: bool (K,).
        labelled: bool; False where the sample counts as unlabelled. Its points stay, to judge by them afterwards;
            nothing that trains may read them.
        box: float32 (4,) x, y, width, height in the original picture.
        to_input: float32 (2, 3), the affine from the original picture to `inputs`, augmentation included. Its
            determinant is negative where the picture was mirrored; in training `points`, `visible` and `occluded` have
            then changed places with their mirror partners.

    `meta` has also `to_input`, as lists of floats, and `subsets`, a list of names. Labelled samples come first, and
    `is_labelled`, (N,) bool, says which they are.

    Args:
        data_root: the data set's folder.
        split: see the data set.
        transforms: see `VisionDataset`; geometric ones must be affine. Those that scale by resizing, such as `Resize`,
            are refused, since albumentations then loses half a pixel: `size` sets the size, and
            `Affine(scale=...)` varies the scale.
        test_mode: see `VisionDataset`.
        size: of `inputs`: height and width, or both in one.
        expand: share of the box's width and height that is added in all, one half at each side.
        box: where the box comes from: `points`, the extent of the visible points, or what the data set names. None
            takes the first that it names.
        margin: share of `size` that is cut out in addition at each side, and cut off again after the transforms: a
            rotated face then has picture in its corners, as far as the picture reaches. In training only; transforms
            must leave the size as it is.
        labelled: so many pictures keep their label, as a share in (0, 1] or as a number; None keeps all. Those drawn
            for a smaller number are among those for a larger one.
        labelled_seed: of the draw, which depends on nothing else.
        keep_unlabelled: keep the samples that count as unlabelled.

    Raises:
        UserError: if folders, lists or files are missing, or a face is wrongly annotated.
    """

    markup: Markup
    boxes: ClassVar[tuple[str, ...]] = ("points",)
    has_files: ClassVar[bool] = True  # each picture is a file of its own
    items: list[Face]

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        size: int | Sequence[int] = 256,
        expand: float = 0.25,
        box: str | None = None,
        margin: float = 0.0,
        labelled: float | int | None = None,
        labelled_seed: int = 0,
        keep_unlabelled: bool = True,
    ) -> None:
        self.size = self._checked_size(size)
        self.box = self.boxes[0] if box is None else box
        self._check_choice(self.box, expand, margin)
        _check_transforms(transforms)
        self.expand, self.labelled, self.labelled_seed = expand, labelled, labelled_seed
        self.keep_unlabelled = keep_unlabelled
        self._widen(0.0 if test_mode else margin)
        self.is_labelled: Mask = np.zeros(0, bool)
        super().__init__(data_root, split, transforms, test_mode)

    def entries(self) -> Iterable[Any]:
        """The faces of the split, in a fixed order, each as `face` needs it."""
        raise NotImplementedError

    def face(self, entry: Any) -> Face:
        """The annotation of one face.

        Raises:
            UserError: if it is faulty.
        """
        raise NotImplementedError

    def picture(self, face: Face) -> Pixels:
        """The picture that a face is in, uint8 RGB (H, W, 3)."""
        return read_image(face.path)

    def picture_size(self, face: Face) -> tuple[int, int]:
        """Height and width of the picture that a face is in."""
        return image_size(face.path)

    def picture_name(self, face: Face) -> str:
        """The picture that a face is in, as `path` in `meta`."""
        return self.relative(face.path)

    def refuse(self, error: UserError) -> None:
        """What happens to a fault of the annotation: it is raised; a survey collects."""
        raise error

    def find(self) -> list[Face]:
        """The faces of the split, the labelled ones first; sets `is_labelled`."""
        faces = []
        for entry in self.entries():
            try:
                faces.append(_checked(self.face(entry)))
            except UserError as error:
                self.refuse(error)
        labelled = self._drawn(faces)
        self.is_labelled = np.sort(labelled)[::-1] if self.keep_unlabelled else np.ones(labelled.sum(), bool)
        first = np.flatnonzero(labelled).tolist()
        rest = np.flatnonzero(~labelled).tolist() if self.keep_unlabelled else []
        return [faces[place] for place in (*first, *rest)]

    def check(self) -> None:
        """All pictures exist."""
        absent = missing_files(dict.fromkeys(face.path for face in self.items))
        if absent:
            raise UserError(
                f"{type(self).__name__}: of the pictures of the split {self.split!r}, {len(absent)} are missing: "
                f"{first_of(absent, self.root)}. {self.expected()}"
            )

    def load(self, index: int) -> dict[str, Any]:
        """The whole picture as `image`, and the targets in its pixels, without `to_input`.

        Raises:
            UserError: if the picture cannot be read, or points or box lie far outside of it.
        """
        face = self.items[index]
        image = self.picture(face)
        _check_inside(face, *image.shape[:2])
        return {
            "image": image,
            "points": face.points,
            "visible": face.visible,
            "occluded": face.occluded,
            "labelled": torch.tensor(bool(self.is_labelled[index])),
            "box": face.box,
            "meta": {"path": self.picture_name(face), "subsets": list(face.subsets)},
        }

    def plain(self) -> Self:
        """See `VisionDataset`."""
        view = super().plain()
        view._widen(0.0)
        return view

    @property
    def metainfo(self) -> dict[str, Any]:
        """`points`, `swaps`, `norms`, `contours`, `default_norm`; see `kd_landmarks.markup`. There are no classes."""
        return {**super().metainfo, **metainfo_of(self.markup)}

    @classmethod
    def survey(cls, root: str | Path, split: str, progress: Progress | None = None, **options: Any) -> SplitReport:
        """Look at the annotation of every face and at every picture's header and end."""
        report = SplitReport()
        gathering = {
            "refuse": lambda _, error: report.faults.append(str(error)),
            "check": lambda _: None,
        }
        try:
            dataset = type(cls.__name__, (cls,), gathering)(root, split, test_mode=True, **options)
        except UserError as error:
            report.faults.append(str(error))
            return report
        report.found = len(dataset)
        absent = set(missing_files(dict.fromkeys(face.path for face in dataset.items)))
        report.missing = sorted(dataset.relative(path) for path in absent)
        sizes: dict[str, tuple[int, int] | None] = {}
        for done, face in enumerate(dataset.items, start=1):
            if face.path not in absent:
                dataset._survey_face(face, sizes, report)
            if progress is not None:
                progress(done, len(dataset))
        return report

    def _survey_face(self, face: Face, sizes: dict[str, tuple[int, int] | None], report: SplitReport) -> None:
        name = self.picture_name(face)
        try:
            if name not in sizes:
                sizes[name] = None
                sizes[name] = size = self.picture_size(face)
                report.sizes[size] += 1
                if self.has_files:
                    report.images.append(face.path)
            known = sizes[name]
            if known is not None:
                _check_inside(face, *known)
        except UserError as error:
            report.faults.append(str(error))

    def _widen(self, margin: float) -> None:
        height, width = self.size
        self._margin = (round(margin * height), round(margin * width))
        self._grid = grid_over(height + 2 * self._margin[0], width + 2 * self._margin[1])

    def _augmented(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        frame = framing(sample["box"], self.size, self.expand)
        vertical, horizontal = self._margin
        frame[:, 2] += (horizontal, vertical)
        height, width = self.size
        crop = cut(sample["image"], frame, (height + 2 * vertical, width + 2 * horizontal))
        name = sample["meta"]["path"]
        try:
            result = self.augment(crop, keypoints=self._grid.points, seed=seed)
        except UserError as error:
            raise DataError(f"{name}: {error}") from error.__cause__
        moved = self._grid.affine_to(result["keypoints"])
        image = result["image"]
        if vertical or horizontal:
            if image.shape != crop.shape:
                raise DataError(
                    f"{name}: transforms changed the size from {crop.shape[0]}x{crop.shape[1]} to "
                    f"{image.shape[0]}x{image.shape[1]}; with 'margin' they must leave it."
                )
            image = image[vertical : vertical + height, horizontal : horizontal + width]
            moved[:, 2] -= (horizontal, vertical)
        to_input = chained(moved, frame)
        return {**self._placed(sample, to_input), "image": image}

    def _placed(self, sample: dict[str, Any], to_input: Floats) -> dict[str, Any]:
        """The targets of a sample whose picture went through `to_input`."""
        points, visible, occluded = sample["points"], sample["visible"], sample["occluded"]
        if not self.test_mode:
            points = mapped(points, to_input)
            if np.linalg.det(to_input[:, :2]) < 0:
                swaps = self.mirror_partners(sample["meta"]["path"])
                points, visible, occluded = points[swaps], visible[swaps], occluded[swaps]
        return {
            **sample,
            "points": points.astype(np.float32),
            "visible": visible,
            "occluded": occluded,
            "box": sample["box"].astype(np.float32),
            "to_input": to_input.astype(np.float32),
            "meta": {**sample["meta"], "to_input": to_input.tolist()},
        }

    def mirror_partners(self, path: str) -> list[int]:
        """Which point takes the place of each point in a mirrored picture.

        Args:
            path: of the picture, for the error.

        Raises:
            DataError: if nobody has said.
        """
        return self.markup.swaps

    def _drawn(self, faces: Sequence[Face]) -> Mask:
        """Which faces (N,) count as labelled: whole pictures, drawn among those with an annotation."""
        annotated = np.array([face.visible.any() for face in faces], bool)
        if self.labelled is None:
            return annotated
        pictures = list(dict.fromkeys(self.picture_name(f) for f in faces if f.visible.any()))
        count = self._count(len(pictures))
        order = np.random.default_rng(mixed_seed("labelled", self.labelled_seed)).permutation(len(pictures))
        chosen = {pictures[place] for place in order[:count]}
        return annotated & np.array([self.picture_name(face) in chosen for face in faces], bool)

    def _count(self, pictures: int) -> int:
        """How many pictures `labelled` means."""
        wanted, name = self.labelled, type(self).__name__
        if isinstance(wanted, float) and 0 < wanted <= 1:
            return max(1, round(wanted * pictures))
        if isinstance(wanted, int) and not isinstance(wanted, bool) and 1 <= wanted <= pictures:
            return wanted
        raise UserError(
            f"{name}: labelled={wanted!r}: it is a share above 0 and up to 1.0, such as 0.2, or a number from 1 to "
            f"{pictures}, the pictures with points that the split {self.split!r} has."
        )

    def _checked_size(self, size: int | Sequence[int]) -> tuple[int, int]:
        sides = [size, size] if isinstance(size, int) else list(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 1 for side in sides):
            raise UserError(f"{type(self).__name__}: size={size!r}: it is one number of pixels, or (height, width).")
        return sides[0], sides[1]

    def _check_choice(self, box: str, expand: float, margin: float) -> None:
        name = type(self).__name__
        if box not in self.boxes:
            known = " or ".join(map(repr, self.boxes))
            raise UserError(f"{name}: box is {box!r}; it can be {known}.{nearest(str(box), self.boxes)}")
        if not expand > -1:
            raise UserError(f"{name}: expand={expand!r}: it is the share that is added to the box, such as 0.25.")
        if not 0 <= margin <= 1:
            raise UserError(f"{name}: margin={margin!r}: it is a share of the size from 0 to 1, such as 0.25.")


# --- Geometry --------------------------------------------------------------------------------------------------------


def framing(box: Floats, size: tuple[int, int], expand: float) -> Floats:
    """The affine (2, 3) that puts the middle of a box into the middle of a crop, enlarged as `FaceDataset` says.

    Args:
        box: x, y, width, height.
        size: height and width of the crop.
        expand: share of the box that is added.
    """
    height, width = size
    x, y, w, h = box
    scale = min(width / w, height / h) / (1 + expand)
    middle = np.array([x + w / 2, y + h / 2])
    shift = np.array([(width - 1) / 2, (height - 1) / 2]) - scale * middle
    return np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def cut(image: Pixels, frame: Floats, size: tuple[int, int]) -> Pixels:
    """A crop by an upright affine with equal scales. Where it shrinks by 2 and more, pixels are averaged first.

    Args:
        image: uint8 (H, W, 3).
        frame: (2, 3), from the image to the crop.
        size: height and width of the crop.
    """
    factor = int(1 / frame[0, 0])
    if factor > 1:
        image, frame = _averaged(image, frame, size, factor)
    crop = cv2.warpAffine(image, frame, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(crop, np.uint8)


def _averaged(image: Pixels, frame: Floats, size: tuple[int, int], factor: int) -> tuple[Pixels, Floats]:
    """The part of the image that a crop shows, reduced by a whole number, and the affine from it to the crop."""
    extent = np.array([size[1], size[0]])
    first = np.floor((-1 - frame[:, 2]) / frame[0, 0]).astype(int) - factor
    last = np.ceil((extent - frame[:, 2]) / frame[0, 0]).astype(int) + factor
    low = np.maximum(first, 0)
    high = np.minimum(last, (image.shape[1], image.shape[0]))
    part = image[low[1] : high[1], low[0] : high[0]]
    wide, tall = (-(high - low) % factor).tolist()
    if wide or tall:
        part = np.asarray(cv2.copyMakeBorder(part, 0, tall, 0, wide, cv2.BORDER_REPLICATE), np.uint8)
    reduced = cv2.resize(part, (part.shape[1] // factor, part.shape[0] // factor), interpolation=cv2.INTER_AREA)
    back = np.array([[factor, 0.0, (factor - 1) / 2 + low[0]], [0.0, factor, (factor - 1) / 2 + low[1]]])
    return np.asarray(reduced, np.uint8), chained(frame, back)


def mapped(points: Floats, affine: Floats) -> Floats:
    """Points (..., 2) through an affine (2, 3)."""
    return points @ affine[:, :2].T + affine[:, 2]


def chained(after: Floats, before: Floats) -> Floats:
    """The affine (2, 3) that is `before` and then `after`."""
    return np.concatenate([after[:, :2] @ before[:, :2], mapped(before[:, 2], after)[:, None]], axis=1)


class Grid(NamedTuple):
    """Points over a crop, from which the affine of an augmentation is found.

    Attributes:
        points: float32 (9, 2).
        columns: x, y and 1 of each, (9, 3).
        inverse: the pseudo-inverse of `columns`, (3, 9).
    """

    points: npt.NDArray[np.float32]
    columns: Floats
    inverse: Floats

    def affine_to(self, moved: npt.NDArray[Any]) -> Floats:
        """The affine (2, 3) that takes the points to `moved`.

        Raises:
            DataError: if there is none.
        """
        if moved is self.points:
            return np.eye(2, 3)
        target = moved.astype(np.float64)
        solution = self.inverse @ target
        bent = np.abs(self.columns @ solution - target).max()
        if bent > _BENT:
            raise DataError(
                f"transforms: one of them bends the picture (by {bent:.1f} px), so that no affine leads back to the "
                "original one. Use affine ones: Affine, Rotate, flips, crops."
            )
        return solution.T


def grid_over(height: int, width: int) -> Grid:
    """Nine points over a crop."""
    x, y = np.meshgrid(np.linspace(0, width - 1, 3), np.linspace(0, height - 1, 3))
    points = np.stack([x.ravel(), y.ravel()], axis=-1)
    columns = np.column_stack([points, np.ones(len(points))])
    return Grid(points.astype(np.float32), columns, np.linalg.pinv(columns))


# --- Checks ----------------------------------------------------------------------------------------------------------


def _checked(face: Face) -> Face:
    """The face with its box, and no not-a-number left where nothing is annotated."""
    finite = np.all(np.isfinite(face.points), axis=-1)
    wrong = np.flatnonzero(face.visible & ~finite)
    if len(wrong):
        raise UserError(f"{face.where}: point {wrong[0] + 1} of {len(face.points)} is not a pair of finite numbers.")
    points = np.where(finite[:, None], face.points, 0.0)
    box = _extent(points[face.visible], face.where) if face.box is None else np.asarray(face.box, np.float64)
    if not np.isfinite(box).all() or box[2] <= 0 or box[3] <= 0:
        what = "the extent of its points" if face.box is None else "its box"
        shown = " x ".join(f"{side:g}" for side in box[2:])
        raise UserError(f"{face.where}: {what} has no area (width x height: {shown}). Correct or remove this face.")
    return face._replace(points=points, box=box)


def _extent(points: Floats, where: str) -> Floats:
    if not len(points):
        raise UserError(f"{where}: no point is annotated, so that there is no extent of points to cut the face out by.")
    low, high = points.min(0), points.max(0)
    return np.concatenate([low, high - low])


def _check_inside(face: Face, height: int, width: int) -> None:
    """No visible point further outside of the picture than its size, and some of the box inside."""
    size = np.array([width, height])
    far = np.any((face.points < -size) | (face.points > 2 * size), axis=-1) & face.visible
    if far.any():
        place = int(far.argmax())
        x, y = face.points[place]
        raise UserError(
            f"{face.where}: point {place + 1} of {len(face.points)} lies at ({x:.1f}, {y:.1f}), far outside of the "
            f"picture of {width}x{height} (width x height)."
        )
    assert face.box is not None
    if (face.box[:2] > size).any() or (face.box[:2] + face.box[2:] < 0).any():
        x, y, w, h = face.box
        raise UserError(
            f"{face.where}: the box at ({x:.1f}, {y:.1f}) of {w:.1f}x{h:.1f} lies outside of the picture of "
            f"{width}x{height} (width x height)."
        )


def _check_transforms(transforms: Sequence[Mapping[str, Any]], where: str = "transforms") -> None:
    for place, name in _named(transforms, where):
        if name in INEXACT:
            raise UserError(
                f"{place}: {name} places points up to half a pixel beside the picture. Leave it out: the data set's "
                "'size' sets the size, and Affine(scale=...) varies the scale."
            )


def _named(transforms: Any, where: str) -> Iterator[tuple[str, Any]]:
    for number, transform in enumerate(transforms if isinstance(transforms, (list, tuple)) else ()):
        if isinstance(transform, Mapping):
            yield f"{where}[{number}]", transform.get("type")
            yield from _named(transform.get("transforms"), f"{where}[{number}].transforms")
