"""Synthetic twins of 300-W and WFLW: drawn faces in the benchmarks' own formats.

A face is a set of curves in space, bent by identity and expression, turned and projected. The picture is painted from
the same curves on which the landmarks lie, so that every point is where it should be to a fraction of a pixel, also
where something covers it. Each picture depends on its seed, its split and its number alone.
"""

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

from kd_tasks.engine.randomness import mixed_seed
from kd_tasks.errors import UserError
from kd_tasks.vision.images import Array, write_bytes, write_image
from kd_tasks.vision.twins import claim

Progress = Callable[[int, int], None]
Point = tuple[float, float, float]
Names = Callable[[int], str]

IBUG, WFLW = 68, 98  # landmarks of a face
ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
SIZE = 128
TRAIN, COMMON, CHALLENGING, TEST = 600, 120, 40, 60

_VERSION = 1
_SMALLEST = 64
_SHIFT = 4  # binary places of coordinates given to OpenCV
_PIVOT = np.array([0, 0.5, -0.3])  # about which a head turns
_PERSPECTIVE = 0.07  # by how much a face grows if it comes nearer by a unit
_STEPS = np.linspace(0, 1, 17)
_SKINS = ((232, 196, 172), (222, 178, 146), (198, 150, 118), (160, 112, 82), (116, 78, 56), (84, 56, 42))
_HAIRS = ((26, 22, 22), (48, 34, 26), (84, 58, 38), (150, 112, 64), (196, 168, 118), (150, 150, 152), (120, 52, 30))
_IRISES = ((46, 30, 20), (74, 48, 28), (70, 92, 110), (74, 96, 60))
_WFLW_PLACES = ("0--Parade", "7--Cheering", "11--Meeting", "36--Football")
_PAIR_EVERY = 8  # of WFLW's pictures, every so many shows two faces
_WEYL = (0.6180339887, 0.7548776662, 0.5698402910, 0.8191725134, 0.6710436067, 0.5497004779)

# how often each attribute occurs: as in WFLW's test, and in the parts of 300-W
_WFLW_SHARES = (0.15, 0.13, 0.28, 0.08, 0.29, 0.31)
_EASY_SHARES = (0.1, 0.2, 0.15, 0.1, 0.12, 0.1)
_HARD_SHARES = (0.65, 0.5, 0.4, 0.1, 0.55, 0.3)
_TEST_SHARES = (0.25, 0.4, 0.3, 0.1, 0.25, 0.2)


@dataclass(frozen=True)
class Portrait:
    """A drawn face.

    Attributes:
        image: uint8 RGB (H, W, 3).
        points: float64 (K, 2) in pixels; the centre of the upper left pixel is (0, 0).
        detected: a box x1, y1, x2, y2 as a detector would give it.
    """

    image: Array
    points: Array
    detected: Array


@dataclass(frozen=True)
class Source:
    """A folder of 300-W.

    Attributes:
        split: `train`, `common`, `challenging` or `test`.
        folder: relative to the data set's.
        boxes: name of the file with its boxes; None if there is none.
        name: file name of a picture by its number.
        shares: how often each attribute occurs.
        weight: how many pictures of the split the benchmark has here.
    """

    split: str
    folder: str
    boxes: str | None
    name: Names
    shares: Sequence[float]
    weight: int


SOURCES = (
    Source("train", "afw", "afw", lambda n: f"{1051618982 + 7 * n}_1.jpg", _EASY_SHARES, 337),
    Source("train", "helen/trainset", "helen_trainset", lambda n: f"{100032540 + 7 * n}_1.jpg", _EASY_SHARES, 2000),
    Source("train", "lfpw/trainset", "lfpw_trainset", lambda n: f"image_{n + 1:04d}.png", _EASY_SHARES, 811),
    Source("common", "helen/testset", "helen_testset", lambda n: f"{296814969 + 7 * n}_3.jpg", _EASY_SHARES, 330),
    Source("common", "lfpw/testset", "lfpw_testset", lambda n: f"image_{n + 1:04d}.png", _EASY_SHARES, 224),
    Source("challenging", "ibug", "ibug", lambda n: _ibug_name(n), _HARD_SHARES, 135),
    Source("test", "300W/01_Indoor", None, lambda n: f"indoor_{n + 1:03d}.png", _TEST_SHARES, 300),
    Source("test", "300W/02_Outdoor", None, lambda n: f"outdoor_{n + 1:03d}.png", _TEST_SHARES, 300),
)


def write_300w(
    root: str | Path,
    seed: int = 0,
    train: int = TRAIN,
    common: int = COMMON,
    challenging: int = CHALLENGING,
    test: int = TEST,
    size: int = SIZE,
    progress: Progress | None = None,
) -> None:
    """Write a synthetic twin of 300-W: `.pts` files with 68 points and the boxes of a detector, in its folders.

    The folders of a split have as large a part of it as in the benchmark. As there, one file name has a blank, and the
    test set has no boxes.

    Args:
        root: the folder; it may hold the same twin, whole or in part, but nothing else.
        seed: of all pictures.
        train: faces in afw and in the training parts of helen and lfpw.
        common: faces in the test parts of helen and lfpw.
        challenging: faces in ibug: turned, covered, with strong expressions.
        test: faces in 300W, indoors and outdoors.
        size: height and width in pixels, at least 64.
        progress: is called with the pictures written and their number.

    Raises:
        UserError: if the folder holds other data, or a number is out of range.
    """
    counts = {"train": train, "common": common, "challenging": challenging, "test": test}
    _check("300w", size, counts.values())
    splits = {**counts, "full": common + challenging}
    claim(Path(root), {"twin": "300w", "version": _VERSION, "seed": seed, "size": int(size), "splits": splits})
    done = 0
    for source, number in _shared_out(counts):
        boxes = {}
        for place in range(number):
            portrait = draw(seed, source.folder, place, attributes(place, source.shares, source.folder), IBUG, size)
            path = Path(root) / source.folder / source.name(place)
            write_image(path, portrait.image)
            write_bytes(path.with_suffix(".pts"), _pts(portrait.points))
            boxes[path.name] = portrait
            done += 1
            if progress is not None:
                progress(done, sum(counts.values()))
        if source.boxes is not None:
            write_bytes(Path(root) / "Bounding_Boxes" / f"bounding_boxes_{source.boxes}.mat", _boxes(boxes))


