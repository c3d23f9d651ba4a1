"""300-W, WFLW, AFLW-19, COFW, and folders of one's own: faces with their points. See `kd_landmarks.faces`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from mmengine.registry import DATASETS

from kd_landmarks.faces import Face, FaceDataset, Floats, Pixels, face_of
from kd_landmarks.layouts import (
    CofwFile,
    key_300w,
    parse_wflw,
    read_300w_boxes,
    read_aflw,
    read_pts,
)
from kd_landmarks.markup import FACE_19, FACE_29, FACE_68, FACE_98, MARKUPS, Ends, Markup
from kd_tasks.errors import UserError, nearest
from kd_tasks.vision.dataset import DataError
from kd_tasks.vision.images import IMAGE_SUFFIXES, image_size

POINTS, ANNOTATED, DETECTOR, GROUND_TRUTH = "points", "annotated", "detector", "ground_truth"


class Pair(NamedTuple):
    """A picture and its `.pts`, by the name that both have.

    Attributes:
        stem: their path without suffix.
        picture: None if it is missing.
        points: None if it is missing.
        subsets: of the face.
        part: the part of 300-W that it comes from.
    """

    stem: Path
    picture: Path | None
    points: Path | None
    subsets: tuple[str, ...] = ()
    part: str = ""


# --- 300-W -----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A folder of 300-W.

    Attributes:
        folders: the names that the folder has, in lower case; of each nested one.
        source: what its faces are counted under.
        role: `train`, `common`, `challenging` or `test`.
        boxes: of its list of boxes; empty if 300-W has none.
    """

    folders: tuple[tuple[str, ...], ...]
    source: str
    role: str
    boxes: str


_PARTS = (
    Part((("afw",),), "afw", "train", "afw"),
    Part((("helen",), ("trainset",)), "helen", "train", "helen_trainset"),
    Part((("lfpw",), ("trainset",)), "lfpw", "train", "lfpw_trainset"),
    Part((("helen",), ("testset",)), "helen", "common", "helen_testset"),
    Part((("lfpw",), ("testset",)), "lfpw", "common", "lfpw_testset"),
    Part((("ibug",),), "ibug", "challenging", "ibug"),
    Part((("300w", "test"), ("01_indoor",)), "indoor", "test", ""),
    Part((("300w", "test"), ("02_outdoor",)), "outdoor", "test", ""),
)


@DATASETS.register_module()
class Faces300W(FaceDataset):
    """300-W (Sagonas et al., ICCVW 2013): 68 points of faces in AFW, HELEN, LFPW, IBUG and a test set of its own.

    Splits: `train` (3148), `common` (554), `challenging` (135), `full` (689, both of them), `test` (600). `subsets` of
    a face: which of `train`, `common`, `challenging` and `test` it belongs to, then its source, such as `ibug`. Folders
    may be spelt in upper or lower case and lie in `images`, and `300W` may be called `Test`.

    Coordinates of the files count from 1. See `FaceDataset` for the arguments.

    Args:
        data_root: the folder of `afw`, `helen`, `lfpw`, `ibug` and `300W`.
        box: `points`, or of the lists in `Bounding_Boxes`: `detector` or `ground_truth`. The split `test` has no list.
    """

    card = "300w"
    splits = ("train", "common", "challenging", "full", "test")
    markup = FACE_68
    boxes = (POINTS, DETECTOR, GROUND_TRUTH)

    def entries(self) -> Iterator[Pair]:
        """Pictures and `.pts`, part by part, by name."""
        self._boxes: dict[str, dict[str, tuple[Floats, Floats]]] = {}
        roles = ("common", "challenging") if self.split == "full" else (self.split,)
        for part in _PARTS:
            if part.role in roles:
                yield from self._of_part(part)

    def face(self, entry: Pair) -> Face:
        """The face of a picture."""
        picture, file = both(entry)
        where = str(file)
        return face_of(picture, read_pts(file, self.markup.points), self._box(entry, picture), entry.subsets, where)

    def _of_part(self, part: Part) -> Iterator[Pair]:
        folder = self.root
        if inside(folder, part.folders[0]) is None and (folder / "images").is_dir():
            folder /= "images"
        for names in part.folders:
            found = inside(folder, names)
            if found is None:
                wanted = " or ".join(names)
                raise UserError(f"{type(self).__name__}: {folder} has no folder {wanted!r}. {self.expected()}")
            folder = found
        for pair in pairs_in(folder):
            yield pair._replace(subsets=(part.role, part.source), part=part.boxes)

    def _box(self, entry: Pair, picture: Path) -> Floats | None:
        if self.box == POINTS:
            return None
        if not entry.part:
            raise UserError(f"Faces300W: 300-W has no boxes for the split {self.split!r}; use box='points'.")
        if entry.part not in self._boxes:
            folder = inside(self.root, ("bounding_boxes",)) or self.root / "Bounding_Boxes"
            self._boxes[entry.part] = read_300w_boxes(folder / f"bounding_boxes_{entry.part}.mat")
        found = self._boxes[entry.part].get(key_300w(picture.name))
        if found is None:
            raise UserError(f"{picture}: bounding_boxes_{entry.part}.mat has no box for it; use box='points'.")
        return found[(DETECTOR, GROUND_TRUTH).index(self.box)]


