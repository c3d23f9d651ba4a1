"""Teacher Supervises Students: selection, geometry, what a student learns from, rounds, resuming."""

import copy
import dataclasses
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from kd_tasks.catalogue import catalogue
from kd_tasks.engine.build import build_task_model, deployed_model_config, with_defaults
from kd_tasks.engine.checkpoints import latest_checkpoint
from kd_tasks.engine.config import with_options
from kd_tasks.engine.config_check import find_faults
from kd_tasks.engine.randomness import EpochIndex, mixed_seed, sample_seed
from kd_tasks.engine.runner import DistillRunner
from kd_tasks.engine.train import train
from kd_tasks.errors import UserError
from kd_tasks.evaluation.preflight import preflight
from kd_tasks.methods.teacher_supervises import BothStudents, TeacherSupervisesStudents
from kd_tasks.methods.teacher_supervises import model as teacher_supervises
from kd_tasks.methods.teacher_supervises.pseudo_labels import (
    Procedure,
    PseudoLabels,
    Rounds,
    best,
    corrupted,
    kept,
    norm_lengths,
    normalised_errors,
    resolved_norm,
    to_input,
    to_original,
)
from kd_tasks.registry import CODECS, CRITERIA, DECODERS, NETWORKS
from kd_tasks.task import TaskModel
from kd_tasks.vision.dataset import VisionDataset

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"
SIZE, POINTS = 24, 4
SWAPS = [1, 0, 3, 2]
ORIGINAL = (40.0, 36.0)


# --- Faces of a second's work ----------------------------------------------------------------------------------------


@CODECS.register
class FaceCodec:
    """A Gaussian of two pixels; the centre of mass of what is above half of the peak."""

    def channels(self, points: int) -> int:
        return points

    def as_output(self, drawn: Tensor) -> Tensor:
        return drawn

    def pictures(self, maps: Tensor, input_size: Any) -> Tensor:
        return maps

    def merge_flipped(self, maps: Tensor, flipped: Tensor, swaps: Any) -> Tensor:
        return (maps + flipped.flip(-1)[:, swaps]) / 2

    def encode(self, points: Tensor, visible: Tensor, input_size: Any, map_size: Any) -> tuple[Tensor, Tensor]:
        rows, columns = (
            (torch.arange(n, device=points.device) + 0.5) * full / n - 0.5
            for n, full in zip(map_size, input_size, strict=True)
        )
        x, y = points[..., 0, None].float(), points[..., 1, None].float()
        across, down = (-((columns - x) ** 2) / 8).exp(), (-((rows - y) ** 2) / 8).exp()
        return down[..., :, None] * across[..., None, :] * visible[..., None, None], visible.float()

    def decode(self, maps: Tensor, input_size: Any) -> tuple[Tensor, Tensor]:
        height, width = maps.shape[-2:]
        peak = maps.amax((2, 3), keepdim=True)
        mass = (maps - peak.clamp_min(1e-3) / 2).clamp_min(0) + 1e-12
        mass = mass / mass.sum((2, 3), keepdim=True)
        x = (mass.sum(2) * torch.arange(width, device=maps.device)).sum(2)
        y = (mass.sum(3) * torch.arange(height, device=maps.device)).sum(2)
        full = torch.tensor([input_size[1] / width, input_size[0] / height], device=maps.device)
        return (torch.stack([x, y], -1) + 0.5) * full - 0.5, peak.flatten(1)