def write_wflw(
    root: str | Path,
    seed: int = 0,
    train: int = TRAIN,
    test: int = COMMON,
    size: int = SIZE,
    progress: Progress | None = None,
) -> None:
    """Write a synthetic twin of WFLW: lists with 98 points, boxes and six attributes, all of which are drawn.

    Some pictures show two faces and are listed twice.

    Args:
        root: the folder; it may hold the same twin, whole or in part, but nothing else.
        seed: of all pictures.
        train: faces for training.
        test: faces for testing.
        size: height and width of a picture with one face in pixels, at least 64.
        progress: is called with the faces written and their number.

    Raises:
        UserError: if the folder holds other data, or a number is out of range.
    """
    counts = {"train": train, "test": test}
    _check("wflw", size, counts.values())
    claim(Path(root), {"twin": "wflw", "version": _VERSION, "seed": seed, "size": int(size), "splits": counts})
    lists, done = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{}.txt", 0
    for split, count in counts.items():
        lines: list[str] = []
        for group in _groups(count):
            lines += _write_wflw_picture(Path(root), seed, split, group, size)
            done += len(group)
            if progress is not None:
                progress(done, sum(counts.values()))
        write_bytes(Path(root) / lists.format(split), "".join(lines).encode())


def attributes(number: int, shares: Sequence[float], where: str) -> frozenset[str]:
    """Which attributes the face of this number has: each as often as its share, and evenly spread over the numbers.

    Args:
        number: of the face.
        shares: of each of `ATTRIBUTES`, 0 to 1.
        where: the folder or split; it shifts the sequence.
    """
    shifts = np.random.default_rng(mixed_seed("attributes", where)).random(len(ATTRIBUTES))
    places = (number * np.array(_WEYL) + shifts) % 1
    return frozenset(name for name, place, share in zip(ATTRIBUTES, places, shares, strict=True) if place < share)


def draw(
    seed: int, where: str, number: int, drawn: frozenset[str] = frozenset(), layout: int = IBUG, size: int = SIZE
) -> Portrait:
    """Draw one face.

    Args:
        seed: of the twin.
        where: the folder or split.
        number: of the face within it.
        drawn: which of `ATTRIBUTES` it has.
        layout: 68 points in iBUG's order, or 98 in WFLW's.
        size: height and width in pixels.
    """
    rng = np.random.default_rng(mixed_seed("face", seed, where, number))
    face = Face.random(rng, drawn, size)
    points = face.landmarks(layout)
    return Portrait(_Painter(rng, face, drawn, size).painted(), points, _detected(rng, points))


