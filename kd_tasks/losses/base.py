"""What all losses share: the call, the precision, the detached teacher, the checks of shapes."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Loss(nn.Module, ABC):
    """Base of all distillation losses: `loss(student, teacher, **context) -> scalar`.

    A subclass writes `compute`, and its formula is all that stands there. The base class
    - leaves autocast and lifts bfloat16 and float16 to float32 (float64 stays float64),
    - detaches the teacher, unless `detach_teacher` is off,
    - passes on of the context (labels, masks, the image) what `compute` names.

    The class attributes `paper`, `year` and `taps` feed `kd-tasks list losses`.
    """

    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    taps: ClassVar[str] = ""
    detach_teacher: ClassVar[bool] = True

    @classmethod
    @functools.cache
    def context_names(cls) -> dict[str, bool]:
        """Names of the context that `compute` reads, each with whether it must be given."""
        parameters = list(inspect.signature(cls.compute).parameters.values())[3:]
        return {p.name: p.default is inspect.Parameter.empty for p in parameters}

    def prepare(self, student: Tensor, teacher: Tensor, **context: Any) -> None:
        """Create parameters whose sizes depend on the inputs. Called once, with probed tensors, before training."""

    def forward(self, student: Tensor, teacher: Tensor, **context: Any) -> Tensor:
        """The loss, a scalar.

        Raises:
            ValueError: for shapes that do not fit, or context that `compute` needs and the call lacks.
        """
        if self.detach_teacher:
            teacher = detached(teacher)
        chosen = self.choose(context)
        with torch.autocast(_device_of(student), enabled=False):
            return self.compute(full_precision(student), full_precision(teacher), **chosen)

    def choose(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Of `context`, what `compute` names, in full precision."""
        names = self.context_names()
        missing = [name for name, needed in names.items() if needed and name not in context]
        if missing:
            raise ValueError(f"{type(self).__name__} needs {', '.join(missing)} beside the student and the teacher.")
        return {name: full_precision(value) for name, value in context.items() if name in names}

    @abstractmethod
    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The formula, in full precision. Further parameters are context, given by name."""


class AdversarialLoss(Loss):
    """A loss with a critic that is trained against the student by an optimiser of its own.

    `compute` is the student's term and must leave no gradient in the critic's favour; `critic_loss` is what the critic
    minimises, on detached student and teacher tensors.
    """

    critic: nn.Module

    def critic_loss(self, student: Tensor, teacher: Tensor, **context: Any) -> Tensor:
        """The critic's objective, in full precision, with both inputs detached."""
        chosen = self.choose(context)
        with torch.autocast(_device_of(student), enabled=False):
            return self.compute_critic(full_precision(detached(student)), full_precision(detached(teacher)), **chosen)

    @abstractmethod
    def compute_critic(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The critic's formula; the same context names as `compute`."""


def full_precision(value: Any) -> Any:
    """`value` with half-precision tensors lifted to float32; lists and tuples element by element."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, list | tuple):
        return type(value)(full_precision(v) for v in value)
    return value


def detached(value: Any) -> Any:
    """`value` cut off from the graph; lists and tuples element by element."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return type(value)(detached(v) for v in value)
    return value


def check_same_shape(student: Tensor, teacher: Tensor, loss: nn.Module) -> None:
    """Raise `ValueError` with both shapes if they differ."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{type(loss).__name__} compares tensors of one shape, but the student's is {tuple(student.shape)} and the "
            f"teacher's {tuple(teacher.shape)}. A connector can bring the student's to the teacher's."
        )


def check_maps(student: Tensor, teacher: Tensor, loss: nn.Module) -> None:
    """Raise `ValueError` with both shapes unless both are maps (N, C, H, W) of one batch size."""
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise ValueError(
            f"{type(loss).__name__} compares maps (N, C, H, W) of one batch size, but the student's shape is "
            f"{tuple(student.shape)} and the teacher's {tuple(teacher.shape)}."
        )


def check_same_size(student: Tensor, teacher: Tensor, loss: nn.Module) -> None:
    """Raise `ValueError` with both shapes unless both are maps (N, C, H, W) with the same N, H and W."""
    check_maps(student, teacher, loss)
    if student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"{type(loss).__name__} compares maps of one height and width, but the student's shape is "
            f"{tuple(student.shape)} and the teacher's {tuple(teacher.shape)}. "
            f"A connector can bring the student's to the teacher's."
        )


def check_option(value: object, known: Collection[object], name: str, loss: nn.Module) -> None:
    """Raise `ValueError` if the argument `name` of `loss` is none of the `known` values."""
    if value not in known:
        raise ValueError(f"{type(loss).__name__}: {name}={value!r} is none of {', '.join(map(repr, known))}.")


def check_positive(value: float, name: str, loss: nn.Module) -> None:
    """Raise `ValueError` if the argument `name` of `loss` is not above zero."""
    if not value > 0:
        raise ValueError(f"{type(loss).__name__}: {name} must be above zero, not {value!r}.")


def _device_of(value: Any) -> str:
    first = value[0] if isinstance(value, list | tuple) else value
    return first.device.type
