"""Synthetic twins of Market-1501 and MSMT17: drawn people in the benchmarks' own formats.

Each picture is drawn from its seed, its domain and its name alone. A person is told by the colours of head, torso and
legs, by patterns and by what is carried; a camera has a light, a colour cast, a background and a blur of its own, so
that two people before one camera can look more alike than one person before two.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kd_reid.datasets import GALLERY, QUERY, TRAIN, NamedFiles
from kd_tasks.engine.randomness import mixed_seed
from kd_tasks.errors import UserError
from kd_tasks.vision.images import Array, write_bytes, write_image
from kd_tasks.vision.twins import claim

Progress = Callable[[int, int], None]

SOURCES = ("north", "south", "old")
TARGET = "target"
DOMAINS = (*SOURCES, TARGET)
HARMFUL = "old"
SOURCE_IDENTITIES = 40
TARGET_IDENTITIES = 60
SOURCE_TEST_IDENTITIES = 12
TEST_IDENTITIES = 40
SIZE = (64, 32)

_VERSION = 1
_SMALLEST = (32, 16)
_FINER = 2  # drawn at so many times the size
_GALLERY_A_CAMERA = 3
_SKINS = ((228, 190, 165), (198, 150, 118), (141, 96, 70), (92, 62, 46))
_HAIRS = ((30, 26, 24), (84, 58, 38), (150, 112, 64), (196, 168, 118), (130, 130, 132), (120, 52, 30))
_PATTERNS = ("plain", "plain", "hoops", "stripes", "checks", "halves", "band")
_LEGS = ("trousers", "trousers", "shorts", "skirt")
_TIMES = ("0113morning", "0302noon", "0303afternoon")
_BAGS = ("none", "none", "backpack", "shoulder", "case")


@dataclass(frozen=True)
class Style:
    """What a domain's people wear and how its cameras differ.

    Attributes:
        saturation: least and most, 0 to 1.
        value: lightness of colours, least and most, 0 to 1.
        cameras: how many.
        cast: how far cameras differ in light and colour.
        strangers: where above 0, an identity is a place, and this the share of its pictures that show anybody but the
            person who is usually there.
    """

    saturation: tuple[float, float] = (0.1, 0.9)
    value: tuple[float, float] = (0.15, 0.95)
    cameras: int = 5
    cast: float = 0.16
    strangers: float = 0.0


STYLES: Mapping[str, Style] = {
    "north": Style(saturation=(0.05, 0.8), value=(0.1, 0.75), cameras=6),
    "south": Style(saturation=(0.15, 0.95), value=(0.3, 0.98), cameras=6),
    "old": Style(cameras=4, strangers=0.6),
    TARGET: Style(cameras=5),
    "msmt17": Style(cameras=15, cast=0.24),
}


@dataclass(frozen=True)
class Shot:
    """A picture to be drawn.

    Attributes:
        path: relative to the data set's folder.
        domain: whose style it has.
        identity: what its person, and in a domain with strangers its place, is drawn from.
        camera: from 0 on.
        time: of the day, on which light and background depend too.
        split: `train` or `test`; None where the loader drops it.
    """

    path: str
    domain: str
    identity: str
    camera: int
    time: str
    split: str | None


def write_market1501(
    root: str | Path,
    seed: int = 0,
    source_identities: int = SOURCE_IDENTITIES,
    target_identities: int = TARGET_IDENTITIES,
    source_test_identities: int = SOURCE_TEST_IDENTITIES,
    test_identities: int = TEST_IDENTITIES,
    size: Sequence[int] = SIZE,
    progress: Progress | None = None,
) -> None:
    """Write several data sets in Market-1501's layout: the sources `north`, `south` and `old`, and a `target`.

    No two have a person in common. `north` wears dark clothes and `south` bright ones. In `old` an identity is a place:
    whoever passes there has its number, as if a tracker had followed the background, and most are strangers. A teacher
    trained on it looks at what in the other data sets tells cameras apart, and hardly at people.

    Args:
        root: the folder; it may hold the same twin, whole or in part, but nothing else.
        seed: of all pictures.
        source_identities: identities for training in each source.
        target_identities: identities for training in the target.
        source_test_identities: identities for testing in each source.
        test_identities: identities for testing in the target.
        size: height and width in pixels, at least 32 and 16.
        progress: is called with the pictures written and their number.

    Raises:
        UserError: if the folder holds other data, or a number is out of range.
    """
    counts = dict.fromkeys(SOURCES, (source_identities, source_test_identities))
    counts[TARGET] = (target_identities, test_identities)
    _check("market1501", size, [count for pair in counts.values() for count in pair])
    plans = {domain: list(_market_shots(domain, seed, *pair)) for domain, pair in counts.items()}
    _write_all(Path(root), "market1501", seed, size, plans, progress)


def write_msmt17(
    root: str | Path,
    seed: int = 0,
    train_identities: int = 30,
    test_identities: int = 20,
    size: Sequence[int] = SIZE,
    progress: Progress | None = None,
) -> None:
    """Write a synthetic twin of MSMT17 in the layout of V2: folders by identity, and four lists.

    Args:
        root: the folder; it may hold the same twin, whole or in part, but nothing else.
        seed: of all pictures.
        train_identities: identities for training.
        test_identities: identities for testing, numbered from 0 again.
        size: height and width in pixels, at least 32 and 16.
        progress: is called with the pictures written and their number.

    Raises:
        UserError: if the folder holds other data, or a number is out of range.
    """
    _check("msmt17", size, (train_identities, test_identities))
    lists = {
        **_msmt_lists(seed, "train", train_identities, ("list_train", "list_val")),
        **_msmt_lists(seed, "test", test_identities, ("list_gallery", "list_query")),
    }
    shots = [shot for listed in lists.values() for shot in listed]
    _write_all(Path(root), "msmt17", seed, size, {"": shots}, progress)
    for name, listed in lists.items():
        files = (Path(shot.path).relative_to("MSMT17_V2") for shot in listed)
        lines = (f"{file.relative_to(file.parts[0]).as_posix()} {int(file.parts[1])}\n" for file in files)
        write_bytes(Path(root) / "MSMT17_V2" / f"{name}.txt", "".join(lines).encode())


def draw(shot: Shot, seed: int, size: Sequence[int] = SIZE) -> Array:
    """The picture of a shot, uint8 (H, W, 3).

    Args:
        shot: what to draw.
        seed: of the twin.
        size: height and width in pixels.
    """
    style = STYLES[shot.domain]
    rng = np.random.default_rng(mixed_seed("picture", seed, shot.domain, shot.path))
    person = np.random.default_rng(mixed_seed("person", seed, shot.domain, shot.identity))
    place = np.random.default_rng(mixed_seed("camera", seed, shot.domain, shot.camera))
    time = np.random.default_rng(mixed_seed("time", seed, shot.domain, shot.camera, shot.time))
    if style.strangers:
        place = time = np.random.default_rng(mixed_seed("place", seed, shot.domain, shot.identity))
        person = rng if rng.random() < style.strangers else person
    height, width = (int(length) * _FINER for length in size)
    camera = Camera(place, time, style, height, width)
    picture = _Figure(rng, Look.of(person, style), camera.background(rng)).drawn()
    return camera.developed(rng, picture)


# --- Who and where ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """How a person looks, whichever camera sees it. Colours are RGB from 0 to 255."""

    skin: Array
    hair: Array
    torso: tuple[Array, Array]
    legs: Array
    shoes: Array
    bag: Array
    pattern: str
    cut: str
    carries: str
    bare_arms: bool
    long_hair: bool
    hat: bool
    width: float
    height: float

    @classmethod
    def of(cls, rng: np.random.Generator, style: Style) -> "Look":
        """A person as the domain has them."""
        return cls(
            skin=_near(rng, _SKINS[rng.integers(len(_SKINS))], 10),
            hair=_near(rng, _HAIRS[rng.integers(len(_HAIRS))], 10),
            torso=(_colour(rng, style), _colour(rng, style)),
            legs=_colour(rng, style),
            shoes=_colour(rng, style),
            bag=_colour(rng, style),
            pattern=_PATTERNS[rng.integers(len(_PATTERNS))],
            cut=_LEGS[rng.integers(len(_LEGS))],
            carries=_BAGS[rng.integers(len(_BAGS))],
            bare_arms=bool(rng.random() < 0.4),
            long_hair=bool(rng.random() < 0.35),
            hat=bool(rng.random() < 0.2),
            width=float(rng.uniform(0.85, 1.2)),
            height=float(rng.uniform(0.93, 1.05)),
        )


class Camera:
    """A place with its light.

    Args:
        rng: what the place depends on.
        time: what the time of the day depends on.
        style: of the domain.
        height: of the canvas in pixels.
        width: of the canvas in pixels.
    """

    def __init__(
        self, rng: np.random.Generator, time: np.random.Generator, style: Style, height: int, width: int
    ) -> None:
        self.height, self.width = height, width
        shift = rng.normal(0, style.cast) + rng.normal(0, 0.5 * style.cast, 3)
        self.light = np.exp(shift + time.normal(0, 0.1) + time.normal(0, 0.05, 3)).astype(np.float32)
        self.gamma = float(np.exp(rng.normal(0, style.cast)))
        self.blur = float(rng.uniform(0.3, 1.0))
        self.noise = float(rng.uniform(2, 8))
        self.wall, self.floor = (0.5 * _surface(rng) + 0.5 * _surface(time) for _ in range(2))
        self.line = float(rng.uniform(0.3, 0.9))
        coarse = rng.normal(0, 1, (9, 7, 1)) + 0.4 * rng.normal(0, 1, (9, 7, 3))
        self.relief = cv2.resize(coarse.astype(np.float32), (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
        self.period = float(rng.uniform(0.15, 0.5)) * width
        self.stripes = float(rng.choice([0.0, 14.0]))

    def background(self, rng: np.random.Generator) -> Array:
        """What is behind the person, a little to one side or the other each time; float32 (H, W, 3)."""
        y, x = rng.integers(0, self.height), rng.integers(0, self.width)
        scene = np.empty((self.height, self.width, 3), np.float32)
        line = int(self.height * np.clip(self.line + rng.normal(0, 0.06), 0.1, 0.95))
        scene[:line], scene[line:] = (surface + rng.normal(0, 10, 3) for surface in (self.wall, self.floor))
        scene += 12 * self.relief[y : y + self.height, x : x + self.width]
        columns = np.sin((np.arange(self.width) + x) * (2 * np.pi / self.period))
        scene[:line] += self.stripes * np.sign(columns)[:, None].astype(np.float32)
        return np.clip(scene, 0, 255)

    def developed(self, rng: np.random.Generator, picture: Array) -> Array:
        """The drawn scene as the camera gives it: light, cast, blur and noise; uint8, at the final size."""
        small = cv2.resize(picture, (self.width // _FINER, self.height // _FINER), interpolation=cv2.INTER_AREA)
        light = self.light * np.exp(rng.normal(0, 0.08) + rng.normal(0, 0.03, 3)).astype(np.float32)
        lit = 255 * np.power(np.clip(small * light / 255, 0, 1), self.gamma)
        soft = cv2.GaussianBlur(lit, (3, 3), self.blur)
        noise = rng.standard_normal(soft.shape, dtype=np.float32) * np.float32(self.noise)
        return np.clip(soft + noise, 0, 255).astype(np.uint8)


class _Figure:
    """Draws a person before a background. Lengths are fractions of the person's height, from the feet up."""

    def __init__(self, rng: np.random.Generator, look: Look, canvas: Array) -> None:
        self.rng, self.look, self.canvas = rng, look, canvas
        height, width = canvas.shape[:2]
        self.tall = 0.86 * height * look.height * rng.uniform(0.88, 1.08)
        self.foot = height * (0.96 + rng.normal(0, 0.02))
        self.middle = width * (0.5 + rng.normal(0, 0.05))
        self.back = bool(rng.random() < 0.5)
        self.side = 1 if rng.random() < 0.5 else -1
        self.turned = float(rng.uniform(0.65, 1.0))  # how wide the person seems
        self.stride = float(rng.uniform(0.01, 0.07))

    def drawn(self) -> Array:
        """The canvas with the person on it."""
        self._carried(behind=True)
        self._legs()
        self._torso()
        self._head()
        self._carried(behind=False)
        if self.rng.random() < 0.15:
            self._occluder()
        return self.canvas

    @cached_property
    def shoulder(self) -> float:
        """Half the width of the shoulders."""
        return 0.115 * self.look.width * (0.6 + 0.4 * self.turned)

    def _legs(self) -> None:
        look, half = self.look, 0.8 * self.shoulder
        for sign in (-1, 1):
            foot = sign * (0.04 + self.stride)
            shape = [(sign * half, 0.5), (0, 0.5), (foot - 0.02, 0.03), (foot + 0.03 * sign, 0.03)]
            self._polygon(shape, look.legs if look.cut == "trousers" else look.skin)
            self._polygon([(foot - 0.04, 0.05), (foot + 0.04, 0.05), (foot + 0.045, 0), (foot - 0.045, 0)], look.shoes)
        if look.cut != "trousers":
            low, wide = (0.3, 1.1) if look.cut == "shorts" else (0.26, 1.5)
            self._polygon([(-half, 0.52), (half, 0.52), (wide * half, low), (-wide * half, low)], look.legs)

    def _torso(self) -> None:
        look, wide = self.look, self.shoulder
        for sign in (-1, 1):
            swing = sign * (wide + 0.025 + 0.5 * self.stride)
            arm = [(sign * wide * 0.7, 0.83), (sign * (wide + 0.01), 0.81), (swing + 0.02, 0.48), (swing - 0.02, 0.48)]
            self._polygon(arm, look.skin if look.bare_arms else look.torso[0] * 0.9)
        body = [(-wide, 0.83), (wide, 0.83), (0.85 * wide, 0.49), (-0.85 * wide, 0.49)]
        self._polygon(body, look.torso[0], self._pattern())

    def _pattern(self) -> Array | None:
        """Where the second colour of the torso is: bool (H, W)."""
        rows, columns = np.ogrid[: self.canvas.shape[0], : self.canvas.shape[1]]
        down, across = (self.foot - rows) / self.tall, (columns - self.middle) / self.tall
        hoops, stripes = np.sin(down * (2 * np.pi / 0.09)) > 0, np.sin(across * (2 * np.pi / 0.08)) > 0
        shape = (*self.canvas.shape[:2],)
        found = {
            "hoops": hoops,
            "stripes": stripes,
            "checks": hoops ^ stripes,
            "halves": down < 0.66,
            "band": np.abs(down - 0.68) < 0.05,
        }.get(self.look.pattern)
        return None if found is None else np.broadcast_to(found, shape)

    def _head(self) -> None:
        look, radius = self.look, 0.065
        if look.long_hair:
            self._ellipse((0, 0.87), (radius * 1.15, 0.1), look.hair)
        self._ellipse((0, 0.91), (radius * (0.8 + 0.2 * self.turned), 0.08), look.hair if self.back else look.skin)
        if not self.back:
            self._ellipse((0, 0.955), (radius * 0.95, 0.045), look.hair)
        if look.hat:
            self._ellipse((0, 0.97), (radius * 1.2, 0.035), look.bag)

    def _carried(self, behind: bool) -> None:
        look, wide = self.look, self.shoulder
        if look.carries == "backpack" and behind is not self.back:
            grow = 1.25 if behind else 0.8
            self._polygon(
                [(-grow * wide, 0.8), (grow * wide, 0.8), (grow * wide, 0.56), (-grow * wide, 0.56)], look.bag
            )
        if look.carries == "shoulder" and not behind:
            x = self.side * (wide + 0.02)
            self._polygon([(x - 0.06, 0.56), (x + 0.06, 0.56), (x + 0.06, 0.42), (x - 0.06, 0.42)], look.bag)
            strap = -self.side * wide * 0.8
            self._polygon([(strap, 0.83), (strap + 0.03, 0.83), (x + 0.02, 0.55), (x - 0.02, 0.55)], look.bag)
        if look.carries == "case" and not behind:
            x = self.side * (wide + 0.08)
            self._polygon([(x - 0.06, 0.26), (x + 0.06, 0.26), (x + 0.06, 0.0), (x - 0.06, 0.0)], look.bag)

    def _occluder(self) -> None:
        height, width = self.canvas.shape[:2]
        grey = self.rng.uniform(40, 200)
        if self.rng.random() < 0.5:
            self.canvas[int(height * self.rng.uniform(0.7, 0.9)) :] = grey
            return
        edge = int(width * self.rng.uniform(0.1, 0.3))
        self.canvas[:, :edge] = grey

    def _points(self, points: Sequence[tuple[float, float]]) -> Array:
        places = [(self.middle + x * self.tall, self.foot - y * self.tall) for x, y in points]
        return np.round(np.array(places)).astype(np.int32)

    def _polygon(self, points: Sequence[tuple[float, float]], colour: Array, second: Array | None = None) -> None:
        corners = self._points(points)
        if second is None:
            cv2.fillPoly(self.canvas, [corners], colour.tolist(), cv2.LINE_AA)
            return
        mask = np.zeros(self.canvas.shape[:2], np.uint8)
        cv2.fillPoly(mask, [corners], 1)
        self.canvas[mask == 1] = colour
        self.canvas[(mask == 1) & second] = self.look.torso[1]

    def _ellipse(self, centre: tuple[float, float], half: tuple[float, float], colour: Array) -> None:
        ((x, y),) = self._points([centre])
        axes = (max(round(half[0] * self.tall), 1), max(round(half[1] * self.tall), 1))
        cv2.ellipse(self.canvas, (int(x), int(y)), axes, 0, 0, 360, colour.tolist(), cv2.FILLED, cv2.LINE_AA)