# --- The face in space -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Face:
    """A face: identity, expression and pose.

    The unit of length is half the width of the face; x goes to the picture's right, y down and z to the viewer, from
    the middle between the eyes. Numbers around 0 are deviations from the mean face, most of them multiplied into it.

    Attributes:
        centre: of the face in pixels.
        scale: pixels a unit.
        yaw: turn to the picture's right in radians.
        pitch: upward turn in radians.
        roll: clockwise turn in the picture in radians.
        length: of the lower face.
        jaw: how round it is; 0.5 is square, 1 an ellipse.
        eye_gap: distance of the eyes.
        eye_size: width of the eyes.
        slant: by how much the outer corners lie higher.
        brow_height: distance of brows and eyes.
        brow_arch: curvature of the brows.
        brow_width: how thick the brows are.
        nose_length: from the bridge to the tip.
        nose_width: at the wings.
        mouth_height: place of the mouth.
        mouth_width: of the mouth at rest.
        lips: how thick they are.
        opened: the mouth, 0 to 1.
        smile: -0.5 (sad) to 1.
        raised: the brows, -1 (a frown) to 1.
        lids: how far the eyes are open, 0 to 1.2.
        gaze: of the eyes, to the right and down, -1 to 1.
        skew: of the mouth to one side.
    """

    centre: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    length: float = 1.45
    jaw: float = 0.75
    eye_gap: float = 0.43
    eye_size: float = 0.19
    slant: float = 0.02
    brow_height: float = 0.26
    brow_arch: float = 0.11
    brow_width: float = 0.05
    nose_length: float = 0.48
    nose_width: float = 0.24
    mouth_height: float = 0.97
    mouth_width: float = 0.34
    lips: float = 0.11
    opened: float = 0.0
    smile: float = 0.0
    raised: float = 0.0
    lids: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)
    skew: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator, drawn: frozenset[str], size: int) -> "Face":
        """Anybody, with the pose and the expression of the attributes."""
        turned, moved = "pose" in drawn, "expression" in drawn
        side = rng.choice([-1.0, 1.0])
        yaw = side * rng.uniform(0.5, 0.85) if turned else np.clip(rng.normal(0, 0.2), -0.45, 0.45)
        scale = size * rng.uniform(0.235, 0.375)
        around = 0.5 * size - 1.25 * scale
        laugh = rng.random() < 0.5
        opened, smile = (rng.uniform(0.45, 1), rng.uniform(-0.2, 0.5)) if laugh else (0.3 * rng.random(), 1.0)
        calm = max(0.0, rng.normal(-0.05, 0.12)), rng.normal(0.1, 0.25)
        return cls(
            centre=(0.5 * size + rng.uniform(-1, 1) * around, 0.54 * size + 0.7 * rng.uniform(-1, 1) * around),
            scale=scale,
            yaw=float(yaw),
            pitch=float(rng.normal(0, 0.22 if turned else 0.1)),
            roll=float(np.clip(rng.normal(0, 0.3 if turned else 0.12), -0.6, 0.6)),
            length=rng.uniform(1.28, 1.62),
            jaw=rng.uniform(0.55, 0.98),
            eye_gap=rng.uniform(0.39, 0.47),
            eye_size=rng.uniform(0.155, 0.215),
            slant=rng.normal(0.02, 0.025),
            brow_height=rng.uniform(0.2, 0.33),
            brow_arch=rng.uniform(0.04, 0.15),
            brow_width=rng.uniform(0.03, 0.07),
            nose_length=rng.uniform(0.4, 0.57),
            nose_width=rng.uniform(0.18, 0.29),
            mouth_height=rng.uniform(0.9, 1.02),
            mouth_width=rng.uniform(0.27, 0.4),
            lips=rng.uniform(0.07, 0.15),
            opened=float(opened if moved else calm[0]),
            smile=float(smile if moved else calm[1]),
            raised=float(np.clip(rng.normal(0, 0.7 if moved else 0.3), -1, 1)),
            lids=float(rng.uniform(0.05, 0.3) if rng.random() < 0.08 else np.clip(rng.normal(0.9, 0.15), 0.4, 1.2)),
            gaze=(float(rng.uniform(-0.8, 0.8)), float(rng.uniform(-0.5, 0.5))),
            skew=float(rng.normal(0, 0.03 if moved else 0.012)),
        )

    def landmarks(self, layout: int) -> Array:
        """The points (K, 2) in pixels, in the order of iBUG (68) or WFLW (98)."""
        return self.projected(self._wflw() if layout == WFLW else self._ibug())

    def projected(self, points: Array) -> Array:
        """Points in space (N, 3) as pixels (N, 2)."""
        turned = (points - _PIVOT) @ self._rotation.T
        near = self.scale * (1 + _PERSPECTIVE * (turned[:, 2:] - 0.3))
        return turned[:, :2] * near + self.centre

    @cached_property
    def _rotation(self) -> Array:
        (sy, cy), (sp, cp), (sr, cr) = ((np.sin(a), np.cos(a)) for a in (self.yaw, self.pitch, self.roll))
        turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        return np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]) @ turn @ nod

    def contour(self, t: Array) -> Array:
        """The outline from the ear on the left (-1) over the chin (0) to the other ear (1): (N, 3).

        On the side that is turned away, it slides to where the head's edge is seen.
        """
        angle, side = (1 - np.abs(t)) * np.pi / 2, np.sign(t)
        low = np.sin(angle)
        wide = np.maximum(np.cos(angle), 0)
        y = 0.05 + self.length * low + 0.26 * self.opened * low**2
        away = np.maximum(side * np.sin(self.yaw), 0)
        return np.stack([side * wide**self.jaw, y, -0.55 + 0.8 * low**2 + 0.75 * away * wide], axis=1)

    def forehead(self, t: Array, height: float = 1.0) -> Array:
        """The edge of the upper face from the left (-1) to the right (1): (N, 3)."""
        angle, side = (1 - np.abs(t)) * np.pi / 2, np.sign(t)
        wide = np.maximum(np.cos(angle), 0)
        away = np.maximum(side * np.sin(self.yaw), 0)
        y = 0.05 - height * np.sin(angle)
        return np.stack([side * wide**0.8, y, -0.55 + 0.55 * np.sin(angle) + 0.75 * away * wide], axis=1)

    def brow(self, side: int, t: Array, offset: float = 0.0) -> Array:
        """A brow from its outer (0) to its inner end (1): (N, 3); `offset` -1 is the upper edge and 1 the lower one."""
        x = self.eye_gap + 0.42 - t * 0.69
        y = 0.05 - self.brow_height - 0.05 * t - self.brow_arch * np.sin(np.pi * t**0.8)
        y += -0.09 * max(self.raised, 0) - self.raised * 0.07 * t
        thick = self.brow_width * (0.35 + 0.65 * np.sin(np.pi * np.clip(0.15 + 0.75 * t, 0, 1)))
        return np.stack([side * x, y + offset * thick, 0.04 + 0.36 * t], axis=1)

    def eye(self, side: int, t: Array, lid: float) -> Array:
        """A lid from the outer (0) to the inner corner (1): (N, 3); `lid` -1 is the upper one, 1 the lower one."""
        height = (0.12 if lid < 0 else 0.06) * self.eye_size / 0.19 * self.lids
        bulge = np.sin(np.pi * t) ** 0.85
        x = self.eye_gap + self.eye_size * (1 - 2 * t)
        y = -self.slant * (1 - 2 * t) + np.abs(lid) * np.sign(lid) * height * bulge - 0.02 * max(self.smile, 0) * bulge
        return np.stack([side * x, y, 0.06 + 0.16 * t + 0.05 * bulge], axis=1)

    def pupil(self, side: int) -> Point:
        """Middle of an eye's iris."""
        x = side * self.eye_gap + 0.4 * self.eye_size * self.gaze[0]
        return x, -0.03 * self.lids + 0.03 * self.gaze[1], 0.2

    def bridge(self, t: Array) -> Array:
        """The ridge of the nose from between the eyes (0) to the tip (1): (N, 3)."""
        return np.stack([0 * t, -0.02 + self.nose_length * t, 0.36 + 0.4 * t], axis=1)

    def nostrils(self, t: Array) -> Array:
        """The lower edge of the nose from the left (-1) to the right wing (1): (N, 3)."""
        y = self.nose_length + 0.15 - 0.09 * t**2 - 0.03 * max(self.smile, 0)
        return np.stack([self.nose_width * (1 + 0.15 * max(self.smile, 0)) * t, y, 0.52 - 0.22 * t**2], axis=1)

    def mouth(self, t: Array, lip: str) -> Array:
        """A lip's edge from the left (0) to the right corner (1): (N, 3).

        Args:
            t: where, 0 to 1.
            lip: `upper` and `lower` are the outer edges; `inner upper` and `inner lower` the inner ones.
        """
        half = self.mouth_width * (1 + 0.22 * max(self.smile, 0) - 0.2 * self.opened)
        x, across = half * (2 * t - 1), np.sin(np.pi * t)
        y = self.mouth_height - 0.13 * self.smile * (2 * t - 1) ** 2 + 0.05 * self.opened
        apart = across**0.75 * (0.008 + 0.5 * self.opened)
        y = y - 0.2 * apart if lip.endswith("upper") else y + 0.8 * apart
        if lip == "upper":
            y = y - self.lips * np.interp(t, np.arange(7) / 6, [0, 0.55, 1, 0.82, 1, 0.55, 0])
        if lip == "lower":
            y = y + 1.15 * self.lips * np.interp(t, np.arange(7) / 6, [0, 0.6, 0.93, 1, 0.93, 0.6, 0])
        return np.stack([x + self.skew, y, 0.24 + 0.22 * across], axis=1)

    def _ibug(self) -> Array:
        sixths, thirds, inner = np.arange(1, 6) / 6, np.array([1, 2]) / 3, np.array([0.3, 0.5, 0.7])
        return np.concatenate([
            self.contour(np.linspace(-1, 1, 17)),
            self.brow(-1, np.linspace(0, 1, 5)),
            self.brow(1, np.linspace(1, 0, 5)),
            self.bridge(np.linspace(0, 1, 4)),
            self.nostrils(np.linspace(-1, 1, 5)),
            *self._left_eye(thirds),
            *self._right_eye(thirds),
            *self._lips(sixths, inner),
        ])  # fmt: skip

    def _wflw(self) -> Array:
        sixths, quarters, inner = np.arange(1, 6) / 6, np.array([1, 2, 3]) / 4, np.array([0.3, 0.5, 0.7])
        upper, lower = np.linspace(0, 1, 5), np.array([0.22, 0.47, 0.72, 0.97])
        return np.concatenate([
            self.contour(np.linspace(-1, 1, 33)),
            self.brow(-1, upper, -1.0),
            self.brow(-1, lower[::-1], 1.0),
            self.brow(1, upper[::-1], -1.0),
            self.brow(1, lower, 1.0),
            self.bridge(np.linspace(0, 1, 4)),
            self.nostrils(np.linspace(-1, 1, 5)),
            *self._left_eye(quarters),
            *self._right_eye(quarters),
            *self._lips(sixths, inner),
            np.array([self.pupil(-1), self.pupil(1)]),
        ])  # fmt: skip

    def _left_eye(self, t: Array) -> Iterator[Array]:
        """Outer corner, upper lid, inner corner, lower lid."""
        yield self.eye(-1, np.zeros(1), -1)
        yield self.eye(-1, t, -1)
        yield self.eye(-1, np.ones(1), -1)
        yield self.eye(-1, t[::-1], 1)

    def _right_eye(self, t: Array) -> Iterator[Array]:
        """Inner corner, upper lid, outer corner, lower lid."""
        yield self.eye(1, np.ones(1), -1)
        yield self.eye(1, t[::-1], -1)
        yield self.eye(1, np.zeros(1), -1)
        yield self.eye(1, t, 1)

    def _lips(self, outer: Array, inner: Array) -> Iterator[Array]:
        yield self.mouth(np.zeros(1), "upper")
        yield self.mouth(outer, "upper")
        yield self.mouth(np.ones(1), "upper")
        yield self.mouth(outer[::-1], "lower")
        yield self.mouth(np.array([0.07]), "inner upper")
        yield self.mouth(inner, "inner upper")
        yield self.mouth(np.array([0.93]), "inner upper")
        yield self.mouth(inner[::-1], "inner lower")


