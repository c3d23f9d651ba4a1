"""Networks prepared for inference: the same outputs and taps, from a copy."""

import copy

import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models.resnet import BasicBlock

from kd_tasks.errors import UserError
from kd_tasks.inference import Preparation, folded, prepare_for_inference
from kd_tasks.taps import Taps
from kd_tasks.teachers import FrozenTeacher

PROBE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


class Blocks(nn.Module):
    """A stem and a residual block with a shortcut that has a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        shortcut = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.block = BasicBlock(4, 8, stride=2, downsample=shortcut)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.block(self.stem(images)))}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return toys.randomised(Blocks()).eval().requires_grad_(False)


def norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_every_batch_norm_is_folded_and_the_outputs_stay(network: nn.Module) -> None:
    names = ["stem", "block", "block.bn1", "block.downsample.1", "block.conv1:in"]
    expected, expected_taps = Taps(copy.deepcopy(network), names, PROBE).run(IMAGES)
    prepared = prepare_for_inference(network, Preparation(channels_last=False), names, PROBE)
    outputs, tapped = Taps(prepared, names, PROBE).run(IMAGES)
    assert not norms(prepared)
    close(outputs["logits"], expected["logits"])
    for name in names:
        close(tapped[name], expected_taps[name])


@pytest.mark.parametrize(
    ("tap", "kept"), [("block.conv1", "block.bn1"), ("block.bn2:in", "block.bn2"), ("stem.0", "stem.1")]
)
def test_a_convolution_that_a_tap_reads_is_not_folded(network: nn.Module, tap: str, kept: str) -> None:
    expected = Taps(copy.deepcopy(network), [tap], PROBE).run(IMAGES)[1][tap]
    prepared = prepare_for_inference(network, Preparation(), [tap], PROBE)
    assert norms(prepared) == [kept]
    close(Taps(prepared, [tap], PROBE).run(IMAGES)[1][tap], expected)


def test_the_original_is_left_alone(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    prepare_for_inference(network, Preparation(dtype="bfloat16"), [], PROBE)
    assert len(norms(network)) == 4
    for key, value in network.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_channels_last(network: nn.Module) -> None:
    how = Preparation(fold_batchnorm=False)
    prepared = prepare_for_inference(network, how, [], PROBE)
    assert prepared.block.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert how.input(IMAGES).is_contiguous(memory_format=torch.channels_last)
    close(prepared(how.input(IMAGES))["logits"], network(IMAGES)["logits"])
    assert prepared(how.input(IMAGES))["logits"].is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_handed_on_as_float32(network: nn.Module) -> None:
    teacher = FrozenTeacher(network, prepare={"dtype": "bfloat16"})
    teacher.connect(["logits", "block"], PROBE)
    tapped = teacher.run(IMAGES)
    assert next(teacher.network.parameters()).dtype == torch.bfloat16
    expected, expected_taps = Taps(network, ["block"], PROBE).run(IMAGES)
    for name, value in {**expected, **expected_taps}.items():
        assert tapped[name].dtype == torch.float32
        assert (tapped[name] - value).norm() < 0.03 * value.norm()
        assert not torch.equal(tapped[name], value)


class Awkward(nn.Module):
    """Convolutions that must not be folded into what follows: each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.used_twice = nn.Conv2d(3, 4, 1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.added = nn.Conv2d(3, 4, 1)
        self.norm_c = nn.BatchNorm2d(4)
        self.active = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.norm_d = nn.BatchNorm2d(4)
        self.weighted = weight_norm(nn.Conv2d(3, 4, 1))
        self.norm_e = nn.BatchNorm2d(4)
        self.batch = nn.Conv2d(3, 4, 1)
        self.norm_f = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        shared = self.used_twice(images)
        added = self.added(images)
        maps = self.norm_a(shared) + self.norm_b(shared) + self.norm_c(added) + added
        maps = maps + self.norm_d(self.relu(self.active(images))) + self.norm_e(self.weighted(images))
        return {"maps": maps + self.norm_f(self.batch(images))}


def test_what_cannot_be_folded_stays_right() -> None:
    network = Awkward()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            toys.randomised(module)
    network.eval().requires_grad_(False)
    close(folded(network, [], PROBE)(IMAGES)["maps"], network(IMAGES)["maps"])


def test_a_reused_convolution_is_not_folded() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"maps": self.norm(self.conv(self.conv(images)))}

    network = toys.randomised(Reused()).eval().requires_grad_(False)
    result = folded(network, [], PROBE)
    assert norms(result) == ["norm"]
    close(result(IMAGES)["maps"], network(IMAGES)["maps"])


def test_unknown_dtype() -> None:
    with pytest.raises(UserError, match="'int8' is none of bfloat16, float16"):
        Preparation(dtype="int8")