def _colour(rng: np.random.Generator, style: Style) -> Array:
    hue, saturation, value = rng.uniform(0, 360), rng.uniform(*style.saturation), rng.uniform(*style.value)
    pixel = np.array([[[hue, saturation, value]]], np.float32)
    return 255 * cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]


def _surface(rng: np.random.Generator) -> Array:
    """Something grey, with a tinge."""
    return np.clip(rng.uniform(60, 200) + rng.normal(0, 22, 3), 20, 235).astype(np.float32)


def _near(rng: np.random.Generator, colour: Sequence[int], spread: float) -> Array:
    return np.clip(np.asarray(colour) + rng.normal(0, spread, 3), 0, 255)


# --- Which pictures there are ----------------------------------------------------------------------------------------


def _market_shots(domain: str, seed: int, train: int, test: int) -> Iterator[Shot]:
    """The pictures of one domain; identities begin with 2 in training, and the test's lie between them."""
    cameras = STYLES[domain].cameras
    for number in range(train):
        rng = _chances(domain, seed, TRAIN, number)
        seen = rng.choice(cameras, rng.integers(3, 5), replace=False)
        for place, camera in enumerate(np.resize(seen, rng.integers(8, 13)).tolist()):
            yield _market_shot(domain, TRAIN, 2 * number + 2, camera, place)
    for number in range(test):
        for camera in sorted(_chances(domain, seed, "test", number).choice(cameras, 3, replace=False).tolist()):
            yield _market_shot(domain, QUERY, 2 * number + 1, camera, 0)
            for place in range(_GALLERY_A_CAMERA):
                yield _market_shot(domain, GALLERY, 2 * number + 1, camera, place + 1)
        yield _market_shot(domain, GALLERY, 0, number % cameras, number)
        if number % 2:
            yield _market_shot(domain, GALLERY, -1, number % cameras, number)