# --- Folders ---------------------------------------------------------------------------------------------------------


@DATASETS.register_module()
class FacesFolder(FaceDataset):
    """One's own data: pictures and a `.pts` of the same name beside each, `<root>/<split>/<any name>.jpg`.

    The `.pts` are those of 300-W, coordinates count from 1; all of a data set have equally many points. With 68, 98, 29
    or 19 points, mirror partners, norms and contours are those of 300-W, WFLW, COFW or AFLW-19 unless given. Pictures
    that nobody has annotated lie in a folder of their own; see `unlabelled`.

    See `FaceDataset` for the other arguments.

    Args:
        data_root: the folder of the splits.
        split: any folder of the root; deeper folders in it are fine.
        transforms: see `FaceDataset`.
        test_mode: see `FaceDataset`.
        size: see `FaceDataset`.
        expand: see `FaceDataset`.
        margin: see `FaceDataset`.
        labelled: see `FaceDataset`.
        labelled_seed: see `FaceDataset`.
        keep_unlabelled: see `FaceDataset`.
        unlabelled: a folder of the root with pictures without `.pts`; they join the split as unlabelled samples. Each
            should show one face, cut out about as `expand` does it with those of the split: it is used whole.
        swaps: the mirror partner of each point, itself if it has none.
        norms: by name, two lists of points, whose means are the ends of the length that errors are divided by.
        default_norm: one of `norms`, or `box` or `face_size`.
        contours: lists of points that are joined by lines.
    """

    card = "faces_folder"
    splits = ()

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        size: int | Sequence[int] = 256,
        expand: float = 0.25,
        margin: float = 0.0,
        labelled: float | int | None = None,
        labelled_seed: int = 0,
        keep_unlabelled: bool = True,
        unlabelled: str | None = None,
        swaps: Sequence[int] | None = None,
        norms: Mapping[str, Sequence[Sequence[int]]] | None = None,
        default_norm: str | None = None,
        contours: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.unlabelled = unlabelled
        self._given = (swaps, norms, default_norm, contours)
        self._points: int | None = None
        super().__init__(
            *(data_root, split, transforms, test_mode, size, expand, POINTS, margin),
            *(labelled, labelled_seed, keep_unlabelled),
        )

    def entries(self) -> Iterator[Pair]:
        """Pictures and `.pts` of the split by name, then the pictures that nobody has annotated."""
        yield from pairs_in(self._folder(self.split), deep=True)
        if self.unlabelled is not None and self.keep_unlabelled:
            for path in self._loose():
                yield Pair(path.with_suffix(""), path, None, part=self.unlabelled)

    def face(self, entry: Pair) -> Face:
        """The face of a picture."""
        if entry.part and entry.picture is not None:
            return self._unknown(entry.picture)
        picture, file = both(entry)
        points = read_pts(file, self._points)
        self._points = len(points)
        return face_of(picture, points, None, (), str(file))

    def find(self) -> list[Face]:
        """The faces of the split; sets the markup, which depends on the number of points."""
        faces = super().find()
        if self._points is None:  # no face has points
            return []
        self.markup = self._markup(self._points)
        return faces

    def mirror_partners(self, path: str) -> list[int]:
        """As of the markup; an error if the scheme of points is unknown."""
        if self._given[0] is None and self.markup.points not in MARKUPS:
            raise DataError(
                f"{path}: was mirrored by the transforms, but which of its {self.markup.points} points change places "
                "is unknown. Name the partners by FacesFolder(swaps=[...]), or take the mirroring out."
            )
        return self.markup.swaps

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        if folder.is_dir():
            return folder
        known = sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        raise UserError(f"FacesFolder: {self.root} has no folder {name!r}.{nearest(name, known)} {self.expected()}")

    def _loose(self) -> Iterator[Path]:
        return filter(is_picture, sorted(self._folder(str(self.unlabelled)).rglob("*")))

    def _unknown(self, picture: Path) -> Face:
        """A face without annotation: the picture itself is the enlarged box."""
        height, width = image_size(picture)
        size = np.array([width, height], np.float64)
        inner = size / (1 + self.expand)
        box = np.concatenate([(size - 1 - inner) / 2, inner])
        none = np.zeros(self._points or 0, bool)
        return Face(picture, np.zeros((len(none), 2)), none, none, box, ("unlabelled",), str(picture))

    def _markup(self, points: int) -> Markup:
        known = MARKUPS.get(points, Markup(points, (), {}, (), "box"))
        swaps, norms, default_norm, contours = self._given
        if swaps is not None:
            known = known._replace(pairs=_pairs(swaps, points))
        if norms is not None:
            known = known._replace(norms={name: _ends(name, ends, points) for name, ends in norms.items()})
            known = known._replace(default_norm=next(iter(known.norms), "box"))
        if contours is not None:
            known = known._replace(contours=tuple(tuple(contour) for contour in contours))
        if default_norm is None:
            return known
        names = [*known.norms, "box", "face_size"]
        if default_norm not in names:
            raise UserError(
                f"FacesFolder: default_norm is {default_norm!r}; it can be {', '.join(names)}."
                f"{nearest(default_norm, names)}"
            )
        return known._replace(default_norm=default_norm)


