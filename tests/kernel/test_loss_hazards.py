"""What a training run does to a loss sooner or later, for every registered loss: value and gradient stay finite."""

import importlib
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kd_tasks import plugins
from kd_tasks.losses import AdversarialLoss, Loss
from kd_tasks.registry import CRITICS, LOSSES, Kind

for _plugin in plugins.discover():
    for _module in _plugin.modules:
        if _module.endswith(".losses"):
            importlib.import_module(_module)

Pair = tuple[Tensor, Tensor]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Losses whose value grows with the batch, as their docstrings say; all others are invariant to it.
SUMS_OVER_THE_BATCH = {"PixelWise"}

# Where a loss has no meaning, and what it says then.
UNDEFINED = {("PairWise-paper", "tiny"): "only one node"}


class PlainCritic(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, logits: Tensor) -> Tensor:
        return self.layers(logits).mean(dim=(1, 2, 3))


def shipped(kind: Kind) -> list[str]:
    """Names of what the project registers; other test modules register toys."""
    return [name for name in kind if kind.get(name).__module__.startswith("kd_")]


def builders() -> dict[str, Callable[[], Loss]]:
    """How to build every registered loss; one that takes a critic once with each critic."""
    found: dict[str, Callable[[], Loss]] = {}
    for name in shipped(LOSSES):
        cls = LOSSES.get(name)
        if "critic" not in inspect.signature(cls).parameters:
            found[name] = cls
            continue
        found[f"{name}-PlainCritic"] = lambda cls=cls: cls(PlainCritic())
        for critic in shipped(CRITICS):
            found[f"{name}-{critic}"] = lambda cls=cls, critic=critic: cls(CRITICS.get(critic)(width=4))
    return found


# Registered losses with their other settings.
SETTINGS: dict[str, tuple[str, dict[str, object]]] = {
    "PixelWise-mean": ("PixelWise", {"reduction": "mean"}),
    "PixelWise-warm": ("PixelWise", {"temperature": 4.0, "reduction": "mean"}),
    "LogitRegression-mean": ("LogitRegression", {"reduction": "mean"}),
    "Hint-half_sum": ("Hint", {"reduction": "half_sum"}),
    "Hint-half_channel_sum": ("Hint", {"reduction": "half_channel_sum"}),
    "AttentionTransfer-paper": ("AttentionTransfer", {"form": "paper"}),
    "AttentionTransfer-p1": ("AttentionTransfer", {"p": 1.0}),
    "AttentionTransfer-p4": ("AttentionTransfer", {"p": 4.0}),
    "PairWise-avg": ("PairWise", {"pooling": "avg", "detach_norm": False}),
    "PairWise-paper": ("PairWise", {"pool": 2, "pooling": "avg", "neighbours": 3, "detach_norm": False}),
    "PairWise-pixels": ("PairWise", {"pool": 1}),
}

BUILDERS = builders() | {
    key: lambda name=name, options=options: LOSSES.get(name)(**options) for key, (name, options) in SETTINGS.items()
}


def shape(loss: Loss, batch: int = 3, size: tuple[int, int] = (8, 8)) -> tuple[int, ...]:
    return (batch, 16) if loss.taps == "embeddings" else (batch, 4, *size)


def random_pair(loss: Loss, batch: int = 3, size: tuple[int, int] = (8, 8)) -> Pair:
    generator = torch.Generator().manual_seed(7)
    student, teacher = (torch.randn(shape(loss, batch, size), generator=generator) for _ in range(2))
    return student, teacher


def plain(loss: Loss) -> Pair:
    return random_pair(loss)


