"""Task losses and decoder of facial landmarks: reference values, naive loops, masks, geometry."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kd_landmarks.criterion import CoordinateLoss, HeatmapLoss
from kd_landmarks.decoder import LandmarkDecoder
from torch import Tensor

from kd_tasks.errors import UserError
from kd_tasks.registry import CRITERIA, DECODERS
from kd_tasks.vision.heatmaps import DarkHeatmap, GaussianHeatmap, PeakHeatmap, UDPHeatmap

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"
SIZE = (64, 48)
MAP = (16, 12)
KINDS = ("wing", "l1", "smooth_l1", "mse")


def faces(samples: int = 3, points: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    return {
        "points": torch.rand(samples, points, 2, generator=generator) * torch.tensor([18.0, 34.0]) + 14,
        "visible": torch.ones(samples, points, dtype=torch.bool),
        "labelled": torch.ones(samples, dtype=torch.bool),
    }


def maps(samples: int = 3, channels: int = 4, stages: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    names = [*(f"heatmaps_{i}" for i in range(1, stages)), "heatmaps"]
    return {n: torch.rand(samples, channels, *MAP, generator=generator, dtype=torch.float64) for n in names}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


# --- Heatmaps --------------------------------------------------------------------------------------------------------


def sbr() -> tuple[Any, HeatmapLoss, dict[str, Tensor]]:
    data = np.load(FIXTURES / "landmark_targets_loss.npz")
    names = ("heatmaps_1", "heatmaps_2", "heatmaps")
    stages = {name: torch.from_numpy(data[f"in_student{i}"]).requires_grad_() for i, name in enumerate(names)}
    return data, HeatmapLoss(PeakHeatmap(4, background=True), 64, reduction="annotated"), stages


def test_loss_and_gradients_of_all_stages_are_those_of_sbr() -> None:
    data, criterion, stages = sbr()
    target, mask = torch.from_numpy(data["in_target"]), torch.from_numpy(data["in_mask"])
    weights = mask.flatten(2).all(dim=2).double()
    loss = total({name: criterion.compare(stage, target, weights) for name, stage in stages.items()})
    loss.backward()
    np.testing.assert_allclose(loss.item(), data["out"], rtol=1e-12)
    for i, stage in enumerate(stages.values()):
        np.testing.assert_allclose(stage.grad, data[f"grad_student{i}"], rtol=1e-9, atol=1e-14)


def test_points_give_the_loss_of_sbr() -> None:
    """Whose targets are rounded to float32."""
    data, criterion, stages = sbr()
    x, y, visible = torch.from_numpy(data["in_points"])
    targets = {"points": torch.stack([x, y], dim=-1).expand(2, -1, -1), "visible": visible.bool().expand(2, -1)}
    losses = criterion(stages, targets)
    total(losses).backward()
    assert list(losses) == ["heatmaps_1", "heatmaps_2", "heatmaps"]
    np.testing.assert_allclose(total(losses).item(), data["out"], rtol=1e-7)
    for i, stage in enumerate(stages.values()):
        np.testing.assert_allclose(stage.grad, data[f"grad_student{i}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("foreground", [0.0, 10.0])
@pytest.mark.parametrize("kind", ["mse", "awing"])
def test_the_mean_is_that_of_a_loop_over_visible_points(kind: str, foreground: float) -> None:
    codec, targets, outputs = DarkHeatmap(1.5), faces(), maps()
    targets["visible"][0, 1] = targets["visible"][2, 3] = False
    targets["labelled"][1] = False
    found = HeatmapLoss(codec, SIZE, kind=kind, foreground=foreground)(outputs, targets)["heatmaps"]
    every = torch.ones(3, 4, dtype=torch.bool)
    drawn = codec.encode(targets["points"].double(), every, SIZE, MAP)[0].numpy()
    values = []
    for sample in (0, 2):
        for point in range(4):
            if not targets["visible"][sample, point]:
                continue
            target, errors = np.pad(drawn[sample, point], 1), []
            for (row, column), value in np.ndenumerate(drawn[sample, point]):
                predicted = float(outputs["heatmaps"][sample, point, row, column])
                error = (predicted - value) ** 2 if kind == "mse" else adaptive_wing(predicted, float(value))
                near = target[row : row + 3, column : column + 3].max() >= 0.2
                errors.append(error * (1 + foreground * near))
            values.append(np.mean(errors))
    assert len(values) == 6
    assert found.item() == pytest.approx(np.mean(values), rel=1e-6)


def adaptive_wing(predicted: float, target: float) -> float:
    """Equations 3 to 5 of Wang et al., with their constants."""
    alpha, omega, epsilon, theta = 2.1, 14.0, 1.0, 0.5
    distance, exponent = abs(predicted - target), alpha - target
    if distance < theta:
        return omega * math.log(1 + (distance / epsilon) ** exponent)
    factor = omega / (1 + (theta / epsilon) ** exponent) * exponent * (theta / epsilon) ** (exponent - 1) / epsilon
    return factor * distance - (theta * factor - omega * math.log(1 + (theta / epsilon) ** exponent))


@pytest.mark.parametrize("epsilon", [1.0, 0.3])
def test_adaptive_wing_and_its_slope_have_no_jump(epsilon: float) -> None:
    criterion = HeatmapLoss(DarkHeatmap(), SIZE, kind="awing", epsilon=epsilon)
    for target in (0.0, 0.4, 1.0):
        at = torch.tensor([0.5 - 1e-7, 0.5 + 1e-7], dtype=torch.float64).requires_grad_()
        found = criterion.adaptive_wing(at + target, torch.full((2,), target, dtype=torch.float64))
        (slope,) = torch.autograd.grad(found.sum(), at)
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)
        torch.testing.assert_close(slope[0], slope[1], rtol=1e-5, atol=0)
    right = torch.full((3,), 0.5, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(criterion.adaptive_wing(right, right.detach()).sum(), right)
    assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("reduction", ["mean", "annotated"])
def test_the_value_does_not_depend_on_how_often_the_batch_is_repeated(reduction: str) -> None:
    criterion, targets, outputs = HeatmapLoss(DarkHeatmap(), SIZE, reduction=reduction), faces(), maps()
    targets["visible"][0, 1] = False
    once = criterion(outputs, targets)["heatmaps"]
    twice = criterion(
        {k: torch.cat([v, v]) for k, v in outputs.items()}, {k: torch.cat([v, v]) for k, v in targets.items()}
    )["heatmaps"]
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize(
    ("codec", "channels"), [(GaussianHeatmap(), 4), (PeakHeatmap(background=True), 5), (UDPHeatmap("combined"), 12)]
)
@pytest.mark.parametrize("reduction", ["mean", "annotated"])
def test_unlabelled_samples_and_hidden_points_have_no_say(codec: Any, channels: int, reduction: str) -> None:
    criterion, targets = HeatmapLoss(codec, SIZE, reduction=reduction), faces()
    stage = maps(channels=channels)["heatmaps"].requires_grad_()
    targets["labelled"][1] = False
    targets["visible"][2, 0] = False
    targets["points"][1] = torch.nan
    loss = criterion({"heatmaps": stage}, targets)["heatmaps"]
    loss.backward()
    each = channels // 4
    assert stage.grad is not None
    silent = stage.grad.flatten(2).abs().amax(dim=2)
    assert silent[1].max() == 0
    assert silent[2, :each].max() == 0
    assert silent[0].min() > 0 and silent[2, each:].min() > 0
    targets["points"][1], targets["points"][2, 0] = 0.0, 3.0
    # with a background map, a point that does not count leaves no trace in it either
    assert criterion({"heatmaps": stage}, targets)["heatmaps"].item() == loss.item()


@pytest.mark.parametrize("reduction", ["mean", "annotated"])
def test_a_batch_without_labels_gives_zero_and_zero_gradient(reduction: str) -> None:
    targets, stage = faces(), maps()["heatmaps"].requires_grad_()
    targets["labelled"][:] = False
    loss = HeatmapLoss(DarkHeatmap(), SIZE, reduction=reduction)({"heatmaps": stage}, targets)["heatmaps"]
    loss.backward()
    assert loss.item() == 0
    assert stage.grad is not None and stage.grad.abs().max() == 0


def test_offsets_count_within_the_disc_alone() -> None:
    codec, targets = UDPHeatmap("combined"), faces()
    drawn = codec.encode(targets["points"], targets["visible"], SIZE, MAP)[0]
    disc, x, y = drawn.unflatten(1, (4, 3)).unbind(2)
    elsewhere = torch.stack([disc, torch.where(disc > 0, x, 5.0), torch.where(disc > 0, y, -5.0)], dim=2).flatten(1, 2)
    criterion = HeatmapLoss(codec, SIZE)
    assert criterion({"heatmaps": elsewhere}, targets)["heatmaps"].item() == 0
    beside = torch.stack([disc, x + disc, y], dim=2).flatten(1, 2)
    expected = (disc.sum() / (3 * 4 * 3 * math.prod(MAP))).item()
    assert criterion({"heatmaps": beside}, targets)["heatmaps"].item() == pytest.approx(expected, rel=1e-5)


def test_stages_have_their_weights_and_may_differ_in_size() -> None:
    targets, outputs = faces(), maps(stages=3)
    outputs["heatmaps_1"] = torch.rand(3, 4, 8, 6, dtype=torch.float64)
    plain = HeatmapLoss(DarkHeatmap(), SIZE)(outputs, targets)
    weighted = HeatmapLoss(DarkHeatmap(), SIZE, stage_weights=(0.0, 0.5, 2.0), weight=10.0)
    found = weighted(outputs, targets)
    assert list(found) == ["heatmaps_2", "heatmaps"]
    assert found["heatmaps"].item() == pytest.approx(20 * plain["heatmaps"].item())
    assert found["heatmaps_2"].item() == pytest.approx(5 * plain["heatmaps_2"].item())
    assert weighted.skips_outputs
    last = {"heatmaps": outputs["heatmaps"]}
    assert weighted.eval()(last, targets)["heatmaps"].item() == found["heatmaps"].item()
    with pytest.raises(UserError, match="3 stage_weights for a network of 1 stages"):
        weighted.train()(last, targets)


def test_the_targets_may_say_how_large_the_pictures_are() -> None:
    targets, outputs = faces(), maps()
    known = HeatmapLoss(DarkHeatmap(), SIZE)(outputs, targets)
    told = HeatmapLoss(DarkHeatmap())(outputs, {**targets, "input_size": torch.tensor([SIZE] * 3)})
    assert told["heatmaps"].item() == known["heatmaps"].item()
    with pytest.raises(UserError, match="HeatmapLoss does not know how large the pictures are"):
        HeatmapLoss(DarkHeatmap())(outputs, targets)


def test_losses_stay_in_float32_under_autocast() -> None:
    targets, stage = faces(), maps()["heatmaps"].bfloat16()
    points = torch.rand(3, 4, 2).bfloat16()
    for criterion, outputs in (
        (HeatmapLoss(DarkHeatmap(), SIZE), {"heatmaps": stage}),
        (HeatmapLoss(DarkHeatmap(), SIZE, kind="awing"), {"heatmaps": stage}),
        (CoordinateLoss(input_size=SIZE), {"points": points}),
    ):
        exact = total(criterion({k: v.float() for k, v in outputs.items()}, targets))
        with torch.autocast("cpu", torch.bfloat16):
            found = total(criterion(outputs, targets))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact)


# --- Coordinates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_coordinate_losses_are_those_of_a_loop_in_pixels(kind: str) -> None:
    targets = faces()
    outputs = torch.rand(3, 4, 2, dtype=torch.float64)
    targets["visible"][0, 1] = False
    targets["labelled"][2] = False
    targets["points"][2] = torch.nan
    found = CoordinateLoss(kind, SIZE)({"points": outputs.requires_grad_()}, targets)["points"]
    values = []
    for sample in (0, 1):
        for point in range(4):
            if not targets["visible"][sample, point]:
                continue
            for axis, length in ((0, 48), (1, 64)):
                pixel = outputs[sample, point, axis].item() * length - 0.5
                values.append(coordinate(kind, abs(pixel - targets["points"][sample, point, axis].item())))
    assert len(values) == 14
    assert found.item() == pytest.approx(np.mean(values), rel=1e-6)
    (gradient,) = torch.autograd.grad(found, outputs)
    assert gradient[2].abs().max() == gradient[0, 1].abs().max() == 0
    assert gradient[1].abs().min() > 0


def coordinate(kind: str, distance: float) -> float:
    if kind == "wing":
        constant = 10 - 10 * math.log(1 + 10 / 2)
        return 10 * math.log(1 + distance / 2) if distance < 10 else distance - constant
    if kind == "smooth_l1":
        return distance**2 / 2 if distance < 1 else distance - 0.5
    return distance if kind == "l1" else distance**2


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_without_labels_or_without_error_give_zero(kind: str) -> None:
    targets = faces()
    right = ((targets["points"].double() + 0.5) / torch.tensor([48.0, 64.0])).requires_grad_()
    criterion = CoordinateLoss(kind, SIZE)
    loss = criterion({"points": right}, targets)["points"]
    assert loss.item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert right.grad is not None and right.grad.isfinite().all()
    targets["labelled"][:] = False
    empty = criterion({"points": right}, targets)["points"]
    right.grad = None
    empty.backward()
    assert empty.item() == 0
    assert right.grad.abs().max() == 0


def test_wing_has_no_jump() -> None:
    wing = CoordinateLoss("wing", SIZE, w=3.0, epsilon=0.7).wing
    near, far = wing(torch.tensor([3 - 1e-9, 3 + 1e-9], dtype=torch.float64))
    torch.testing.assert_close(near, far, rtol=1e-7, atol=0)


# --- Faults ----------------------------------------------------------------------------------------------------------


def test_faults_of_a_person_are_named() -> None:
    targets = faces()
    with pytest.raises(UserError, match=r"gives 6 heatmaps, but PeakHeatmap has 5 for 4 points.*maps to 5"):
        HeatmapLoss(PeakHeatmap(background=True), SIZE)(maps(channels=6), targets)
    with pytest.raises(UserError, match="gives points, but no heatmaps"):
        HeatmapLoss(DarkHeatmap(), SIZE)({"points": torch.rand(3, 4, 2)}, targets)
    with pytest.raises(UserError, match="gives heatmaps, but no points"):
        CoordinateLoss(input_size=SIZE)(maps(), targets)
    with pytest.raises(UserError, match="gives 7 points, but the faces have 4"):
        CoordinateLoss(input_size=SIZE)({"points": torch.rand(3, 7, 2)}, targets)
    codec = {"type": "GaussianHeatmap"}
    for options, message in (
        ({"kind": "awnig"}, "kind 'awnig' is not known. Did you mean 'awing'"),
        ({"reduction": "sum"}, "reduction 'sum' is not known"),
        ({"foreground": -1.0}, "foreground is at least 0"),
        ({"alpha": 1.0}, "alpha is above 2"),
        ({"stage_weights": ()}, "stage_weights"),
        ({"input_size": (64, 64, 3)}, "input_size is a number of pixels"),
    ):
        with pytest.raises(UserError, match=message):
            CRITERIA.build({"type": "HeatmapLoss", "codec": codec, **options})
    with pytest.raises(UserError, match=r"kind 'wings' is not known\. Did you mean 'wing'"):
        CRITERIA.build({"type": "CoordinateLoss", "kind": "wings"})
    with pytest.raises(UserError, match="w and epsilon are above 0"):
        CRITERIA.build({"type": "CoordinateLoss", "w": 0})


# --- Decoder ---------------------------------------------------------------------------------------------------------


def affine(angle: float, scale: float, shift: tuple[float, float], mirrored: bool = False) -> np.ndarray:
    rotation = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if mirrored:
        rotation[0] *= -1
    return np.concatenate([rotation, np.array(shift)[:, None]], axis=1)


MATRICES = [affine(0.3, 0.11, (20.0, -7.0)), affine(-1.0, 2.5, (-40.0, 30.0)), affine(0.1, 0.4, (44.0, 5.0), True)]


def metas(matrices: list[np.ndarray] = MATRICES) -> list[dict[str, Any]]:
    return [{"input_size": SIZE, "original_size": (400, 300), "to_input": m.tolist()} for m in matrices]


@pytest.mark.parametrize("codec", [DarkHeatmap(1.5), UDPHeatmap(), UDPHeatmap("combined"), PeakHeatmap(4.0)])
def test_heatmaps_of_points_decode_to_those_points_of_the_original_picture(codec: Any) -> None:
    targets = faces()
    drawn = codec.encode(targets["points"], targets["visible"], SIZE, MAP)[0]
    predictions = LandmarkDecoder(codec)({"heatmaps": drawn}, metas())
    for prediction, points, matrix in zip(predictions, targets["points"].numpy(), MATRICES, strict=True):
        assert prediction["points"].dtype == prediction["scores"].dtype == torch.float32
        assert prediction["scores"].shape == (4,)
        again = np.array([matrix[:, :2] @ point + matrix[:, 2] for point in prediction["points"].double().numpy()])
        np.testing.assert_allclose(again, points, atol=0.4)


def test_a_decoded_point_is_the_codecs_mapped_back_one_by_one() -> None:
    outputs, codec = {"heatmaps": torch.rand(3, 4, *MAP)}, GaussianHeatmap()
    predictions = LandmarkDecoder(codec)(outputs, metas())
    points, scores = codec.decode(outputs["heatmaps"], SIZE)
    for i, (prediction, matrix) in enumerate(zip(predictions, MATRICES, strict=True)):
        solved = np.linalg.solve(matrix[:, :2], (points[i].double().numpy() - matrix[:, 2]).T).T
        np.testing.assert_allclose(prediction["points"], solved, rtol=1e-5, atol=1e-4)
        assert torch.equal(prediction["scores"], scores[i])
        (alone,) = LandmarkDecoder(codec)({"heatmaps": outputs["heatmaps"][i : i + 1]}, metas([matrix]))
        torch.testing.assert_close(alone["points"], prediction["points"])


def test_coordinates_are_fractions_of_pixel_middles() -> None:
    truth = faces()["points"]
    outputs = {"points": (truth + 0.5) / torch.tensor([48.0, 64.0])}
    for prediction, points, matrix in zip(LandmarkDecoder()(outputs, metas()), truth, MATRICES, strict=True):
        solved = np.linalg.solve(matrix[:, :2], (points.double().numpy() - matrix[:, 2]).T).T
        np.testing.assert_allclose(prediction["points"], solved, rtol=1e-4, atol=1e-3)
        assert torch.equal(prediction["scores"], torch.ones(4))


def test_without_an_affine_map_the_whole_picture_was_resized() -> None:
    """A picture of 30 x 20 pixels in an input of 48 x 64: corners of pixels go to corners of pixels."""
    corners = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    (found,) = LandmarkDecoder()({"points": corners}, [{"input_size": SIZE, "original_size": (20, 30)}])
    torch.testing.assert_close(found["points"], torch.tensor([[-0.5, -0.5], [29.5, 19.5]]))


def test_padding_counts_as_part_of_the_input() -> None:
    meta = {"input_size": (60, 48), "padded_size": SIZE, "original_size": (60, 48), "to_input": np.eye(2, 3).tolist()}
    (found,) = LandmarkDecoder()({"points": torch.ones(1, 1, 2)}, [meta])
    torch.testing.assert_close(found["points"], torch.tensor([[47.5, 63.5]]))


def test_large_coordinates_keep_their_precision_and_half_precision_maps_decode() -> None:
    shifted = affine(0.0, 1.0, (-5000.0, -4000.0))
    (found,) = LandmarkDecoder()({"points": torch.full((1, 1, 2), 0.5)}, metas([shifted]))
    torch.testing.assert_close(found["points"], torch.tensor([[5023.5, 4031.5]]), rtol=0, atol=1e-3)
    drawn = DarkHeatmap().encode(faces(1)["points"], faces(1)["visible"], SIZE, MAP)[0]
    (half,) = LandmarkDecoder(DarkHeatmap())({"heatmaps": drawn.bfloat16()}, metas(MATRICES[:1]))
    assert half["points"].dtype == torch.float32


def test_faults_of_a_decoder_are_named() -> None:
    with pytest.raises(UserError, match=r"gives points, but no heatmaps.*codec for heatmaps"):
        DECODERS.build({"type": "LandmarkDecoder", "codec": {"type": "DarkHeatmap"}})(
            {"points": torch.rand(3, 4, 2)}, metas()
        )
    with pytest.raises(UserError, match="gives heatmaps, but no points"):
        LandmarkDecoder()(maps(), metas())
    flat = {**metas()[0], "to_input": [[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]], "path": "a b.jpg"}
    with pytest.raises(UserError, match=r"a b\.jpg: its box has no area"):
        LandmarkDecoder()({"points": torch.rand(1, 4, 2)}, [flat])
    with pytest.raises(UserError, match="one size"):
        LandmarkDecoder()({"points": torch.rand(2, 4, 2)}, [metas()[0], {**metas()[0], "input_size": (32, 32)}])
    assert LandmarkDecoder()({"points": torch.rand(0, 4, 2)}, []) == []
