"""Synthetic twins of Cityscapes and CamVid: drawn street scenes in the benchmarks' own formats.

Each picture is drawn from (seed, split, number) alone. Colours and light change from scene to scene, so that a class
is known by its shape, texture and place rather than by its colour: a larger network sees more of that than a smaller
one. The shares of the classes are as uneven as on real streets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kd_tasks.engine.randomness import mixed_seed
from kd_tasks.errors import UserError
from kd_tasks.vision.images import Array, write_bytes, write_image
from kd_tasks.vision.twins import claim

Progress = Callable[[int, int], None]
Point = tuple[float, float]
Colour = Array
Thing = tuple[float, Callable[[float], None]]  # how near it is, and what draws it

_VERSION = 1
_SMALLEST = 32

# Cityscapes label ids
EGO, STATIC, ROAD, PAVEMENT, BUILDING, WALL, FENCE, POLE = 1, 4, 7, 8, 11, 12, 13, 17
LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR = 19, 20, 21, 22, 23, 24, 25, 26
TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 27, 28, 31, 32, 33
PLATE = 255  # -1 in 8 bits

_CAMVID = {
    **dict.fromkeys((SKY,), 0),
    **dict.fromkeys((BUILDING, WALL), 1),
    **dict.fromkeys((POLE,), 2),
    **dict.fromkeys((ROAD,), 3),
    **dict.fromkeys((PAVEMENT,), 4),
    **dict.fromkeys((VEGETATION, TERRAIN), 5),
    **dict.fromkeys((LIGHT, SIGN), 6),
    **dict.fromkeys((FENCE,), 7),
    **dict.fromkeys((CAR, TRUCK, BUS, TRAIN, PLATE), 8),
    **dict.fromkeys((PERSON,), 9),
    **dict.fromkeys((RIDER, BICYCLE, MOTORCYCLE), 10),
}
_CAMVID_VOID = 11

_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)

_CITIES = {"train": ("aachen", "bochum", "bremen"), "val": ("frankfurt", "lindau"), "test": ("berlin", "bonn")}
_CAMVID_NAMES: dict[str, Callable[[int], str]] = {
    "train": lambda number: f"0001TP_{6690 + 30 * number:06d}",
    "val": lambda number: f"0016E5_{7959 + 2 * number:05d}",
    "test": lambda number: f"Seq05VD_f{30 * number:05d}",
}


@dataclass(frozen=True)
class Scene:
    """A drawn picture.

    Attributes:
        image: RGB uint8 (H, W, 3).
        labels: Cityscapes label ids uint8 (H, W); 255 is a licence plate.
        instances: Cityscapes instance ids uint16 (H, W): id * 1000 + number, or the id of what is not counted.
    """

    image: Array
    labels: Array
    instances: Array


def write_cityscapes(
    root: str | Path,
    seed: int = 0,
    train: int = 240,
    val: int = 60,
    test: int = 20,
    size: Sequence[int] = (96, 192),
    progress: Progress | None = None,
) -> None:
    """Write a synthetic twin of Cityscapes: `leftImg8bit` and `gtFine` with labelIds and instanceIds, by city.

    As in the benchmark, the labels of `test` hold nothing but void.

    Args:
        root: the folder; it may hold the same twin, whole or in part, but nothing else.
        seed: of all pictures.
        train: pictures of the split.
        val: pictures of the split.
        test: pictures of the split.
        size: height and width in pixels, each at least 32.
        progress: is called with the pictures written and their number.

    Raises:
        UserError: if the folder holds other data, or a number is out of range.
    """
    counts = {"train": train, "val": val, "test": test}
    _write_twin("cityscapes", Path(root), seed, counts, size, _write_cityscapes_scene, progress)


def write_camvid(
    root: str | Path,
    seed: int = 0,
    train: int = 240,
    val: int = 60,
    test: int = 60,
    size: Sequence[int] = (96, 128),
    progress: Progress | None = None,
) -> None:
    """Write a synthetic twin of CamVid: SegNet's folders, its lists with foreign paths, 11 classes, 11 for void.

    Args:
        root: the folder; it may hold the same twin, whole or in part, but nothing else.
        seed: of all pictures.
        train: pictures of the split.
        val: pictures of the split.
        test: pictures of the split.
        size: height and width in pixels, each at least 32.
        progress: is called with the pictures written and their number.

    Raises:
        UserError: if the folder holds other data, or a number is out of range.
    """
    counts = {"train": train, "val": val, "test": test}
    _write_twin("camvid", Path(root), seed, counts, size, _write_camvid_scene, progress)
    for split, count in counts.items():
        names = [_CAMVID_NAMES[split](number) for number in range(count)]
        lines = (f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n" for name in names)
        write_bytes(Path(root) / f"{split}.txt", "".join(lines).encode())


def draw_scene(seed: int, size: Sequence[int]) -> Scene:
    """Draw a street.

    Args:
        seed: the picture depends on nothing else.
        size: height and width in pixels.
    """
    return _Street(np.random.default_rng(seed), int(size[0]), int(size[1])).scene()


def _write_twin(
    twin: str,
    root: Path,
    seed: int,
    counts: Mapping[str, int],
    size: Sequence[int],
    write: Callable[[Path, str, int, Scene], None],
    progress: Progress | None,
) -> None:
    if len(size) != 2 or min(size) < _SMALLEST or min(counts.values()) < 0:
        raise UserError(
            f"the twin of {twin}: size is (height, width), each at least {_SMALLEST}; counts are 0 or more."
        )
    description = {
        "twin": twin,
        "version": _VERSION,
        "seed": seed,
        "size": [int(length) for length in size],
        "splits": dict(counts),
    }
    claim(root, description)
    total, done = sum(counts.values()), 0
    for split, count in counts.items():
        for number in range(count):
            write(root, split, number, draw_scene(mixed_seed(twin, seed, split, number), size))
            done += 1
            if progress is not None:
                progress(done, total)


def _write_cityscapes_scene(root: Path, split: str, number: int, scene: Scene) -> None:
    cities = _CITIES[split]
    city = cities[number % len(cities)]
    stem = f"{city}_{number // len(cities):06d}_000019"
    labels, instances = scene.labels, scene.instances
    if split == "test":
        labels = np.where(labels == EGO, labels, 0).astype(np.uint8)
        instances = labels.astype(np.uint16)
    truth = root / "gtFine" / split / city
    write_image(truth / f"{stem}_gtFine_labelIds.png", labels)
    write_image(truth / f"{stem}_gtFine_instanceIds.png", instances)
    write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", scene.image)


def _camvid_table() -> Array:
    table = np.full(256, _CAMVID_VOID, dtype=np.uint8)
    for label, value in _CAMVID.items():
        table[label] = value
    return table


_CAMVID_TABLE = _camvid_table()


def _write_camvid_scene(root: Path, split: str, number: int, scene: Scene) -> None:
    name = _CAMVID_NAMES[split](number)
    write_image(root / f"{split}annot" / f"{name}.png", _CAMVID_TABLE[scene.labels])
    write_image(root / split / f"{name}.png", scene.image)


class _Canvas:
    """Image, labels and instances of one size, painted from far to near."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height, width
        self.image = np.zeros((height, width, 3), np.float32)
        self.labels = np.full((height, width), STATIC, np.uint8)
        self.instances = np.full((height, width), STATIC, np.uint16)
        self.fine = rng.standard_normal((height, width), dtype=np.float32)
        self.coarse = self.smooth_noise(12)
        self.middle = self.smooth_noise(40)
        self._counts: dict[int, int] = {}

    def smooth_noise(self, cells: int) -> Array:
        """Noise of mean 0 and deviation about 1, with about `cells` bumps along the width."""
        rows = max(2, cells * self.height // self.width)
        grid = self.rng.standard_normal((rows, cells), dtype=np.float32)
        return cv2.resize(grid, (self.width, self.height), interpolation=cv2.INTER_CUBIC)

    def instance(self, label: int) -> int:
        """The id of the next object of a class that is counted."""
        number = self._counts.get(label, 0)
        self._counts[label] = number + 1
        return label * 1000 + number

    def polygon(
        self,
        points: Sequence[Point] | Array,
        colour: Colour,
        label: int | None = None,
        instance: int | None = None,
        grain: float = 0.04,
        texture: Array | None = None,
    ) -> None:
        """Fill a polygon of (x, y).

        Args:
            points: its corners, in pixels.
            colour: RGB.
            label: the label id it gets; None leaves labels as they are (what is painted on something).
            instance: the instance id; the label if not given.
            grain: deviation of the fine noise, as a share of the colour.
            texture: (H, W), a factor on the colour, minus 1.
        """
        corners = np.round(np.asarray(points, np.float64)).astype(np.int32)
        left, top = np.maximum(corners.min(axis=0), 0)
        right, bottom = np.minimum(corners.max(axis=0) + 1, (self.width, self.height))
        if right <= left or bottom <= top:
            return
        stencil = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(stencil, [corners - (left, top)], 1)
        place = slice(top, bottom), slice(left, right)
        factor = 1 + grain * self.fine[place]
        if texture is not None:
            factor = factor + texture[place]
        inside = stencil.astype(bool)
        np.copyto(self.image[place], factor[..., None] * colour, where=inside[..., None])
        if label is not None:
            self.labels[place][inside] = label
            self.instances[place][inside] = label if instance is None else instance

    def ellipse(self, centre: Point, axes: Point, colour: Colour, **options: Any) -> None:
        """Fill an ellipse of half axes (x, y); see `polygon`."""
        self.polygon(_CIRCLE * axes + centre, colour, **options)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, **options: Any) -> None:
        """Fill a rectangle; see `polygon`."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour, **options)

    def darken(self, centre: Point, axes: Point, factor: float) -> None:
        """A soft-edged shadow, on the image alone."""
        y, x = np.ogrid[: self.height, : self.width]
        distance = ((x - centre[0]) / max(axes[0], 1)) ** 2 + ((y - centre[1]) / max(axes[1], 1)) ** 2
        self.image *= (1 - (1 - factor) * np.clip(1.5 - distance, 0, 1)).astype(np.float32)[..., None]


class _Street(_Canvas):
    """A street to the horizon, with what stands beside it and moves on it."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        super().__init__(rng, height, width)
        self.horizon = height * rng.uniform(0.36, 0.48)
        self.middle_x = width * rng.uniform(0.35, 0.65)
        self.road_left = -width * rng.uniform(-0.12, 0.25)
        self.road_right = width * (1 + rng.uniform(-0.12, 0.25))
        self.pave = width * rng.uniform(0.2, 0.45)
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        self.rows, self.columns = rows, columns

    def scene(self) -> Scene:
        """Draw everything."""
        self._sky()
        self._ground()
        for side in (-1, 1):
            self._roadside(side)
        things = [*self._traffic(), *self._people(), *self._furniture()]
        for nearness, draw in sorted(things, key=lambda thing: thing[0]):
            draw(nearness)
        if self.rng.random() < 0.3:
            self._own_car()
        return Scene(self._developed(), self.labels, self.instances)

    def x_at(self, nearness: float, side: float) -> float:
        """Column of a line to the vanishing point; `side` 0 is the left kerb, 1 the right one."""
        at_bottom = self.road_left + side * (self.road_right - self.road_left)
        return self.middle_x + nearness * (at_bottom - self.middle_x)

    def y_at(self, nearness: float) -> float:
        """Row of the ground; nearness 0 is the horizon, 1 the bottom of the picture."""
        return self.horizon + nearness * (self.height - self.horizon)

    def colour(self, low: float = 25, high: float = 225) -> Colour:
        """Any colour; greys more often than others, as on streets."""
        grey = self.rng.uniform(low, high)
        return np.clip(grey + self.rng.normal(0, self.rng.choice([6, 45]), 3), 8, 245).astype(np.float32)

    def tinted(self, base: Sequence[float], spread: float = 18) -> Colour:
        """A colour near `base`."""
        colour = np.asarray(base) * self.rng.uniform(0.75, 1.25) + self.rng.normal(0, spread, 3)
        return np.clip(colour, 5, 250).astype(np.float32)

    def _sky(self) -> None:
        bases = [(120, 165, 225), (190, 195, 205), (235, 235, 235), (225, 190, 160), (150, 155, 165)]
        top = self.tinted(bases[self.rng.integers(len(bases))], 10)
        fall = 1 + 0.25 * self.rows / self.height + 0.05 * self.coarse
        self.box(0, 0, self.width, self.horizon + 2, top, label=SKY, grain=0.01, texture=fall - 1)

    def _ground(self) -> None:
        grey = self.rng.uniform(70, 130)
        pavement = self.tinted((grey * 1.2, grey * 1.15, grey * 1.1), 8)
        road = self.tinted((grey, grey, grey * 1.02), 5)
        depth = np.maximum(self.rows - self.horizon, 1)
        slabs = 0.1 * (np.sin(60 * self.height / depth) > 0.7)
        vanishing = (self.middle_x, self.horizon)
        below = self.height + 1
        terrain = self.tinted((90, 120, 60), 14) if self.rng.random() < 0.45 else None
        self.box(0, self.horizon, self.width, below, pavement, label=PAVEMENT, grain=0.05, texture=slabs)
        if terrain is not None:
            edge = self.road_right + self.pave if self.rng.random() < 0.5 else self.road_left - self.pave
            far = self.width * 3 if edge > self.middle_x else -self.width * 2
            self.polygon(
                [vanishing, (edge, below), (far, below), (far, self.horizon)],
                terrain,
                label=TERRAIN,
                grain=0.14,
                texture=0.08 * self.middle,
            )
        lanes = [vanishing, (self.road_right, below), (self.road_left, below)]
        self.polygon(lanes, road, label=ROAD, grain=0.05, texture=0.04 * self.coarse)
        self._markings()

    def _markings(self) -> None:
        white = np.full(3, self.rng.uniform(170, 230), np.float32)
        for side in self.rng.choice([0.33, 0.5, 0.67], size=self.rng.integers(0, 3), replace=False):
            for start in np.arange(self.rng.uniform(0.05, 0.2), 1, 0.22):
                end = min(start * 1.4, 1.05)
                corners = [(start, side - 0.008), (start, side + 0.008), (end, side + 0.008), (end, side - 0.008)]
                self.polygon([(self.x_at(n, s), self.y_at(n)) for n, s in corners], white)

    def _roadside(self, side: int) -> None:
        """Buildings, trees, walls and fences of one side, from far to near."""
        kerb = 1.0 if side > 0 else 0.0
        offset = self.pave / max(self.road_right - self.road_left, 1)
        line = kerb + side * offset
        green = self.rng.random() < 0.3
        stops = np.sort(np.r_[0.04, self.rng.uniform(0.08, 1.3, 4), 1.6])
        for far, near in pairwise(stops.tolist()):
            if not green and self.rng.random() < 0.85:
                self._building(line, far, near)
            if self.rng.random() < (0.9 if green else 0.35):
                self._tree(line, float(self.rng.uniform(far, near)), side)
        if self.rng.random() < 0.7:
            far, near = np.sort(self.rng.uniform(0.15, 1.5, 2))
            self._barrier(line, float(far), float(near), FENCE if self.rng.random() < 0.6 else WALL)

    def _building(self, line: float, far: float, near: float) -> None:
        height = self.rng.uniform(0.9, 2.6) * self.height
        x_far, x_near = self.x_at(far, line), self.x_at(near, line)
        base_far, base_near = self.y_at(far), self.y_at(near)
        corners = [
            (x_far, base_far),
            (x_far, base_far - height * far),
            (x_near, base_near - height * near),
            (x_near, base_near),
        ]
        bases = [(150, 90, 75), (170, 160, 140), (120, 120, 125), (200, 190, 175), (95, 85, 80)]
        facade = self.tinted(bases[self.rng.integers(len(bases))], 12)
        self.polygon(corners, facade, label=BUILDING, grain=0.04, texture=self._windows(far, near))

    def _windows(self, far: float, near: float) -> Array:
        scale = self.height * (far + min(near, 1.0)) / 2
        across, down = max(scale * 0.09, 3), max(scale * 0.14, 4)
        x, y = self.columns[0] / across % 1, (self.rows[:, 0] - self.horizon) / down % 1
        pane = np.outer((y > 0.3) & (y < 0.8), (x > 0.3) & (x < 0.75)).astype(np.float32)
        return pane * np.float32(self.rng.choice([-0.45, -0.3, 0.25]))

    def _tree(self, line: float, nearness: float, side: int) -> None:
        x = self.x_at(nearness, line - side * self.rng.uniform(0, 0.06))
        base, reach = self.y_at(nearness), self.height * nearness
        bark = self.tinted((85, 70, 55), 8)
        leaves = self.tinted((75, 105, 50), 16)
        top = base - reach * self.rng.uniform(0.5, 0.8)
        self.box(x - 0.025 * reach, top, x + 0.025 * reach, base, bark, label=VEGETATION, grain=0.1)
        for _ in range(self.rng.integers(4, 8)):
            dx, dy = self.rng.normal(0, 0.16, 2) * reach
            radius = self.rng.uniform(0.1, 0.24) * reach
            shade = leaves * self.rng.uniform(0.75, 1.2)
            self.ellipse(
                (x + dx, top + dy),
                (radius, radius * 0.8),
                shade,
                label=VEGETATION,
                grain=0.2,
                texture=0.15 * self.middle,
            )

    def _barrier(self, line: float, far: float, near: float, label: int) -> None:
        height = self.rng.uniform(0.2, 0.34) * self.height
        ends = [(self.x_at(n, line), self.y_at(n), height * n) for n in (far, near)]
        corners = [(x, y) for x, y, _ in ends] + [(x, y - h) for x, y, h in reversed(ends)]
        bars = 0.35 * np.sign(np.sin(self.columns * (2 * np.pi / self.rng.uniform(3, 5))))
        courses = 0.08 * np.sign(np.sin(self.rows * (2 * np.pi / self.rng.uniform(4, 7))))
        colour = self.colour(70, 180)
        self.polygon(corners, colour, label=label, texture=bars if label == FENCE else courses + 0.04 * self.coarse)

    def _traffic(self) -> list[Thing]:
        rng = self.rng
        labels = [CAR] * int(rng.integers(1, 7))
        for label, chance in ((TRUCK, 0.2), (BUS, 0.16), (TRAIN, 0.1)):
            labels += [label] * int(rng.random() < chance)
        nearness = rng.uniform(0.07, 0.85, len(labels)) ** 1.3
        sides = rng.uniform(0.02, 0.98, len(labels))
        return [
            (float(n), partial(self._vehicle, side=float(s), label=label))
            for label, n, s in zip(labels, nearness, sides, strict=True)
        ]

    def _vehicle(self, nearness: float, side: float, label: int) -> None:
        rng, unit = self.rng, self.height * nearness
        wide, tall = {CAR: (0.55, 0.4), TRUCK: (0.7, 0.85), BUS: (0.75, 0.95), TRAIN: (1.3, 0.9)}[label]
        wide, tall = wide * unit * rng.uniform(0.85, 1.5), tall * unit * rng.uniform(0.85, 1.1)
        x, base = self.x_at(nearness, side), self.y_at(nearness)
        left, right, top = x - wide / 2, x + wide / 2, base - tall
        body, glass, black = self.colour(), self.tinted((60, 70, 80), 12), self.tinted((28, 28, 30), 4)
        mark: dict[str, Any] = {"label": label, "instance": self.instance(label)}
        self.darken((x, base), (wide * 0.6, unit * 0.06), 0.55)
        for wheel in (left + 0.18 * wide, right - 0.18 * wide):
            self.ellipse((wheel, base - 0.07 * unit), (0.09 * unit, 0.09 * unit), black, **mark)
        if label == CAR:
            self._car_body((left, top, right, base), unit, (body, glass), mark)
            if nearness > 0.35:
                self._plate((x, base - 0.16 * tall), (0.08 * wide, 0.04 * tall), mark["instance"])
            return
        self.box(left, top, right, base - 0.07 * unit, body, **mark)
        if label == TRUCK:
            self.box(left, top + 0.35 * tall, left + 0.28 * wide, base - 0.07 * unit, self.colour(), **mark)
            self.box(left + 0.03 * wide, top + 0.4 * tall, left + 0.2 * wide, top + 0.62 * tall, glass)
            return
        panes = 9 if label == TRAIN else 5
        for pane in range(panes):
            start = left + wide * (pane + 0.15) / panes
            self.box(start, top + 0.18 * tall, start + 0.7 * wide / panes, top + 0.5 * tall, glass, grain=0.02)
        if label == TRAIN:
            self.box(left, top + 0.58 * tall, right, top + 0.66 * tall, self.colour())

    def _car_body(
        self,
        frame: tuple[float, float, float, float],
        unit: float,
        colours: tuple[Colour, Colour],
        mark: dict[str, Any],
    ) -> None:
        left, top, right, base = frame
        body, glass = colours
        x, wide, tall = (left + right) / 2, right - left, base - top
        roof = base - tall * 0.55
        self.box(left, roof, right, base - 0.06 * unit, body, **mark)
        foot = (left + 0.1 * wide, right - 0.07 * wide)
        cabin = [(foot[0], roof), (left + 0.25 * wide, top), (right - 0.2 * wide, top), (foot[1], roof)]
        self.polygon(cabin, body * 0.95, **mark)
        self.polygon([(px * 0.86 + x * 0.14, py + 0.03 * unit) for px, py in cabin], glass, grain=0.02)
        self._lamps(left, right, base - tall * 0.4, unit)

    def _plate(self, centre: Point, half: Point, instance: int) -> None:
        (x, y), (across, down) = centre, half
        self.box(x - across, y - down, x + across, y + down, self.colour(200, 235), label=PLATE, instance=instance)

    def _lamps(self, left: float, right: float, row: float, unit: float) -> None:
        rear = self.rng.random() < 0.6
        colour = self.tinted((200, 30, 30) if rear else (245, 240, 215), 8)
        for x in (left + 0.05 * unit, right - 0.05 * unit):
            self.ellipse((x, row), (0.035 * unit, 0.03 * unit), colour)

    def _people(self) -> list[Thing]:
        rng = self.rng
        things: list[Thing] = []
        for _ in range(rng.integers(0, 6)):
            on_road = rng.random() < 0.2
            beside = rng.choice([-0.12, 1.12]) + rng.normal(0, 0.07)
            side = float(rng.uniform(0, 1) if on_road else beside)
            things.append((float(rng.uniform(0.12, 0.8)), partial(self._walker, side=side)))
        for label, chance in ((BICYCLE, 0.45), (MOTORCYCLE, 0.3)):
            if rng.random() < chance:
                side, ridden = float(rng.uniform(-0.1, 1.1)), bool(rng.random() < 0.75)
                draw = partial(self._two_wheels, side=side, label=label, ridden=ridden)
                things.append((float(rng.uniform(0.15, 0.75)), draw))
        return things

    def _walker(self, nearness: float, side: float) -> None:
        unit = self.height * nearness
        mark: dict[str, Any] = {"label": PERSON, "instance": self.instance(PERSON)}
        x, base, tall = self.x_at(nearness, side), self.y_at(nearness), 0.46 * unit * self.rng.uniform(0.8, 1.1)
        stride = self.rng.uniform(0.02, 0.09) * unit
        trousers = self.colour(20, 130)
        hip = base - 0.48 * tall
        for foot in (-stride, stride):
            ankle = [(x + foot + 0.02 * unit, base), (x + foot - 0.025 * unit, base)]
            self.polygon([(x - 0.035 * unit, hip), (x + 0.035 * unit, hip), *ankle], trousers, **mark)
        self._torso(x, hip, tall, unit, mark)

    def _torso(self, x: float, hip: float, tall: float, unit: float, mark: dict[str, Any]) -> None:
        shoulders, wide = hip - 0.34 * tall, 0.062 * unit
        skin = self.tinted([(215, 175, 150), (150, 105, 80), (90, 62, 48)][self.rng.integers(3)], 8)
        body = [(x - wide, shoulders), (x + wide, shoulders), (x + 0.8 * wide, hip + 1), (x - 0.8 * wide, hip + 1)]
        self.polygon(body, self.colour(), **mark)
        self.ellipse((x, shoulders - 0.085 * tall), (0.04 * unit, 0.1 * tall), skin, **mark)

    def _two_wheels(self, nearness: float, side: float, label: int, ridden: bool) -> None:
        unit = self.height * nearness
        mark: dict[str, Any] = {"label": label, "instance": self.instance(label)}
        x, base = self.x_at(nearness, side), self.y_at(nearness)
        heavy = label == MOTORCYCLE
        radius, half = (0.075 if heavy else 0.09) * unit, (0.15 if heavy else 0.14) * unit
        black, frame = self.tinted((35, 35, 38), 6), self.colour()
        for wheel in (x - half, x + half):
            self.ellipse((wheel, base - radius), (radius, radius), black, **mark)
            if not heavy:
                self.ellipse((wheel, base - radius), (0.6 * radius, 0.6 * radius), self.colour(100, 150), **mark)
        seat = base - 2.1 * radius
        thick = (0.07 if heavy else 0.022) * unit
        saddle, handle = (x - 0.05 * unit, seat), (x + half * 0.8, seat)
        lower = [(x + half * 0.9, seat + thick), (x - 0.03 * unit, seat + 1.5 * thick)]
        self.polygon([(x - half, base - radius), saddle, handle, *lower], frame, **mark)
        if not ridden:
            return
        rider: dict[str, Any] = {"label": RIDER, "instance": self.instance(RIDER)}
        tall = 0.44 * unit
        pedal = base - 0.5 * radius
        leg = [saddle, (x + 0.02 * unit, seat), (x + 0.06 * unit, pedal), (x + 0.02 * unit, pedal)]
        self.polygon(leg, self.colour(20, 130), **rider)
        self._torso(x - 0.01 * unit, seat + 0.02 * unit, tall, unit, rider)

    def _furniture(self) -> list[Thing]:
        rng = self.rng
        things: list[Thing] = []
        for _ in range(rng.integers(1, 6)):
            side = float(rng.choice([-0.05, 1.05]) + rng.normal(0, 0.03))
            kind = rng.choice([POLE, SIGN, LIGHT], p=[0.4, 0.4, 0.2])
            things.append((float(rng.uniform(0.12, 0.9)), partial(self._pole, side=side, kind=int(kind))))
        if rng.random() < 0.3:
            side = float(rng.choice([-0.15, 1.15]))
            things.append((float(rng.uniform(0.2, 0.7)), partial(self._bin, side=side)))
        return things

    def _pole(self, nearness: float, side: float, kind: int) -> None:
        unit, x, base = self.height * nearness, self.x_at(nearness, side), self.y_at(nearness)
        tall = unit * (self.rng.uniform(1.2, 1.8) if kind == POLE else self.rng.uniform(0.65, 0.95))
        half = max(0.018 * unit, 0.6)
        self.box(x - half, base - tall, x + half, base, self.colour(60, 170), label=POLE, grain=0.03)
        top = base - tall
        if kind == LIGHT:
            self.box(
                x - 0.05 * unit, top, x + 0.05 * unit, top + 0.26 * unit, self.tinted((30, 32, 30), 5), label=LIGHT
            )
            lamp = self.rng.integers(3)
            colour = self.tinted([(230, 40, 35), (235, 180, 40), (50, 210, 90)][lamp], 6)
            self.ellipse((x, top + (0.05 + 0.08 * lamp) * unit), (0.035 * unit, 0.035 * unit), colour)
        if kind == SIGN:
            self._sign(x, top, unit)

    def _sign(self, x: float, y: float, unit: float) -> None:
        radius = 0.09 * unit * self.rng.uniform(0.8, 1.4)
        colour = self.tinted([(200, 40, 40), (45, 80, 180), (225, 195, 50), (225, 225, 225)][self.rng.integers(4)], 8)
        inner = self.tinted((235, 235, 235), 6)
        if self.rng.random() < 0.35:
            self.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], colour, label=SIGN)
        else:
            self.ellipse((x, y), (radius, radius), colour, label=SIGN)
        self.ellipse((x, y + 0.1 * radius), (0.5 * radius, 0.45 * radius), inner)

    def _bin(self, nearness: float, side: float) -> None:
        unit, x, base = self.height * nearness, self.x_at(nearness, side), self.y_at(nearness)
        self.box(x - 0.08 * unit, base - 0.24 * unit, x + 0.08 * unit, base, self.colour(), label=STATIC)

    def _own_car(self) -> None:
        top = self.height * self.rng.uniform(0.93, 0.97)
        middle = self.width / 2
        self.ellipse(
            (middle, self.height + 2), (0.6 * self.width, self.height + 2 - top), self.colour(20, 90), label=EGO
        )

    def _developed(self) -> Array:
        """The picture as a camera gives it: light, haze, shadows of clouds, blur and noise."""
        rng = self.rng
        haze = rng.uniform(0, 0.3) * np.exp(-np.abs(self.rows - self.horizon) / (0.12 * self.height))[..., None]
        picture = self.image * (1 - haze) + rng.uniform(170, 220) * haze
        light = rng.uniform(0.6, 1.2) * (1 + 0.07 * self.coarse)
        picture = picture * light[..., None] * rng.normal(1, 0.06, 3).astype(np.float32)
        picture = cv2.GaussianBlur(picture, (3, 3), rng.uniform(0.4, 0.8))
        noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(3, 11))
        return np.clip(picture + noise, 0, 255).astype(np.uint8)
