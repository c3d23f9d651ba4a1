"""Synthetic twins of CULane and TuSimple: drawn roads in perspective in the benchmarks' own formats.

Each picture is drawn from (seed, split, number) alone: a flat road that bends, seen by a camera above one of its lanes.
A lane is annotated wherever it runs, as people annotate it: on behind vehicles, through gaps, glare and darkness, and
on roads without paint, where kerbs, verges and the tracks of wheels tell of it. Seams, kerbs, edges of shadows and
old markings look like lanes and are none.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kd_lanes.culane import CATEGORIES, category_file
from kd_lanes.lane_files import lines_path, write_lines
from kd_tasks.engine.randomness import mixed_seed
from kd_tasks.errors import UserError
from kd_tasks.vision.images import Array, write_bytes, write_image
from kd_tasks.vision.twins import claim

Progress = Callable[[int, int], None]
Floats = npt.NDArray[np.float64]
Point = tuple[float, float]

SLOTS = 4
CULANE_SIZE = (148, 410)  # a quarter of 590 x 1640
TUSIMPLE_SIZE = (360, 640)  # half of 720 x 1280
CULANE_MASK_WIDTH = 16 / 1640  # of a lane in `laneseg_label_w16`, as a share of the picture's width
TUSIMPLE_CATEGORIES = ("normal", "crowd", "shadow", "curve")

_VERSION = 1
_SMALLEST = (64, 128)
_ROWS = {"culane": 59, "tusimple": 72}  # steps of 10 px in a picture of the benchmark
_MIX = {
    "normal": 0.24,
    "crowd": 0.2,
    "hlight": 0.06,
    "shadow": 0.08,
    "noline": 0.1,
    "arrow": 0.07,
    "curve": 0.09,
    "cross": 0.06,
    "night": 0.1,
}
_DRIVERS = {
    "train": ("driver_23_30frame", "driver_161_90frame", "driver_182_30frame"),
    "val": ("driver_23_30frame", "driver_161_90frame", "driver_182_30frame"),
    "test": ("driver_37_30frame", "driver_100_30frame", "driver_193_90frame"),
}
_FIRST_CLIP = {"train": 0, "val": 5000, "test": 0}
_FRAMES = 4  # of a clip
_TUSIMPLE_FILES = (
    "train_set/label_data_0313.json",
    "train_set/label_data_0601.json",
    "train_set/label_data_0531.json",
    "test_label.json",
)
_FAR = 300.0  # metres to which the ground is seen
_GRID = 128  # cells of the noise on the ground


@dataclass(frozen=True)
class View:
    """How a benchmark's cameras see the road: ranges that each picture draws from.

    Attributes:
        horizon: its row, as a share of the height.
        spread: width of a lane of 3.5 m at the bottom of the picture, as a share of the width.
        focal: focal length as a share of the width.
        reach: metres to which lanes are annotated.
    """

    horizon: tuple[float, float]
    spread: tuple[float, float]
    focal: tuple[float, float]
    reach: tuple[float, float]


VIEWS = {
    "culane": View((0.43, 0.48), (0.44, 0.52), (0.6, 0.7), (40, 65)),
    "tusimple": View((0.33, 0.38), (0.52, 0.62), (0.75, 0.85), (60, 100)),
}


@dataclass(frozen=True)
class Course:
    """Where the road runs from a camera: a clothoid on flat ground, in perspective.

    Attributes:
        horizon: row of the horizon.
        middle: column of the camera's axis.
        focal: focal length in pixels.
        rise: height of the camera in metres.
        heading: slope of the road at the camera.
        bend: its curvature there, 1/m.
        twist: change of the curvature, 1/m².
        reach: metres to which lanes are annotated.
    """

    horizon: float
    middle: float
    focal: float
    rise: float
    heading: float
    bend: float
    twist: float
    reach: float

    def aside(self, depth: Any) -> Any:
        """How far right of the camera's axis the road's line through the camera lies, in metres, at a depth."""
        return (self.heading + (self.bend / 2 + self.twist / 6 * depth) * depth) * depth

    def depth(self, rows: Any) -> Any:
        """Metres ahead of the ground that is seen in rows below the horizon."""
        return self.focal * self.rise / (rows - self.horizon)

    def place(self, offset: float, depth: float) -> Point:
        """x, y in pixels of the ground `offset` metres right of the road's line, at a depth."""
        x = self.middle + self.focal * (offset + self.aside(depth)) / depth
        return x, self.horizon + self.focal * self.rise / depth

    def columns(self, offset: float, rows: Floats) -> Floats:
        """x of a lane in each row, nan above the end of what is annotated."""
        near = rows > self.horizon + self.focal * self.rise / self.reach
        depth = self.depth(np.where(near, rows, self.horizon + 1))
        return np.where(near, self.middle + self.focal * (offset + self.aside(depth)) / depth, np.nan)


