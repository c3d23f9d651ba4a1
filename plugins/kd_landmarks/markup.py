"""Schemes of points: which are mirror partners, what errors are divided by, which are joined by lines.

Points are 0-based here; the schemes' own papers count from 1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

Ends = tuple[tuple[int, ...], tuple[int, ...]]


class Markup(NamedTuple):
    """A scheme of K points.

    Attributes:
        points: K.
        pairs: points that change places in a mirrored picture; the others lie on the middle line.
        norms: by name, the points whose two means are the ends of the length that errors are divided by.
        contours: points that are joined by lines, in their order.
        default_norm: one of `norms`, or `box` or `face_size`, which are measured at the face's box.
    """

    points: int
    pairs: tuple[tuple[int, int], ...]
    norms: dict[str, Ends]
    contours: tuple[tuple[int, ...], ...]
    default_norm: str

    @property
    def swaps(self) -> list[int]:
        """The mirror partner of each point, itself if it has none."""
        return swaps_of(self.pairs, self.points)


def swaps_of(pairs: Sequence[Sequence[int]], points: int) -> list[int]:
    """The mirror partner of each of `points` points."""
    partner = {one: other for a, b in pairs for one, other in ((a, b), (b, a))}
    return [partner.get(point, point) for point in range(points)]


def metainfo_of(markup: Markup) -> dict[str, Any]:
    """`points`, `swaps`, `norms`, `contours` and `default_norm`, as metrics and drawing read them."""
    return {
        "points": markup.points,
        "swaps": markup.swaps,
        "norms": dict(markup.norms),
        "contours": [list(contour) for contour in markup.contours],
        "default_norm": markup.default_norm,
    }


def _run(first: int, last: int, closed: bool = False) -> tuple[int, ...]:
    return (*range(first, last + 1), first) if closed else tuple(range(first, last + 1))


def _facing(*ranges: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    """Pairs (first, partner), (first + 1, partner - 1), … up to `last`, of each (first, last, partner)."""
    return tuple((first + step, partner - step) for first, last, partner in ranges for step in range(last - first + 1))


FACE_68 = Markup(
    points=68,
    pairs=_facing(
        *((0, 7, 16), (17, 21, 26), (31, 32, 35)),  # jaw, brows, nostrils
        *((36, 39, 45), (40, 41, 47)),  # eyes
        *((48, 50, 54), (58, 59, 56), (60, 61, 64), (67, 67, 65)),  # lips
    ),
    norms={
        "inter_ocular": ((36,), (45,)),
        "inter_pupil": (_run(36, 41), _run(42, 47)),
    },
    contours=(
        *(_run(0, 16), _run(17, 21), _run(22, 26), _run(27, 30), _run(31, 35)),
        *(_run(36, 41, True), _run(42, 47, True), _run(48, 59, True), _run(60, 67, True)),
    ),
    default_norm="inter_ocular",
)
"""300-W (Sagonas et al., ICCVW 2013)."""

FACE_98 = Markup(
    points=98,
    pairs=_facing(
        *((0, 15, 32), (33, 37, 46), (38, 41, 50), (55, 56, 59)),  # jaw, brows, nostrils
        *((60, 64, 72), (65, 67, 75), (96, 96, 97)),  # eyes, pupils
        *((76, 78, 82), (86, 87, 84), (88, 89, 92), (95, 95, 93)),  # lips
    ),
    norms={
        "inter_ocular": ((60,), (72,)),
        "inter_pupil": ((96,), (97,)),
    },
    contours=(
        *(_run(0, 32), _run(33, 41, True), _run(42, 50, True), _run(51, 54), _run(55, 59)),
        *(_run(60, 67, True), _run(68, 75, True), _run(76, 87, True), _run(88, 95, True), (96,), (97,)),
    ),
    default_norm="inter_ocular",
)
"""WFLW (Wu et al., CVPR 2018)."""

FACE_29 = Markup(
    points=29,
    pairs=(
        *((0, 1), (2, 3), (4, 6), (5, 7)),  # brows
        *((8, 9), (10, 11), (12, 14), (13, 15), (16, 17)),  # eyes, pupils
        *((18, 19), (22, 23)),  # nostrils, corners of the mouth
    ),
    norms={
        "inter_ocular": ((8,), (9,)),
        "inter_pupil": ((16,), (17,)),
    },
    contours=(
        *((0, 4, 2, 5, 0), (1, 6, 3, 7, 1), (8, 12, 10, 13, 8), (9, 14, 11, 15, 9), (16,), (17,)),
        *((18, 20, 19, 21, 18), (22, 24, 23, 27, 22), (22, 25, 23, 26, 22), (28,)),
    ),
    default_norm="inter_ocular",
)
"""COFW (Burgos-Artizzu et al., ICCV 2013)."""

FACE_19 = Markup(
    points=19,
    pairs=_facing((0, 2, 5), (6, 8, 11), (12, 12, 14), (15, 15, 17)),
    norms={
        "inter_ocular": ((6,), (11,)),
        "inter_pupil": ((7,), (10,)),
    },
    contours=(_run(0, 2), _run(3, 5), _run(6, 8), _run(9, 11), _run(12, 14), _run(15, 17), (18,)),
    default_norm="box",
)
"""AFLW-19 (Koestinger et al., ICCVW 2011; Zhu et al., CVPR 2016). In profile an eye is missing: errors by the box."""

MARKUPS = {markup.points: markup for markup in (FACE_68, FACE_98, FACE_29, FACE_19)}
