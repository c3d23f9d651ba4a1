"""Market-1501, DukeMTMC-reID, MSMT17, and folders of one's own: who is in the picture, and which camera took it."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from mmengine.registry import DATASETS

from kd_tasks.engine.log import log_once
from kd_tasks.engine.randomness import mixed_seed
from kd_tasks.errors import UserError, nearest
from kd_tasks.vision.cards import SplitReport
from kd_tasks.vision.dataset import Progress, VisionDataset, first_of, missing_files
from kd_tasks.vision.images import IMAGE_SUFFIXES, image_size, read_image

TRAIN, QUERY, GALLERY = "train", "query", "gallery"
UNLABELLED = -1
JUNK = -1  # in the benchmarks' file names: a detection that is ignored

_NAMED = 3  # examples in a message
_FEWEST_PEOPLE = 2  # to tell apart


class Picture(NamedTuple):
    """A picture of a person.

    Attributes:
        path: the file.
        identity: number of the person in the data set; -1 where nobody knows.
        camera: from 0 on.
        role: `train`, `query` or `gallery`.
    """

    path: Path
    identity: int
    camera: int
    role: str


class ReIDDataset(VisionDataset):
    """Pictures of people. A subclass says which there are (`read`).

    Targets: `label` int64, the place of the identity among the labelled ones in numeric order, or -1 where the sample
    counts as unlabelled and in testing; `identity` int64, the number in the data set; `camera` int64, from 0 on. `meta`
    has also the `role`: `train`, `query` or `gallery`. The `classes` are the identities in label order.

    The split `test` consists of the queries and, behind them, the gallery. The identity of an unlabelled sample stays
    in the targets, to judge by it afterwards; nothing that trains may read it.

    Args:
        data_root: the data set's folder, or one that holds it.
        split: `train` or `test`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
        labelled: so many identities of the training split keep their label, drawn by `seed`; those drawn for a smaller
            number are among those for a larger one. None labels all.
        seed: of the draw.
        unlabelled: keep the pictures without a label.

    Raises:
        UserError: if folders, lists or files are missing, there is no query, or `labelled` does not fit.
    """

    splits = ("train", "test")
    naming: ClassVar[str] = ""
    items: list[Picture]

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        labelled: int | None = None,
        seed: int = 0,
        unlabelled: bool = True,
    ) -> None:
        if labelled is not None and split == "test":
            raise UserError(f"{type(self).__name__}: 'labelled' is for training; take it out of the split 'test'.")
        self.labelled, self.seed, self.unlabelled = labelled, seed, unlabelled
        self.labels: list[int] = []
        self.unreadable: list[str] = []
        super().__init__(data_root, split, transforms, test_mode)
        self.announce()

    def read(self, role: str) -> Iterable[Picture]:
        """The pictures of a role, in a fixed order, without junk; what cannot be read goes to `unreadable`."""
        raise NotImplementedError

    def describe(self) -> str:
        """What was read, in short, where there is a choice."""
        return ""

    def name_of(self, identity: int) -> str:
        """The identity as it is called in `classes`."""
        return str(identity)

    def find(self) -> list[Picture]:
        """The pictures of the split; sets `labels` and `classes`."""
        if self.split == "train":
            return self._training(list(self.read(TRAIN)))
        by_role = {role: list(self.read(role)) for role in (QUERY, GALLERY)}
        for role, pictures in by_role.items():
            if not pictures:
                raise UserError(f"{type(self).__name__}: {self.root} has no {role} picture.{self._blame()}")
        pictures = [*by_role[QUERY], *by_role[GALLERY]]
        self.labels = [UNLABELLED] * len(pictures)
        return pictures

    def check(self) -> None:
        """All files exist."""
        absent = missing_files(picture.path for picture in self.items)
        if absent:
            raise UserError(
                f"{type(self).__name__}: of {len(self)} pictures of the split {self.split!r}, {len(absent)} are "
                f"missing: {first_of(absent, self.root)}. {self.expected()}"
            )

    def load(self, index: int) -> dict[str, Any]:
        """`image` (H, W, 3) uint8 RGB, `label`, `identity` and `camera`; see the class."""
        picture = self.items[index]
        return {
            "image": read_image(picture.path),
            "label": torch.tensor(self.labels[index]),
            "identity": torch.tensor(picture.identity),
            "camera": torch.tensor(picture.camera),
            "meta": {"path": self.relative(picture.path), "role": picture.role},
        }

    def part(self, count: int) -> list[int]:
        """Places of about `count` samples that can be evaluated by themselves: people's queries with their gallery.

        Of the split `train`, the first ones. At least two people, as far as there are any.
        """
        if self.split == "train":
            return list(range(min(count, len(self))))
        people: dict[int, list[int]] = {}
        for place, picture in enumerate(self.items):
            people.setdefault(picture.identity, []).append(place)
        present = {picture.identity for picture in self.items if picture.role == GALLERY}
        asked = dict.fromkeys(picture.identity for picture in self.items if picture.role == QUERY)
        chosen: list[int] = []
        for number, identity in enumerate(identity for identity in asked if identity in present):
            if number >= _FEWEST_PEOPLE and len(chosen) + len(people[identity]) > count:
                break
            chosen += people[identity]
        return sorted(chosen)

    def summary(self) -> str:
        """A table of the subsets with their identities, pictures and cameras."""
        subsets: dict[str, list[Picture]] = {}
        for picture, label in zip(self.items, self.labels, strict=True):
            without = picture.role == TRAIN and label == UNLABELLED
            subsets.setdefault("unlabelled" if without else picture.role, []).append(picture)
        detail = f" ({self.describe()})" if self.describe() else ""
        lines = [f"{type(self).__name__}{detail}, {self.root}", "subset     | # ids | # images | # cameras"]
        for name, pictures in subsets.items():
            ids = len({p.identity for p in pictures if p.identity != UNLABELLED})
            cameras = len({p.camera for p in pictures if p.camera >= 0})
            lines.append(f"{name:10} | {ids:5} | {len(pictures):8} | {cameras:9}")
        return "\n".join(lines)

    def announce(self) -> None:
        """Log the table, and warn of what was left out."""
        log_once(self.summary())
        for warning in self.warnings():
            log_once(f"{type(self).__name__}, {self.root}: {warning}", logging.WARNING)

    def warnings(self) -> list[str]:
        """What a person should look at, though the split can be used."""
        found = []
        if self.unreadable:
            found.append(f"left out {len(self.unreadable)} that cannot be read{self._rule()}: {some(self.unreadable)}")
        lonely = self._queries_without_match()
        if lonely:
            found.append(f"{len(lonely)} queries show somebody who is not in the gallery: {some(lonely)}")
        return found

    @classmethod
    def survey(cls, root: str | Path, split: str, progress: Progress | None = None, **options: Any) -> SplitReport:
        """Look at every picture of a split, its header and its end; name each that has no readable name."""
        report = SplitReport()
        quiet = {"check": lambda self: None, "announce": lambda self: None}
        try:
            dataset = type(cls.__name__, (cls,), quiet)(root, split, test_mode=True, **options)
        except UserError as error:
            report.faults.append(str(error))
            return report
        paths = [picture.path for picture in dataset.items]
        absent = set(missing_files(paths))
        report.missing = sorted(dataset.relative(path) for path in absent)
        report.images = [path for path in paths if path not in absent]
        report.found = len(report.images)
        report.faults += [f"cannot be read{dataset._rule()}: {name}" for name in dataset.unreadable]
        lonely = [
            f"{name}: this query shows somebody who is not in the gallery" for name in dataset._queries_without_match()
        ]
        report.faults += lonely
        for done, path in enumerate(report.images, start=1):
            try:
                report.sizes[image_size(path)] += 1
            except UserError as error:
                report.faults.append(str(error))
            if progress is not None:
                progress(done, len(report.images))
        return report

    def _training(self, pictures: list[Picture]) -> list[Picture]:
        if not pictures and self.unreadable:
            raise UserError(f"{type(self).__name__}: {self.root} has no picture for training.{self._blame()}")
        identities = sorted({picture.identity for picture in pictures} - {UNLABELLED})
        chosen = identities if self.labelled is None else self._drawn(identities)
        label_of = {identity: label for label, identity in enumerate(chosen)}
        self.classes = tuple(self.name_of(identity) for identity in chosen)
        kept = [p for p in pictures if self.unlabelled or p.identity in label_of]
        self.labels = [label_of.get(p.identity, UNLABELLED) for p in kept]
        return kept

    def _drawn(self, identities: list[int]) -> list[int]:
        count = self.labelled
        if not isinstance(count, int) or not 0 <= count <= len(identities):
            raise UserError(
                f"{type(self).__name__}: labelled={count!r}: it is a number from 0 to {len(identities)}, the "
                "identities that the training split has."
            )
        order = np.random.default_rng(mixed_seed("labelled", self.seed)).permutation(len(identities))
        return sorted(identities[place] for place in order[:count])

    def _queries_without_match(self) -> list[str]:
        present = {picture.identity for picture in self.items if picture.role == GALLERY}
        queries = (picture for picture in self.items if picture.role == QUERY)
        return [self.relative(picture.path) for picture in queries if picture.identity not in present]

    def _rule(self) -> str:
        return f" as {self.naming}" if self.naming else ""

    def _blame(self) -> str:
        if not self.unreadable:
            return f" {self.expected()}"
        return f" {len(self.unreadable)} files cannot be read{self._rule()}: {some(self.unreadable)}. {self.expected()}"


class NamedFiles(ReIDDataset):
    """Data sets whose file names say identity and camera, in the folders of Market-1501.

    The base name alone counts: a folder called `run_12_c3` on the way changes nothing.
    """

    naming = "'<identity>_c<camera>….jpg'"
    folders: ClassVar[dict[str, str]] = {TRAIN: "bounding_box_train", QUERY: "query", GALLERY: "bounding_box_test"}
    inner: ClassVar[tuple[str, ...]] = ()
    _name = re.compile(r"(-1|\d+)_c([1-9]\d*)(?!\d)")

    def read(self, role: str) -> Iterator[Picture]:
        """The folder's `*.jpg`, by name; junk (-1) is dropped."""
        base = found_base(self, self.inner, set(self.folders.values()))
        folder = base / self.folders[role]
        if not folder.is_dir():
            raise UserError(f"{type(self).__name__}: {folder}: no such folder. {self.expected()}")
        for path in sorted(folder.glob("*.jpg")):
            if path.name.startswith("."):
                continue
            match = self._name.match(path.name)
            if match is None:
                self.unreadable.append(self.relative(path))
            elif int(match[1]) != JUNK:
                yield Picture(path, int(match[1]), int(match[2]) - 1, role)