@dataclass(frozen=True)
class Frame:
    """A drawn picture.

    Attributes:
        image: RGB uint8 (H, W, 3).
        course: where the road runs.
        lanes: metres right of the road's line of each annotated lane, by slot: 1 and 2 left of the camera, 3 and 4
            right of it; 5 further right.
    """

    image: Array
    course: Course
    lanes: Mapping[int, float]

    def points(self, slot: int, rows: Floats) -> Floats:
        """The lane (P, 2) in those of the rows where it is annotated, with at most one point beyond a side."""
        width = self.image.shape[1]
        x = self.course.columns(self.lanes[slot], rows)
        inside = (x >= 0) & (x < width)
        kept = inside | np.append(inside[1:], False) | np.append(False, inside[:-1])
        kept &= np.isfinite(x)
        return np.stack([x[kept], rows[kept]], axis=1)


def write_culane(
    root: str | Path,
    seed: int = 0,
    train: int = 480,
    val: int = 60,
    test: int = 180,
    size: Sequence[int] = CULANE_SIZE,
    progress: Progress | None = None,
) -> None:
    """Write a synthetic twin of CULane: pictures by driver and clip, `.lines.txt`, masks, lists, nine test lists.

    A picture is a quarter of CULane's in width and height, and so is all that CULane counts in pixels: lanes have a
    point every 2.5 rows and masks are 4 wide; the evaluation's 30 are 7.5 here. The categories of the test split have
    equally many pictures; in training those that are rare in CULane are less so.

    Args:
        root: the folder; it may hold the same twin, whole or in part, but nothing else.
        seed: of all pictures.
        train: pictures of the split.
        val: pictures of the split.
        test: pictures of the split.
        size: height and width in pixels, at least 64 and 128.
        progress: is called with the pictures written and their number.

    Raises:
        UserError: if the folder holds other data, or a number is out of range.
    """
    root, counts = Path(root), {"train": train, "val": val, "test": test}
    _claim(root, "culane", seed, size, counts)
    listed: dict[str, list[str]] = {}
    for split, number in _counted(counts, progress):
        name, category = _culane_name(split, number), _culane_category(seed, split, number)
        frame = draw(mixed_seed("culane", seed, split, number), category, size)
        exist = _write_culane_frame(root, name, frame, masked=split != "test")
        listed.setdefault(split, []).append(f"/{name}\n")
        if split == "test":
            listed.setdefault(_test_list(category), []).append(f"{name}\n")
        else:
            bits = " ".join(map(str, exist))
            listed.setdefault(f"{split}_gt", []).append(f"/{name} /{_mask_name(name)} {bits}\n")
    for name in ("train", "train_gt", "val", "val_gt", "test", *map(_test_list, CATEGORIES)):
        write_bytes(root / "list" / f"{name}.txt", "".join(listed.get(name, ())).encode())


def write_tusimple(
    root: str | Path,
    seed: int = 0,
    train: int = 200,
    val: int = 40,
    test: int = 60,
    size: Sequence[int] = TUSIMPLE_SIZE,
    progress: Progress | None = None,
) -> None:
    """Write a synthetic twin of TuSimple: motorways, the labelled frame of each clip alone, `h_samples` of two kinds.

    A picture is half of TuSimple's in width and height and has as many rows of points, so that the 20 px of its
    evaluation are twice as lenient. Of training, three quarters are in `label_data_0313.json`, the rest in `_0601`;
    `_0531` is the validation.

    Args:
        root: the folder; it may hold the same twin, whole or in part, but nothing else.
        seed: of all pictures.
        train: pictures of the split.
        val: pictures of the split.
        test: pictures of the split.
        size: height and width in pixels, at least 64 and 128.
        progress: is called with the pictures written and their number.

    Raises:
        UserError: if the folder holds other data, or a number is out of range.
    """
    root, counts = Path(root), {"train": train, "val": val, "test": test}
    _claim(root, "tusimple", seed, size, counts)
    labels: dict[str, list[str]] = {name: [] for name in _TUSIMPLE_FILES}
    tasks: list[str] = []
    for split, number in _counted(counts, progress):
        rng = np.random.default_rng(mixed_seed("tusimple", seed, split, number, "kind"))
        category = TUSIMPLE_CATEGORIES[rng.choice(4, p=(0.5, 0.2, 0.15, 0.15))]
        file, clip = _tusimple_place(split, number, counts[split])
        frame = draw(mixed_seed("tusimple", seed, split, number), category, size, "tusimple")
        record = _tusimple_record(frame, f"clips/{clip}/20.jpg", short=number % 9 == 8)
        write_image(root / Path(file).parent / _tusimple_folder(split) / record["raw_file"], frame.image)
        labels[file].append(json.dumps(record) + "\n")
        if split == "test":
            tasks.append(json.dumps({"h_samples": record["h_samples"], "raw_file": record["raw_file"]}) + "\n")
    for name, lines in labels.items():
        write_bytes(root / name, "".join(lines).encode())
    write_bytes(root / "test_set" / "test_tasks_0627.json", "".join(tasks).encode())