@CRITERIA.register
class FaceCriterion(nn.Module):
    """Squared error of the maps of visible points of labelled samples."""

    def __init__(self) -> None:
        super().__init__()
        self.codec = FaceCodec()

    def forward(self, outputs: dict[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        maps = outputs["heatmaps"]
        used = targets["visible"] & targets["labelled"][:, None]
        points = targets["points"].where(used[..., None], 0.0)
        wanted, _ = self.codec.encode(points, used, (SIZE, SIZE), maps.shape[-2:])
        errors = (maps - wanted).square().mean((2, 3)) * used
        return {"maps": 100 * errors.sum() / used.sum().clamp_min(1)}


@DECODERS.register
class FaceDecoder:
    """Points in the original pictures."""

    codec = FaceCodec()

    def __call__(self, outputs: dict[str, Tensor], meta: Any) -> list[dict[str, Any]]:
        points, scores = self.codec.decode(outputs["heatmaps"], (SIZE, SIZE))
        affine = torch.tensor([m["to_input"] for m in meta])
        return [{"points": p, "scores": s} for p, s in zip(to_original(points, affine), scores, strict=True)]


@NETWORKS.register
class FaceNet(nn.Module):
    """Convolutions over the picture and the place in it, to maps of 1 / `stride` of the size."""

    def __init__(
        self,
        width: int = 8,
        stride: int = 2,
        maps: int = POINTS,
        dropout: float = 0.0,
        norm: bool = True,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, step in ((5, stride), (width, 1), (width, 1)):
            norms = [nn.BatchNorm2d(width)] if norm else []
            layers += [nn.Conv2d(before, width, 5, step, 2), *norms, nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers, nn.Dropout(dropout)), nn.Conv2d(width, maps, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        count, _, height, width = images.shape
        y, x = (torch.linspace(-1, 1, n, device=images.device) for n in (height, width))
        y, x = y[:, None].expand(height, width), x.expand(height, width)
        return {"heatmaps": self.head(self.body(torch.cat([images, torch.stack([x, y]).expand(count, 2, -1, -1)], 1)))}


@NETWORKS.register
class FaceScorer(nn.Module):
    """Scores of patches."""

    def __init__(self, maps: int = POINTS, width: int = 16) -> None:
        super().__init__()
        first, second = nn.Conv2d(3 + maps, width, 4, 2, 1), nn.Conv2d(width, width, 4, 2, 1)
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3))

    def forward(self, seen: Tensor) -> dict[str, Tensor]:
        patches = self.layers(seen)
        return {"patches": patches, "quality": patches.mean((1, 2, 3))}


@DATASETS.register_module()
class FaceData(Dataset[dict[str, Any]]):
    """Two pairs of blobs, each of a colour, some in much noise; cut out and mirrored as (seed, epoch, index) demand.

    Args:
        samples: how many.
        labelled: of them, the first so many.
        augment: turn, move and mirror.
        poison: what the points of unlabelled samples are, in place of the truth.
        test_mode: for the deployed model.
    """

    def __init__(
        self,
        samples: int = 40,
        labelled: int = 16,
        augment: bool = True,
        poison: float | None = None,
        test_mode: bool = False,
    ) -> None:
        self.samples, self.labelled, self.augment, self.poison = samples, labelled, augment, poison
        self.is_labelled = (np.arange(samples)[::-1] < labelled)[::-1]  # a stride below zero
        self.metainfo = {"points": POINTS, "swaps": SWAPS, "norms": {"eyes": ((0,), (1,))}, "default_norm": "eyes"}

    def __len__(self) -> int:
        return self.samples

    def plain(self) -> "FaceData":
        return FaceData(self.samples, self.labelled, False, self.poison)

    def truth(self, index: int) -> np.ndarray:
        """The points in the original picture."""
        rng = np.random.default_rng(int(index))
        centre, turn = np.array(ORIGINAL) / 2 + rng.normal(0, 1.5, 2), rng.normal(0, 0.2)
        axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        return centre + np.array([[-8.0, -7], [8, -7], [-6, 8], [6, 8]]) @ axes + rng.normal(0, 1, (4, 2))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.samples:
            raise IndexError(index)
        rng = np.random.default_rng(int(index) + 1000)
        affine = np.array([[0.6, 0, -0.2], [0, 0.6, 1.0]])
        if self.augment:
            drawn = np.random.default_rng(sample_seed(index))
            turn, mirror = drawn.normal(0, 0.15), drawn.random() < 0.5
            cos, sin = 0.6 * math.cos(turn), 0.6 * math.sin(turn)
            affine = np.array([[cos, -sin, 0], [sin, cos, 0]])
            affine[:, 2] = (SIZE - 1) / 2 + drawn.normal(0, 1, 2) - affine[:, :2] @ (np.array(ORIGINAL) / 2)
            if mirror:
                affine[0] = [-affine[0, 0], -affine[0, 1], SIZE - 1 - affine[0, 2]]
        points = self.truth(index) @ affine[:, :2].T + affine[:, 2]
        y, x = np.mgrid[:SIZE, :SIZE]
        blobs = np.stack([np.exp(-((x - px) ** 2 + (y - py) ** 2) / 6) for px, py in points])
        image = np.stack([blobs[:2].sum(0), blobs[2:].sum(0), np.zeros_like(blobs[0])])
        noise = 0.6 if rng.random() < 0.5 else 0.05
        image = np.clip(90 + 120 * image + 120 * noise * rng.normal(size=image.shape), 0, 255)
        if np.linalg.det(affine[:, :2]) < 0:
            points = points[SWAPS]
        known = bool(self.is_labelled[int(index)])
        if not known and self.poison is not None:
            points = np.full_like(points, self.poison)
        targets = {
            "points": torch.tensor(points, dtype=torch.float32),
            "visible": torch.full((POINTS,), known or self.poison is None),
            "labelled": torch.tensor(known),
            "box": torch.tensor([10.0, 10.0, 20.0, 20.0]),
            "to_input": torch.tensor(affine, dtype=torch.float32),
        }
        meta = {"index": int(index), "original_size": (40, 36), "input_size": (SIZE, SIZE), "to_input": affine.tolist()}
        return {"inputs": torch.tensor(image).to(torch.uint8), "targets": targets, "meta": meta}


@DATA_SAMPLERS.register_module()
class FaceSampler(Sampler[int]):
    """Labelled samples, and as many of the pool behind them; remembers the pools that it was given."""

    pools: list[list[int]] = []

    def __init__(self, dataset: FaceData, seed: int | None = None) -> None:
        self.seed, self.epoch = seed or 0, 0
        self.labelled = np.flatnonzero(dataset.is_labelled)
        self.pool = np.flatnonzero(~dataset.is_labelled).tolist()

    def __len__(self) -> int:
        return 2 * len(self.labelled)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.pools.append(list(self.pool))
        rng = np.random.default_rng(mixed_seed(self.seed, self.epoch))
        order = rng.permutation(self.labelled)
        others = rng.choice(self.pool or self.labelled, len(order))
        for pair in zip(order.tolist(), others.tolist(), strict=True):
            yield from (EpochIndex(i, self.epoch, self.seed) for i in pair)


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "student": {"type": "FaceNet"},
        "partner": {"type": "FaceNet", "width": 6, "stride": 3},
        "scorer": {"type": "FaceScorer"},
        "criterion": {"type": "FaceCriterion"},
        "decoder": {"type": "FaceDecoder"},
        "input_size": (SIZE, SIZE),
        "rounds": 2,
        "warm_up": "epoch 1",
        "scorer_steps": 3,
        "scorer_batch": 8,
        **changes,
    }


def model(**changes: Any) -> TeacherSupervisesStudents:
    torch.manual_seed(1)
    return TeacherSupervisesStudents(**arguments(**changes)).train()


def config(work_dir: Path | str, **changes: Any) -> Config:
    """Five epochs of two iterations: one of warm-up, two in each round."""
    plain = {
        "default_scope": "mmengine",
        "model": {"type": "TeacherSupervisesStudents", **arguments()},
        "train_dataloader": {
            "batch_size": 16,
            "num_workers": 0,
            "dataset": {"type": "FaceData"},
            "sampler": {"type": "FaceSampler"},
        },
        "optim_wrapper": {"optimizer": {"type": "Adam", "lr": 0.01}},
        "train_cfg": {"by_epoch": True, "max_epochs": 5},
        "randomness": {"seed": 3},
        "work_dir": str(work_dir),
    }
    return with_options(Config(plain), changes)


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(latest_checkpoint(folder), weights_only=True)


def equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


# --- Selection -------------------------------------------------------------------------------------------------------


def test_selection_is_the_reference() -> None:
    with np.load(FIXTURES / "ts3_selection.npz") as file:
        quality, order, counts = (torch.from_numpy(file[name]) for name in ("in_quality", "out", "out_n_r"))
    assert best(quality, len(quality)).tolist() == order.tolist()
    for number, count in enumerate(counts.tolist(), 1):
        assert kept(len(quality), number, len(counts)) == count
        assert best(quality, count).tolist() == order[:count].tolist()


def test_selection_of_a_share_of_equals_and_of_not_a_number() -> None:
    assert [kept(25, n, 3, 0.5) for n in (1, 2, 3)] == [round(25 / 6), round(25 / 3), round(12.5)]
    quality = torch.tensor([0.3, torch.nan, 0.7, 0.3, -1.0])
    assert best(quality, 5).tolist() == [2, 0, 3, 4, 1]
    assert best(quality, 2).tolist() == [2, 0]


# --- Geometry and errors ---------------------------------------------------------------------------------------------


def affines() -> Tensor:
    """The identity; turned and scaled; mirrored; mirrored and turned."""
    cos, sin = 1.3 * math.cos(0.4), 1.3 * math.sin(0.4)
    rows = [[[1, 0, 0], [0, 1, 0]], [[cos, -sin, 3], [sin, cos, -7]], [[-1, 0, 23], [0, 1, 0]]]
    return torch.tensor([*rows, [[-cos, sin, 20], [sin, cos, 5]]], dtype=torch.float64)


def test_points_go_into_an_input_and_back() -> None:
    points = torch.randn(4, POINTS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10
    swaps = torch.tensor(SWAPS)
    found = to_input(points, affines(), swaps)
    for sample, (affine, mirrored) in enumerate(zip(affines().numpy(), (0, 0, 1, 1), strict=True)):
        for point in range(POINTS):
            source = points[sample, SWAPS[point] if mirrored else point].numpy()
            expected = affine[:, :2] @ source + affine[:, 2]
            np.testing.assert_allclose(found[sample, point].numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(to_original(found, affines(), swaps), points, rtol=1e-12, atol=1e-12)
    without = to_input(points, affines())
    torch.testing.assert_close(without[2, 0, 0], 23 - points[2, 0, 0])


def test_a_pseudo_label_lies_where_the_truth_would_after_the_same_augmentation() -> None:
    """Points of the original pictures as labels: a student is then given the data set's own points."""
    data = FaceData(samples=24, labelled=4)
    supervised = model()
    truth = torch.stack([torch.from_numpy(data.truth(i)) for i in range(24)])
    labels = PseudoLabels(truth, torch.ones(24), torch.arange(24) >= 4)
    progress = Rounds(torch.zeros(24, dtype=torch.bool), torch.tensor(SWAPS), 1, {"student": labels, "partner": labels})
    supervised.progress = progress
    batch = DistillRunner.build_dataloader(
        {
            "dataset": data,
            "batch_size": 24,
            "sampler": {"type": "EpochSampler"},
            "collate_fn": {"type": "collate_samples"},
        }
    )
    data = next(iter(batch))
    mirrored = torch.linalg.det(data["targets"]["to_input"][..., :2]) < 0
    assert 4 < mirrored.sum() < 20
    found, pseudo = supervised.supervision("student", data["targets"], data["meta"])
    torch.testing.assert_close(found["points"], data["targets"]["points"], rtol=1e-5, atol=2e-5)
    assert pseudo.sum() == 20 and found["labelled"].all() and found["visible"].all()


def test_errors_and_norms_are_the_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    truth, found = (torch.rand(4, POINTS, 2, generator=generator) * 20 for _ in range(2))
    visible = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    targets = {"points": truth, "visible": visible, "to_input": affines(), "box": torch.tensor([[0.0, 0, 9, 4]] * 4)}
    lengths = norm_lengths(((0,), (1, 3)), targets)
    middle = (truth[:, 1] + truth[:, 3]) / 2
    for sample in (0, 1):
        assert lengths[sample].item() == pytest.approx(float((truth[sample, 0] - middle[sample]).norm()), rel=1e-6)
    assert lengths[2:].isnan().all()
    assert norm_lengths("box", targets).tolist() == pytest.approx([6.0, 6 * 1.3, 6.0, 6 * 1.3])
    errors = normalised_errors(found, targets, torch.tensor([2.0, 3.0, 0.0, 1.0]))
    for sample, places in ((0, (0, 1, 2, 3)), (1, (0, 1, 3))):
        distances = [float((found[sample, k] - truth[sample, k]).norm()) for k in places]
        assert errors[sample].item() == pytest.approx(np.mean(distances) / (2.0, 3.0)[sample], rel=1e-5)
    assert errors[2:].isnan().all()


def test_a_norm_is_named_by_the_data_set() -> None:
    metainfo = FaceData().metainfo
    assert resolved_norm(None, metainfo) == resolved_norm("eyes", metainfo) == ((0,), (1,))
    assert resolved_norm([[2], [3]], metainfo) == ((2,), (3,))
    assert resolved_norm("face_size", metainfo) == resolved_norm("box", {}) == "box"
    with pytest.raises(UserError, match=r"no norm 'eye'. Did you mean 'eyes'\? There are: eyes, box"):
        resolved_norm("eye", metainfo)
    with pytest.raises(UserError, match="names no default"):
        resolved_norm(None, {})


def test_corruptions_are_of_the_announced_size() -> None:
    points, lengths = torch.zeros(6000, 50, 2), torch.full((6000,), 10.0)
    moved = corrupted(points, lengths, 0.1, torch.Generator().manual_seed(0))
    distances = moved.norm(dim=-1)
    assert 0.2 < (distances.mean(1) < 1).float().mean() < 0.6  # tau, 0.1 norms, is at two fifths of the scale
    whole, scattered = distances.std(1) < 1e-4, (distances == 0).float().mean(1) > 0.5
    alone = ~whole & ~scattered
    for kind in (whole, scattered, alone):
        assert kind.float().mean().item() == pytest.approx(1 / 3, abs=0.04)
    reach = distances[alone].mean(1).log2() - math.log2(1.0)  # the number of points is large, so this is the power
    assert reach.min() > -2.6 and reach.max() < 3.6
    assert reach.mean().item() == pytest.approx(0.5, abs=0.15)


# --- The model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deployed", ["student", "both"])
def test_the_student_starts_as_it_would_alone(deployed: str) -> None:
    torch.manual_seed(1)
    alone = TaskModel({"type": "FaceNet"}, {"type": "FaceCriterion"})
    drawn = torch.rand(3)
    together = model(deployed=deployed)
    equal(together.students["student"].state_dict(), alone.network.state_dict())
    torch.manual_seed(1)
    TeacherSupervisesStudents(**arguments(deployed=deployed))
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("deployed", ["student", "partner", "both"])
def test_both_students_follow_the_memory_format_of_the_pictures(deployed: str) -> None:
    layout = {"type": "ImagePreprocessor", "channels_last": True}
    wide = [
        weight
        for student in model(deployed=deployed, data_preprocessor=layout).students.values()
        for weight in student.parameters()
        if weight.dim() == 4 and weight.shape[1] > 1 and weight.shape[2] > 1
    ]
    assert wide and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in wide)


@pytest.mark.parametrize("deployed", ["student", "partner", "both"])
def test_what_is_deployed(deployed: str, tmp_path: Path) -> None:
    changes = {"model.deployed": deployed, "train_cfg.max_epochs": 3, "model.student.pretrained": True}
    folder = train(config(tmp_path, **changes))
    state = checkpoint(folder)["state_dict"]
    cfg = config(tmp_path, **changes)
    network = build_task_model(cfg, str(folder / "student.pth")).network
    parts = {"student": FaceNet(), "partner": FaceNet(6, 3)}
    beside = {"student": "partner.", "partner": "student.", "both": "network.partner."}[deployed]
    for name, part in parts.items():
        prefix = "network." if name == deployed else (f"network.{name}." if deployed == "both" else beside)
        part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        part.eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    maps = {name: part(images)["heatmaps"] for name, part in parts.items()}
    maps["both"] = (
        maps["student"] + nn.functional.interpolate(maps["partner"], (12, 12), mode="bilinear", align_corners=False)
    ) / 2
    torch.testing.assert_close(network(images)["heatmaps"], maps[deployed])
    assert deployed != "both" or isinstance(network, BothStudents)
    kind = {"student": "FaceNet", "partner": "FaceNet", "both": "BothStudents"}[deployed]
    assert deployed_model_config(cfg)["network"]["type"] == kind


def batch(count: int = 8, labelled: int = 4) -> dict[str, Any]:
    data = FaceData(count, labelled)
    loader = {"batch_size": count, "sampler": {"type": "EpochSampler", "shuffle": False}}
    built = DistillRunner.build_dataloader({"dataset": data, **loader, "collate_fn": {"type": "collate_samples"}})
    return next(iter(built))


def with_labels(supervised: TeacherSupervisesStudents, count: int = 8) -> dict[str, PseudoLabels]:
    """Labels of both students, of which the student's are selected on 5 and 6 and the partner's on 6 and 7."""
    found = {}
    for place, author in enumerate(("student", "partner")):
        points = torch.full((count, POINTS, 2), 10.0 + place, dtype=torch.float64)
        selected = torch.zeros(count, dtype=torch.bool)
        selected[[5 + place, 6 + place]] = True
        found[author] = PseudoLabels(points, torch.ones(count), selected)
    held_out = torch.zeros(count, dtype=torch.bool)
    held_out[1] = True
    supervised.progress = Rounds(held_out, torch.tensor(SWAPS), 1, found)
    return found


@pytest.mark.parametrize(("labels_from", "author"), [("other", "partner"), ("own", "student")])
def test_students_learn_from_the_labels_of(labels_from: str, author: str) -> None:
    supervised = model(labels_from=labels_from)
    labels, data = with_labels(supervised), batch()
    found, pseudo = supervised.supervision("student", data["targets"], data["meta"])
    assert pseudo.nonzero().flatten().tolist() == labels[author].selected.nonzero().flatten().tolist()
    assert found["labelled"].tolist() == [True, False, True, True, *pseudo[4:].tolist()]  # 1 is held out
    expected = to_input(labels[author].points, data["targets"]["to_input"].double(), torch.tensor(SWAPS)).float()
    assert torch.equal(found["points"][pseudo], expected[pseudo])
    assert torch.equal(found["points"][0], data["targets"]["points"][0])
    assert not found["points"][~found["labelled"]].any() and not found["visible"][~found["labelled"]].any()


def test_losses_are_those_of_each_student_on_what_it_is_given() -> None:
    supervised, data = model(), batch()
    with_labels(supervised)
    ready = supervised.data_preprocessor(data, True)
    found = supervised.eval()(**ready, mode="loss")
    assert list(found) == ["student.maps", "partner.maps"]
    for name, network in supervised.students.items():
        targets, _ = supervised.supervision(name, data["targets"], data["meta"])
        expected = FaceCriterion()(network(ready["inputs"]), targets)["maps"]
        torch.testing.assert_close(found[f"{name}.maps"], expected)
        used = targets["labelled"]
        alone = FaceCriterion()(network(ready["inputs"][used]), {k: v[used] for k, v in targets.items()})["maps"]
        torch.testing.assert_close(found[f"{name}.maps"], alone)


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
def test_pseudo_labels_have_their_weight(weight: float) -> None:
    supervised, data = model(pseudo_weight=weight).eval(), batch()
    with_labels(supervised)
    ready = supervised.data_preprocessor(data, True)
    found = supervised(**ready, mode="loss")["student.maps"]
    targets, pseudo = supervised.supervision("student", data["targets"], data["meta"])
    outputs, total = supervised.network(ready["inputs"])["heatmaps"], 0.0
    for sample in targets["labelled"].nonzero().flatten().tolist():
        one = {k: v[sample : sample + 1] for k, v in targets.items()}
        value = FaceCriterion()({"heatmaps": outputs[sample : sample + 1]}, one)["maps"]
        total = total + (weight if pseudo[sample] else 1.0) * value / targets["labelled"].sum()
    torch.testing.assert_close(found, total)


def test_mean_labels_are_of_the_mean_maps() -> None:
    supervised = model(labels_from="mean").eval()
    assert supervised.authors == ("mean",)
    inputs = supervised.data_preprocessor(batch(), False)["inputs"]
    points, quality = supervised.judged("mean", inputs)
    maps = BothStudents(*supervised.students.values())(inputs)["heatmaps"]
    expected, _ = FaceCodec().decode(maps, (SIZE, SIZE))
    torch.testing.assert_close(points, expected)
    seen = torch.cat([inputs, nn.functional.interpolate(maps, (SIZE, SIZE), mode="bilinear")], 1)
    torch.testing.assert_close(quality, supervised.scorer(seen)["patches"].mean((1, 2, 3)))


@pytest.mark.parametrize("labels_from", ["other", "mean"])
def test_mirrored_labels_are_the_same_for_a_picture_and_its_mirror_image(labels_from: str) -> None:
    supervised = model(labels_from=labels_from, mirrored_labels=True).eval()
    swaps = torch.tensor(SWAPS)
    supervised.progress = Rounds(torch.zeros(6, dtype=torch.bool), swaps)
    inputs = supervised.data_preprocessor(batch(), False)["inputs"]
    author = supervised.authors[0]
    points, _ = supervised.judged(author, inputs)
    mirrored, _ = supervised.judged(author, inputs.flip(-1))
    x, y = mirrored[:, swaps].unbind(-1)
    torch.testing.assert_close(points, torch.stack([SIZE - 1 - x, y], -1))
    supervised.procedure = dataclasses.replace(supervised.procedure, mirrored_labels=False)
    alone, _ = supervised.judged(author, inputs)
    assert not torch.allclose(points, alone)


def test_the_teacher_may_see_maps_that_are_drawn_afresh() -> None:
    supervised = model(scorer_inputs="points").eval()
    inputs = supervised.data_preprocessor(batch(), False)["inputs"]
    points, quality = supervised.judged("partner", inputs)
    visible = torch.ones(points.shape[:2], dtype=torch.bool)
    drawn = FaceCodec().encode(points, visible, (SIZE, SIZE), (8, 8))[0]
    seen = torch.cat([inputs, nn.functional.interpolate(drawn, (SIZE, SIZE), mode="bilinear")], 1)
    torch.testing.assert_close(quality, supervised.scorer(seen)["quality"])


def test_the_teacher_sees_maps_as_pictures() -> None:
    class Logits(FaceCodec):
        def as_output(self, drawn: Tensor) -> Tensor:
            return drawn.clamp(1e-3, 1 - 1e-3).logit()

        def pictures(self, maps: Tensor, input_size: Any) -> Tensor:
            return maps.sigmoid()

    supervised = model(codec=Logits(), corruptions=1.0).eval()
    data = supervised.data_preprocessor(batch(8, 8), False)
    maps = supervised.network(data["inputs"])["heatmaps"]
    seen = torch.cat([data["inputs"], nn.functional.interpolate(maps.sigmoid(), (SIZE, SIZE), mode="bilinear")], 1)
    torch.testing.assert_close(supervised.quality(data["inputs"], maps), supervised.scorer(seen)["quality"])
    generator = torch.Generator().manual_seed(0)
    pairs, _ = supervised.examples(data["inputs"], data["targets"], ((0,), (1,)), 0.2, generator)
    for _, drawn in pairs:
        assert drawn.min() < -6 and 1 < drawn.max() < 7


@pytest.mark.parametrize("corruptions", [0.0, 0.5, 1.0])
def test_the_teacher_learns_the_errors_of_the_maps_that_it_sees(corruptions: float) -> None:
    """Maps are decoded again, and the error of what they hold is the quality that is asked for."""
    supervised = model(corruptions=corruptions).eval()
    data = supervised.data_preprocessor(batch(16, 16), False)
    data["targets"]["visible"][3] = False
    generator = torch.Generator().manual_seed(0)
    pairs, quality = supervised.examples(data["inputs"], data["targets"], ((0,), (1,)), 0.2, generator)
    assert len(quality) == 15 and sum(len(maps) for _, maps in pairs) == 15
    kinds = {tuple(m.shape[-2:]) for _, m in pairs}
    assert kinds == {(12, 12), (8, 8)}
    start = 0
    for images, maps in pairs:
        rows = [int((data["inputs"] == image).flatten(1).all(1).nonzero()[0]) for image in images]
        points, _ = FaceCodec().decode(maps, (SIZE, SIZE))
        truth = data["targets"]["points"][rows]
        lengths = (truth[:, 0] - truth[:, 1]).norm(dim=-1)
        expected = (-(points - truth).norm(dim=-1).mean(1) / lengths / 0.2).exp()
        known = quality[start : start + len(rows)]
        start += len(rows)
        if corruptions == 0.0:
            torch.testing.assert_close(known, expected, rtol=1e-4, atol=1e-5)
        if corruptions == 1.0:
            inside = (maps.amax((2, 3)) > 0.7).all(1)  # nothing can be read of a point that has left the map
            torch.testing.assert_close(known[inside], expected[inside], rtol=0.2, atol=0.05)


# --- Whole trainings -------------------------------------------------------------------------------------------------


def test_a_round_does_what_is_written_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    """Until the first round and in everything random, the run is that of a longer warm-up."""
    FaceSampler.pools = []
    folder = train(config(tmp_path / "run", **{"model.analyse": True}))
    rounds = json.loads((folder / "rounds.json").read_text())
    assert [(r["round"], r["epoch"]) for r in rounds] == [(1, 1), (2, 3)]
    assert [r["student.kept"] for r in rounds] == [12, 24] == [r["partner.kept"] for r in rounds]
    assert all(-1 <= r["student.spearman"] <= 1 and r["tau"] > 0 for r in rounds)
    state = checkpoint(folder)
    labels = state["rounds"]["labels"]
    assert [len(pool) for pool in FaceSampler.pools] == [0, *[len(FaceSampler.pools[1])] * 2, 24, 24]
    assert 12 <= len(FaceSampler.pools[1]) <= 24 and min(FaceSampler.pools[1]) >= 16
    for author in ("student", "partner"):
        assert labels[author]["selected"].nonzero().flatten().tolist() == list(range(16, 40))
        assert labels[author]["quality"][:16].isnan().all() and labels[author]["quality"][16:].isfinite().all()
        assert not labels[author]["points"][:16].any()
    longer = train(config(tmp_path / "longer", **{"model.warm_up": "epoch 4", "model.rounds": 1}))
    for key, value in checkpoint(longer)["random_state"].items():
        assert str(value) == str(state["random_state"][key]), key
    lines = [json.loads(line) for line in (folder / "scalars.json").read_text().splitlines()]
    assert all({"student.maps", "partner.maps", "loss"} <= row.keys() for row in lines)


class Stopped(Exception):
    """What stops a run."""


@HOOKS.register_module()
class FaceWatch(Hook):
    """Remembers the students at the beginning of each epoch; may stop the run after an iteration.

    Args:
        stop: that iteration.
    """

    priority = "LOWEST"
    seen: list[dict[str, Any]] = []

    def __init__(self, stop: int = -1) -> None:
        self.stop = stop
        self.seen.clear()

    def before_train_epoch(self, runner: Any) -> None:
        state = {name: copy.deepcopy(student.state_dict()) for name, student in runner.model.students.items()}
        self.seen.append({**state, "memory": len(runner.optim_wrapper.optimizer.state)})

    def after_train_iter(self, runner: Any, *further: Any, **named: Any) -> None:
        if runner.iter == self.stop:
            raise Stopped


WATCHED = {"custom_hooks": [{"type": "FaceWatch"}]}


@pytest.mark.parametrize("labels_from", ["other", "mean"])
def test_pseudo_labels_are_what_the_students_say_of_the_plain_picture(tmp_path: Path, labels_from: str) -> None:
    changes = {"train_cfg.max_epochs": 2, "model.rounds": 1, "model.labels_from": labels_from}
    state = checkpoint(train(config(tmp_path, **changes, **WATCHED)))
    data, supervised = FaceData(augment=False), model().eval()
    for name, student in supervised.students.items():
        student.load_state_dict(FaceWatch.seen[1][name])
    supervised.scorer.load_state_dict(
        {k.removeprefix("scorer."): v for k, v in state["state_dict"].items() if k.startswith("scorer.")}
    )
    ready = supervised.data_preprocessor({"inputs": torch.stack([data[i]["inputs"] for i in range(16, 40)])}, False)
    affine = np.array([[0.6, 0, -0.2], [0, 0.6, 1.0]])
    for author, labels in state["rounds"]["labels"].items():
        points, quality = supervised.judged(author, ready["inputs"])
        found = labels["points"][16:].numpy() @ affine[:, :2].T + affine[:, 2]
        np.testing.assert_allclose(found, points.numpy(), atol=1e-3)
        torch.testing.assert_close(labels["quality"][16:].float(), quality, rtol=1e-3, atol=1e-4)
    assert set(state["rounds"]["labels"]) == ({"mean"} if labels_from == "mean" else {"student", "partner"})


@pytest.mark.parametrize("poison", [math.nan, 1e30])
def test_points_of_unlabelled_samples_never_matter(tmp_path: Path, poison: float) -> None:
    folders = [
        train(config(tmp_path / str(value), **{"train_dataloader.dataset.poison": value, "train_cfg.max_epochs": 4}))
        for value in (None, poison)
    ]
    clean, poisoned = (checkpoint(folder) for folder in folders)
    equal(poisoned["state_dict"], clean["state_dict"])
    for author, labels in clean["rounds"]["labels"].items():
        assert torch.equal(labels["points"], poisoned["rounds"]["labels"][author]["points"])


@pytest.mark.parametrize("restart", ["continue", "initial"])
def test_resumed_within_a_round_it_ends_with_the_same_weights(tmp_path: Path, restart: str) -> None:
    changes = {"model.student.dropout": 0.3, "model.restart": restart, "train_cfg.max_epochs": 6}
    whole = train(config(tmp_path / "whole", **changes))
    with pytest.raises(Stopped):  # in the fifth epoch, the second of round 2
        train(config(tmp_path / "half", **changes, custom_hooks=[{"type": "FaceWatch", "stop": 9}]))
    assert checkpoint(tmp_path / "half")["rounds"]["done"] == 2
    torch.manual_seed(99)
    half = train(config(tmp_path / "half", **changes), resume=True)
    found, expected = checkpoint(half), checkpoint(whole)
    equal(found["state_dict"], expected["state_dict"])
    assert str(found["rounds"]) == str(expected["rounds"])
    assert (half / "rounds.json").read_text() == (whole / "rounds.json").read_text()
    assert bool(found["rounds"]["initial"]) == (restart == "initial")


def test_another_data_set_cannot_be_resumed_with(tmp_path: Path) -> None:
    changes = {"train_cfg.max_epochs": 3}
    train(config(tmp_path, **changes))
    with pytest.raises(UserError, match="rounds of the checkpoint are about 40 samples, and the data set has 41"):
        train(config(tmp_path, **{**changes, "train_dataloader.dataset.samples": 41}), resume=True)


def test_restarted_students_are_the_initial_ones(tmp_path: Path) -> None:
    train(config(tmp_path, **{"model.restart": "initial", "train_cfg.max_epochs": 4}, **WATCHED))
    seen = FaceWatch.seen
    assert [entry["memory"] == 0 for entry in seen] == [True, True, True, False]
    for name in ("student", "partner"):
        equal(seen[1][name], seen[0][name])
        equal(seen[2][name], seen[0][name])
        assert not torch.equal(seen[3][name]["head.weight"], seen[0][name]["head.weight"])


@pytest.mark.parametrize("selection", ["random", "all"])
def test_controls_need_no_teacher(tmp_path: Path, selection: str) -> None:
    folder = train(config(tmp_path, **{"model.selection": selection, "train_cfg.max_epochs": 3}))
    state, rounds = checkpoint(folder), json.loads((folder / "rounds.json").read_text())
    assert [r["student.kept"] for r in rounds] == ([12, 24] if selection == "random" else [24, 24])
    assert not any("tau" in r for r in rounds) and not state["rounds"]["held_out"].any()
    selected = [labels["selected"] for labels in state["rounds"]["labels"].values()]
    assert all(one.sum() == 24 for one in selected)


def test_random_selection_differs_between_students_and_not_between_runs(tmp_path: Path) -> None:
    changes = {"model.selection": "random", "train_cfg.max_epochs": 2, "model.rounds": 1, "model.share": 0.5}
    first, again = (
        {
            name: one["selected"]
            for name, one in checkpoint(train(config(tmp_path / n, **changes)))["rounds"]["labels"].items()
        }
        for n in "ab"
    )
    equal(first, again)
    assert first["student"].sum() == first["partner"].sum() == 12
    assert not torch.equal(first["student"], first["partner"])


def test_held_out_samples_come_back_in_the_last_round(tmp_path: Path) -> None:
    changes = {"model.held_out": 0.25, "train_cfg.max_epochs": 5}
    with pytest.raises(Stopped):
        train(config(tmp_path, **changes, custom_hooks=[{"type": "FaceWatch", "stop": 5}]))
    held_out = checkpoint(tmp_path)["rounds"]["held_out"]
    assert held_out.sum() == 4 and not held_out[16:].any()
    assert not checkpoint(train(config(tmp_path, **changes), resume=True))["rounds"]["held_out"].any()


def test_the_teacher_ranks_labels_and_leaves_out_the_worst(tmp_path: Path) -> None:
    """Of faces in little and in much noise; the labels that it keeps are better than those that chance keeps."""
    changes = {
        "train_dataloader.dataset.samples": 160,
        "train_dataloader.dataset.labelled": 60,
        "model": {"rounds": 1, "warm_up": "epoch 20", "held_out": 0.25, "scorer_steps": 200, "scorer_batch": 16}
        | {"scorer_lr": 0.005, "analyse": True, "share": 0.5},
        "train_cfg.max_epochs": 21,
    }
    (found,) = json.loads((train(config(tmp_path, **changes)) / "rounds.json").read_text())
    for author in ("student", "partner"):
        assert found[f"{author}.spearman"] > 0.4
        assert found[f"{author}.error"] < 0.95 * found[f"{author}.error_of_all"]
        assert found[f"{author}.quality"] > found[f"{author}.quality_of_all"]


def test_under_autocast_and_with_workers(tmp_path: Path) -> None:
    changes = {"train_cfg.max_epochs": 3}
    plain, workers = (
        checkpoint(train(config(tmp_path / str(n), **changes, **{"train_dataloader.num_workers": n}))) for n in (0, 1)
    )
    equal(workers["state_dict"], plain["state_dict"])
    half = checkpoint(train(config(tmp_path / "half", **changes), amp="bf16"))
    assert half["rounds"]["done"] == 2
    assert half["rounds"]["labels"]["student"]["points"][16:].isfinite().all()


@HOOKS.register_module()
class FaceKeeper(Hook):
    """Writes what each rank has at the end to `rank_N.pth` in the run folder."""

    def after_train(self, runner: Any) -> None:
        bare = getattr(runner.model, "module", runner.model)
        kept = {"state_dict": bare.state_dict(), "rounds": bare.progress.state_dict()}
        torch.save(kept, Path(runner.work_dir) / f"rank_{os.environ.get('RANK', 0)}.pth")


SHARED = {
    "model.student.norm": False,
    "model.partner.norm": False,
    "train_cfg.max_epochs": 2,
    "model.rounds": 1,
    "optim_wrapper.optimizer": {"type": "SGD", "lr": 0.0},
    "custom_hooks": [{"type": "FaceKeeper"}],
    "train_dataloader.sampler": {"type": "EpochSampler"},
}


def as_rank(rank: int, port: int, folder: str) -> None:
    """What torchrun sets for each of its processes, then the training."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0"}
    train(config(folder, **SHARED), launcher="pytorch")


def test_two_processes_make_the_labels_of_one(tmp_path: Path) -> None:
    """At a rate of zero, since batches are divided differently."""
    train(config(tmp_path / "one", **SHARED))
    expected = torch.load(tmp_path / "one" / "rank_0.pth")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])
    torch.multiprocessing.spawn(as_rank, args=(port, str(tmp_path / "two")), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / "two" / f"rank_{rank}.pth")
        equal(found["state_dict"], expected["state_dict"])
        for author, labels in expected["rounds"]["labels"].items():
            for name, value in labels.items():
                other = found["rounds"]["labels"][author][name]
                torch.testing.assert_close(other, value, equal_nan=True, rtol=1e-6, atol=1e-6)


# --- Configs and faults ----------------------------------------------------------------------------------------------


def test_a_training_gets_the_hook_by_itself_and_once(tmp_path: Path) -> None:
    def named(cfg: Config) -> list[str]:
        return [hook["type"] for hook in with_defaults(cfg)["custom_hooks"]]

    plain = config(tmp_path)
    assert named(plain) == ["SupervisedRounds"] and "custom_hooks" not in plain
    assert named(config(tmp_path, custom_hooks=[{"type": "ToyKeeper"}])) == ["ToyKeeper", "SupervisedRounds"]
    assert named(config(tmp_path, custom_hooks=[{"type": "SupervisedRounds"}])) == ["SupervisedRounds"]
    assert "custom_hooks" not in with_defaults(toys.config(tmp_path))


def test_without_the_hook_there_is_no_training(tmp_path: Path) -> None:
    full = with_defaults(config(tmp_path))
    full.custom_hooks = []
    with pytest.raises(UserError, match=r"no hook that makes them. Add custom_hooks=\[dict\(type='SupervisedRounds'\)"):
        DistillRunner.from_cfg(full).train()
    with pytest.raises(UserError, match="belongs to a TeacherSupervisesStudents, not to Distiller"):
        toys.trained(tmp_path, custom_hooks=[{"type": "SupervisedRounds"}])


def test_the_check_before_a_training_knows_it(tmp_path: Path) -> None:
    found = preflight(config(tmp_path))
    assert [pull.name for pull in found.pulls] == ["student.maps", "partner.maps"]
    assert found.pulls[0].gradient > 0


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "labels_from": ({"labels_from": "others"}, r"model\.labels_from: 'others' is none of own, other, mean.*'other'"),
    "restart": ({"restart": "init"}, r"model\.restart: 'init'.*Did you mean 'initial'"),
    "selection": ({"selection": "teacher"}, r"model\.selection: 'teacher' is none of scorer, random, all"),
    "scorer_inputs": ({"scorer_inputs": "point"}, r"model\.scorer_inputs: .*'points'"),
    "deployed": ({"deployed": "all"}, r"model\.deployed: 'all' is none of student, partner, both"),
    "rounds": ({"rounds": 0}, r"model\.rounds: a whole number from 1 on"),
    "round_epochs": ({"round_epochs": 0}, r"model\.round_epochs: a whole number from 1 on"),
    "scorer_steps": ({"scorer_steps": 1.5}, r"model\.scorer_steps: a whole number"),
    "warm_up": ({"warm_up": "iter 100"}, r"model\.warm_up: .*whole epochs such as 'epoch 10', not 'iter 100'"),
    "no warm_up": ({"warm_up": "epoch 0"}, r"model\.warm_up: students that were never trained cannot label"),
    "no moment": ({"warm_up": "10"}, r"model\.warm_up: '10' is no moment of a training"),
    "share": ({"share": 0.0}, r"model\.share: a number above 0 to 1 belongs here, not 0.0"),
    "pseudo_weight": ({"pseudo_weight": -1}, r"model\.pseudo_weight: a number above 0 belongs here"),
    "held_out": ({"held_out": 1.0}, r"model\.held_out: a number from 0 to 0.9"),
    "corruptions": ({"corruptions": 2}, r"model\.corruptions: a number from 0 to 1"),
    "tau": ({"tau": "mean"}, r"model\.tau: 'median' or a number"),
    "tau below": ({"tau": 0.0}, r"model\.tau: a number above 0"),
    "norm": ({"norm": [1, 2]}, r"model\.norm: the name of a norm"),
    "codec": ({"codec": {"type": "FaceCodek"}}, r"model\.codec: 'FaceCodek'.*Did you mean 'FaceCodec'"),
    "no codec": ({"criterion": None, "decoder": None}, r"model\.codec: .*Name one, such as"),
    "scorer": (
        {"scorer": {"type": "FaceScorer", "maps": 5}},
        r"model\.scorer: it gives no 'quality' .*\(2, 7, 24, 24\)",
    ),
    "no quality": ({"scorer": {"type": "FaceNet", "maps": 5}}, r"model\.scorer: it gives no 'quality'"),
    "maps": ({"partner": {"type": "FaceNet", "maps": 5}}, r"model\.partner: the students' maps must be as many"),
    "no maps": ({"partner": {"type": "ToyNet"}}, r"model\.partner: it needs an output 'heatmaps'.*it has: logits"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    changes, message = FAULTS[name]
    with pytest.raises(UserError, match=f"(?s){message}"):
        model(**changes)


def test_rounds_have_their_epochs() -> None:
    assert Procedure(rounds=3, warm_up="epoch 10").first_epochs(30) == (10, 16, 22)
    assert Procedure(rounds=3, warm_up="epoch 10", round_epochs=2).first_epochs(30) == (10, 12, 14)
    assert Procedure(rounds=3, warm_up="epoch 10").first_epochs(13) == (10, 11, 12)
    with pytest.raises(UserError, match="round 3 would begin before epoch 12, and the training has 12 epochs"):
        Procedure(rounds=3, warm_up="epoch 10").first_epochs(12)
    with pytest.raises(UserError, match="ends at 'epoch 10', and the training after 10 epochs"):
        Procedure(rounds=1, warm_up="epoch 10").first_epochs(10)


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "argument": ({"model.round": 3}, "model.round: TeacherSupervisesStudents takes no 'round'. Did you mean 'rounds'?"),
    "partner": ({"model.partner.widht": 3}, "model.partner.widht: FaceNet takes no 'widht'. Did you mean 'width'?"),
    "scorer": ({"model.scorer.type": "FaceScore"}, "model.scorer.type: 'FaceScore' is not a known network."),
    "codec": (
        {"model.codec": {"type": "FaceNet"}},
        "model.codec.type: 'FaceNet' is a network, but a codec belongs here",
    ),
    "word": ({"model.labels_from": "both"}, "model.labels_from: 'both' is none of own, other, mean."),
    "deployed": ({"model.deployed": "mean"}, "model.deployed: 'mean' is none of student, partner, both."),
    "number": ({"model.scorer_lr": "fast"}, "model.scorer_lr: TeacherSupervisesStudents takes a number here"),
    "fit": ({"model.rounds": 7}, "model.rounds: round 7 would begin before epoch 7"),
    "warm_up": ({"model.warm_up": "epoch 9"}, "model.warm_up: it ends at 'epoch 9'"),
    "iterations": (
        {"train_cfg": {"_delete_": True, "by_epoch": False, "max_iters": 9}},
        "train_cfg: rounds begin between",
    ),
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_the_check_of_a_config(tmp_path: Path, name: str) -> None:
    changes, message = CONFIG_FAULTS[name]
    assert find_faults(config(tmp_path)) == []
    faults = find_faults(config(tmp_path, **changes))
    assert any(fault.startswith(message) for fault in faults), faults
    assert len(faults) <= 1 + (name == "number")


def test_a_network_of_both_is_known_to_the_check(tmp_path: Path) -> None:
    network = {"type": "BothStudents", "student": {"type": "FaceNet"}, "partner": {"type": "FaceNet", "strid": 3}}
    cfg = config(tmp_path, model={"_delete_": True, "type": "TaskModel", "network": network})
    (fault,) = find_faults(cfg)
    assert fault.startswith("model.network.partner.strid: FaceNet takes no 'strid'.")


class Plainless(FaceData):
    plain = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"type": "FaceData", "labelled": 40}, "of FaceData all samples are labelled.*nothing to label. Set labelled="),
        ({"type": "FaceData", "labelled": 0}, "of FaceData no sample is labelled.*nothing to learn from"),
        ({"type": "ToyDataset"}, "ToyDataset has no is_labelled, which pseudo labels need"),
        ({"type": "Plainless"}, r"Plainless has no plain\(\), which pseudo labels need"),
    ],
    ids=["all", "none", "other", "plain"],
)
def test_faults_of_the_data(tmp_path: Path, dataset: dict[str, Any], message: str, monkeypatch: Any) -> None:
    DATASETS.register_module(module=Plainless, force=True)
    monkeypatch.setattr(FaceData, "__getitem__", lambda *_: pytest.fail("a picture was read"))
    cfg = config(tmp_path, **{"train_dataloader.dataset": {"_delete_": True, **dataset}})
    cfg.train_dataloader.sampler = {"type": "EpochSampler"}
    with pytest.raises(UserError, match=f"(?s){message}"):
        train(cfg)


@DATASETS.register_module()
class OneSided(FaceData):
    def __init__(self) -> None:
        super().__init__()
        self.metainfo = {**self.metainfo, "swaps": None}


def test_mirrored_labels_need_mirror_partners(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.mirrored_labels: the data set does not say which points"):
        train(config(tmp_path, **{"model.mirrored_labels": True, "train_dataloader.dataset.type": "OneSided"}))


def test_networks_for_other_points(tmp_path: Path) -> None:
    changes = {"student.maps": 5, "partner.maps": 5, "scorer.maps": 5}
    with pytest.raises(UserError, match="it gives 5 maps, and for the 4 points of the data set FaceCodec needs 4"):
        train(config(tmp_path, **{f"model.{key}": value for key, value in changes.items()}))


def test_a_norm_that_is_zero_everywhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.norm: no labelled sample has an error that can be told"):
        train(config(tmp_path, **{"model.norm": [[1], [1]]}))


def test_same_architecture_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(teacher_supervises, "print_log", lambda text, **_: said.append(text))
    model()
    assert said == []
    model(partner={"type": "FaceNet"})
    assert said == ["model.partner: both students are of the same architecture"]


# --- Data sets -------------------------------------------------------------------------------------------------------


class OneColour(VisionDataset):
    """Two pictures of one colour, with one point."""

    splits = ()
    keypoint_swaps = (0,)

    def find(self) -> list[int]:
        return [60, 120]

    def load(self, index: int) -> dict[str, Any]:
        image = np.full((20, 30, 3), self.items[index], np.uint8)
        return {"image": image, "keypoints": np.array([[3.0, 4.0]])}


def test_a_plain_view_has_the_size_and_nothing_drawn(tmp_path: Path) -> None:
    transforms = [
        {"type": "RandomBrightnessContrast", "p": 1.0},
        {"type": "Resize", "height": 10, "width": 15},
        {"type": "HorizontalFlip", "p": 1.0},
    ]
    data = OneColour(tmp_path, "train", transforms)
    view = data.plain()
    for index, colour in enumerate((60, 120)):
        sample = view[EpochIndex(index, epoch=3, seed=index)]
        assert sample["inputs"].shape == (3, 10, 15) and (sample["inputs"] == colour).all()
        np.testing.assert_allclose(sample["targets"]["keypoints"].numpy(), [[1.5, 2.0]], atol=0.3)
        assert not (data[index]["inputs"] == colour).all()
    assert data[0]["targets"]["keypoints"][0, 0] > 7 and len(data.augment.transforms) == 3
    tested = OneColour(tmp_path, "train", transforms, test_mode=True).plain()
    assert tested[0]["targets"]["keypoints"][0, 0] < 3


def test_it_is_listed_among_the_methods() -> None:
    lines = dict(catalogue("methods"))
    assert lines["teacher_supervises"].startswith("Teacher Supervises Students: ")
    assert not any(name.startswith("_") for name in lines)