@DATASETS.register_module()
class Market1501(NamedFiles):
    """Market-1501 (Zheng et al., ICCV 2015): 751 identities for training, 750 for testing, 6 cameras.

    Junk (-1) is dropped when it is read; distractors (0) stay in the gallery. See `ReIDDataset` for the arguments.

    Args:
        data_root: the folder of `bounding_box_train`, `bounding_box_test` and `query`, or one above it.
    """

    card = "market1501"
    inner = ("Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15")


@DATASETS.register_module()
class DukeMTMCreID(NamedFiles):
    """DukeMTMC-reID (Ristani et al., ECCVW 2016; Zheng et al., ICCV 2017): 702 and 702 identities, 8 cameras.

    Its authors withdrew the data in 2019. See `ReIDDataset` for the arguments.

    Args:
        data_root: the folder of `bounding_box_train`, `bounding_box_test` and `query`, or one above it.
    """

    card = "dukemtmcreid"
    inner = ("DukeMTMC-reID", "dukemtmc-reid/DukeMTMC-reID", "dukemtmcreid/DukeMTMC-reID")


@DATASETS.register_module()
class MSMT17(ReIDDataset):
    """MSMT17 (Wei et al., CVPR 2018): 1041 identities for training, 3060 for testing, 15 cameras.

    Identities are those of the lists; the numbers of the test split begin at 0 again and mean other people.

    Args:
        data_root: the folder of `MSMT17_V1` or `MSMT17_V2`, one above it, or that folder itself.
        split: `train` or `test`.
        transforms: see `VisionDataset`.
        test_mode: see `VisionDataset`.
        labelled: see `ReIDDataset`.
        seed: see `ReIDDataset`.
        unlabelled: see `ReIDDataset`.
        version: `V1`, or `V2` with blurred faces; the one that is there if not given.
        train: the lists that the split `train` consists of: `train`, as torchreid and fast-reid have it, or `trainval`,
            as many papers.
    """

    card = "msmt17"
    naming = "'<folder>/<identity>_<number>_<camera>_….jpg <identity>'"
    folders: ClassVar[dict[str, dict[str, str]]] = {
        "V1": {TRAIN: "train", QUERY: "test", GALLERY: "test"},
        "V2": {TRAIN: "mask_train_v2", QUERY: "mask_test_v2", GALLERY: "mask_test_v2"},
    }
    lists: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("list_train",), "trainval": ("list_train", "list_val")}
    _line = re.compile(r"(\S.*\S)\s+(\d+)")
    _name = re.compile(r"[^_]+_[^_]+_0*([1-9]\d*)_.+\.jpg")

    def __init__(
        self,
        data_root: str | Path,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        test_mode: bool = False,
        labelled: int | None = None,
        seed: int = 0,
        unlabelled: bool = True,
        version: str | None = None,
        train: str = "train",
    ) -> None:
        for name, value, known in (("version", version, self.folders), ("train", train, self.lists)):
            if value is not None and value not in known:
                hint = nearest(str(value), known)
                raise UserError(f"MSMT17: {name} is {value!r}; it can be {' or '.join(map(repr, known))}.{hint}")
        self.version, self.train = version, train
        super().__init__(data_root, split, transforms, test_mode, labelled, seed, unlabelled)

    def read(self, role: str) -> Iterator[Picture]:
        """The entries of the role's lists, in their order."""
        base = self._base()
        folder = base / self.folders[str(self.version)][role]
        for name in self.lists[self.train] if role == TRAIN else (f"list_{role}",):
            listed = base / f"{name}.txt"
            if not listed.is_file():
                raise UserError(f"MSMT17: {listed}: no such list. {self.expected()}")
            for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), start=1):
                entry = self._line.fullmatch(line.strip())
                camera = self._name.fullmatch(Path(entry[1]).name) if entry else None
                if entry and camera:
                    yield Picture(folder / entry[1], int(entry[2]), int(camera[1]) - 1, role)
                elif line.strip():
                    self.unreadable.append(f"{self.relative(listed)}:{number}: {line.strip()!r}")

    def describe(self) -> str:
        """The version, and the lists of the training split."""
        lists = self.lists[self.train] if self.split == "train" else ("list_query", "list_gallery")
        return f"{self.version}, {' + '.join(lists)}"

    def _base(self) -> Path:
        """The folder of the lists; sets `version` where it is open."""
        there = {}
        for version, folders in self.folders.items():
            name = f"MSMT17_{version}"
            places = (self.root / name, self.root / "msmt17" / name, self.root)
            base = next((p for p in places if any((p / folder).is_dir() for folder in folders.values())), None)
            if base is not None:
                there[version] = base
        if self.version is None and len(there) == 1:
            self.version = next(iter(there))
        if self.version in there:
            return there[self.version]
        if not there:
            raise UserError(f"MSMT17: {self.root} holds neither version. {self.expected()}")
        found = " and ".join(there)
        what = "; say which one by 'version'" if self.version is None else f", not {self.version}: correct 'version'"
        raise UserError(f"MSMT17: {self.root} holds {found}{what}.")


