"""Networks of re-identification: published sizes, outputs, taps, the neck, pretrained weights, export."""

import copy

import onnx
import pytest
import torch
from kd_reid.criterion import ReIDLoss
from kd_reid.decoder import EmbeddingDecoder
from kd_reid.networks import GeneralisedMean, OSNet, ReIDNetwork, SmallReIDNet
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, resnet50

from kd_tasks.deploy.artefact import read_manifest
from kd_tasks.deploy.export import export
from kd_tasks.deploy.runtimes import load_network
from kd_tasks.distiller import Distiller
from kd_tasks.errors import UserError
from kd_tasks.evaluation.cost import multiply_adds
from kd_tasks.registry import NETWORKS
from kd_tasks.task import TaskModel
from kd_tasks.vision.backbones import MobileNetV2, build_backbone

SMALL = {
    "resnet18": lambda classes: ReIDNetwork("resnet18", classes, width_multiplier=0.25),
    "resnet50_gem": lambda classes: ReIDNetwork("resnet50", classes, 24, pooling="gem", width_multiplier=0.25),
    "mobilenet": lambda classes: ReIDNetwork("mobilenet_v2", classes, 24, width_multiplier=0.25),
    "osnet": lambda classes: OSNet(classes, width=24, width_multiplier=0.25),
    "small": lambda classes: SmallReIDNet(classes, width=24),
    "small_without_neck": lambda classes: SmallReIDNet(classes, width=None, width_multiplier=0.5, neck=False, depth=2),
}
WIDTHS = {"resnet18": 128, "small_without_neck": 64}


def seeded(name: str, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    network = SMALL[name](classes)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return network


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def images(batch: int = 3, height: int = 64, width: int = 32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("multiplier", "millions"), [(1.0, 978.9), (0.75, 571.8), (0.5, 272.9), (0.25, 82.3)])
def test_osnet_has_the_published_multiply_adds(multiplier, millions):
    """Of the paper's table of shrunk models, for 256x128 pixels."""
    with torch.device("meta"):
        network = OSNet(width_multiplier=multiplier)
    network = network.to_empty(device="cpu")
    assert multiply_adds(network, (1, 3, 256, 128)) / 1e6 == pytest.approx(millions, abs=0.06)
    assert count(network) / 1e6 == pytest.approx({1.0: 2.2, 0.75: 1.3, 0.5: 0.6, 0.25: 0.2}[multiplier], abs=0.05)


@pytest.mark.parametrize(
    ("backbone", "width", "reference"),
    [("resnet50", 2048, resnet50), ("resnet18", 512, resnet18), ("mobilenet_v2", 1280, mobilenet_v2)],
)
def test_a_network_is_torchvisions_body_with_a_neck_and_a_classifier(backbone, width, reference):
    with torch.device("meta"):
        network, body = ReIDNetwork(backbone, 751), reference()
        outputs = network(torch.empty(2, 3, 256, 128))
        last = network.backbone(torch.empty(2, 3, 256, 128))[-1]
    linear = 1000 * width + 1000
    assert count(network) == count(body) - linear + 2 * width + 751 * width
    assert tuple(last.shape) == (2, width, 16, 8)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "embedding": (2, width),
        "features": (2, width),
        "logits": (2, 751),
    }


@pytest.mark.parametrize(("last_stride", "size"), [(1, (16, 8)), (2, (8, 4))])
@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2"])
def test_last_stride_sets_the_last_resolution_without_dilation(backbone, last_stride, size):
    with torch.device("meta"):
        network = ReIDNetwork(backbone, last_stride=last_stride)
        stages = network.backbone(torch.empty(1, 3, 256, 128))
    assert tuple(stages[3].shape[2:]) == size
    assert tuple(stages[2].shape[2:]) == (16, 8)
    assert {m.dilation for m in network.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}