def _market_shot(domain: str, role: str, identity: int, camera: int, place: int) -> Shot:
    """One picture: of a distractor (0) or junk (-1), everyone is somebody else."""
    known = identity > 0
    prefix = f"{identity:04d}" if identity >= 0 else "-1"
    sequence, box = 1 + place % 6, 0 if role == QUERY else 1 + place % 5
    name = f"{prefix}_c{camera + 1}s{sequence}_{1 + 50 * place:06d}_{box:02d}.jpg"
    split = None if identity < 0 else TRAIN if role == TRAIN else "test"
    person = str(identity) if known else f"{identity}/{place}"
    return Shot(f"{NamedFiles.folders[role]}/{name}", domain, person, camera, f"s{sequence}", split)


def _msmt_lists(seed: int, split: str, identities: int, lists: tuple[str, str]) -> dict[str, list[Shot]]:
    """The entries of two lists: of each camera's pictures of a person, the last goes to the second list."""
    found: dict[str, list[Shot]] = {name: [] for name in lists}
    for number in range(identities):
        rng = _chances("msmt17", seed, split, number)
        count = 0
        for camera in sorted(rng.choice(STYLES["msmt17"].cameras, 3, replace=False).tolist()):
            pictures = int(rng.integers(3, 5))
            for place in range(pictures):
                time = _TIMES[rng.integers(len(_TIMES))]
                ending = f"{int(rng.integers(1, 2000)):04d}_{place}{'_ex' if rng.random() < 0.1 else ''}.jpg"
                name = f"{number:04d}_{count:03d}_{camera + 1:02d}_{time}_{ending}"
                path = f"MSMT17_V2/mask_{split}_v2/{number:04d}/{name}"
                listed = lists[place == pictures - 1 and (split == "test" or camera % 4 == 0)]
                wanted = split == "test" or listed == "list_train"
                found[listed].append(Shot(path, "msmt17", f"{split}/{number}", camera, time, split if wanted else None))
                count += 1
    return found


