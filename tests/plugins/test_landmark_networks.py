"""Networks of facial landmarks: published sizes, outputs, the flip test, distillation, export."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kd_landmarks.criterion import CoordinateLoss, HeatmapLoss
from kd_landmarks.networks import CPM, CoordinateNet, FlipTest, HeatmapNet, Hourglass, PatchScorer, SmallLandmarkNet
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, vgg16, vgg16_bn

from kd_tasks.deploy.artefact import read_manifest
from kd_tasks.deploy.export import export
from kd_tasks.deploy.runtimes import load_network
from kd_tasks.distiller import Distiller
from kd_tasks.engine import checkpoints
from kd_tasks.errors import UserError
from kd_tasks.evaluation.cost import multiply_adds
from kd_tasks.registry import NETWORKS
from kd_tasks.task import TaskModel
from kd_tasks.vision.heatmaps import DarkHeatmap, GaussianHeatmap, PeakHeatmap, UDPHeatmap

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"
SMALL: dict[str, Callable[[], nn.Module]] = {
    "cpm": lambda: CPM(5, width=0.125),
    "cpm_norm": lambda: CPM(5, stages=2, width=0.125, norm="batch", maps=6),
    "resnet18": lambda: HeatmapNet("resnet18", 5, width=0.25, channels=16),
    "mobilenet": lambda: HeatmapNet("mobilenet_v2", 5, width=0.25, channels=16, maps=15),
    "small": lambda: SmallLandmarkNet(5, width=8),
    "small_fine": lambda: SmallLandmarkNet(5, width=8, depth=2, stride=2),
    "points_resnet18": lambda: CoordinateNet("resnet18", 5, width=0.25, channels=16),
    "points_mobilenet": lambda: CoordinateNet("mobilenet_v2", 5, width=0.25, grid=1, output_stride=32),
}
MAPS = {"cpm_norm": 6, "mobilenet": 15}
STRIDES = {"cpm": 8, "cpm_norm": 8, "small_fine": 2}
IN_ONNX = ("cpm_norm", "mobilenet", "small_fine", "points_resnet18")
SWAPS = [1, 0, 2, 4, 3]


def seeded(name: str) -> nn.Module:
    """A network whose batch normalisations have seen something and whose predictions are not near zero."""
    torch.manual_seed(0)
    network = SMALL[name]()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1 and parameter.std() < 0.01:
                parameter.mul_(100)
    return network


def count(build: Callable[..., nn.Module], *arguments: Any, **options: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(*arguments, **options).parameters())


def images(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


# --- Sizes -----------------------------------------------------------------------------------------------------------


def test_parameters_and_shapes_of_ts3s_pose_machine() -> None:
    data = np.load(FIXTURES / "ts3_selection.npz")
    assert count(CPM) == json.loads(str(data["hp"]))["cpm_params"]
    with torch.device("meta"):
        outputs = CPM().train()(torch.empty(1, 3, 64, 64))
    stages = [list(outputs[name].shape) for name in ("heatmaps_1", "heatmaps_2", "heatmaps")]
    assert stages == data["out_cpm_shape"].tolist()
    assert len(outputs) == 3


@pytest.mark.parametrize(
    ("build", "millions"), [(CPM, 1721), (lambda: Hourglass(residuals=2, form="ts3"), 1601)], ids=["cpm", "hourglass"]
)
def test_multiply_adds_that_the_authors_quote_for_a_face_of_64_pixels(
    build: Callable[[], nn.Module], millions: int
) -> None:
    """They count biases and normalisation too."""
    assert multiply_adds(build(), (1, 3, 64, 64)) / 1e6 == pytest.approx(millions, rel=4e-3)


def test_patch_scores_quality_and_gradient_are_those_of_ts3() -> None:
    data = np.load(FIXTURES / "ts3_teacher.npz")
    network = PatchScorer(3, halvings=1).double()
    names = {f"param_model.{i}.{kind}": f"layers.{i}.{kind}" for i in (0, 2, 5) for kind in ("weight", "bias")}
    network.load_state_dict({ours: torch.from_numpy(data[theirs]) for theirs, ours in names.items()})
    faces = torch.from_numpy(np.concatenate([data["in_image"], data["in_heatmap"]], axis=1)).requires_grad_()
    outputs = network(faces)
    outputs["quality"].sum().backward()
    np.testing.assert_allclose(outputs["patches"].detach(), data["out"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(outputs["quality"].detach(), data["out_quality"], rtol=1e-9)
    np.testing.assert_allclose(faces.grad, data["grad_input"], rtol=1e-8, atol=1e-14)


def test_parameters_and_patches_of_ts3s_teacher() -> None:
    hp = json.loads(str(np.load(FIXTURES / "ts3_teacher.npz")["hp"]))
    assert count(PatchScorer, 68) == hp["params_official"]
    with torch.device("meta"):
        network = PatchScorer(68)
        for name, size in hp["out_hw_official"].items():
            side = int(name.removeprefix("in"))
            assert list(network(torch.empty(1, 71, side, side))["patches"].shape[2:]) == size


@pytest.mark.parametrize(("halvings", "side"), [(1, 6), (2, 12), (3, 24)])
def test_a_scorer_takes_the_smallest_image_that_it_says(halvings: int, side: int) -> None:
    network = PatchScorer(width=4, halvings=halvings, maps=4)
    assert network(torch.randn(1, 7, side, side + 3))["quality"].shape == (1,)
    with pytest.raises(UserError, match=rf"at least {side} pixels a side, not {side - 1}x64"):
        network(torch.randn(1, 7, side - 1, 64))
    with pytest.raises(UserError, match="reads 7 channels, image and heatmaps, but gets 71"):
        network(torch.randn(1, 71, 64, 64))


def test_light_networks_are_as_light_as_they_say() -> None:
    assert count(CPM, width=0.25) == pytest.approx(1.22e6, rel=0.005)
    assert count(HeatmapNet) == pytest.approx(11.28e6, rel=0.001)
    assert count(HeatmapNet, "mobilenet_v2") == pytest.approx(1.88e6, rel=0.005)
    assert count(HeatmapNet, "mobilenet_v2", width=0.5) == pytest.approx(0.54e6, rel=0.01)
    sizes = [count(SmallLandmarkNet, width=width) for width in (8, 16, 32)]
    assert sizes == pytest.approx([0.08e6, 0.33e6, 1.30e6], rel=0.04)


# --- Outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(64, 64), (128, 96), (71, 45)])
def test_outputs_have_the_promised_shapes(name: str, size: tuple[int, int]) -> None:
    network, stride = seeded(name), STRIDES.get(name, 4)
    sides = tuple(side // stride if "cpm" in name else -(-side // stride) for side in size)
    for training in (True, False):
        outputs = network.train(training)(images(2, *size))
        stages = (3 if name == "cpm" else 2) if training and "cpm" in name else 1
        if name.startswith("points"):
            assert {k: tuple(v.shape) for k, v in outputs.items()} == {"points": (2, 5, 2)}
            continue
        assert set(outputs) == {"heatmaps", *(f"heatmaps_{i}" for i in range(1, stages))}
        assert {tuple(v.shape) for v in outputs.values()} == {(2, MAPS.get(name, 5), *sides)}


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns_in_channels_last_and_with_one_sample(name: str) -> None:
    network = seeded(name).train().to(memory_format=torch.channels_last)
    batch = images(1, 96, 96).contiguous(memory_format=torch.channels_last)
    sum(output.square().mean() for output in network(batch).values()).backward()
    lacking = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lacking == []


@pytest.mark.parametrize("name", SMALL)
def test_a_tap_keeps_what_its_module_gave(name: str) -> None:
    network, kept = seeded(name).eval(), []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d):
            module.register_forward_hook(lambda m, i, output: kept.append((output, output.clone())))
    network(images())
    assert len(kept) > 10
    assert all(torch.equal(*pair) for pair in kept)


def test_the_named_taps_exist() -> None:
    taps = {
        "cpm": ("backbone.features", "features", "stages.0"),
        "resnet18": ("backbone.layer1", "backbone.layer4", "decoder"),
        "small": ("encoder.stage1", "encoder.stage3", "encoder.stage4", "decoder"),
        "points_resnet18": ("backbone.layer4", "project"),
    }
    for name, paths in taps.items():
        modules = dict(seeded(name).named_modules())
        assert [path for path in paths if path not in modules] == []


def test_coordinates_start_in_the_middle_and_heatmaps_near_zero() -> None:
    torch.manual_seed(0)
    assert (CoordinateNet(width=0.25)(images())["points"] - 0.5).abs().max() < 0.1
    for network in (CPM(5, width=0.125), SmallLandmarkNet(5), HeatmapNet("resnet18", 5, width=0.25)):
        assert network.train()(images())["heatmaps"].abs().max() < 0.1


def test_a_grid_tells_places_apart_where_one_mean_does_not() -> None:
    for grid, differs in ((1, False), (2, True)):
        network = CoordinateNet("resnet18", 2, width=0.25, grid=grid).eval()
        network.backbone = _First8()
        network.project = nn.Sequential(nn.Conv2d(3, 64, 1))
        nn.init.normal_(network.head.weight)
        picture = torch.zeros(1, 3, 8, 8)
        picture[..., :4, :4] = 1
        first, second = (network(p)["points"] for p in (picture, picture.flip(-1)))
        assert torch.allclose(first, second, atol=1e-5) != differs


class _First8(nn.Module):
    def forward(self, pictures: Tensor) -> tuple[Tensor]:
        return (pictures,)


# --- Weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "reference", "relu"), [("none", vgg16, 22), ("batch", vgg16_bn, 32)])
def test_torchvision_weights_give_vggs_conv4_3(
    norm: str, reference: Callable[[], nn.Module], relu: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    body = reference().eval()
    torch.save(body.state_dict(), tmp_path / "weights.pth")
    network = CPM(5, norm=norm, pretrained=str(tmp_path / "weights.pth")).eval()
    with torch.no_grad():
        expected = body.features[: relu + 1](images())
        found = network.backbone(images())
    torch.testing.assert_close(found, expected)
    assert expected.shape == (2, 512, 8, 8)


@pytest.mark.parametrize("build", [HeatmapNet, CoordinateNet])
@pytest.mark.parametrize(("backbone", "reference"), [("resnet18", resnet18), ("mobilenet_v2", mobilenet_v2)])
def test_torchvision_weights_reach_the_backbone(
    build: Any, backbone: str, reference: Callable[[], nn.Module], tmp_path: Path
) -> None:
    body = reference()
    torch.save(body.state_dict(), tmp_path / "weights.pth")
    network = build(backbone, 5, pretrained=str(tmp_path / "weights.pth"))
    given = [value for value in body.state_dict().values() if value.dim() == 4]
    wanted = [value for value in network.backbone.state_dict().values() if value.dim() == 4]
    assert len(wanted) > 15
    assert all(any(w.shape == g.shape and torch.equal(w, g) for g in given) for w in wanted)


# --- Flip test -------------------------------------------------------------------------------------------------------


class Mirrorable(nn.Module):
    """Sees colours more on one side: five points, of which 0 and 1, 3 and 4 are mirrored partners."""

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        red, green, blue = pictures.unbind(1)
        side = torch.linspace(0, 1, pictures.shape[-1])
        maps = [red * side, red * side.flip(-1), green, blue * side, blue * side.flip(-1)]
        return {"heatmaps": torch.stack(maps, dim=1)}


@pytest.mark.parametrize(
    "codec",
    [GaussianHeatmap(shift=False), DarkHeatmap(shift=False), UDPHeatmap(), PeakHeatmap()],
    ids=lambda c: type(c).__name__,
)
def test_a_network_that_treats_sides_alike_is_not_changed_by_the_flip_test(codec: Any) -> None:
    plain = Mirrorable().eval()
    merged = FlipTest(plain, SWAPS, codec).eval()(images())
    torch.testing.assert_close(merged["heatmaps"], plain(images())["heatmaps"])
    assert list(merged) == ["heatmaps"]


@pytest.mark.parametrize(
    ("name", "codec", "swaps"),
    [
        ("small", GaussianHeatmap(), SWAPS),
        ("cpm_norm", PeakHeatmap(background=True), SWAPS),
        ("mobilenet", UDPHeatmap(kind="combined"), SWAPS),
    ],
)
def test_heatmaps_are_merged_by_the_codec(name: str, codec: Any, swaps: list[int]) -> None:
    network = seeded(name).eval()
    with torch.no_grad():
        found = FlipTest(network, swaps, codec).eval()(images())["heatmaps"]
        plain, flipped = network(images())["heatmaps"], network(images().flip(-1))["heatmaps"]
    torch.testing.assert_close(found, codec.merge_flipped(plain, flipped, swaps), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_coordinates_are_mirrored_swapped_and_averaged() -> None:
    network = seeded("points_resnet18").eval()
    with torch.no_grad():
        found = FlipTest(network, SWAPS).eval()(images())["points"]
        plain, flipped = network(images())["points"], network(images().flip(-1))["points"]
    width = 64
    for point, partner in enumerate(SWAPS):
        x = flipped[:, partner, 0] * width - 0.5
        mirrored = (width - 1 - x + 0.5) / width
        torch.testing.assert_close(found[:, point, 0], (plain[:, point, 0] + mirrored) / 2, rtol=1e-4, atol=1e-5)
        expected = (plain[:, point, 1] + flipped[:, partner, 1]) / 2
        torch.testing.assert_close(found[:, point, 1], expected, rtol=1e-4, atol=1e-5)


def test_training_passes_through_the_flip_test() -> None:
    network = seeded("cpm").train()
    wrapped = FlipTest(network, SWAPS, GaussianHeatmap()).train()
    expected, found = network(images()), wrapped(images())
    assert list(found) == ["heatmaps", "heatmaps_1", "heatmaps_2"]
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_checkpoint_fits_with_and_without_the_flip_test(tmp_path: Path) -> None:
    plain, wrapped = seeded("small"), FlipTest(SMALL["small"](), SWAPS, GaussianHeatmap())
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    checkpoints.save_student(plain, tmp_path / "plain.pth", {})
    checkpoints.load_network(wrapped, tmp_path / "plain.pth")
    checkpoints.save_student(wrapped, tmp_path / "wrapped.pth", {})
    again = SMALL["small"]()
    checkpoints.load_network(again, tmp_path / "wrapped.pth")
    for name, value in plain.state_dict().items():
        assert torch.equal(wrapped.state_dict()[name], value), name
        assert torch.equal(again.state_dict()[name], value), name
    model, other = TaskModel(copy.deepcopy(wrapped)), TaskModel(SMALL["small"]())
    assert [*model.state_dict()] == [*other.state_dict()]
    other.load_state_dict(model.state_dict())
    model.load_state_dict(other.state_dict())
    with pytest.raises(UserError, match="another architecture"):
        checkpoints.load_network(FlipTest(SMALL["resnet18"](), SWAPS, GaussianHeatmap()), tmp_path / "plain.pth")


def test_flip_test_knows_the_markups_by_their_number_of_points() -> None:
    swaps = FlipTest(Mirrorable(), 68).swaps
    assert (swaps[0], swaps[8], swaps[36], swaps[60]) == (16, 8, 45, 64)
    assert [swaps[i] for i in swaps] == list(range(68))
    with pytest.raises(UserError, match="swaps is 69; known are the markups of 68, 98, 29, 19 points"):
        FlipTest(Mirrorable(), 69)


def test_faults_of_a_person_are_named() -> None:
    for swaps in ([1, 2, 0], [0, 0], [0, 5]):
        with pytest.raises(UserError, match="swaps names the partner"):
            FlipTest(Mirrorable(), swaps)
    with pytest.raises(UserError, match="heatmaps, but no points"):
        FlipTest(Mirrorable(), SWAPS).eval()(images())
    with pytest.raises(UserError, match="5 points, but swaps has 2"):
        FlipTest(seeded("points_resnet18"), [1, 0]).eval()(images())
    with pytest.raises(UserError, match="Did you mean 'resnet101'"):
        HeatmapNet("resnet110")
    with pytest.raises(UserError, match="norm 'batchnorm' is not known"):
        CPM(norm="batchnorm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no ImageNet weights for width 0\.5"):
        CPM(width=0.5, pretrained=True)
    with pytest.raises(UserError, match="stride is 8; it can be 2 or 4"):
        SmallLandmarkNet(stride=8)
    with pytest.raises(UserError, match="grid is at least 1, not 0"):
        NETWORKS.build({"type": "CoordinateNet", "grid": 0})
    with pytest.raises(UserError, match="width is above 0, not 0"):
        HeatmapNet(width=0)


# --- Export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format"), [*((name, "pt2") for name in SMALL), *((name, "onnx") for name in IN_ONNX)]
)
def test_the_exported_file_gives_what_the_network_gives(name: str, format: str, tmp_path: Path) -> None:
    network = seeded(name).eval()
    path = export(TaskModel(network), tmp_path / f"student.{format}", (64, 96), format)
    output = "points" if name.startswith("points") else "heatmaps"
    assert [spec.name for spec in read_manifest(path).outputs] == [output]
    for batch in (1, 5):
        with torch.no_grad():
            expected = network(images(batch, 64, 96))[output]
            found = load_network(path)(images(batch, 64, 96))[output]
        assert float(expected.std()) > 0.01
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("small", GaussianHeatmap(), "pt2"),
        ("cpm_norm", PeakHeatmap(background=True), "onnx"),
        ("mobilenet", UDPHeatmap(kind="combined"), "pt2"),
        ("points_resnet18", None, "onnx"),
    ],
)
def test_the_flip_test_is_exported(name: str, codec: Any, format: str, tmp_path: Path) -> None:
    network = FlipTest(seeded(name), SWAPS, codec).eval()
    path = export(TaskModel(network), tmp_path / f"student.{format}", (64, 64), format)
    output = "heatmaps" if codec else "points"
    for batch in (1, 3):
        with torch.no_grad():
            expected = network(images(batch))[output]
            found = load_network(path)(images(batch))[output]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


# --- Distillation ----------------------------------------------------------------------------------------------------

STUDENT = {"type": "SmallLandmarkNet", "points": 5, "width": 8}
TEACHER = {"type": "SmallLandmarkNet", "points": 5, "width": 16}
TRANSFERS = {
    "heatmaps": {"on": "heatmaps", "loss": {"type": "HeatmapMimicry"}},
    "hint": {"on": "encoder.stage3", "connector": "conv1x1", "loss": {"type": "Hint"}},
    "decoder": {"on": "decoder", "connector": "conv1x1", "loss": {"type": "Hint"}},
    "attention": {"on": "encoder.stage2", "loss": {"type": "AttentionTransfer"}, "weight": 100.0},
    "soft": {"on": "heatmaps", "loss": {"type": "SoftTargets", "over": "positions"}},
}


def half_labelled(points: Tensor | None = None) -> dict[str, Tensor]:
    points = torch.rand(4, 5, 2) * 63 if points is None else points
    return {
        "points": points,
        "visible": torch.ones(4, 5, dtype=torch.bool),
        "labelled": torch.tensor([True, True, False, False]),
    }


@pytest.mark.parametrize("name", TRANSFERS)
def test_a_recipe_teaches_on_labelled_and_unlabelled_faces(name: str) -> None:
    torch.manual_seed(0)
    criterion = {"type": "HeatmapLoss", "codec": {"type": "GaussianHeatmap", "sigma": 1.0}, "input_size": 64}
    model = Distiller(STUDENT, {name: TRANSFERS[name]}, teacher=TEACHER, criterion=criterion).train()
    batch = images(4).requires_grad_()
    losses = model.losses(batch, half_labelled())
    assert set(losses) == {"task.heatmaps", f"kd.{name}"}
    assert all(value.item() > 0 for value in losses.values())
    (of_teacher,) = torch.autograd.grad(losses[f"kd.{name}"], batch, retain_graph=True)
    assert (of_teacher.flatten(1).abs().amax(dim=1) > 0).all()
    sum(losses.values()).backward()
    head = next(p for n, p in model.network.named_parameters() if n == "encoder.stem.0.weight")
    assert head.grad is not None and head.grad.isfinite().all() and head.grad.abs().max() > 0


def test_the_labels_of_unlabelled_faces_change_nothing() -> None:
    torch.manual_seed(0)
    criterion = {"type": "HeatmapLoss", "codec": {"type": "DarkHeatmap", "sigma": 1.0}, "input_size": 64}
    transfers = {"heatmaps": TRANSFERS["heatmaps"]}
    model = Distiller(STUDENT, transfers, teacher=TEACHER, criterion=criterion).eval()
    points = torch.rand(4, 5, 2) * 63
    other = points.clone()
    other[2:] = torch.nan
    first, second = (model.losses(images(4), half_labelled(p)) for p in (points, other))
    assert {name: value.item() for name, value in first.items()} == {k: v.item() for k, v in second.items()}


def test_every_stage_of_a_student_can_mimic_the_teachers_last() -> None:
    torch.manual_seed(0)
    student = {"type": "Hourglass", "points": 5, "stacks": 2, "channels": 16, "depth": 2}
    teacher = {**student, "stacks": 3, "channels": 32}
    mimic = {"student": ["scores.0", "scores.1"], "teacher": "heatmaps", "loss": {"type": "HeatmapMimicry"}}
    model = Distiller(student, {"fpd": mimic}, teacher=teacher).train()
    value = model.losses(images(2), {})["kd.fpd"]
    outputs = model.network(images(2))
    target = model.teachers["teacher"].run(images(2))["heatmaps"]
    by_hand = sum(0.5 * (outputs[name] - target).square().mean() for name in ("heatmaps_1", "heatmaps"))
    torch.testing.assert_close(value, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [{"type": "Hint"}, {"type": "LogitRegression"}])
def test_a_coordinate_student_learns_from_a_coordinate_teacher(loss: dict[str, Any]) -> None:
    torch.manual_seed(0)
    student = {"type": "CoordinateNet", "backbone": "mobilenet_v2", "points": 5, "width": 0.25}
    teacher = {"type": "CoordinateNet", "backbone": "resnet18", "points": 5, "width": 0.25}
    criterion = {"type": "CoordinateLoss", "input_size": [64, 64]}
    model = Distiller(student, {"points": {"on": "points", "loss": loss}}, teacher=teacher, criterion=criterion).train()
    losses = model.losses(images(4), half_labelled())
    assert set(losses) == {"task.points", "kd.points"}
    sum(losses.values()).backward()
    assert model.network.head.weight.grad.abs().max() > 0


def test_a_small_network_learns_to_find_a_dot() -> None:
    """In the middle of a bright square; the mean error falls below a quarter of a heatmap pixel's four."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    points = (torch.rand(32, 1, 2, generator=generator) * 40 + 12).round()
    pictures = torch.zeros(32, 3, 64, 64)
    for picture, ((x, y),) in zip(pictures, points.int().tolist(), strict=True):
        picture[:, y - 3 : y + 4, x - 3 : x + 4] = 1
    codec = DarkHeatmap(sigma=1.5)
    heat, coordinates = SmallLandmarkNet(1, width=8).train(), CoordinateNet(points=1, width=0.25).train()
    errors = {}
    for name, network, criterion in (
        ("heatmaps", heat, HeatmapLoss(codec, 64)),
        ("points", coordinates, CoordinateLoss("smooth_l1", 64)),
    ):
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(60):
            outputs = network(pictures)
            optimiser.zero_grad()
            sum(criterion(outputs, {"points": points}).values()).backward()
            optimiser.step()
        final = network(pictures)[name].detach()
        found = codec.decode(final, (64, 64))[0] if name == "heatmaps" else final * 64 - 0.5
        errors[name] = float((found - points).norm(dim=-1).mean())
    assert errors["heatmaps"] < 1.0, errors
    assert errors["points"] < 4.0, errors