def test_dense_tasks_still_get_dilated_backbones():
    with torch.device("meta"):
        dense, plain = build_backbone("resnet18", 16), build_backbone("resnet18", 16, dilated=False)
    assert dense.layer4[0].conv2.dilation == (2, 2)
    assert plain.layer4[0].conv2.dilation == (1, 1)
    assert MobileNetV2(16).channels[-1] == 320


def test_width_multiplier_makes_a_teacher_and_a_student_of_the_small_network():
    large, usual, narrow = (count(SmallReIDNet(width_multiplier=factor)) for factor in (2.0, 1.0, 0.5))
    assert large > 3.5 * usual > 3.5 * 3.5 * narrow
    strided = [
        m
        for factor in (0.1, 0.5, 1.0)
        for m in SmallReIDNet(width_multiplier=factor).modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1)
    ]
    assert len(strided) == 6
    assert all(m.in_channels % 16 == 0 and m.out_channels % 16 == 0 for m in strided)


# --- Outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(64, 32), (71, 45)])
def test_outputs_are_the_same_in_both_modes(name, size):
    network, width = seeded(name), WIDTHS.get(name, 24)
    for mode in (True, False):
        outputs = network.train(mode)(images(3, *size))
        assert {k: tuple(v.shape) for k, v in outputs.items()} == {
            "embedding": (3, width),
            "features": (3, width),
            "logits": (3, 5),
        }
    assert list(seeded(name, classes=0)(images())) == ["embedding", "features"]


@pytest.mark.parametrize("name", SMALL)
def test_every_trained_parameter_gets_a_finite_gradient_in_channels_last(name):
    network = seeded(name).train().to(memory_format=torch.channels_last)
    criterion = ReIDLoss()
    terms = criterion(network(images(4).to(memory_format=torch.channels_last)), {"label": torch.tensor([0, 0, 3, 3])})
    sum(terms.values()).backward()
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert set(dict(network.named_parameters())) - set(trained) == (set() if "without" in name else {"neck.bias"})


def test_the_neck_normalises_with_its_bias_at_zero():
    network = seeded("small").train()
    outputs = network(images(16))
    features = outputs["features"]
    by_hand = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(outputs["embedding"], by_hand, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs["logits"], outputs["embedding"] @ network.classifier.weight.T)
    assert torch.equal(network.neck.bias, torch.zeros(24))
    assert network.classifier.bias is None
    assert SmallReIDNet(2000).classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_without_neck_the_embedding_is_the_feature():
    outputs = seeded("small_without_neck")(images())
    assert torch.equal(outputs["embedding"], outputs["features"])


def test_generalised_mean_lies_between_average_and_maximum():
    maps = torch.rand(2, 3, 4, 5) + 0.1
    torch.testing.assert_close(GeneralisedMean(1.0)(maps), maps.mean((2, 3)))
    torch.testing.assert_close(GeneralisedMean(200.0)(maps), maps.amax((2, 3)), rtol=0.02, atol=0)
    torch.testing.assert_close(GeneralisedMean(3.0)(maps), (maps**3).mean((2, 3)) ** (1 / 3))
    dead = torch.zeros(1, 2, 3, 3, requires_grad=True)
    GeneralisedMean()(dead).sum().backward()
    assert torch.isfinite(dead.grad).all()


def test_osnets_gate_is_shared_by_its_streams():
    block = OSNet(width_multiplier=0.25).backbone.layer1[0]
    maps = torch.rand(2, 16, 8, 4)
    block.eval()
    reduced = block.reduce(maps)
    streams = [stream(reduced) for stream in block.streams]
    summed = sum(maps * block.gate.weights(maps.mean((2, 3), keepdim=True)) for maps in streams)
    torch.testing.assert_close(block(maps), torch.relu(block.restore(summed) + block.shortcut(maps)))
    assert [sum(isinstance(m, nn.ReLU) for m in stream.modules()) for stream in block.streams] == [1, 2, 3, 4]