def zero_features(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    return torch.zeros_like(student), torch.zeros_like(teacher)


def zero_student(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    return torch.zeros_like(student), teacher


def zero_teacher(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    return student, torch.zeros_like(teacher)


def zero_sample(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    student[0], teacher[1] = 0, 0
    return student, teacher


def identical(loss: Loss) -> Pair:
    student, _ = random_pair(loss)
    return student, student.clone()


def identical_rows(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    student[1], teacher[1] = student[0], teacher[0]
    return student, teacher


def constant(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    return torch.ones_like(student), torch.full_like(teacher, -2.0)


def batch_of_one(loss: Loss) -> Pair:
    return random_pair(loss, batch=1)


def not_square_and_odd(loss: Loss) -> Pair:
    return random_pair(loss, size=(7, 5))


def wide(loss: Loss) -> Pair:
    return random_pair(loss, size=(3, 33))


def tiny(loss: Loss) -> Pair:
    return random_pair(loss, size=(2, 1))


def channels_last(loss: Loss) -> Pair:
    pair = random_pair(loss)
    return pair if loss.taps == "embeddings" else tuple(x.to(memory_format=torch.channels_last) for x in pair)


def bfloat16(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    return student.bfloat16(), teacher.bfloat16()


def float16(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    return student.half(), teacher.half()


def large_float16(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    return (6e4 * student.tanh()).half(), (6e4 * teacher.tanh()).half()


def saturated(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    return 1e4 * student.sign(), 1e4 * teacher.sign()


def opposed(loss: Loss) -> Pair:
    student, _ = random_pair(loss)
    return 1e4 * student.sign(), -1e4 * student.sign()


def dead_channel(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    student[:, 0] = 0
    teacher[:, 1] = 0
    return student, teacher


def dead_position(loss: Loss) -> Pair:
    student, teacher = random_pair(loss)
    student[..., :4] = 0
    teacher[..., 4:] = 0
    return student, teacher


HAZARDS = [
    plain,
    zero_features,
    zero_student,
    zero_teacher,
    zero_sample,
    identical,
    identical_rows,
    constant,
    batch_of_one,
    not_square_and_odd,
    wide,
    tiny,
    channels_last,
    bfloat16,
    float16,
    large_float16,
    saturated,
    opposed,
    dead_channel,
    dead_position,
]


def built(name: str, student: Tensor, teacher: Tensor) -> Loss:
    torch.manual_seed(0)
    loss = BUILDERS[name]()
    loss.prepare(student, teacher)
    return loss.to(student.device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hazard", HAZARDS, ids=lambda hazard: hazard.__name__)
@pytest.mark.parametrize("name", BUILDERS)
def test_value_and_gradient_are_finite(name: str, hazard: Callable[[Loss], Pair], device: str) -> None:
    student, teacher = (x.to(device) for x in hazard(BUILDERS[name]()))
    loss = built(name, student, teacher)
    student.requires_grad_()
    if (name, hazard.__name__) in UNDEFINED:
        with pytest.raises(ValueError, match=UNDEFINED[name, hazard.__name__]):
            loss(student, teacher)
        return
    value = loss(student, teacher)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    assert student.grad.isfinite().all()
    if isinstance(loss, AdversarialLoss):
        assert all(p.grad is None for p in loss.parameters())
        critic_value = loss.critic_loss(student, teacher)
        critic_value.backward()
        assert critic_value.isfinite()
        assert all(p.grad.isfinite().all() for p in loss.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "name", [name for name in shipped(LOSSES) if LOSSES.get(name).taps == "logits" and name in BUILDERS]
)
def test_logits_of_whole_images_work_or_are_refused_clearly(name: str) -> None:
    student, teacher = torch.randn(3, 10, requires_grad=True), torch.randn(3, 10)
    try:
        value = BUILDERS[name]()(student, teacher)
    except ValueError as error:
        assert name in str(error)
        assert "(3, 10)" in str(error)
        return
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", BUILDERS)
def test_ordinary_inputs_have_a_gradient_and_the_teacher_has_none(name: str) -> None:
    student, teacher = random_pair(BUILDERS[name]())
    loss = built(name, student, teacher)
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert student.grad.abs().max() > 0
    assert (teacher.grad is None) == loss.detach_teacher


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BUILDERS)
def test_autocast_changes_nothing(name: str, device: str) -> None:
    student, teacher = (x.to(device) for x in random_pair(BUILDERS[name]()))
    values = {}
    for enabled in (False, True):
        loss = built(name, student, teacher)
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            values[enabled] = [loss(student, teacher)]
            if isinstance(loss, AdversarialLoss):
                torch.manual_seed(1)
                values[enabled].append(loss.critic_loss(student, teacher))
    assert all(value.dtype == torch.float32 for value in values[True])
    assert values[True] == values[False]


@pytest.mark.parametrize("name", BUILDERS)
def test_half_precision_inputs_give_the_value_of_the_same_numbers_in_float32(name: str) -> None:
    student, teacher = (x.bfloat16() for x in random_pair(BUILDERS[name]()))
    assert built(name, student, teacher)(student, teacher) == built(name, student, teacher)(
        student.float(), teacher.float()
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_memory_format_changes_nothing(name: str) -> None:
    student, teacher = random_pair(BUILDERS[name]())
    if BUILDERS[name]().taps == "embeddings":
        pytest.skip("embeddings have no memory format")
    turned = [x.to(memory_format=torch.channels_last) for x in (student, teacher)]
    value = built(name, student, teacher)(student, teacher)
    torch.testing.assert_close(built(name, student, teacher)(*turned), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_batch_twice_over_has_the_value_that_the_docstring_promises(name: str) -> None:
    student, teacher = random_pair(BUILDERS[name]())
    once = built(name, student, teacher)(student, teacher)
    twice = built(name, student, teacher)(torch.cat([student, student]), torch.cat([teacher, teacher]))
    torch.testing.assert_close(twice, 2 * once if name in SUMS_OVER_THE_BATCH else once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_loss_differentiates_correctly(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = shape(BUILDERS[name](), batch=2, size=(4, 3))
    student, teacher = (torch.randn(sizes, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = built(name, student, teacher).double().eval()
    if getattr(loss, "detach_norm", False):
        pytest.skip("the gradient is not that of the value, on purpose")
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student.requires_grad_())
