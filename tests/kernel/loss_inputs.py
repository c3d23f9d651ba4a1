"""How to build every registered loss and what to feed it with, out of the registry: no new loss escapes the tests."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from loss_cases import merged
from torch import Tensor, nn

from kd_tasks import plugins
from kd_tasks.losses import Loss
from kd_tasks.losses.base import TAPS
from kd_tasks.registry import CRITICS, LOSSES, Kind

for _plugin in plugins.discover():
    for _module in _plugin.modules:
        if _module.endswith(".losses"):
            importlib.import_module(_module)

CLASSES = 4
Side = Any  # a tensor, a list of tensors, or None for the teacher of a loss that reads none
Size = tuple[int, int]


@dataclass(frozen=True)
class Inputs:
    """What a loss is called with."""

    student: Side
    teacher: Side
    context: dict[str, Any]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """With `change` applied to every tensor of both sides; the context stays."""
        return Inputs(each(change, self.student), each(change, self.teacher), self.context)


class PlainCritic(nn.Module):
    """A critic without any layer that looks beyond a sample."""

    def __init__(self, channels: int = CLASSES) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, logits: Tensor) -> Tensor:
        return self.layers(logits).mean(dim=(1, 2, 3))


def shipped(kind: Kind) -> list[str]:
    """Names of what the project registers; other test modules register toys."""
    return [name for name in kind if kind.get(name).__module__.startswith("kd_")]


def registered() -> dict[str, Callable[[], Loss]]:
    """How to build every registered loss; one that needs a critic once with each critic."""
    found: dict[str, Callable[[], Loss]] = {}
    for name in shipped(LOSSES):
        cls = LOSSES.get(name)
        needed = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
        if needed == ["critic"]:
            found[f"{name}-PlainCritic"] = lambda cls=cls: cls(PlainCritic())
            for critic in shipped(CRITICS):
                found[f"{name}-{critic}"] = lambda cls=cls, critic=critic: cls(CRITICS.get(critic)(width=4))
        else:
            found[name] = cls
    return found


BUILDERS: dict[str, Callable[[], Loss]] = registered() | merged("SETTINGS")
SHAPES = merged("SHAPES")
CONTEXT = merged("CONTEXT")
MADE = merged("MADE")

MAPS = {"maps", "several maps", "logits"}


def shapes(loss: Loss, batch: int, size: Size) -> tuple[Any, Any]:
    """Shapes of the student's and the teacher's side."""
    own = SHAPES.get(type(loss).__name__)
    if own is not None:
        return own(batch, size)
    one = {
        "logits": (batch, CLASSES, *size),
        "several logits": (batch, CLASSES),
        "maps": (batch, 4, *size),
        "several maps": (batch, 4, *size),
        "embeddings": (batch, 16),
        "several embeddings": (batch, 16),
        "outputs": (batch, 6),
        "tokens": (batch, 5, 16),
        "attention": (batch, 2, 5, 5),
    }[loss.taps]
    both = [one, one, one] if loss.taps.startswith("several") else one
    return both, both


def random_inputs(loss: Loss, batch: int = 4, size: Size = (8, 8), dtype: torch.dtype = torch.float32) -> Inputs:
    """Normal numbers in the shapes that `loss` reads, and the context that it names."""
    assert loss.taps in TAPS
    generator = torch.Generator().manual_seed(7)
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    student, teacher = (side(draw, shape) for shape in shapes(loss, batch, size))
    teacher = teacher if loss.reads_teacher else None
    return Inputs(student, teacher, {name: context(name, student, needed) for name, needed in wanted(loss).items()})


def side(draw: Callable[..., Tensor], shape: Any) -> Side:
    """Tensors of `shape`, a list of them for a list of shapes."""
    return [draw(s) for s in shape] if isinstance(shape, list) else draw(shape)


def wanted(loss: Loss) -> dict[str, bool]:
    """The context that `loss` cannot do without, and what of the rest the tests can make."""
    return {name: needed for name, needed in loss.context_names().items() if needed or name in CONTEXT}


def context(name: str, student: Side, needed: bool) -> Tensor:
    """A context tensor called `name`."""
    first = leaves(student)[0]
    if name in CONTEXT:
        return CONTEXT[name](first)
    generator = torch.Generator().manual_seed(11)
    if name == "label":
        return torch.randint(0, CLASSES, (len(first), *first.shape[2:]), generator=generator)
    if name == "index":
        return torch.arange(len(first))
    if name == "image":
        return torch.randn(len(first), 3, 16, 16, generator=generator)
    raise KeyError(f"the tests cannot make the context {name!r}: add it to CONTEXT of a module of loss_cases")


def each(change: Callable[[Tensor], Tensor], value: Side) -> Side:
    """`change` of every tensor of a side."""
    if value is None:
        return None
    return [change(v) for v in value] if isinstance(value, list) else change(value)


def leaves(value: Side) -> list[Tensor]:
    """The tensors of a side."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def built(name: str, inputs: Inputs, device: str = "cpu") -> Loss:
    """The loss called `name`, its sizes taken from `inputs`, always with the same weights."""
    torch.manual_seed(0)
    loss = BUILDERS[name]()
    loss.prepare(inputs.student, inputs.teacher, **inputs.context)
    return loss.to(device)


def valued(loss: Loss, inputs: Inputs) -> Tensor:
    """The loss of `inputs`, always with the same random draws."""
    torch.manual_seed(1)
    return called(loss, inputs)


def called(loss: Loss, inputs: Inputs) -> Tensor:
    """The loss of `inputs`, or of what `MADE` makes of them."""
    make = MADE.get(type(loss).__name__, lambda *parts: parts)
    student, teacher, context = make(inputs.student, inputs.teacher, inputs.context)
    return loss(student, teacher, **context)


def criticised(loss: Any, inputs: Inputs) -> Tensor:
    """The critic's objective, always with the same random draws."""
    torch.manual_seed(1)
    return loss.critic_loss(inputs.student, inputs.teacher, **inputs.context)