def _chances(domain: str, seed: int, split: str, number: int) -> np.random.Generator:
    return np.random.default_rng(mixed_seed("plan", seed, domain, split, number))


# --- On disk ---------------------------------------------------------------------------------------------------------


def _check(twin: str, size: Sequence[int], counts: Sequence[int]) -> None:
    fits = len(size) == 2 and all(length >= least for length, least in zip(size, _SMALLEST, strict=True))
    if not fits or min(counts) < 0:
        raise UserError(
            f"the twin of {twin}: size is (height, width), at least {_SMALLEST[0]} and {_SMALLEST[1]}; numbers of "
            "identities are 0 or more."
        )


def _write_all(
    root: Path,
    twin: str,
    seed: int,
    size: Sequence[int],
    plans: Mapping[str, Sequence[Shot]],
    progress: Progress | None,
) -> None:
    """Write the data sets by folder; each is marked with its counts, and so is the root."""
    every = {folder: _description(twin, folder, seed, size, shots) for folder, shots in plans.items()}
    if "" not in plans:
        counts = {folder: dict(description["splits"]) for folder, description in every.items()}
        claim(root, {**_description(twin, "", seed, size, ()), "domains": counts, "splits": dict(counts[TARGET])})
    total, done = sum(map(len, plans.values())), 0
    for folder, shots in plans.items():
        claim(root / folder, every[folder])
        for shot in shots:
            write_image(root / folder / shot.path, draw(shot, seed, size))
            done += 1
            if progress is not None:
                progress(done, total)


def _description(twin: str, domain: str, seed: int, size: Sequence[int], shots: Sequence[Shot]) -> dict[str, Any]:
    splits = {split: sum(shot.split == split for shot in shots) for split in (TRAIN, "test")}
    named = {"domain": domain} if domain else {}
    lengths = [int(length) for length in size]
    return {"twin": twin, **named, "version": _VERSION, "seed": seed, "size": lengths, "splits": splits}
