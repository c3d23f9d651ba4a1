"""The stacked hourglass: the authors' outputs and sizes, stages, image sizes, export."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_tasks.deploy.export import export
from kd_tasks.deploy.runtimes import load_network
from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from kd_tasks.task import TaskModel
from kd_tasks.vision.hourglass import Hourglass

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"
# what lies in our hourglass where the authors' list has the residuals 0, 1 and 2 (3 at the bottom) of a level
PLACES = ("upper", "before", "after")
BRANCH = {"bn1": "0.0", "conv1": "0.2", "bn2": "1.0", "conv2": "1.2", "bn3": "2.0", "conv3": "2.2"}


def small(**options: object) -> Hourglass:
    torch.manual_seed(0)
    sizes = {"points": 5, "stacks": 2, "channels": 16, "depth": 3}
    return Hourglass(**{**sizes, **options})  # type: ignore[arg-type]


def count(**options: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Hourglass(**options).parameters())  # type: ignore[arg-type]


def ours(name: str, depth: int = 4) -> str:
    """The name of a weight of FPD's network in ours."""
    name = re.sub(r"(?<=\.)(bn\d|conv\d)(?=\.)", lambda m: "branch." + BRANCH[m[1]], name)
    name = name.replace("downsample.0", "shortcut")
    name = re.sub(r"^conv1", "stem.0", re.sub(r"^bn1", "stem.1.0", name))
    name = re.sub(r"^layer(\d)\.0", lambda m: f"stem.{ {'1': 2, '2': 4, '3': 5}[m[1]] }", name)
    name = re.sub(r"^res\.(\d)", r"features.\1.0", name)
    name = re.sub(r"^fc\.(\d)\.0", r"features.\1.1", re.sub(r"^fc\.(\d)\.1", r"features.\1.2.0", name))
    name = re.sub(r"^fc_\.", "feature_returns.", re.sub(r"^score_\.", "score_returns.", name))
    name = re.sub(r"^score\.", "scores.", name)
    found = re.match(r"hg\.(\d)\.hg\.(\d)\.(\d)\.(\d)\.(.*)", name)
    if found is None:
        return name
    stack, level, place, block, rest = found.groups()
    within = ".inner" * (depth - 1 - int(level))
    where = "inner" if place == "3" else PLACES[int(place)]
    return f"stacks.{stack}{within}.{where}.{block}.{rest}"


def test_outputs_of_both_stacks_are_those_of_fpd() -> None:
    data = np.load(FIXTURES / "fpd_hourglass_forward.npz")
    hp = json.loads(str(data["hp"]))
    network = Hourglass(hp["joints"], hp["num_stacks"], hp["num_features"], hp["num_blocks"]).double().eval()
    state = {ours(k.removeprefix("param_")): torch.from_numpy(data[k]) for k in data.files if k.startswith("param_")}
    network.load_state_dict(state)
    seen: list[Tensor] = []
    network.scores[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        outputs = network(torch.from_numpy(data["in_x"]))
    assert list(outputs) == ["heatmaps"]
    np.testing.assert_allclose(outputs["heatmaps"], data["out"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(seen[0], data["out_stack0"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("params_f256_s4", {}),
        ("params_f256_s8", {"stacks": 8}),
        ("params_f128_s4", {"channels": 128}),
    ],
)
def test_parameter_counts_of_fpd(key: str, options: dict[str, int]) -> None:
    hp = json.loads(str(np.load(FIXTURES / "fpd_hourglass_forward.npz")["hp"]))
    assert count(points=16, **options) == hp[key]


def test_parameters_and_shapes_of_ts3() -> None:
    data = np.load(FIXTURES / "ts3_selection.npz")
    assert count(residuals=2, form="ts3") == json.loads(str(data["hp"]))["hg_params"]
    with torch.device("meta"):
        network = Hourglass(residuals=2, form="ts3").train()
        outputs = network(torch.empty(2, 3, 64, 64))  # two, since the innermost maps are single pixels
    names = ["heatmaps_1", "heatmaps_2", "heatmaps_3", "heatmaps"]
    assert [list(outputs[name].shape)[1:] for name in names] == data["out_hg_shape"][:, 1:].tolist()
    assert len(outputs) == 4


def test_a_light_hourglass_is_a_hundredth_of_the_usual_one() -> None:
    assert count(channels=32, stacks=2) == pytest.approx(0.12e6, rel=0.02)
    assert count(channels=32, stacks=2) * 100 < count()


@pytest.mark.parametrize("form", ["fpd", "ts3"])
@pytest.mark.parametrize("maps", [None, 6])
def test_stages_are_outputs_in_training_alone_and_every_weight_learns(form: str, maps: int | None) -> None:
    network = small(form=form, residuals=2, maps=maps).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    outputs = network.train()(images)
    assert {k: tuple(v.shape) for k, v in outputs.items()} == {
        "heatmaps": (2, maps or 5, 16, 24),
        "heatmaps_1": (2, maps or 5, 16, 24),
    }
    outputs["heatmaps"].square().mean().backward()
    lacking = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lacking == []
    assert list(network.eval()(images[:1])) == ["heatmaps"]


def test_a_tap_keeps_what_its_module_gave() -> None:
    network, kept = small().eval(), []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d):
            module.register_forward_hook(lambda m, i, output: kept.append((output, output.clone())))
    network(torch.randn(1, 3, 32, 32))
    assert len(kept) > 50
    assert all(torch.equal(*pair) for pair in kept)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_the_exported_file_gives_the_last_heatmaps_alone(format: str, tmp_path: Path) -> None:
    network = small().eval()
    network(torch.randn(2, 3, 64, 32))
    path = export(TaskModel(network), tmp_path / f"student.{format}", (64, 32), format)
    for batch in (1, 3):
        images = torch.randn(batch, 3, 64, 32)
        with torch.no_grad():
            expected = network(images)
            found = load_network(path)(images)
        assert list(found) == ["heatmaps"]
        torch.testing.assert_close(found["heatmaps"], expected["heatmaps"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 40), (48, 64), (16, 16)])
def test_a_size_that_cannot_be_halved_often_enough_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"multiples of 32 .* not {size[0]}x{size[1]}.*smaller depth"):
        small()(torch.zeros(1, 3, *size))
    assert small(depth=1)(torch.zeros(2, 3, *size))["heatmaps"].shape[-1] == size[1] // 4


def test_faults_of_a_person_are_named() -> None:
    with pytest.raises(UserError, match="stacks is at least 1, not 0"):
        Hourglass(stacks=0)
    with pytest.raises(UserError, match="multiple of 8, not 20"):
        Hourglass(channels=20)
    with pytest.raises(UserError, match=r"form 'ts4' is not known\. Did you mean 'ts3'"):
        NETWORKS.build({"type": "Hourglass", "form": "ts4"})