# --- WFLW ------------------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """A line of a list.

    Attributes:
        line: its text.
        where: file and line number, for messages.
    """

    line: str
    where: str


@DATASETS.register_module()
class WFLW(FaceDataset):
    """WFLW (Wu et al., CVPR 2018): 98 points, 7500 faces for training and 2500 for testing, several in some pictures.

    `subsets` of a face are those of its attributes that are set: `pose`, `expression`, `illumination`, `make-up`,
    `occlusion`, `blur`. The lists of the six subsets (`list_98pt_test`) say the same and are not read. Coordinates are
    used as they are. See `FaceDataset` for the arguments.

    Args:
        data_root: the folder of `WFLW_images` and `WFLW_annotations`.
        split: `train` or `test`.
        box: `points`, or `annotated`, the rectangle of the lists.
    """

    card = "wflw"
    splits = ("train", "test")
    markup = FACE_98
    boxes = (POINTS, ANNOTATED)

    def entries(self) -> Iterator[Listed]:
        """The lines of the split's list."""
        folder = self.root / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
        path = folder / f"list_98pt_rect_attr_{self.split}.txt"
        if not path.is_file():
            raise UserError(f"WFLW: {path}: no such list. {self.expected()}")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                yield Listed(line, f"{path}:{number}")

    def face(self, entry: Listed) -> Face:
        """The face of a line."""
        found = parse_wflw(entry.line, entry.where)
        box = found.box if self.box == ANNOTATED else None
        path = self.root / "WFLW_images" / found.name
        return face_of(path, found.points, box, found.attributes, entry.where)


# --- AFLW-19 ---------------------------------------------------------------------------------------------------------


@DATASETS.register_module()
class AFLW19(FaceDataset):
    """AFLW with 19 points (Koestinger et al., ICCVW 2011; Zhu et al., CVPR 2016): 20000 faces to train, 4386 to test.

    Points that cannot be seen are not annotated: they are not `visible`, and their coordinates are 0. The split
    `frontal` is the 1314 faces of `test` whose points are all visible and inside the box; faces of `test` have it in
    `subsets`, too. Names of pictures that say `.png` where the file is `.jpg` are found. Coordinates are used as they
    are. See `FaceDataset` for the arguments.

    Args:
        data_root: the folder of `AFLWinfo_release.mat` and `flickr`.
        split: `train`, `test` or `frontal`.
        box: `annotated`, which the sizes of faces are measured at, or `points`, the extent of the visible points.
    """

    card = "aflw"
    splits = ("train", "test", "frontal")
    markup = FACE_19
    boxes = (ANNOTATED, POINTS)
    training_faces: ClassVar[int] = 20000

    def entries(self) -> Iterable[int]:
        """The faces of the split, in the official order."""
        path = self.root / "AFLWinfo_release.mat"
        if not path.is_file():
            raise UserError(f"AFLW19: {path}: no such file. {self.expected()}")
        self._table = read_aflw(path)
        self._frontal = self._table.frontal()
        self._where = str(path)
        self._files: dict[Path, dict[str, Path]] = {}
        order, first = self._table.order, self.training_faces
        if self.split == "train":
            return order[:first].tolist()
        test = order[first:]
        return (test if self.split == "test" else test[self._frontal[test]]).tolist()

    def face(self, entry: int) -> Face:
        """The face in row `entry` of the tables."""
        table = self._table
        visible = table.visible[entry]
        return Face(
            self._picture_file(table.names[entry]),
            table.points[entry],
            visible,
            np.zeros_like(visible),
            table.boxes[entry] if self.box == ANNOTATED else None,
            ("frontal",) if self._frontal[entry] and self.split != "train" else (),
            f"{self._where}, face {entry + 1} ({table.names[entry]})",
        )

    def _picture_file(self, name: str) -> Path:
        """The file of that name, or of that name with another suffix."""
        path = self.root / "flickr" / name
        if path.parent not in self._files:
            there = path.parent.iterdir() if path.parent.is_dir() else ()
            self._files[path.parent] = {key: p for p in there if is_picture(p) for key in (p.name, p.stem)}
        there_now = self._files[path.parent]
        return there_now.get(path.name) or there_now.get(path.stem) or path