def draw(seed: int, category: str = "normal", size: Sequence[int] = CULANE_SIZE, view: str = "culane") -> Frame:
    """Draw a road.

    Args:
        seed: the picture depends on nothing else but the other arguments.
        category: of CULane.
        size: height and width in pixels.
        view: `culane` or `tusimple`.
    """
    return _Road(np.random.default_rng(seed), category, (int(size[0]), int(size[1])), VIEWS[view]).drawn(view)


# --- On disk ---------------------------------------------------------------------------------------------------------


def _claim(root: Path, twin: str, seed: int, size: Sequence[int], counts: Mapping[str, int]) -> None:
    fits = len(size) == 2 and all(length >= least for length, least in zip(size, _SMALLEST, strict=True))
    if not fits or min(counts.values()) < 0:
        raise UserError(
            f"the twin of {twin}: size is (height, width), at least {_SMALLEST[0]} and {_SMALLEST[1]}; counts are 0 "
            "or more."
        )
    lengths = [int(length) for length in size]
    claim(root, {"twin": twin, "version": _VERSION, "seed": seed, "size": lengths, "splits": dict(counts)})


def _counted(counts: Mapping[str, int], progress: Progress | None) -> Iterator[tuple[str, int]]:
    """Split and number of every picture; tells `progress` when each is done."""
    total, done = sum(counts.values()), 0
    for split, count in counts.items():
        for number in range(count):
            yield split, number
            done += 1
            if progress is not None:
                progress(done, total)


def _culane_category(seed: int, split: str, number: int) -> str:
    if split == "test":
        return CATEGORIES[number % len(CATEGORIES)]
    rng = np.random.default_rng(mixed_seed("culane", seed, split, number, "category"))
    return str(rng.choice(list(_MIX), p=list(_MIX.values())))


