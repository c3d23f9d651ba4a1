"""Lane networks: parameter counts and sizes of the papers, unpooling, messages, gradients, export."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from kd_lanes.enet import Bottleneck, unpooled
from kd_lanes.networks import SCNN, ENet, ENetSAD, ERFNet, LaneResNet
from kd_lanes.parts import Existence
from kd_lanes.scnn import DilatedVGG16, MessagePassing
from torch import nn
from torchvision.models import vgg16_bn

from kd_tasks.deploy.export import export
from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from kd_tasks.taps import list_taps
from kd_tasks.task import TaskModel

SMALL = {
    "enet": lambda **options: ENet(num_lanes=3, width=0.5, depth=(1, 3), **options),
    "enet_sad": lambda **options: ENetSAD(num_lanes=3, width=0.25, depth=(2, 4), **options),
    "enet_sad_shared": lambda **options: ENetSAD(num_lanes=3, width=0.5, depth=(1, 2), share=True, **options),
    "erfnet": lambda **options: ERFNet(num_lanes=3, width=0.5, **options),
    "scnn": lambda **options: SCNN(num_lanes=3, width=0.125, **options),
    "resnet18": lambda **options: LaneResNet("resnet18", num_lanes=3, width=0.25, **options),
}
STRIDES = {"scnn": 8, "resnet18": 4}


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def seeded(name, **options):
    """A small network whose normalisations have seen something."""
    torch.manual_seed(0)
    network = SMALL[name](**options)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return network


# --- Sizes and counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (lambda: ENetSAD(input_size=(288, 800)), 1.106),
        (lambda: ENetSAD(input_size=(288, 800), share=True), 0.817),
        (lambda: ENetSAD(input_size=(288, 800)).existence, 0.577),
        (lambda: ENet(exist=False), 0.350),
        (lambda: ERFNet(num_lanes=19, exist=False), 2.064),
        (lambda: ERFNet(input_size=(208, 976)), 2.609),
    ],
)
def test_parameter_counts_are_those_of_the_authors(build, millions):
    with torch.device("meta"):
        network = build()
    assert round(parameters(network) / 1e6, 3) == millions


def test_the_existence_branch_at_the_size_of_culane():
    """5 maps of 13 x 61 cells at 208 x 976."""
    with torch.device("meta"):
        assert ENetSAD(input_size=(208, 976)).existence.hidden.in_features == 3965


def test_the_blocks_of_enet_sad_have_the_sizes_of_the_paper():
    network = ENetSAD(input_size=(288, 800))
    taps = {tap.name: tap.shape[1:] for tap in list_taps(network, torch.zeros(1, 3, 288, 800))}
    expected = {
        "initial": (16, 144, 400),
        "e1": (64, 72, 200),
        "e2": (128, 36, 100),
        "e3": (128, 36, 100),
        "e4": (128, 36, 100),
        "d1": (64, 72, 200),
        "d2": (16, 144, 400),
        "logits": (5, 288, 800),
        "exist": (4,),
    }
    assert {name: tuple(taps[name]) for name in expected} == expected


def test_the_later_blocks_mix_kinds_of_convolutions():
    blocks = ENetSAD().e3.blocks
    kernels = [[tuple(conv.kernel_size) for conv in block.modules() if isinstance(conv, nn.Conv2d)] for block in blocks]
    dilations = [max(conv.dilation[0] for conv in block.modules() if isinstance(conv, nn.Conv2d)) for block in blocks]
    assert dilations == [1, 2, 1, 4, 1, 8, 1, 16]
    assert [(5, 1) in kernel for kernel in kernels] == [False, False, True, False, False, False, True, False]


def test_shared_blocks_have_one_set_of_weights_and_taps_of_their_own():
    shared = seeded("enet_sad_shared").eval()
    assert shared.e2.blocks is shared.e4.blocks
    taps = {tap.name: tap for tap in list_taps(shared, torch.rand(1, 3, 32, 48))}
    assert [taps[name].calls for name in ("e2", "e3", "e4")] == [1, 1, 1]
    own = seeded("enet_sad")
    assert own.e2.blocks is not own.e3.blocks


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("count", "size"), [(1, (32, 48)), (2, (64, 40))])
def test_outputs_in_training_and_testing(name, count, size):
    network = seeded(name)
    stride = STRIDES.get(name, 1)
    for mode in (True, False):
        outputs = network.train(mode)(torch.rand(count, 3, *size))
        assert {key: tuple(value.shape) for key, value in outputs.items()} == {
            "logits": (count, 4, size[0] // stride, size[1] // stride),
            "exist": (count, 3),
        }


@pytest.mark.parametrize("name", SMALL)
def test_the_existence_branch_can_be_left_out_or_made_for_a_size(name):
    images = torch.rand(2, 3, 32, 64)
    assert list(SMALL[name](exist=False)(images)) == ["logits"]
    made = SMALL[name](input_size=(32, 64))
    assert made(images)["exist"].shape == (2, 3)
    with pytest.raises(UserError, match=r"\(32, 64\).*input_size"):
        made(torch.rand(2, 3, 48, 64))


@pytest.mark.parametrize("name", ["scnn", "resnet18"])
def test_full_size_logits_are_those_that_criterion_and_decoder_enlarge(name):
    images = torch.rand(2, 3, 32, 64)
    coarse, full = (seeded(name, full_size=whole).eval()(images)["logits"] for whole in (False, True))
    torch.testing.assert_close(full, F.interpolate(coarse, (32, 64), mode="bilinear", align_corners=True))


def test_sides_that_do_not_fit_are_named():
    for name in ("enet", "enet_sad", "erfnet", "scnn"):
        with pytest.raises(UserError, match="multiples of 8, not 33 x 48"):
            SMALL[name]()(torch.rand(1, 3, 33, 48))
    assert SMALL["resnet18"]()(torch.rand(2, 3, 33, 47))["logits"].shape == (2, 4, 9, 12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "ENetSAD", "depth": (1, 9)}, "depth"),
        ({"type": "ENet", "width": 0.0}, "width"),
        ({"type": "ERFNet", "num_lanes": 0}, "num_lanes"),
        ({"type": "SCNN", "kernel": 8}, "odd"),
        ({"type": "SCNN", "width": 0.5, "pretrained": True}, "width"),
        ({"type": "LaneResNet", "backbone": "resnet19"}, "Did you mean 'resnet1"),
        ({"type": "ENet", "input_size": (8, 8)}, "too small"),
    ],
)
def test_faults_of_a_person_are_named(config, message):
    with pytest.raises(UserError, match=message):
        NETWORKS.build(config)


# --- Parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_unpooling_is_that_of_torch_in_value_and_gradient(layout):
    maps = torch.randn(2, 3, 6, 10, dtype=torch.float64).round(decimals=1).contiguous(memory_format=layout)  # with ties
    pooled, places = F.max_pool2d(maps, 2, return_indices=True)
    values = torch.randn_like(pooled)
    results = []
    for unpool in (unpooled, lambda v, p: F.max_unpool2d(v, p, 2)):
        given = values.clone().requires_grad_()
        result = unpool(given, places)
        result.square().sum().backward()
        results.append((result, given.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_bottleneck_adds_its_input():
    block = Bottleneck(16, dropout=0.0).eval()
    maps = torch.randn(2, 16, 5, 7)
    nn.init.zeros_(block.branch[-3].weight)  # the last normalisation: the branch is its bias, zero
    block.branch[-2].weight.data.fill_(0.5)
    torch.testing.assert_close(block(maps), F.prelu(maps, block.act.weight))


def messages_by_loops(maps, network):
    """Rows and columns written into place, one position after the other."""
    maps = maps.clone()
    _, _, height, width = maps.shape
    for i in range(1, height):
        maps[:, :, i] += F.relu(F.conv1d(maps[:, :, i - 1], network.down.weight, padding=4))
    for i in reversed(range(height - 1)):
        maps[:, :, i] += F.relu(F.conv1d(maps[:, :, i + 1], network.up.weight, padding=4))
    for j in range(1, width):
        maps[..., j] += F.relu(F.conv1d(maps[..., j - 1], network.right.weight, padding=4))
    for j in reversed(range(width - 1)):
        maps[..., j] += F.relu(F.conv1d(maps[..., j + 1], network.left.weight, padding=4))
    return maps


def test_messages_run_down_up_right_and_left():
    network = MessagePassing(6).double()
    for conv in (network.down, network.up, network.right, network.left):
        nn.init.normal_(conv.weight, std=0.2)
    maps = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(maps), messages_by_loops(maps, network))


def test_a_message_reaches_the_far_corner():
    network = MessagePassing(4)
    for conv in (network.down, network.up, network.right, network.left):
        nn.init.constant_(conv.weight, 0.1)
    dark, lit = torch.zeros(1, 4, 9, 30), torch.zeros(1, 4, 9, 30)
    lit[:, :, 0, 0] = 1
    with torch.no_grad():
        assert (network(lit) - network(dark))[0, :, -1, -1].abs().min() > 0


def test_fresh_messages_do_not_grow_over_a_hundred_slices():
    maps = torch.randn(1, 128, 26, 122).relu()
    with torch.no_grad():
        assert MessagePassing(128)(maps).std() < 2 * maps.std()


def test_the_backbone_of_scnn_takes_torchvisions_weights(tmp_path):
    torch.manual_seed(0)
    reference = vgg16_bn(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "vgg.pth")
    ours = DilatedVGG16(pretrained=str(tmp_path / "vgg.pth")).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = reference.features[:33](images)  # up to the fourth pooling
        torch.testing.assert_close(ours.features[:33](images), before)
        assert ours(images).shape == (1, 512, 4, 4)
        third = F.conv2d(before, reference.features[34].weight, reference.features[34].bias, padding=2, dilation=2)
        torch.testing.assert_close(ours.features[:35](images), third)


def test_existence_averages_class_probabilities():
    head = Existence(3, num_lanes=2, stride=8, input_size=(32, 48))
    maps = torch.randn(2, 3, 4, 6)
    shares = F.conv2d(maps, head.classes.weight, head.classes.bias).softmax(1)
    cells = shares.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    expected = F.linear(F.linear(cells.flatten(1), head.hidden.weight, head.hidden.bias).relu(), head.last.weight)
    torch.testing.assert_close(head(maps), expected + head.last.bias)


# --- Training and export ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_finite_gradient_in_channels_last(name):
    network = seeded(name).train().to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 96).to(memory_format=torch.channels_last)
    sum(output.pow(2).mean() for output in network(images).values()).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


@pytest.mark.parametrize("name", SMALL)
def test_memory_format_does_not_change_the_outputs(name):
    network, images = seeded(name).eval(), torch.rand(2, 3, 40, 56)
    with torch.no_grad():
        plain = network(images)
        last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    for key, value in plain.items():
        torch.testing.assert_close(last[key], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_taps_are_not_changed_by_what_follows(name):
    network, seen = seeded(name).eval(), []

    def keep(module, inputs, output):
        if isinstance(output, torch.Tensor):
            seen.append((output, output.clone()))

    for module in network.modules():
        module.register_forward_hook(keep)
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 48))
    assert len(seen) > 20
    assert all(torch.equal(*pair) for pair in seen)


@pytest.mark.parametrize("name", SMALL)
def test_exported_files_agree_with_torch(name, tmp_path):
    """The export compares with the network itself; here also at other batch sizes, from the file."""
    network = seeded(name).eval()
    model = TaskModel(network)
    before = copy.deepcopy(network.state_dict())
    onnx_file = export(model, tmp_path / "student.onnx", (32, 48))
    pt2_file = export(model, tmp_path / "student.pt2", (32, 48), format="pt2")
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    program = torch.export.load(pt2_file).module()
    for batch in (1, 4):
        images = torch.rand(batch, 3, 32, 48)
        with torch.no_grad():
            expected = network(images)
            loaded = program(images)
        given = dict(zip(expected, session.run(list(expected), {"image": images.numpy()}), strict=True))
        for key, value in expected.items():
            np.testing.assert_allclose(given[key], value.numpy(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(loaded[key], value, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())