# --- COFW ------------------------------------------------------------------------------------------------------------


@DATASETS.register_module()
class COFW(FaceDataset):
    """COFW (Burgos-Artizzu et al., ICCV 2013): 29 points, 1345 faces for training and 507 for testing, many covered.

    Points that something covers are annotated all the same: they are `visible` and `occluded`. The pictures are in the
    `.mat`, so that `path` in `meta` is the file, `#` and the number of the face from 0 on. Coordinates of the file
    count from 1. See `FaceDataset` for the arguments.

    Args:
        data_root: the folder of `COFW_train_color.mat` and `COFW_test_color.mat`.
        split: `train` or `test`.
        box: `points`, or `annotated`, the box of the file.
    """

    card = "cofw"
    splits = ("train", "test")
    markup = FACE_29
    boxes = (POINTS, ANNOTATED)
    has_files = False

    def entries(self) -> Iterable[int]:
        """The faces of the file."""
        path = self.root / f"COFW_{self.split}_color.mat"
        if not path.is_file():
            raise UserError(f"COFW: {path}: no such file. {self.expected()}")
        self._file = CofwFile(path)
        return range(len(self._file))

    def face(self, entry: int) -> Face:
        """Face number `entry`."""
        file = self._file
        box = file.boxes[entry] if self.box == ANNOTATED else None
        return Face(
            *(file.path, file.points[entry], np.ones(len(file.points[entry]), bool), file.occluded[entry], box, ()),
            where=f"{file.path}, face {entry + 1}",
            number=entry,
        )

    def picture(self, face: Face) -> Pixels:
        """The picture of a face, out of the file."""
        return self._file.picture(face.number)

    def picture_size(self, face: Face) -> tuple[int, int]:
        """Height and width of the picture of a face."""
        return self._file.size(face.number)

    def picture_name(self, face: Face) -> str:
        """File and number."""
        return f"{self.relative(face.path)}#{face.number}"


# --- Files -----------------------------------------------------------------------------------------------------------


def pairs_in(folder: Path, deep: bool = False) -> list[Pair]:
    """The pictures and `.pts` of a folder, by name, also those that lack their partner.

    Args:
        folder: is listed.
        deep: with the folders in it.
    """
    pictures: dict[Path, Path] = {}
    points: dict[Path, Path] = {}
    for path in folder.rglob("*") if deep else folder.iterdir():
        if path.suffix.lower() == ".pts" and not path.name.startswith("."):
            points[path.with_suffix("")] = path
        elif is_picture(path):
            pictures[path.with_suffix("")] = path
    return [Pair(stem, pictures.get(stem), points.get(stem)) for stem in sorted({*pictures, *points})]


def both(pair: Pair) -> tuple[Path, Path]:
    """The picture and the `.pts` of a pair.

    Raises:
        UserError: if one of them is missing.
    """
    if pair.picture is None:
        raise UserError(f"{pair.points}: there is no picture of that name beside it, such as {pair.stem.name}.jpg.")
    if pair.points is None:
        raise UserError(f"{pair.picture}: there is no {pair.stem.name}.pts beside it.")
    return pair.picture, pair.points


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture; hidden files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def inside(folder: Path, names: Sequence[str]) -> Path | None:
    """The first folder in `folder` with one of `names`, which are in lower case, however it is spelt."""
    there = {p.name.lower(): p for p in sorted(folder.iterdir(), reverse=True) if p.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _pairs(swaps: Sequence[int], points: int) -> tuple[tuple[int, int], ...]:
    found = list(swaps)
    if sorted(found) != list(range(points)) or any(found[found[p]] != p for p in range(points)):
        raise UserError(
            f"FacesFolder: swaps={found}: it holds each of 0 to {points - 1} once, the mirror partner of each point, "
            "or the point itself."
        )
    return tuple((point, partner) for point, partner in enumerate(found) if point < partner)


def _ends(name: str, ends: Sequence[Sequence[int]], points: int) -> Ends:
    if len(ends) != 2 or not all(len(end) and all(0 <= point < points for point in end) for end in ends):
        raise UserError(
            f"FacesFolder: norms[{name!r}] is {ends!r}: it is two lists of points from 0 to {points - 1}, such as "
            "((36,), (45,))."
        )
    first, second = (tuple(int(point) for point in end) for end in ends)
    return first, second