@DATASETS.register_module()
class ReIDFolder(ReIDDataset):
    """One's own data, a folder for each person: `<root>/{train,query,gallery}/<identity>/<any name>.jpg`.

    A part `c<number>` of the name, between `_` or `-`, is the camera: `c2_0001.jpg`, `0001-c2.png`. Queries and gallery
    name people alike; whoever is in the gallery alone is a distractor. A picture without a camera counts as of no
    camera of the others: nothing is left out for it when a query is ranked; its `camera` is -1, in the gallery -2.
    Pictures of unknown people lie below `<root>/unlabelled` and belong to the split `train`.

    Identities are numbered in the order of their folders' names, numbers first and by value. See `ReIDDataset` for the
    arguments.

    Args:
        data_root: the folder of `train`, `query`, `gallery` and `unlabelled`.
    """

    card = "reid_folder"
    naming = "'<identity>/<picture>'"
    loose: ClassVar[str] = "unlabelled"
    no_camera: ClassVar[dict[str, int]] = {TRAIN: -1, QUERY: -1, GALLERY: -2}
    _camera = re.compile(r"(?:^|[_-])c0*([1-9]\d*)(?=[_-]|$)", re.IGNORECASE)

    def find(self) -> list[Picture]:
        """The pictures of the split; numbers the identities."""
        roles = (TRAIN,) if self.split == "train" else (QUERY, GALLERY)
        names = {f.name for role in roles for f in _entries(self.root / role) if f.is_dir()}
        self.names = sorted(names, key=_numbers_first)
        return super().find()

    def read(self, role: str) -> Iterator[Picture]:
        """The pictures by identity, then by name; in training also those without an identity."""
        for entry in _entries(self.root / role):
            if entry.is_dir():
                identity = self.names.index(entry.name)
                yield from (self._picture(path, identity, role) for path in _pictures(entry))
            elif entry.suffix.lower() in IMAGE_SUFFIXES:
                self.unreadable.append(self.relative(entry))
        if role == TRAIN and self.unlabelled:
            yield from (self._picture(path, UNLABELLED, role) for path in _pictures(self.root / self.loose))

    def name_of(self, identity: int) -> str:
        """The name of the person's folder."""
        return self.names[identity]

    def warnings(self) -> list[str]:
        """As of the others, and pictures without a camera where others have one."""
        without = [self.relative(p.path) for p in self.items if p.camera < 0]
        found = super().warnings()
        if without and len(without) < len(self.items):
            found.append(f"{len(without)} pictures name no camera ('c1' in the name), and others do: {some(without)}")
        return found

    def _picture(self, path: Path, identity: int, role: str) -> Picture:
        camera = self._camera.search(path.stem)
        return Picture(path, identity, int(camera[1]) - 1 if camera else self.no_camera[role], role)


def found_base(dataset: ReIDDataset, inner: Sequence[str], folders: set[str]) -> Path:
    """The folder, the data set's root or one of `inner` below it, that has one of `folders`.

    Raises:
        UserError: if there is none; says so where several data sets lie side by side in the root.
    """
    root = dataset.root
    base = next((p for p in (root, *(root / name for name in inner)) if _has_any(p, folders)), None)
    if base is not None:
        return base
    beside = [p.name for p in sorted(root.iterdir()) if p.is_dir() and _has_any(p, folders)]
    hint = f"Its folders {', '.join(beside)} are data sets of their own: name one. " if beside else ""
    raise UserError(
        f"{type(dataset).__name__}: {root} has none of the folders {', '.join(sorted(folders))}. "
        f"{hint}{dataset.expected()}"
    )


def some(names: Sequence[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _has_any(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).is_dir() for name in names)


def _entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def _pictures(folder: Path) -> list[Path]:
    files = folder.rglob("*") if folder.is_dir() else ()
    return sorted(p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _numbers_first(name: str) -> tuple[bool, int, str]:
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
