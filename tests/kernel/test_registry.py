"""Kinds of building blocks, and errors that name the nearest."""

import subprocess
import sys

import pytest
import toys
from mmengine.registry import MODELS
from torch import nn

from kd_tasks.errors import UserError, nearest
from kd_tasks.losses import SoftTargets
from kd_tasks.registry import CONNECTORS, LOSSES, NETWORKS, TASK_MODELS, construct, kind_of


def test_a_registered_class_is_mmengines_too() -> None:
    assert MODELS.get("ToyNet") is toys.ToyNet
    assert NETWORKS.get("ToyNet") is toys.ToyNet
    assert NETWORKS.get(toys.ToyNet) is toys.ToyNet
    assert "ToyNet" in NETWORKS and "ToyNet" not in LOSSES
    assert kind_of("SoftTargets") is LOSSES and kind_of("Unheard") is None
    assert list(LOSSES) == sorted(LOSSES)


def test_the_same_class_may_be_registered_again() -> None:
    assert NETWORKS.register(toys.ToyNet) is toys.ToyNet


def test_every_loss_of_the_package_is_registered() -> None:
    assert LOSSES.get("SoftTargets") is SoftTargets
    assert "Loss" not in LOSSES and "AdversarialLoss" not in LOSSES


def test_nested_parts_are_built_first() -> None:
    loss = LOSSES.build({"type": "WGANGP", "critic": {"type": "ToyCritic"}})
    assert isinstance(loss.critic, toys.ToyCritic)


def test_a_task_model_builds_its_parts_itself() -> None:
    teacher = {"type": "ToyNet", "width": 6, "mean": (1, 2, 3), "std": (1, 2, 3), "prepare": {}}
    recipe = {"soft": {"on": "logits", "loss": {"type": "SoftTargets"}}}
    model = TASK_MODELS.build(
        {"type": "Distiller", "teacher": teacher, "student": {"type": "ToyNet"}, "transfers": recipe}, "model"
    )
    assert model.teachers["teacher"].preparation is not None


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"type": "ToyNett"}, "model.student: 'ToyNett' is not a known network. Did you mean 'ToyNet'?"),
        ({"type": "SoftTargets"}, "model.student: 'SoftTargets' is not a known network."),
        ({"width": 3}, "model.student: a network needs a 'type'."),
        ({"type": "ToyNet", "widht": 3}, "Did you mean 'width'? It takes: width, dropout"),
        ({"type": "ToyNet", "dropout": 3}, "model.student: dropout probability has to be between 0 and 1"),
        ({"type": "ToyNet", "width": "four"}, "model.student: "),
        ({"type": "no_such_package.Net"}, "model.student: 'no_such_package.Net' cannot be imported"),
        ({"type": "torch.nn.Conv2e"}, "model.student: 'torch.nn.Conv2e' cannot be imported"),
    ],
)
def test_faults_name_the_place_and_the_nearest(cfg: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        NETWORKS.build(cfg, "model.student")
    assert message in str(caught.value)


def test_a_missing_argument() -> None:
    with pytest.raises(UserError, match=r"here: Linear: missing a required argument: 'out_features'"):
        construct(nn.Linear, {"in_features": 3}, "here")


def test_a_dotted_name() -> None:
    assert NETWORKS.get("torch.nn.Conv2d") is nn.Conv2d


def test_nearest() -> None:
    assert nearest("conv1x", CONNECTORS) == " Did you mean 'Conv1x1'?"
    assert nearest("zzz", CONNECTORS) == ""


def test_importing_the_kernel_is_cheap_and_brings_no_plugin() -> None:
    code = (
        "import sys, kd_tasks; assert 'torch' not in sys.modules;"
        "import kd_tasks.losses; assert 'mmengine' not in sys.modules and 'torchvision' not in sys.modules;"
        "assert not [m for m in sys.modules if m.startswith('kd_') and not m.startswith('kd_tasks')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