# --- Weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "reference"), [("resnet18", resnet18), ("mobilenet_v2", mobilenet_v2)])
def test_torchvision_weights_give_torchvisions_features(backbone, reference, tmp_path):
    torch.manual_seed(0)
    body = reference().eval()
    torch.save(body.state_dict(), tmp_path / "weights.pth")
    network = ReIDNetwork(backbone, 7, last_stride=2, neck=False, pretrained=str(tmp_path / "weights.pth")).eval()
    seen: list[Tensor] = []
    classifier = body.fc if backbone == "resnet18" else body.classifier
    classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        body(images(2, 128, 64))
        found = network(images(2, 128, 64))["embedding"]
    torch.testing.assert_close(found, seen[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"type": "ReIDNetwork", "backbone": "resnet51"}, "resnet50"),
        ({"type": "ReIDNetwork", "last_stride": 3}, "last_stride"),
        ({"type": "ReIDNetwork", "pooling": "gme"}, "gem"),
        ({"type": "ReIDNetwork", "width_multiplier": 0.5, "pretrained": True}, "pretrained=False"),
        ({"type": "ReIDNetwork", "backbone": "resnet18", "pretrained": "nowhere.pth"}, "nowhere.pth"),
        ({"type": "OSNet", "width": 0}, "width"),
        ({"type": "SmallReIDNet", "depth": 0}, "depth"),
        ({"type": "SmallReIDNet", "num_classes": -1}, "num_classes"),
    ],
)
def test_wrong_arguments_are_one_clear_message(arguments, words):
    with pytest.raises(UserError, match=words):
        NETWORKS.build(arguments, "model.network")


# --- In the kernel ---------------------------------------------------------------------------------------------------


def test_a_frozen_teacher_gives_every_output_and_the_stages():
    recipe = {
        "soft": {"on": "logits", "loss": {"type": "SoftTargets"}},
        "relations": {"on": "features", "loss": {"type": "RKDDistance"}},
        "similar": {"student": "embedding", "teacher": "neck:in", "loss": {"type": "SimilarityPreserving"}},
        "maps": {"on": "backbone.layer3", "connector": "conv1x1", "loss": {"type": "Hint"}},
    }
    teacher = {"type": "SmallReIDNet", "num_classes": 5, "width_multiplier": 2}
    model = Distiller(seeded("small"), recipe, teacher=teacher)
    terms = model.losses(images(4), {"label": torch.zeros(4, dtype=torch.long)})
    assert sorted(terms) == ["kd.maps", "kd.relations", "kd.similar", "kd.soft"]


@pytest.mark.parametrize(
    ("name", "format"),
    [("small", "onnx"), ("resnet50_gem", "onnx"), *((name, "pt2") for name in SMALL if name != "resnet18")],
)
def test_the_exported_file_gives_the_embedding_alone(name, format, tmp_path):
    network = seeded(name).eval()
    before = copy.deepcopy(network.state_dict())
    path = export(TaskModel(network, decoder=EmbeddingDecoder()), tmp_path / f"student.{format}", (64, 32), format)
    assert [spec.name for spec in read_manifest(path).outputs] == ["embedding"]
    with torch.no_grad():
        expected = network(images(5))
        found = load_network(path)(images(5))
    assert list(found) == ["embedding"]
    torch.testing.assert_close(found["embedding"], expected["embedding"], atol=1e-4, rtol=1e-4)
    assert list(expected) == ["embedding", "features", "logits"]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_exported_file_has_no_classifier(tmp_path):
    paths = []
    for classes in (0, 4000):
        folder = tmp_path / str(classes)
        folder.mkdir()
        paths.append(export(TaskModel(SmallReIDNet(classes)), folder / "student.onnx", (64, 32)))
    assert abs(paths[0].stat().st_size - paths[1].stat().st_size) < 1000
    assert not any("classifier" in weights.name for weights in onnx.load(paths[1]).graph.initializer)