# --- Paint -----------------------------------------------------------------------------------------------------------


class _Painter:
    """Paints a face before a background, light and flaws of the picture included. Colours are RGB from 0 to 255."""

    def __init__(self, rng: np.random.Generator, face: Face, drawn: frozenset[str], size: int) -> None:
        self.rng, self.face, self.drawn, self.size = rng, face, drawn, size
        self.canvas: Array = _background(rng, size)
        self.skin = _near(rng, _SKINS[rng.integers(len(_SKINS))], 9)
        self.hair = _near(rng, _HAIRS[rng.integers(len(_HAIRS))], 9)
        self.cloth = _anything(rng)
        self.made_up = "make-up" in drawn
        self.beard = not self.made_up and rng.random() < 0.25
        self.long_hair = bool(self.made_up or rng.random() < 0.35)
        self.bald = bool(not self.long_hair and rng.random() < 0.15)
        self.light = _direction(rng)

    def painted(self) -> Array:
        """The picture, uint8 (H, W, 3)."""
        self._behind()
        self._head()
        self._shade()
        if self.beard:
            self._beard()
        self._nose()
        for side in (-1, 1):
            self._eye(side)
            self._brow(side)
        self._mouth()
        self._fringe()
        if self.rng.random() < 0.18:
            self._glasses()
        if "occlusion" in self.drawn:
            self.rng.choice([self._hand, self._thing, self._strand, self._sunglasses])()  # type: ignore[arg-type]
        return self._developed()

    # Parts

    def _behind(self) -> None:
        """Clothes, neck, hair behind the head, and ears."""
        collar = self._at([(-2.6, 3.2, -1), (-2.0, 2.3, -1), (-0.6, 1.9, -0.8), (0.6, 1.9, -0.8), (2.0, 2.3, -1),
                           (2.6, 3.2, -1), (2.6, 6, -1), (-2.6, 6, -1)])  # fmt: skip
        self._blend(self._polygon(collar), self.cloth)
        if self.long_hair:
            low = self.rng.uniform(1.2, 2.4)
            self._blend(self._ellipse((0, low / 2 - 0.5, -0.6), (1.25, 0.75 + low / 2)), 0.85 * self.hair)
        neck = [(-0.62, 0.9, -0.6), (0.62, 0.9, -0.6), (0.66, 2.4, -0.7), (-0.66, 2.4, -0.7)]
        self._blend(self._polygon(self._at(neck)), 0.72 * self.skin)
        skull = self._ellipse((0, -0.12, -0.6), (1.13, 1.13))
        self._blend(skull, 0.8 * self.skin if self.bald else 0.9 * self.hair)
        if not self.long_hair:
            for side in (-1, 1):
                self._blend(self._ellipse((1.02 * side, 0.12, -0.62), (0.16, 0.3)), 0.82 * self.skin)

    def _head(self) -> None:
        t = np.linspace(-1, 1, 41)
        edge = np.concatenate([self.face.contour(t), self.face.forehead(t[::-1])])
        self.face_mask = self._polygon(self.face.projected(edge))
        self._blend(self.face_mask, self.skin)
        coarse = self.rng.normal(0, 5, (12, 12, 1)).astype(np.float32)
        relief = cv2.resize(coarse, (self.size, self.size), interpolation=cv2.INTER_CUBIC)[..., None]
        self.canvas += relief * self.face_mask[..., None]
        if self.bald:
            return
        line = np.linspace(-1, 1, 21)
        height = self.rng.uniform(0.55, 0.8)
        lower = np.stack([1.0 * line, -height + (height - 0.1) * np.abs(line) ** 3, 0.05 - 0.6 * line**2], axis=1)
        away = np.maximum(np.sign(line) * np.sin(self.face.yaw), 0)
        lower[:, 2] += 0.75 * away * np.abs(line)
        top = self.face.forehead(line[::-1], 1.12) * [1.06, 1, 1]
        self._blend(self._polygon(self.face.projected(np.concatenate([lower, top]))), self.hair)

    def _fringe(self) -> None:
        """Hair over the forehead; it may reach the brows."""
        if self.bald or self.rng.random() > 0.3:
            return
        line, low = np.linspace(-0.85, 0.85, 13), self.rng.uniform(-0.5, -0.22)
        y = low + self.rng.normal(0, 0.05, 13) - 0.2 * self.rng.choice([-1, 0, 1]) * line
        lower = np.stack([line, y, 0.3 - 0.5 * line**2], axis=1)
        top = self.face.forehead(np.linspace(0.7, -0.7, 13), 1.1)
        self._blend(self._polygon(self.face.projected(np.concatenate([lower, top]))), 0.95 * self.hair)

    def _shade(self) -> None:
        """The light on a round head."""
        (x, y), k = self.face.projected(np.array([[0, 0.3, 0.0]]))[0], self.face.scale
        rows, columns = np.mgrid[: self.size, : self.size].astype(np.float32)
        u, v = (columns - x) / (1.35 * k), (rows - y) / (1.65 * k)
        depth = np.sqrt(np.clip(1 - u**2 - v**2, 0.02, 1))
        lit = np.clip(u * self.light[0] + v * self.light[1] + depth * self.light[2], 0, 1)
        near = np.clip(1.6 - 0.6 * (u**2 + v**2), 0, 1)[..., None]
        strength = 0.75 if "illumination" in self.drawn else self.rng.uniform(0.25, 0.5)
        self.canvas *= 1 + near * (strength * (1.45 * lit - 0.9))[..., None]

    def _beard(self) -> None:
        face = self.face
        t = np.linspace(-0.8, 0.8, 25)
        upper = face.mouth(np.linspace(1, 0, 9), "upper") * [1.35, 1, 1] - [0, 0.08, 0]
        mask = self._polygon(face.projected(np.concatenate([face.contour(t), upper])))
        mask = cv2.GaussianBlur(mask, (0, 0), 0.06 * face.scale) * self.face_mask
        grain = np.clip(self.rng.normal(0.85, 0.25, mask.shape), 0, 1).astype(np.float32)
        self._blend(mask * grain, 0.9 * self.hair, self.rng.uniform(0.2, 0.85))

    def _brow(self, side: int) -> None:
        t = np.linspace(0, 1, 9)
        edge = np.concatenate([self.face.brow(side, t, -1.0), self.face.brow(side, t[::-1], 1.0)])
        mask = cv2.GaussianBlur(self._polygon(self.face.projected(edge)), (0, 0), 0.6)
        tone = 0.35 * self.skin + 0.45 * self.hair if self.hair.sum() > 350 else 0.9 * self.hair
        self._blend(mask, tone, self.rng.uniform(0.55, 0.95))

    def _eye(self, side: int) -> None:
        face, k = self.face, self.face.scale
        upper, lower = face.eye(side, _STEPS, -1), face.eye(side, _STEPS[::-1], 1)
        if self.made_up:
            lid = np.concatenate([face.eye(side, _STEPS, -1.9), lower])
            self._blend(cv2.GaussianBlur(self._polygon(face.projected(lid)), (0, 0), 0.8), self.shadow, 0.75)
        socket = cv2.GaussianBlur(self._ellipse((side * face.eye_gap, -0.06, 0.15), (0.27, 0.17)), (0, 0), 0.07 * k)
        self._blend(socket, 0.55 * self.skin, 0.35)
        eye = self._polygon(face.projected(np.concatenate([upper, lower])))
        self._blend(eye, np.array([225.0, 222, 218]) * self.rng.uniform(0.75, 1))
        iris = self._ellipse(face.pupil(side), (0.1, 0.1))
        self._blend(iris * eye, self.iris)
        self._blend(self._ellipse(face.pupil(side), (0.045, 0.045)) * eye, np.array([12.0, 10, 10]))
        width = 0.055 if self.made_up else 0.035
        self._blend(self._line(face.projected(upper), width), 0.22 * self.skin, 0.85)
        self._blend(self._line(face.projected(lower), 0.02), 0.5 * self.skin, 0.6)

    @cached_property
    def shadow(self) -> Array:
        """The colour that is put on both lids."""
        return self.rng.uniform(30, 150, 3)

    @cached_property
    def iris(self) -> Array:
        """The colour of both eyes."""
        return _near(self.rng, _IRISES[self.rng.integers(len(_IRISES))], 8)

    def _nose(self) -> None:
        face, k = self.face, self.face.scale
        dark = -1 if self.light[0] > 0 else 1
        ridge, wing = face.bridge(np.linspace(0, 1, 5)), face.nostrils(np.array([0.0, 0.5, 1.0]) * dark)
        side = np.concatenate([ridge, wing, [[dark * 0.13, 0.05, 0.2]]])
        self._blend(cv2.GaussianBlur(self._polygon(face.projected(side)), (0, 0), 0.05 * k), 0.6 * self.skin, 0.4)
        self._blend(cv2.GaussianBlur(self._line(face.projected(ridge), 0.07), (0, 0), 0.04 * k), 1.2 * self.skin, 0.4)
        lower = face.nostrils(np.linspace(-1, 1, 15))
        self._blend(self._line(face.projected(lower), 0.03), 0.45 * self.skin, 0.55)
        for sign in (-1, 1):
            x, y, z = face.nostrils(np.array([0.5 * sign]))[0]
            self._blend(self._ellipse((x, y - 0.03, z), (0.075, 0.04)), 0.25 * self.skin, 0.8)
            curl = np.array([[1.0, y - 0.18, 0.28], [1.12, y - 0.08, 0.28], [1.0, y + 0.01, 0.3]])
            curl[:, 0] *= sign * face.nose_width
            self._blend(self._line(face.projected(curl), 0.025), 0.5 * self.skin, 0.6)

    def _mouth(self) -> None:
        face = self.face
        fold = 0.25 + 0.3 * max(face.smile, 0)
        corners = face.mouth(np.array([0.0, 1.0]), "upper")
        for sign, (x, y, _) in zip((-1, 1), corners, strict=True):
            line = [(sign * 1.1 * face.nose_width, face.nose_length + 0.05, 0.28), (x + sign * 0.1, y - 0.05, 0.2)]
            soft = cv2.GaussianBlur(self._line(self._at(line), 0.04), (0, 0), 0.8)
            self._blend(soft, 0.55 * self.skin, fold)
        t = np.linspace(0, 1, 25)
        lips = np.concatenate([face.mouth(t, "upper"), face.mouth(t[::-1], "lower")])
        plain = np.clip(self.skin * [0.88, 0.62, 0.62] + [12, 0, 0], 0, 255)
        colour = self.rng.uniform([130, 0, 20], [220, 50, 90]) if self.made_up else _near(self.rng, plain, 8)
        self._blend(self._polygon(face.projected(lips)), colour, 0.9)
        s = np.linspace(0.04, 0.96, 25)
        gap = np.concatenate([face.mouth(s, "inner upper"), face.mouth(s[::-1], "inner lower")])
        hole = self._polygon(face.projected(gap))
        self._blend(np.maximum(hole, self._line(face.projected(face.mouth(s, "inner upper")), 0.02)),
                    np.array([60.0, 18, 20]))  # fmt: skip
        if face.opened > 0.12 or (face.smile > 0.8 and face.opened > 0.05):
            upper = face.mouth(s, "inner upper")
            lower = upper + np.array([0, 0.11, 0])
            teeth = np.concatenate([upper[3:], lower[:2:-1]])
            self._blend(self._polygon(face.projected(teeth)) * hole, np.array([222.0, 218, 205]))
            tongue = face.mouth(np.array([0.5]), "inner lower")[0] - [0, 0.02, 0.05]
            self._blend(self._ellipse(tuple(tongue), (0.18, 0.1)) * hole, np.array([150.0, 60, 62]), 0.8)
        if self.made_up:
            for sign in (-1, 1):
                cheek = self._ellipse((0.62 * sign, 0.55, 0.1), (0.22, 0.16))
                soft = cv2.GaussianBlur(cheek, (0, 0), 0.09 * face.scale) * self.face_mask
                self._blend(soft, np.array([215.0, 70, 90]), 0.5)

    # What covers the face

    def _glasses(self) -> None:
        colour, width = self.rng.uniform(10, 110, 3), self.rng.uniform(0.035, 0.07)
        for side in (-1, 1):
            self._blend(self._line(self._lens(side), width, closed=True), colour)
            ends = [(side * (self.face.eye_gap + 0.3), -0.04, 0.2), (side * 1.0, -0.02, -0.5)]
            self._blend(self._line(self._at(ends), width), colour)
        self._blend(self._line(self._at([(-0.15, -0.03, 0.45), (0.15, -0.03, 0.45)]), width), colour)

    def _sunglasses(self) -> None:
        for side in (-1, 1):
            self._blend(self._polygon(self._lens(side)), np.array([22.0, 20, 26]), self.rng.uniform(0.85, 1))
        self._glasses()

    def _lens(self, side: int) -> Array:
        angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        x, y = 0.29 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.7, 0.22 * np.sin(angle)
        return self.face.projected(np.stack([side * self.face.eye_gap + x, y + 0.02, 0 * x + 0.3], axis=1))

    def _hand(self) -> None:
        """A hand over mouth, chin or cheek; of much the same colour as the face."""
        skin = _near(self.rng, self.skin, 12)
        x, y, lean = self.rng.uniform(-0.6, 0.6), self.rng.uniform(0.7, 1.3), self.rng.uniform(-0.5, 0.5)
        sleeve = [(-0.3, y + 0.6), (0.3, y + 0.6), (0.5 + lean, 3.5), (lean - 0.3, 3.5)]
        self._blend(self._polygon(self._at([(x + u, v, 0.6) for u, v in sleeve])), 0.8 * self.cloth)
        self._blend(self._ellipse((x, y + 0.45, 0.6), (0.42, 0.42)), 0.95 * skin)
        for finger in range(4):
            root = (x - 0.3 + 0.2 * finger, y + 0.35, 0.6)
            tip = (root[0] - 0.4 * lean, y - 0.35 + 0.08 * abs(finger - 1.5), 0.6)
            self._blend(self._line(self._at([root, tip]), 0.21), 0.7 * skin)
            self._blend(self._line(self._at([root, tip]), 0.16), skin)

    def _thing(self) -> None:
        """A book, a telephone or a microphone before the face."""
        x, y = self.rng.choice([-1, 1]) * self.rng.uniform(0.45, 0.95), self.rng.uniform(-0.1, 1.2)
        half = self.rng.uniform([0.25, 0.4], [0.5, 0.8])
        angle = self.rng.uniform(-0.5, 0.5)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ turn.T + [x, y]
        places = self._at([(u, v, 0.6) for u, v in corners])
        colour = self.rng.uniform(10, 235, 3)
        self._blend(self._polygon(places), colour)
        self._blend(self._line(places, 0.05, closed=True), 0.5 * colour)

    def _strand(self) -> None:
        """Hair over one eye."""
        side = self.rng.choice([-1, 1])
        places = [(0.1 * side, -0.95, 0.1), (0.25 * side, -0.3, 0.4), (0.45 * side, 0.35, 0.35),
                  (0.7 * side, 0.95, 0.1), (0.93 * side, 0.8, -0.2), (0.98 * side, -0.4, -0.4)]  # fmt: skip
        self._blend(cv2.GaussianBlur(self._polygon(self._at(places)), (0, 0), 0.8), self.hair)

    # The picture

    def _developed(self) -> Array:
        """Light of the scene, blur and noise; uint8."""
        rng = self.rng
        picture: Array = np.clip(self.canvas, 0, 255) / 255
        if "illumination" in self.drawn:
            angle = rng.uniform(0, 2 * np.pi)
            rows, columns = np.mgrid[: self.size, : self.size] / self.size - 0.5
            ramp = 0.5 + (np.cos(angle) * columns + np.sin(angle) * rows)
            cast = np.exp(rng.normal(0, 0.14, 3))
            picture = picture * cast * np.clip(0.2 + 1.1 * ramp, 0.12, 1.5)[..., None]
            picture = np.clip(picture * np.exp(rng.uniform(-0.7, 0.6)), 0, 1)
        gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, 3))
        picture = np.clip(picture * gain, 0, 1) ** np.exp(rng.normal(0, 0.15))
        if rng.random() < 0.08:
            picture = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
        picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), rng.uniform(0.4, 0.8) * self.size / SIZE)
        if "blur" in self.drawn:
            picture = self._blurred(picture)
        picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0.006, 0.035))
        return np.clip(255 * picture + 0.5, 0, 255).astype(np.uint8)

    def _blurred(self, picture: Array) -> Array:
        """Out of focus, moved, or enlarged from few pixels."""
        rng, kind = self.rng, self.rng.integers(3)
        if kind == 0:
            return cv2.GaussianBlur(picture, (0, 0), rng.uniform(1.6, 2.8) * self.size / SIZE)
        if kind == 1:
            length = int(rng.integers(7, 12)) * self.size // SIZE | 1
            kernel = np.zeros((length, length), np.float32)
            angle = rng.uniform(0, np.pi)
            reach = (length // 2) * np.array([np.cos(angle), np.sin(angle)])
            ends = np.round(length // 2 + np.array([-reach, reach])).astype(int).tolist()
            cv2.line(kernel, ends[0], ends[1], 1.0)
            return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
        few = int(self.size * rng.uniform(0.25, 0.4))
        small = cv2.resize(picture, (few, few), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_LINEAR)

    # Shapes: masks, float32 (H, W) from 0 to 1

    def _at(self, points: Sequence[Point]) -> Array:
        return self.face.projected(np.array(points, dtype=float))

    def _polygon(self, places: Array) -> Array:
        mask = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(mask, [_fixed(places)], 255, cv2.LINE_AA, _SHIFT)
        return mask.astype(np.float32) / 255

    def _line(self, places: Array, width: float, closed: bool = False) -> Array:
        """A line of a width in units of the face; one thinner than a pixel is as much fainter."""
        pixels = width * self.face.scale
        mask = np.zeros((self.size, self.size), np.uint8)
        cv2.polylines(mask, [_fixed(places)], closed, 255, max(round(pixels), 1), cv2.LINE_AA, _SHIFT)
        return mask.astype(np.float32) * np.float32(min(pixels, 1) / 255)

    def _ellipse(self, centre: Point, half: tuple[float, float]) -> Array:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        x, y = half[0] * np.cos(angle), half[1] * np.sin(angle)
        flat = np.stack([np.cos(self.face.roll) * x - np.sin(self.face.roll) * y,
                         np.sin(self.face.roll) * x + np.cos(self.face.roll) * y], axis=1)  # fmt: skip
        return self._polygon(self._at([centre]) + self.face.scale * flat)

    def _blend(self, mask: Array, colour: Array, strength: float = 1.0) -> None:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            return
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        part = (mask[window] * np.float32(strength))[..., None]
        under = self.canvas[window]
        self.canvas[window] = under + part * (np.asarray(colour, np.float32) - under)


def _background(rng: np.random.Generator, size: int) -> Array:
    """Surfaces, shapes and soft blobs, some as bright as skin; float32 (H, W, 3)."""
    ends = (rng.uniform(20, 225, (2, 2, 1)) + rng.normal(0, 18, (2, 2, 3))) * rng.uniform(0.5, 1)
    scene: Array = cv2.resize(ends.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(2, 8)):
        colour = _near(rng, _SKINS[rng.integers(len(_SKINS))], 20) if rng.random() < 0.3 else _anything(rng)
        middle, angle = rng.uniform(0, size, 2), rng.uniform(0, 180)
        half = rng.uniform(0.05, 0.35, 2) * size
        if rng.random() < 0.5:
            cv2.ellipse(scene, (middle.tolist(), (2 * half).tolist(), angle), colour.tolist(), -1, cv2.LINE_AA)
            continue
        box = cv2.boxPoints((middle.tolist(), (2 * half).tolist(), angle))
        cv2.fillPoly(scene, [_fixed(box)], colour.tolist(), cv2.LINE_AA, _SHIFT)
    coarse = (rng.normal(0, 14, (10, 10, 1)) + rng.normal(0, 6, (10, 10, 3))).astype(np.float32)
    scene += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.5, 3)), 0, 255)


