"""Taps: what they read, when, and what they say about names that do not exist."""

import copy

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from kd_tasks.errors import UserError
from kd_tasks.taps import Taps, evaluating, list_taps

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """A ResNet block behind a stem: `bn2` is overwritten by `out += identity`, then by an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = BasicBlock(4, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"maps": self.block(self.stem(images))}


class Odd(nn.Module):
    """A module that runs twice, one that gives a tuple, one that never runs, and an in-place dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.lstm = nn.LSTM(3, 3)
        self.idle = nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 3, 1)
        self.dropout = nn.Dropout(0.5, inplace=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.twice(self.twice(images))
        sequence, _ = self.lstm(maps.mean(3).permute(2, 0, 1))
        return {"maps": self.dropout(self.last(maps)), "sequence": sequence}


def read(network: nn.Module, *names: str, images: Tensor = IMAGES) -> dict[str, Tensor]:
    return Taps(network, names, images).run(images)[1]


def test_outputs_modules_and_inputs_are_those_of_the_pass() -> None:
    network = toys.ToyNet().eval()
    tapped = read(network, "logits", "stage1", "stage2:in", "head:in", "head")
    first = network.stage1(IMAGES)
    pooled = network.stage2(first).mean((2, 3))
    assert torch.equal(tapped["stage1"], first)
    assert torch.equal(tapped["stage2:in"], first)
    assert torch.equal(tapped["head:in"], pooled)
    assert torch.equal(tapped["head"], tapped["logits"])
    assert torch.equal(tapped["logits"], network.head(pooled))


def test_run_gives_the_same_outputs_as_the_network() -> None:
    network = toys.ToyNet().eval()
    outputs, _ = Taps(network, ["stage1.0"], IMAGES).run(IMAGES)
    assert torch.equal(outputs["logits"], twin(network)(IMAGES)["logits"])


def twin(network: nn.Module) -> nn.Module:
    other = toys.ToyNet().eval()
    other.load_state_dict(network.state_dict())
    return other


@pytest.mark.parametrize("training", [False, True])
def test_a_tensor_that_is_overwritten_later_is_read_as_it_was(training: bool) -> None:
    network = toys.randomised(Blocks()).train(training)
    reference = copy.deepcopy(network)
    tapped = read(network, "stem", "block.conv1", "block.bn1", "block.bn2", "block")
    stem = reference.stem(IMAGES)
    block = reference.block
    conv1 = block.conv1(stem)
    bn1 = block.bn1(conv1)
    bn2 = block.bn2(block.conv2(F.relu(bn1)))
    expected = {"stem": stem, "block.conv1": conv1, "block.bn1": bn1, "block.bn2": bn2, "block": F.relu(bn2 + stem)}
    for name, value in expected.items():
        torch.testing.assert_close(tapped[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_gradient_flows_through_a_copied_tap() -> None:
    network = Blocks()
    read(network, "block.bn2")["block.bn2"].square().sum().backward()
    assert network.block.conv2.weight.grad.abs().sum() > 0
    assert network.stem.weight.grad.abs().sum() > 0


def test_dropout_in_place_does_not_change_the_tap_before_it() -> None:
    network = Odd().train()
    tapped = read(network, "last", "maps")
    assert (tapped["maps"] == 0).float().mean() > 0.3
    assert (tapped["last"] != 0).all()


def test_an_overwriting_in_train_mode_alone_is_refused() -> None:
    class Shifting(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.add_(1) if self.training else maps + 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.shift = nn.Conv2d(3, 3, 1), Shifting()

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"maps": self.shift(self.conv(images))}

    taps = Taps(Net(), ["conv"], IMAGES, "model.student")
    with pytest.raises(UserError, match=r"model\.student: the tensor of the tap 'conv' is overwritten in train mode"):
        taps.run(IMAGES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stage3", "no tap 'stage3'. Did you mean 'stage"),
        ("stage1.0.conv", "no tap 'stage1.0.conv'. Did you mean 'stage1."),
        ("logit", "no tap 'logit'. Did you mean 'logits'?"),
        ("stage9:in", "no tap 'stage9:in'. Did you mean 'stage"),
        ("", "no tap ''"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Taps(toys.ToyNet(), [name], IMAGES, "model.student")
    assert str(caught.value).startswith("model.student: ")
    assert message in str(caught.value)
    assert "stage2" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("twice", "'twice' runs 2 times in one pass"),
        ("twice:in", "runs 2 times in one pass"),
        ("lstm", "the tap 'lstm' is a tuple, not a tensor"),
        ("idle", "'idle' does not run"),
    ],
)
def test_taps_that_mean_no_one_tensor_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Taps(Odd(), [name], IMAGES)


def test_a_network_without_named_outputs_is_refused() -> None:
    with pytest.raises(UserError, match="gives a dict of named outputs, but this one gives a Tensor"):
        Taps(nn.Conv2d(3, 3, 1), ["logits"], IMAGES, "model.student")


def test_the_probe_changes_neither_buffers_nor_modes_nor_random_numbers() -> None:
    network = toys.ToyNet(dropout=0.5).train()
    network.stage1.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before = copy.deepcopy(network.state_dict())
    odd = Odd()
    random_state = torch.get_rng_state()
    Taps(network, ["stage1", "stage2"], IMAGES)
    Taps(odd, ["last"], IMAGES)
    list_taps(network, IMAGES)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert any("num_batches_tracked" in key for key in before)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(torch.get_rng_state(), random_state)


def test_nothing_is_recorded_outside_of_run() -> None:
    network = toys.ToyNet()
    taps = Taps(network, ["stage1"], IMAGES)
    network(IMAGES)
    assert taps._recording is None
    _, tapped = taps.run(2 * IMAGES)
    assert torch.equal(tapped["stage1"], network.stage1(2 * IMAGES))


def test_a_copied_network_has_taps_of_its_own() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = toys.ToyNet().eval()
            self.taps = Taps(self.network, ["stage1"], IMAGES)

    original = Holder()
    copied = copy.deepcopy(original)
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert copied.taps.network is copied.network
    assert not copied.taps.run(IMAGES)[1]["stage1"].any()
    assert original.taps.run(IMAGES)[1]["stage1"].any()


def test_list_taps_names_what_can_be_tapped() -> None:
    network = toys.ToyNet()
    listed = list_taps(network, IMAGES)
    assert not any(module._forward_hooks for module in network.modules())
    shapes = {tap.name: tap.shape for tap in listed}
    assert shapes["stage1"] == (2, 4, 16, 16)
    assert shapes["stage2.1"] == (2, 8, 8, 8)
    assert shapes["logits"] == (2, toys.CLASSES)
    assert next(tap.kind for tap in listed if tap.name == "stage2.1") == "BatchNorm2d"
    assert next(tap.kind for tap in listed if tap.name == "logits") == "output"
    names = [tap.name for tap in listed if tap.calls == 1]
    tapped = read(network, *names)
    assert {name: tuple(value.shape) for name, value in tapped.items()} == {name: shapes[name] for name in names}
    assert next(tap.calls for tap in list_taps(Odd(), IMAGES) if tap.name == "twice") == 2


def test_evaluating_gives_every_module_its_mode_back_after_an_error() -> None:
    network = toys.ToyNet().train()
    network.stage2.eval()
    with pytest.raises(RuntimeError), evaluating(network):
        assert not network.training
        raise RuntimeError
    assert network.training and network.stage1.training and not network.stage2.training