def _culane_name(split: str, number: int) -> str:
    drivers = _DRIVERS[split]
    driver = drivers[number % len(drivers)]
    clip, frame = divmod(number // len(drivers), _FRAMES)
    clip += _FIRST_CLIP[split]
    step = 90 if "90frame" in driver else 30
    return f"{driver}/{5150000 + clip:08d}_{clip % 1000:04d}.MP4/{frame * step:05d}.jpg"


def _mask_name(name: str) -> str:
    return f"laneseg_label_w16/{Path(name).with_suffix('.png').as_posix()}"


def _test_list(category: str) -> str:
    return f"test_split/{category_file(category).removesuffix('.txt')}"


def _write_culane_frame(root: Path, name: str, frame: Frame, masked: bool) -> list[int]:
    """Write picture, lanes and, if wanted, mask; the existence of the four slots, of which 0 has no points."""
    height, width = frame.image.shape[:2]
    rows = height * (1 - np.arange(_ROWS["culane"]) / _ROWS["culane"])
    points = {slot: frame.points(slot, rows) for slot in sorted(frame.lanes) if slot <= SLOTS}
    points = {slot: np.round(lane, 3) for slot, lane in points.items() if len(lane) >= 2}
    write_image(root / name, frame.image, quality=92)
    write_lines(lines_path(root, name), points.values())
    if masked:
        thickness = max(1, round(CULANE_MASK_WIDTH * width))
        write_image(root / _mask_name(name), lane_mask(points, (height, width), thickness))
    return [int(slot in points) for slot in range(1, SLOTS + 1)]


def lane_mask(lanes: Mapping[int, Floats], size: tuple[int, int], thickness: int) -> Array:
    """Slots (H, W), 0 where there is no lane.

    Args:
        lanes: (P, 2) by slot.
        size: height and width in pixels.
        thickness: of a lane in pixels.
    """
    mask = np.zeros(size, np.uint8)
    for slot, lane in lanes.items():
        cv2.polylines(mask, [np.round(16 * lane).astype(np.int32)], False, slot, thickness, shift=4)
    return mask


def _tusimple_place(split: str, number: int, count: int) -> tuple[str, str]:
    """Label file and clip of a picture."""
    if split == "test":
        return "test_label.json", f"0530/{1492626000000000000 + 7919 * number}_0"
    if split == "val":
        return "train_set/label_data_0531.json", f"0531/{1492627000000000000 + 7919 * number}"
    if number < round(0.75 * count):
        return "train_set/label_data_0313.json", f"0313-{1 + number % 2}/{60 * (number // 2 + 1)}"
    return "train_set/label_data_0601.json", f"0601/{1494452000000000000 + 7919 * number}"


def _tusimple_folder(split: str) -> str:
    return "test_set" if split == "test" else ""


def _tusimple_record(frame: Frame, raw_file: str, short: bool) -> dict[str, Any]:
    """One line of a label file: whole pixels, -2 where a lane is absent; every ninth picture has 48 rows, not 56."""
    height, width = frame.image.shape[:2]
    rows = np.round(np.arange(24 if short else 16, _ROWS["tusimple"]) * height / _ROWS["tusimple"]).astype(int)
    lanes = []
    for slot in sorted(frame.lanes):
        x = frame.course.columns(frame.lanes[slot], rows.astype(np.float64))
        present = np.isfinite(x) & (x >= 0) & (x < width)
        if present.sum() >= 2:
            lanes.append(np.where(present, np.floor(np.nan_to_num(x)), -2).astype(int).tolist())
    return {"lanes": lanes, "h_samples": rows.tolist(), "raw_file": raw_file}


# --- Pictures --------------------------------------------------------------------------------------------------------


class _Road:
    """A road with what lies on it, stands beside it and drives on it, painted from far to near."""

    def __init__(self, rng: np.random.Generator, category: str, size: tuple[int, int], view: View) -> None:
        self.rng, self.category = rng, category
        self.height, self.width = size
        self.course = self._course(view)
        self.top = int(np.floor(self.course.horizon)) + 2  # first row of the ground
        self.image = np.zeros((*size, 3), np.float32)
        self.lane_width = float(rng.uniform(3.3, 3.7))
        self.night = category == "night"

    def drawn(self, view: str) -> Frame:
        """Draw everything."""
        lanes = self._layout(view)
        self._sky()
        self._roadside()
        self._ground(lanes)
        self._paint(lanes)
        self._things_on_the_road(lanes)
        self._shade()
        self._traffic(lanes)
        self._light()
        return Frame(self._developed(), self.course, {} if self.category == "cross" else lanes)

    # --- geometry

    def _course(self, view: View) -> Course:
        rng = self.rng
        horizon = self.height * rng.uniform(*view.horizon)
        rise = 3.5 * (self.height - horizon) / (self.width * rng.uniform(*view.spread))
        radius = rng.uniform(110, 300) if self.category == "curve" else rng.uniform(300, 3000)
        bend = rng.choice((-1, 1)) / radius
        return Course(
            horizon=float(horizon),
            middle=float(self.width * rng.uniform(0.48, 0.52)),
            focal=float(self.width * rng.uniform(*view.focal)),
            rise=float(rise),
            heading=float(rng.normal(0, 0.01) - 6 * bend),
            bend=float(bend),
            twist=float(rng.normal(0, 0.4) * bend / 40),
            reach=float(rng.uniform(*view.reach)),
        )

    def _layout(self, view: str) -> dict[int, float]:
        """Which lanes there are; sets `edges`, the offsets at which the road ends, and `styles` of the lines."""
        rng, wide = self.rng, self.lane_width
        middle = rng.normal(0, 0.2)
        wanted = [1, 2, 3, 4]
        outer = rng.choice(4, p=(0.4, 0.24, 0.24, 0.12))
        if outer in (1, 3):
            wanted.remove(4)
        if outer in (2, 3):
            wanted.remove(1)
        if view == "tusimple" and 4 in wanted and rng.random() < 0.3:
            wanted.append(5)
        lanes = {slot: float(middle + (slot - 2.5) * wide) for slot in wanted}
        margins = rng.uniform(0.25, 0.5, 2) if self.category == "noline" else rng.uniform(0.3, 2.2, 2)
        self.edges = min(lanes.values()) - margins[0], max(lanes.values()) + margins[1]
        return lanes

    @cached_property
    def depth(self) -> Array:
        """Metres ahead of each row of the ground (h, 1)."""
        rows = np.arange(self.top, self.height, dtype=np.float32)[:, None]
        return np.minimum(self.course.depth(rows), _FAR).astype(np.float32)

    @cached_property
    def metre(self) -> Array:
        """Pixels that a metre across the road has in each row of the ground (h, 1)."""
        return np.asarray(self.course.focal / self.depth, np.float32)

    @cached_property
    def across(self) -> Array:
        """Metres right of the road's line of each pixel of the ground (h, W)."""
        columns = np.arange(self.width, dtype=np.float32)[None] - np.float32(self.course.middle)
        return np.asarray(columns / self.metre - self.course.aside(self.depth), np.float32)

    def strip(self, offset: float, wide: float) -> Array:
        """How much of each pixel of the ground (h, W) a line of `wide` metres covers, 0 to 1."""
        half = 0.5 * wide * self.metre
        distance = np.abs(self.across - np.float32(offset)) * self.metre
        return np.clip(half - distance + 0.5, 0, np.minimum(2 * half, 1))

    def noise(self, across: float, along: float) -> Array:
        """Noise (h, W) fixed to the ground, of deviation about 1, with bumps of so many metres; it fades far away."""
        grid = self.rng.standard_normal((_GRID, _GRID), dtype=np.float32)
        x = self.across * np.float32(1 / across)
        y = np.repeat(self.depth * np.float32(1 / along), self.width, axis=1)
        found = cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return np.asarray(found * np.clip(40 * along / self.depth, 0.1, 1), np.float32)

    # --- colours

    @property
    def ground(self) -> Array:
        """The part of the picture below the horizon."""
        return self.image[self.top :]

    def mix(self, cover: Array, colour: Sequence[float] | Array) -> None:
        """Put `colour` on the ground where `cover` (h, W), 0 to 1, says."""
        tone = np.asarray(colour, np.float32)
        rows = cover.any(axis=1)
        self.ground[rows] += cover[rows][..., None].astype(np.float32) * (tone - self.ground[rows])

    def tinted(self, base: Sequence[float], spread: float = 7) -> Array:
        """A colour near `base`."""
        colour = np.asarray(base) * self.rng.uniform(0.8, 1.2) + self.rng.normal(0, spread, 3)
        return np.clip(colour, 5, 250).astype(np.float32)

    def polygon(self, points: Sequence[Point] | Array, colour: Sequence[float] | Array) -> None:
        """Fill a polygon of (x, y) in pixels."""
        corners = np.round(np.clip(np.asarray(points, np.float64), -4e3, 4e3)).astype(np.int32)
        cv2.fillPoly(self.image, [corners], [float(value) for value in colour])

    def box(self, left: float, top: float, right: float, bottom: float, colour: Sequence[float] | Array) -> None:
        """Fill a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    # --- surroundings

    def _sky(self) -> None:
        rng = self.rng
        bases = [(140, 175, 215), (190, 195, 200), (220, 222, 225), (165, 165, 170)]
        low, high = (self.tinted(bases[rng.integers(len(bases))], 8) for _ in range(2))
        ramp = np.linspace(0, 1, self.top, dtype=np.float32)[:, None, None]
        self.image[: self.top] = high * (1 - ramp) + low * ramp

    def _roadside(self) -> None:
        """Trees and houses, from the sides of the picture to the far end of the road."""
        rng, unit = self.rng, self.height - self.course.horizon
        vanishing = self.course.place(0, 150)[0]
        places = np.sort(rng.uniform(0.05, 1, rng.integers(8, 22)))  # from far to near
        for nearness in places:
            side = rng.choice((-1, 1))
            x = vanishing + side * self.width * (0.03 + 0.6 * nearness * rng.uniform(0.6, 1.2))
            tall, base = unit * nearness * rng.uniform(0.3, 1.1), self.course.horizon + 0.12 * unit * nearness
            half = self.width * rng.uniform(0.02, 0.08) * (0.4 + nearness)
            if rng.random() < 0.45:
                colour = self.tinted([(150, 120, 105), (170, 165, 155), (110, 112, 118)][rng.integers(3)])
                self.box(x - half, base - tall, x + half, base, colour)
                for row in np.linspace(base - 0.85 * tall, base - 0.2 * tall, rng.integers(2, 8)):
                    self.box(x - 0.8 * half, row, x + 0.8 * half, row + 1, 0.75 * colour)
                continue
            colour = self.tinted((70, 95, 55), 14)
            for _ in range(5):
                centre = int(x + rng.normal(0, 0.5) * half), int(base - tall * rng.uniform(0.2, 0.7))
                axes = max(2, int(half * rng.uniform(0.4, 0.9))), max(2, int(0.35 * tall))
                tone = colour * rng.uniform(0.7, 1.25)
                cv2.ellipse(self.image, centre, axes, 0, 0, 360, [float(v) for v in tone], cv2.FILLED)

    def _ground(self, lanes: Mapping[int, float]) -> None:
        rng = self.rng
        verges = [(95, 110, 65), (150, 140, 115), (135, 135, 135), (110, 100, 80), (165, 160, 155)]
        bumps = 1 + 0.09 * self.noise(0.5, 2.0) + 0.06 * self.noise(2.0, 6.0)
        self.ground[:] = self.tinted(verges[rng.integers(len(verges))]) * bumps[..., None]
        grey = rng.uniform(65, 150) + rng.normal(0, 4, 3)
        wear = 1 + 0.05 * self.noise(0.25, 1.2) + rng.uniform(0.03, 0.08) * self.noise(1.2, 14.0)
        left, right = self.edges
        surface = self.strip((left + right) / 2, right - left)
        if self.category == "cross":
            surface = np.maximum(surface, self._crossing())
        self.ground[:] += surface[..., None] * (np.float32(grey) * wear[..., None] - self.ground)
        self._tracks(lanes)
        for side, edge in ((-1, left), (1, right)):
            self._kerb(side, edge)

    def _crossing(self) -> Array:
        """Where the other road of a crossroads is."""
        near = self.rng.uniform(7, 16)
        far = near + self.rng.uniform(9, 22)
        return np.broadcast_to(((self.depth > near) & (self.depth < far)).astype(np.float32), self.across.shape)

    def _tracks(self, lanes: Mapping[int, float]) -> None:
        """Darker bands where wheels run, seams and repairs: of a road without paint, they show the lanes."""
        rng = self.rng
        strength = rng.uniform(0.12, 0.25) if self.category == "noline" else rng.uniform(0, 0.09)
        offsets = sorted(lanes.values())
        for left in offsets[:-1]:
            for share in (0.27, 0.73):
                band = np.exp(-(((self.across - left - share * self.lane_width) / 0.42) ** 2))
                self.ground[:] *= (1 - strength * band)[..., None]
        for _ in range(rng.integers(0, 4)):
            seam = self.strip(rng.uniform(*self.edges), rng.uniform(0.05, 0.12))
            self.mix(seam * rng.uniform(0.2, 0.6), self.tinted((45, 45, 48), 4))
        for _ in range(rng.integers(0, 3)):
            start, long = rng.uniform(5, 40), rng.uniform(2, 15)
            patch = self.strip(rng.uniform(*self.edges), rng.uniform(0.8, 3))
            patch = patch * ((self.depth > start) & (self.depth < start + long))
            self.mix(patch * rng.uniform(0.15, 0.4), self.tinted((60, 60, 62), 6) * rng.choice((0.8, 2)))

    def _kerb(self, side: int, edge: float) -> None:
        rng = self.rng
        if self.category == "cross":
            return
        if rng.random() < (0.75 if self.category == "noline" else 0.5):
            self.mix(self.strip(edge, rng.uniform(0.12, 0.4)) * rng.uniform(0.5, 1), self.tinted((165, 162, 158), 8))
        if rng.random() < 0.4:
            self._rail(side, edge + side * rng.uniform(0.3, 1.2))

    def _rail(self, side: int, offset: float) -> None:
        """A crash barrier or a wall along the road."""
        rng = self.rng
        depths = np.geomspace(2.5, 90, 14)
        low, high = (0.4, 0.75) if rng.random() < 0.6 else (0.0, rng.uniform(0.5, 1.1))
        places = [self.course.place(offset, depth) for depth in depths]
        ends = [(x, y, self.course.focal / depth) for (x, y), depth in zip(places, depths, strict=True)]
        upper = [(x, y - high * metre) for x, y, metre in ends]
        lower = [(x, y - low * metre) for x, y, metre in reversed(ends)]
        self.polygon([*upper, *lower], self.tinted((150, 152, 155), 10))

    # --- markings

    def _paint(self, lanes: Mapping[int, float]) -> None:
        rng = self.rng
        share = 0.0 if self.category == "noline" else 1.0
        worn = rng.uniform(0.5, 1)
        dash, gap, phase = rng.uniform(2, 6), rng.uniform(4, 9), rng.uniform(0, 12)
        solid_outside = rng.random() < 0.7
        for slot, offset in lanes.items():
            outermost = slot in (min(lanes), max(lanes))
            dashed = not (outermost and solid_outside) and rng.random() < 0.85
            colour = self.tinted((215, 175, 60) if rng.random() < 0.14 else (225, 226, 224), 6)
            cover = self.strip(offset, rng.uniform(0.14, 0.26))
            if rng.random() < 0.07:
                cover = np.maximum(cover, self.strip(offset + rng.choice((-0.3, 0.3)), 0.12))
            if dashed:
                cover = cover * self._dashes(dash, gap, phase)
            flaked = np.clip(rng.uniform(0.7, 1.3) + rng.uniform(0.1, 0.5) * self.noise(0.15, 0.9), 0, 1)
            strength = worn * rng.uniform(0.7, 1) * (share or rng.choice((0.0, 0.0, 0.12)))
            if rng.random() < 0.15:
                start = rng.uniform(4, 20)
                flaked = flaked * ~((self.depth > start) & (self.depth < start + rng.uniform(5, 25)))
            if self.category == "cross":
                flaked = flaked * ((self.depth < 5) | (self.depth > 32))
            self.mix(cover * flaked * strength, colour)
        if rng.random() < 0.3:
            ghost = self.strip(rng.uniform(*self.edges), 0.15) * self._dashes(dash, gap, phase + 3)
            self.mix(ghost * rng.uniform(0.1, 0.35), self.tinted((190, 190, 186), 8))

    def _dashes(self, dash: float, gap: float, phase: float) -> Array:
        """1 on the dashes of a line and 0 between, (h, 1); greyer where they are smaller than a pixel."""
        period = dash + gap
        along = np.mod(self.depth + phase, period)
        blur = np.maximum(self.depth**2 / (self.course.focal * self.course.rise), 0.05)
        edge = np.clip((dash / 2 - np.abs(along - dash / 2)) / blur + 0.5, 0, 1)
        fine = np.clip(1.5 - blur / period, 0, 1)
        return np.asarray(fine * edge + (1 - fine) * dash / period, np.float32)

    def _things_on_the_road(self, lanes: Mapping[int, float]) -> None:
        rng = self.rng
        offsets = sorted(lanes.values())
        centres = [offset + self.lane_width / 2 for offset in offsets[:-1]]
        if self.category == "arrow" or (self.category in ("cross", "normal") and rng.random() < 0.15):
            depth = rng.uniform(5, 14)
            for centre in centres:
                self._arrow(centre, depth + rng.normal(0, 0.3))
        if self.category == "cross":
            self._zebra()
        elif rng.random() < 0.06:
            self._band(rng.uniform(8, 25), 0.5)

    def _arrow(self, centre: float, depth: float) -> None:
        rng = self.rng
        turn = rng.choice((-1, 0, 1))
        shapes: list[list[Point]] = [[(-0.08, 0), (0.08, 0), (0.08, 3), (-0.08, 3)]]
        if turn:
            shapes.append([(0, 2.6), (0.6 * turn, 3.4), (0.6 * turn, 3.9), (0, 3.2)])
            shapes.append([(0.5 * turn, 2.8), (1.0 * turn, 3.8), (0.5 * turn, 4.6)])
        if not turn or rng.random() < 0.5:
            shapes.append([(-0.35, 3), (0.35, 3), (0, 5)])
        cover = np.zeros((self.height, self.width), np.float32)
        for shape in shapes:
            corners = [self.course.place(centre + x, depth + z) for x, z in shape]
            cv2.fillPoly(cover, [np.round(np.array(corners)).astype(np.int32)], 1.0)
        self.mix(cv2.GaussianBlur(cover, (3, 3), 0.5)[self.top :] * rng.uniform(0.4, 0.95), (222, 222, 218))

    def _zebra(self) -> None:
        rng = self.rng
        near, wide = rng.uniform(4, 9), rng.uniform(2.5, 4)
        if rng.random() < 0.75:
            within = (self.depth > near) & (self.depth < near + wide)
            stripes = np.sin(self.across * (2 * np.pi / rng.uniform(0.8, 1.2)) + rng.uniform(0, 6)) > 0
            left, right = self.edges
            road = self.strip((left + right) / 2, right - left)
            self.mix(road * stripes * within * rng.uniform(0.4, 0.9), (220, 220, 216))
        if rng.random() < 0.7:
            self._band(near - 1.5, 0.35)

    def _band(self, depth: float, long: float) -> None:
        """A line across the road."""
        left, right = self.edges
        road = self.strip((left + right) / 2, right - left)
        within = (self.depth > depth) & (self.depth < depth + long)
        self.mix(road * within * self.rng.uniform(0.3, 0.8), (215, 215, 210))

    # --- light and vehicles

    def _shade(self) -> None:
        """Shadows on the road: across it and, like a false lane, along it."""
        rng = self.rng
        deep = self.category == "shadow"
        if self.night or not (deep or rng.random() < 0.2):
            return
        bands = 0.9 * self.noise(rng.uniform(2, 6), rng.uniform(2, 7)) + 0.5 * self.noise(0.7, 1.5)
        dark = np.clip((bands - rng.uniform(-0.6, 0.5)) * 4, 0, 1)
        if rng.random() < 0.5:
            edge = rng.uniform(*self.edges) + rng.normal(0, 0.06) * self.depth
            side = rng.choice((-1, 1))
            dark = np.maximum(dark * rng.integers(2), np.clip(side * (self.across - edge) * 6, 0, 1))
        strength = rng.uniform(0.45, 0.72) if deep else rng.uniform(0.2, 0.45)
        tone = np.array([1.0, 0.97, 0.92], np.float32)
        self.ground[:] *= 1 - strength * dark[..., None] * tone

    def _traffic(self, lanes: Mapping[int, float]) -> None:
        rng = self.rng
        low, high = {"crowd": (5, 11), "cross": (1, 6), "curve": (0, 3)}.get(self.category, (0, 4))
        offsets = sorted(lanes.values())
        centres = [offset + self.lane_width / 2 for offset in offsets[:-1]]
        count = int(rng.integers(low, high))
        nearest = 6.5 if self.category == "crowd" else 9
        depths = np.sort(nearest + rng.uniform(0, 1, count) ** 1.5 * 55)[::-1]
        for depth in depths:
            place = float(rng.choice(centres) + rng.normal(0, 0.25))
            if rng.random() < 0.2:
                place = float(rng.choice(self.edges) + rng.choice((-1, 1)) * rng.uniform(0.4, 1.5))
            if abs(place) < 1.2 and depth < 7.5:
                depth += 3
            self._vehicle(place, float(depth), rng.random() < 0.2)

    def _vehicle(self, offset: float, depth: float, lorry: bool) -> None:
        rng = self.rng
        wide, tall = (2.4, rng.uniform(2.4, 3.4)) if lorry else (1.8, rng.uniform(1.4, 1.75))
        long = rng.uniform(6, 10) if lorry else rng.uniform(3.8, 4.6)
        (x, y), metre = self.course.place(offset, depth), self.course.focal / depth
        (end, floor), small = self.course.place(offset, depth + long), self.course.focal / (depth + long)
        half, up = wide / 2 * metre, tall * metre
        grey = rng.uniform(25, 220)
        body = np.clip(grey + rng.normal(0, rng.choice((5, 40)), 3), 10, 240).astype(np.float32)
        self.polygon([(x - 1.1 * half, y + 0.1 * metre), (x + 1.1 * half, y + 0.1 * metre), (end, floor)], (28, 28, 30))
        side = 1 if x < self.course.middle else -1
        near, back = x + side * half, end + side * wide / 2 * small
        self.polygon([(near, y), (near, y - up), (back, floor - tall * small), (back, floor)], 0.7 * body)
        self.box(x - half, y - up, x + half, y - 0.15 * metre, body)
        self.box(x - 0.8 * half, y - 0.93 * up, x + 0.8 * half, y - 0.6 * up, body * (0.9 if lorry else 0.35))
        for wheel in (-0.75, 0.75):
            centre = x + wheel * half
            self.box(centre - 0.14 * metre, y - 0.3 * metre, centre + 0.14 * metre, y, (22, 22, 24))
            lamp = (255, 60, 45) if self.night or rng.random() < 0.2 else (165, 35, 32)
            self.box(centre - 0.15 * metre, y - 0.52 * up, centre + 0.15 * metre, y - 0.42 * up, lamp)

    def _light(self) -> None:
        if self.night:
            self._darkness()
        if self.category == "hlight":
            self._dazzle()
        elif self.rng.random() < 0.15:
            self.image += self.rng.uniform(0.05, 0.25) * (200 - self.image)  # haze

    def _darkness(self) -> None:
        """Little light but that of the own headlights and of lamps."""
        rng = self.rng
        ambient = rng.uniform(0.12, 0.3)
        cone = np.exp(-(((self.across - rng.normal(0, 0.4)) / (1.6 + 0.16 * self.depth)) ** 2))
        gain = ambient + rng.uniform(0.5, 1) * cone * np.exp(-self.depth / rng.uniform(12, 28))
        red = self.image[..., 0] - self.image[..., 1] > 120
        lamps = self.image * red[..., None]
        self.image[: self.top] *= 0.7 * ambient
        self.ground[:] *= gain[..., None] * np.array([1.0, 0.95, 0.85], np.float32)
        glow = cv2.GaussianBlur(lamps, (0, 0), 2)
        for _ in range(rng.integers(0, 9)):
            centre = int(rng.uniform(0, self.width)), int(self.course.horizon * rng.uniform(0.3, 1.1))
            colour = [float(v) for v in self.tinted((255, 225, 170), 10)]
            cv2.circle(glow, centre, int(rng.integers(1, 4)), colour, cv2.FILLED)
        self.image += 0.6 * lamps + glow + 1.2 * cv2.GaussianBlur(glow, (0, 0), self.width / 60)

    def _dazzle(self) -> None:
        """A low sun or headlights ahead: glare around a point, and little contrast everywhere."""
        rng = self.rng
        x, y = self.width * rng.uniform(0.2, 0.8), self.height * rng.uniform(0.1, 0.6)
        rows, columns = np.ogrid[: self.height, : self.width]
        distance = np.hypot(columns - x, rows - y) / self.width
        glare = rng.uniform(0.6, 1) * np.exp(-((distance / rng.uniform(0.1, 0.22)) ** 1.4))
        streak = rng.uniform(0, 0.6) * np.exp(-(((columns - x) / (0.05 * self.width)) ** 2)) * (rows > y)
        veil = np.clip(glare + streak + rng.uniform(0.1, 0.3), 0, 0.95).astype(np.float32)[..., None]
        self.image += veil * (np.array([255, 250, 235], np.float32) - self.image)

    def _developed(self) -> Array:
        """The picture as a camera gives it: exposure, colour cast, blur and noise."""
        rng = self.rng
        exposure = rng.uniform(0.75, 1.2) * rng.normal(1, 0.02, 3)
        picture = cv2.GaussianBlur(self.image, (3, 3), rng.uniform(0.4, 0.8)) * exposure.astype(np.float32)
        grain = np.float32(rng.uniform(2, 6)) * rng.standard_normal(picture.shape[:2], dtype=np.float32)
        picture += np.stack([0.9 * grain + 0.4 * np.roll(grain, shift) for shift in (5, 11, 23)], axis=-1)
        return np.clip(picture, 0, 255, out=picture).astype(np.uint8)
