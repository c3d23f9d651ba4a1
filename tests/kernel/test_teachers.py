"""Frozen teachers: never trained, never changed, with an input of their own."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor, nn

from kd_tasks.engine.checkpoints import save_student
from kd_tasks.engine.compat import build_optimisers
from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from kd_tasks.teachers import FrozenTeacher

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
OWN_MEAN, OWN_STD = (127.5, 127.5, 127.5), (127.5, 63.75, 127.5)


@NETWORKS.register
class ToyWithDropout(toys.ToyNet):
    """A teacher with dropout, and with statistics that are not neutral."""

    def __init__(self, width: int = 6) -> None:
        super().__init__(width, dropout=0.5)
        toys.randomised(self)


def distiller(**teacher: Any) -> toys.Distiller:
    return toys.distiller(teacher={"type": "ToyWithDropout", **teacher})


def taught(model: toys.Distiller, images: Tensor) -> Tensor:
    """What the transfers get of the teacher's logits for a batch of uint8 images."""
    inputs = model.data_preprocessor({"inputs": images, "targets": {}, "meta": []})["inputs"]
    return model.teachers["teacher"].run(inputs)["logits"]


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def steps(model: toys.Distiller, count: int = 3) -> None:
    model.train()
    optim = build_optimisers(model, {"optimizer": {"type": "SGD", "lr": 0.1}})
    for step in range(count):
        model.train_step(toys.batch(seed=step), optim)


# --- Frozen ----------------------------------------------------------------------------------------------------------


def test_the_whole_teacher_is_in_eval_mode_whatever_happens_to_the_distiller() -> None:
    model = distiller()
    for change in (model.train, model.eval, lambda: model.train(True), lambda: steps(model)):
        change()
        assert [m.training for m in model.teachers["teacher"].network.modules()] == [False] * len(
            list(model.teachers["teacher"].network.modules())
        )


def test_dropout_in_the_teacher_is_inactive() -> None:
    model = distiller().train()
    images = toys.batch()["inputs"]
    assert torch.equal(taught(model, images), taught(model, images))