def _direction(rng: np.random.Generator) -> Array:
    """Where the light comes from: a unit vector, mostly from above and before the face."""
    light = np.array([rng.normal(0, 0.7), rng.normal(-0.4, 0.4), rng.uniform(0.4, 1)])
    return light / np.linalg.norm(light)


def _anything(rng: np.random.Generator) -> Array:
    """A colour, seldom a bright one."""
    return np.clip(rng.uniform(15, 240) + rng.normal(0, 38, 3), 0, 255)


def _near(rng: np.random.Generator, colour: Sequence[float] | Array, spread: float) -> Array:
    return np.clip(np.asarray(colour) + rng.normal(0, spread, 3), 0, 255)


def _fixed(places: Array) -> Array:
    """Pixels as the fixed-point numbers of OpenCV, int32."""
    return np.round(places * (1 << _SHIFT)).astype(np.int32)


def _detected(rng: np.random.Generator, points: Array) -> Array:
    """A box around the face, larger than the points' and a little beside it."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.5 * (high - low).max() * rng.uniform(1.0, 1.2)
    middle = 0.5 * (low + high) + rng.normal(0, 0.05, 2) * (high - low)
    return np.concatenate([middle - half, middle + half])


# --- On disk ---------------------------------------------------------------------------------------------------------


def _check(twin: str, size: int, counts: Collection[int]) -> None:
    if size < _SMALLEST or min(counts) < 0:
        raise UserError(f"the twin of {twin}: size is at least {_SMALLEST} pixels, and numbers of faces are 0 or more.")


def _shared_out(counts: Mapping[str, int]) -> Iterator[tuple[Source, int]]:
    """The sources with their faces: of a split's number, each folder has its part, the last one the rest."""
    for split, count in counts.items():
        sources = [source for source in SOURCES if source.split == split]
        weights = np.cumsum([0, *(source.weight for source in sources)])
        ends = np.round(count * weights / weights[-1]).astype(int).tolist()
        for source, start, end in zip(sources, ends, ends[1:], strict=False):
            yield source, end - start


