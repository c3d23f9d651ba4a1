"""The codec of distributions over positions, and the task loss that belongs to it."""

import math

import numpy as np
import pytest
import torch
from kd_landmarks.criterion import HeatmapLoss
from scipy.special import log_softmax, softmax

from kd_tasks.errors import UserError
from kd_tasks.registry import CODECS, CRITERIA
from kd_tasks.vision.heatmaps import DarkHeatmap, SoftmaxHeatmap

INPUT, MAP = (64, 96), (16, 24)
STRIDE = 4


def inside(seed, faces=3, points=20):
    size = torch.tensor(INPUT[::-1], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return 16 + torch.rand(faces, points, 2, generator=generator, dtype=torch.float64) * (size - 33)


def seen(points):
    return torch.ones(points.shape[:2], dtype=torch.bool)


def by_hand(point, sigma):
    """The target of one point, pixel by pixel."""
    target = np.zeros(MAP)
    for row in range(MAP[0]):
        for column in range(MAP[1]):
            x, y = (column + 0.5) * STRIDE - 0.5, (row + 0.5) * STRIDE - 0.5
            target[row, column] = math.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    return target / target.sum()


def test_the_target_is_a_distribution():
    points = inside(0, 1, 3)
    drawn, weights = SoftmaxHeatmap(sigma=5.0).encode(points, seen(points), INPUT, MAP)
    expected = np.stack([by_hand(point, 5.0) for point in points[0].tolist()])
    np.testing.assert_allclose(drawn[0].numpy(), expected, atol=1e-12)
    assert weights.eq(1).all()


def test_round_trip():
    points, codec = inside(1), SoftmaxHeatmap(sigma=5.0)
    drawn, _ = codec.encode(points, seen(points), INPUT, MAP)
    found, scores = codec.decode(codec.as_output(drawn), INPUT)
    assert (found - points).abs().max() < 0.02 * STRIDE
    torch.testing.assert_close(scores, drawn.flatten(2).amax(-1))


def test_a_constant_on_the_logits_changes_nothing():
    maps = torch.randn(2, 5, *MAP, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    codec = SoftmaxHeatmap()
    for one, other in zip(codec.decode(maps, INPUT), codec.decode(maps - 70, INPUT), strict=True):
        torch.testing.assert_close(one, other)


def test_pictures_have_peaks_of_about_one():
    points, codec = inside(3), SoftmaxHeatmap(sigma=5.0)
    drawn, _ = codec.encode(points, seen(points), INPUT, MAP)
    peaks = codec.pictures(codec.as_output(drawn), INPUT).flatten(2).amax(-1)
    assert peaks.min() > 0.8 and peaks.max() < 1.01
    plain = DarkHeatmap(sigma=1.25)
    maps, _ = plain.encode(points, seen(points), INPUT, MAP)
    assert plain.pictures(plain.as_output(maps), INPUT) is maps


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
def test_maps_that_say_nothing_give_finite_points(value):
    points, scores = SoftmaxHeatmap().decode(torch.full((2, 3, *MAP), value), INPUT)
    assert points.isfinite().all() and scores.isfinite().all()


def test_points_that_cannot_be_drawn_have_no_weight():
    points = inside(4, 1, 4)
    points[0, 1] = math.nan
    points[0, 2] = -1e4
    visible = torch.tensor([[False, True, True, True]])
    drawn, weights = SoftmaxHeatmap().encode(points, visible, INPUT, MAP)
    assert weights.tolist() == [[0, 0, 0, 1]] and drawn[0, :3].eq(0).all()


def test_cross_entropy_and_its_gradient():
    points, codec = inside(5, 2, 3), SoftmaxHeatmap(sigma=5.0)
    visible = torch.tensor([[True, False, True], [True, True, True]])
    labelled = torch.tensor([True, False])
    maps = torch.randn(2, 3, *MAP, generator=torch.Generator().manual_seed(6), dtype=torch.float64, requires_grad=True)
    targets = {"points": points, "visible": visible, "labelled": labelled}
    loss = HeatmapLoss(codec, INPUT, kind="cross_entropy")({"heatmaps": maps}, targets)["heatmaps"]
    loss.backward()
    logits = maps.detach().numpy().reshape(2, 3, -1)
    counted = [(0, 0), (0, 2)]
    drawn = {at: by_hand(points[at].tolist(), 5.0).ravel() for at in counted}
    expected = -np.mean([(drawn[at] * log_softmax(logits[at])).sum() for at in counted])
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)
    gradient = np.zeros_like(logits)
    for at in counted:
        gradient[at] = (softmax(logits[at]) - drawn[at]) / len(counted)
    np.testing.assert_allclose(maps.grad.numpy().reshape(2, 3, -1), gradient, atol=1e-7)


@pytest.mark.parametrize(
    ("codec", "options", "says"),
    [
        ("SoftmaxHeatmap", {}, "kind='cross_entropy'"),
        ("DarkHeatmap", {"kind": "cross_entropy"}, "'mse' or 'awing'"),
        ("SoftmaxHeatmap", {"kind": "cross_entropy", "foreground": 1.0}, "neither foreground"),
    ],
)
def test_losses_that_do_not_fit(codec, options, says):
    with pytest.raises(UserError, match=says):
        CRITERIA.build({"type": "HeatmapLoss", "codec": {"type": codec}, "input_size": INPUT, **options})


def test_a_sigma_of_zero_is_refused():
    with pytest.raises(UserError, match="sigma"):
        CODECS.build({"type": "SoftmaxHeatmap", "sigma": 0.0})