@pytest.mark.parametrize("mode", ["eval", "batch_stats"])
def test_no_tensor_of_the_teacher_changes_in_training(mode: str) -> None:
    model = distiller(mode=mode)
    before = copy.deepcopy(model.teachers["teacher"].network.state_dict())
    student = copy.deepcopy(model.network.state_dict())
    steps(model)
    after = model.teachers["teacher"].network.state_dict()
    assert any(key.endswith("running_mean") for key in before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    moved = [key for key, value in model.network.state_dict().items() if not torch.equal(student[key], value)]
    assert {"stage1.0.weight", "stage1.1.running_mean", "head.bias"} <= set(moved)


def test_nothing_of_the_teacher_is_in_the_module_tree() -> None:
    model = distiller()
    network = model.teachers["teacher"].network
    inside = {id(t) for t in [*model.parameters(), *model.buffers()]}
    assert not inside & {id(t) for t in [*network.parameters(), *network.buffers()]}
    assert network not in set(model.modules())
    student = {f"network.{key}" for key in model.network.state_dict()}
    assert {key for key in model.state_dict() if not key.startswith("transfers.hint.connector")} == student
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_the_optimiser_holds_no_teacher() -> None:
    model = distiller()
    optim = build_optimisers(model, {"optimizer": {"type": "SGD", "lr": 0.1}})
    held = {id(p) for group in optim.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert not held & {id(p) for p in model.teachers["teacher"].network.parameters()}


def test_a_deep_copy_shares_the_teacher() -> None:
    model = distiller()
    twin = copy.deepcopy(model)
    assert twin.teachers["teacher"] is model.teachers["teacher"]
    assert twin.network is not model.network
    batch = model.data_preprocessor(toys.batch())
    for name, value in model.eval().losses(batch["inputs"], batch["targets"]).items():
        torch.testing.assert_close(twin.eval().losses(batch["inputs"], batch["targets"])[name], value)


def test_the_teacher_moves_with_the_distiller() -> None:
    model = distiller(mean=OWN_MEAN, std=OWN_STD)
    model.to("meta")
    network = model.teachers["teacher"].network
    assert {t.device.type for t in [*network.parameters(), *network.buffers()]} == {"meta"}
    assert {t.device.type for t in model.parameters()} == {"meta"}
    assert model.teachers["teacher"].view(torch.zeros(1, 3, 16, 16, device="meta")).device.type == "meta"


# --- Modes -----------------------------------------------------------------------------------------------------------


def test_batch_statistics_are_used_and_running_ones_are_not() -> None:
    model = distiller(mode="batch_stats").train()
    network = model.teachers["teacher"].network
    images = toys.batch()["inputs"]
    reference = copy.deepcopy(network)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = True
            module.train()
    expected = reference(normalised(images, MEAN, STD))["logits"]
    torch.testing.assert_close(taught(model, images), expected)
    assert not torch.allclose(expected, reference.eval()(normalised(images, MEAN, STD))["logits"])


def test_batch_statistics_stay_in_a_prepared_teacher() -> None:
    plain, prepared = distiller(mode="batch_stats"), distiller(mode="batch_stats", prepare={})
    images = toys.batch()["inputs"]
    for source, target in zip(
        plain.teachers["teacher"].network.parameters(), prepared.teachers["teacher"].network.parameters(), strict=True
    ):
        target.data.copy_(source)
    torch.testing.assert_close(taught(prepared, images), taught(plain, images))


def test_an_unknown_mode() -> None:
    with pytest.raises(UserError, match=r"model\.teacher\.mode: 'train' is none of eval, batch_stats"):
        distiller(mode="train")


# --- Input -----------------------------------------------------------------------------------------------------------


def test_own_normalisation() -> None:
    model = distiller(mean=OWN_MEAN, std=OWN_STD)
    images = toys.batch()["inputs"]
    expected = model.teachers["teacher"].network(normalised(images, OWN_MEAN, OWN_STD))["logits"]
    torch.testing.assert_close(taught(model, images), expected)


def test_the_students_normalisation_by_default() -> None:
    model = distiller()
    images = toys.batch()["inputs"]
    expected = model.teachers["teacher"].network(normalised(images, MEAN, STD))["logits"]
    torch.testing.assert_close(taught(model, images), expected)


@pytest.mark.parametrize("size", [(24, 20), (8, 12)])
def test_own_size(size: tuple[int, int]) -> None:
    model = distiller(size=size)
    images = toys.batch()["inputs"]
    inputs = normalised(images, MEAN, STD)
    resized = F.interpolate(inputs, size=size, mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(taught(model, images), model.teachers["teacher"].network(resized)["logits"])


def test_own_size_and_normalisation_reach_the_loss() -> None:
    recipe = {"soft": {"on": "logits", "loss": {"type": "SoftTargets", "temperature": 2.0}}}
    teacher = {"type": "ToyWithDropout", "mean": OWN_MEAN, "std": OWN_STD, "size": (32, 32)}
    model = toys.distiller(teacher=teacher, transfers=recipe).eval()
    batch = toys.batch()
    inputs = F.interpolate(
        normalised(batch["inputs"], OWN_MEAN, OWN_STD), (32, 32), mode="bilinear", align_corners=False, antialias=True
    )
    target = model.teachers["teacher"].network(inputs)["logits"]
    logits = model.network(normalised(batch["inputs"], MEAN, STD))["logits"]
    divergence = F.kl_div((logits / 2).log_softmax(1), (target / 2).softmax(1), reduction="batchmean")
    data = model.data_preprocessor(batch)
    torch.testing.assert_close(model.losses(data["inputs"], data["targets"])["kd.soft"], 4 * divergence)


@pytest.mark.parametrize("half", [{"mean": MEAN}, {"std": STD}])
def test_mean_without_std(half: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\.teacher: 'mean' and 'std' belong together"):
        distiller(**half)


# --- Weights ---------------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_loaded(tmp_path: Path) -> None:
    trained = toys.randomised(toys.ToyNet(width=6), seed=7)
    save_student(trained, tmp_path / "student.pth", {})
    for path in (tmp_path, tmp_path / "student.pth"):
        network = FrozenTeacher({"type": "ToyNet", "width": 6}, checkpoint=str(path)).network
        for key, value in trained.state_dict().items():
            assert torch.equal(network.state_dict()[key], value)


def test_faults_of_the_checkpoint_name_the_config_key(tmp_path: Path) -> None:
    save_student(toys.ToyNet(width=5), tmp_path / "student.pth", {})
    with pytest.raises(UserError, match=r"model\.teacher\.checkpoint: .*another architecture than ToyNet"):
        toys.distiller(teacher={"type": "ToyNet", "width": 6, "checkpoint": str(tmp_path)})
    with pytest.raises(UserError, match=r"model\.teacher\.checkpoint: .*nowhere.pth does not exist"):
        toys.distiller(teacher={"type": "ToyNet", "width": 6, "checkpoint": "nowhere.pth"})


def test_unknown_keys_of_a_preparation() -> None:
    with pytest.raises(UserError, match=r"model\.teacher\.prepare: .*'fold_batchnrm'.*Did you mean 'fold_batchnorm'\?"):
        distiller(prepare={"fold_batchnrm": True})
    with pytest.raises(UserError, match="'float8' is none of bfloat16, float16"):
        distiller(prepare={"dtype": "float8"})


# --- Several ---------------------------------------------------------------------------------------------------------


def test_several_teachers_by_name() -> None:
    recipe = {
        "first": {"student": "logits", "teacher": "a.logits", "loss": {"type": "SoftTargets"}},
        "second": {"student": "stage2", "teacher": "big.stage2", "connector": "conv1x1", "loss": {"type": "Hint"}},
    }
    teachers = {"a": {"type": "ToyNet", "width": 3}, "big": {"type": "ToyNet", "width": 8, "size": (32, 32)}}
    model = toys.distiller(teacher=None, teachers=teachers, transfers=recipe).eval()
    batch = model.data_preprocessor(toys.batch())
    found = model.losses(batch["inputs"], batch["targets"])
    target = model.teachers["a"].network(batch["inputs"])["logits"]
    logits = model.network(batch["inputs"])["logits"]
    divergence = 16 * F.kl_div((logits / 4).log_softmax(1), (target / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(found["kd.first"], divergence)
    larger = F.interpolate(batch["inputs"], (32, 32), mode="bilinear", align_corners=False, antialias=True)
    big = model.teachers["big"].network
    hint = big.stage2(big.stage1(larger))
    ours = model.transfers["second"].connector(model.network.stage2(model.network.stage1(batch["inputs"])))
    assert ours.shape == hint.shape
    torch.testing.assert_close(found["kd.second"], (ours - hint).square().mean())


@pytest.mark.parametrize(
    ("teachers", "tap", "message"),
    [
        ({"a": {"type": "ToyNet"}, "b": {"type": "ToyNet"}}, "a.logits", r"model\.teachers\.b: no transfer reads"),
        ({"a": {"type": "ToyNet"}, "b": {"type": "ToyNet"}}, "logits", "'logits' begins with no teacher's name.*a, b"),
        ({"a": {"type": "ToyNet"}}, "a.logit", r"model\.teachers\.a: no tap 'logit'. Did you mean 'logits'"),
    ],
)
def test_faulty_names_of_several_teachers(teachers: dict[str, Any], tap: str, message: str) -> None:
    recipe = {"soft": {"student": "logits", "teacher": tap, "loss": {"type": "SoftTargets"}}}
    with pytest.raises(UserError, match=message):
        toys.distiller(teacher=None, teachers=teachers, transfers=recipe)


def test_teacher_and_teachers_exclude_each_other() -> None:
    with pytest.raises(UserError, match="give 'teacher' or 'teachers', not both"):
        toys.distiller(teachers={"a": {"type": "ToyNet"}})
    with pytest.raises(UserError, match="the transfers read a teacher, but there is none"):
        toys.distiller(teacher=None)