def _ibug_name(number: int) -> str:
    """As in ibug, where one name has a blank."""
    return "image_010 01.jpg" if number == 1 else f"image_{number + 3:03d}_1.jpg"


def _pts(points: Array) -> bytes:
    """A `.pts` file; its coordinates begin with 1."""
    rows = "".join(f"{x:.6f} {y:.6f}\n" for x, y in points + 1)
    return f"version: 1\nn_points:  {len(points)}\n{{\n{rows}}}\n".encode()


def _boxes(portraits: Mapping[str, Portrait]) -> bytes:
    """A MATLAB file with detected and true boxes; its header says no time, so that the bytes are always the same."""
    cells = np.empty((1, len(portraits)), dtype=object)
    for place, (name, portrait) in enumerate(portraits.items()):
        truth = np.concatenate([portrait.points.min(axis=0), portrait.points.max(axis=0)])
        cells[0, place] = {
            "imgName": name,
            "bb_detector": portrait.detected[None] + 1,
            "bb_ground_truth": truth[None] + 1,
        }
    buffer = io.BytesIO()
    savemat(buffer, {"bounding_boxes": cells})
    header = b"MATLAB 5.0 MAT-file, synthetic twin".ljust(116)
    return header + buffer.getvalue()[len(header) :]


def _groups(count: int) -> Iterator[list[int]]:
    """The numbers of faces, by picture."""
    number = picture = 0
    while number < count:
        faces = 2 if picture % _PAIR_EVERY == _PAIR_EVERY - 1 and number + 2 <= count else 1
        yield list(range(number, number + faces))
        number, picture = number + faces, picture + 1


def _write_wflw_picture(root: Path, seed: int, split: str, group: Sequence[int], size: int) -> list[str]:
    """Write one picture; returns its lines of the list."""
    place = _WFLW_PLACES[group[0] % len(_WFLW_PLACES)]
    prefix = place.replace("--", "_")
    name = f"{place}/{prefix}_{prefix.split('_')[1]}_{split}_{group[0] + 1}.jpg"
    pictures, lines = [], []
    for column, number in enumerate(group):
        drawn = attributes(number, _WFLW_SHARES, split)
        portrait = draw(seed, split, number, drawn, WFLW, size)
        points = portrait.points + np.array([column * size, 0])
        pictures.append(portrait.image)
        box = np.concatenate([np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))]).astype(int)
        flags = [int(attribute in drawn) for attribute in ATTRIBUTES]
        lines.append(" ".join([*(f"{v:.6f}" for v in points.ravel()), *map(str, box), *map(str, flags), name]) + "\n")
    write_image(root / "WFLW_images" / name, np.concatenate(pictures, axis=1))
    return lines
