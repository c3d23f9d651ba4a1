"""Decoding of heatmaps against a loop over the points in numpy and OpenCV, and against the position of the maxima."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kd_tasks.vision.heatmaps import DarkHeatmap, GaussianHeatmap, HeatmapCodec, PeakHeatmap, UDPHeatmap
from tests.benchmarks import Row, in_turns

Map = npt.NDArray[np.float32]
Point = npt.NDArray[np.float64]
Read = Callable[[Map], Point]
NOISE = 0.02
NOWHERE = np.array([-1.0, -1.0])
RADIUS = 4  # of the patch of the soft-argmax
LOOP, ARGMAX = 0.2, 3.0


def run(faces: int = 100, points: int = 68, size: int = 64, rounds: int = 7) -> list[Row]:
    """Faces as they come in one batch; 10,000 of them are 100 such batches."""
    cv2.setNumThreads(1)
    codecs: dict[str, tuple[HeatmapCodec, Read]] = {
        "Gaussian": (GaussianHeatmap(), quarter_step),
        "DARK": (DarkHeatmap(), taylor_step),
        "UDP": (UDPHeatmap(), udp_step),
        "Peak": (PeakHeatmap(sigma=6.0), soft_argmax),
    }
    rows = []
    for name, (codec, read) in codecs.items():
        maps = heatmaps(codec, faces, points, size)
        what = f"{name}, {faces} x {points} maps of {size} x {size}"
        decode = decoding(codec, maps, 4 * size)
        rows += [
            in_turns(f"{what}: loop", decode, by_hand(maps, read), LOOP, rounds, warm_up=1),
            in_turns(f"{what}: argmax", decode, maxima(maps), ARGMAX, rounds, warm_up=1),
        ]
    return [*rows, combined(faces, points, size, rounds)]


def combined(faces: int, points: int, size: int, rounds: int) -> Row:
    """UDP with discs and offsets, whose discs are blurred as a whole; only reported."""
    codec = UDPHeatmap("combined")
    maps = heatmaps(codec, faces, points, size)
    name = f"UDP combined, {faces} x {points} x 3 maps of {size} x {size}: argmax"
    return in_turns(name, decoding(codec, maps, 4 * size), maxima(maps), None, rounds, warm_up=1)


def heatmaps(codec: HeatmapCodec, faces: int, points: int, size: int) -> Tensor:
    """Maps (N, C, size, size) of random points, with noise."""
    generator = torch.Generator().manual_seed(0)
    wanted = 4 * size * torch.rand(faces, points, 2, generator=generator)
    visible = torch.ones(faces, points, dtype=torch.bool)
    maps, _ = codec.encode(wanted, visible, (4 * size, 4 * size), (size, size))
    return maps.add_(torch.randn(maps.shape, generator=generator), alpha=NOISE)


def decoding(codec: HeatmapCodec, maps: Tensor, side: int) -> Callable[[], Tensor]:
    """Our decoding."""
    return lambda: codec.decode(maps, (side, side))[0]


def maxima(maps: Tensor) -> Callable[[], Tensor]:
    """The index of the maximum of every map."""
    return lambda: maps.flatten(2).argmax(dim=-1)


def by_hand(maps: Tensor, read: Read) -> Callable[[], Point]:
    """Points (N, K, 2) in pixels of the map, read one after the other."""
    values = maps.numpy()
    return lambda: np.array([[read(one) for one in sample] for sample in values])


def peak(values: Map) -> tuple[int, int]:
    """Column and row of the first maximum."""
    y, x = divmod(int(values.argmax()), values.shape[1])
    return x, y


def smooth(values: Map, size: int = 11) -> Map:
    """Blurred with zeros around it, and scaled to the old maximum."""
    edge = size // 2
    padded = cv2.GaussianBlur(np.pad(values, edge), (size, size), 0)
    result = np.asarray(padded[edge:-edge, edge:-edge], np.float32)
    return result * (values.max() / result.max())


def quarter_step(values: Map) -> Point:
    """`GaussianHeatmap` with the rule of mmpose, in the words of its code and of HRNet's."""
    height, width = values.shape
    x, y = peak(values)
    if values[y, x] <= 0:
        return NOWHERE
    dx = values[y, x + 1] - values[y, x - 1] if 1 < x < width - 1 and y > 0 else 0
    dy = values[y + 1, x] - values[y - 1, x] if 1 < y < height - 1 and x > 0 else 0
    return np.array([x, y]) + 0.25 * np.sign([dx, dy])


def taylor_step(values: Map) -> Point:
    """`DarkHeatmap` with the rule of mmpose."""
    height, width = values.shape
    x, y = peak(values)
    if values[y, x] <= 0:
        return NOWHERE
    if not (1 < x < width - 2 and 1 < y < height - 2):
        return np.array([x, y])
    log = np.log(np.maximum(smooth(values), 1e-10))
    slope = 0.5 * np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]])
    xx = log[y, x + 2] - 2 * log[y, x] + log[y, x - 2]
    yy = log[y + 2, x] - 2 * log[y, x] + log[y - 2, x]
    xy = log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1]
    curve = 0.25 * np.array([[xx, xy], [xy, yy]])
    if np.linalg.det(curve) == 0:
        return np.array([x, y])
    return np.array([x, y]) - np.linalg.inv(curve) @ slope


def udp_step(values: Map) -> Point:
    """`UDPHeatmap` with Gaussians."""
    x, y = peak(values)
    if values[y, x] <= 0:
        return NOWHERE
    log = np.pad(np.log(np.clip(smooth(values), 1e-3, 50)), 1, mode="edge")[y : y + 3, x : x + 3]
    slope = 0.5 * np.array([log[1, 2] - log[1, 0], log[2, 1] - log[0, 1]])
    xx, yy = log[1, 2] - 2 * log[1, 1] + log[1, 0], log[2, 1] - 2 * log[1, 1] + log[0, 1]
    xy = 0.5 * (log[2, 2] - log[1, 2] - log[2, 1] + 2 * log[1, 1] - log[1, 0] - log[0, 1] + log[0, 0])
    curve = np.array([[xx, xy], [xy, yy]]) + np.finfo(np.float32).eps * np.eye(2)
    return np.array([x, y]) - np.linalg.inv(curve) @ slope


def soft_argmax(values: Map) -> Point:
    """`PeakHeatmap` without a background."""
    x, y = peak(values)
    patch = np.pad(values, RADIUS)[y : y + 2 * RADIUS + 1, x : x + 2 * RADIUS + 1]
    patch = np.where(patch > 1e-6, patch, np.finfo(float).eps)
    steps = np.arange(-RADIUS, RADIUS + 1)
    return np.array([x, y]) + np.array([patch.sum(0) @ steps, patch.sum(1) @ steps]) / patch.sum()
