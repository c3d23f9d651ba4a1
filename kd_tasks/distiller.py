"""The distiller: a task model whose network is the student, taught by frozen teachers through transfers."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.losses.base import AdversarialLoss, detached
from kd_tasks.registry import TASK_MODELS, construct
from kd_tasks.schedules import Weight
from kd_tasks.taps import INPUT_SUFFIX, Taps, evaluating
from kd_tasks.task import Criterion, Decoder, Meta, TaskModel
from kd_tasks.teachers import FrozenTeacher
from kd_tasks.transfer import Transfer

SMALLEST_PROBE = 2
TEACHER_KEYS = tuple(key for key in inspect.signature(FrozenTeacher).parameters if key not in ("network", "name"))


class _OutsideModuleTree:
    """Holds teachers where `nn.Module` does not look: neither checkpoint, optimiser, EMA copy nor DDP sees them."""

    def __init__(self, teachers: dict[str, FrozenTeacher]) -> None:
        self.teachers = teachers

    def __deepcopy__(self, memo: dict[int, Any]) -> "_OutsideModuleTree":
        return self


@TASK_MODELS.register
class Distiller(TaskModel):
    """Trains a student by its task losses and by transfers from teachers.

    It is the student's task model in every other respect: it tests, predicts and saves as the student alone would.

    Args:
        student: the student network, or its config; built before anything else that draws random numbers, so that it
            starts from the weights that it would have if trained alone with the same seed.
        transfers: the recipe: by name, a `Transfer` config.
        teacher: the teacher, a network config with `checkpoint`, `mean`, `std`, `size`, `prepare`, `mode` beside it.
        teachers: several of them, by name; taps are then called `name.tap`.
        criterion: task losses, or its config.
        decoder: predictions from outputs, or its config.
        data_preprocessor: batch to device and to the student's input, or its config.
        checkpoint: weights of the student to start from.
        task_weight: weight of the task losses, a number or a schedule.
        input_size: (H, W) of the training pictures, for the probe that sizes the connectors. The runner fills it in.

    Raises:
        UserError: for every fault of the recipe that can be found without data.
    """

    def __init__(
        self,
        student: nn.Module | dict[str, Any],
        transfers: Mapping[str, Mapping[str, Any]],
        teacher: FrozenTeacher | dict[str, Any] | None = None,
        teachers: Mapping[str, FrozenTeacher | dict[str, Any]] | None = None,
        criterion: Criterion | dict[str, Any] | None = None,
        decoder: Decoder | dict[str, Any] | None = None,
        data_preprocessor: nn.Module | dict[str, Any] | None = None,
        checkpoint: str | None = None,
        task_weight: float | Mapping[str, Any] = 1.0,
        input_size: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(student, criterion, decoder, data_preprocessor, checkpoint)
        self.task_weight = Weight(task_weight, "model.task_weight")
        self.iteration, self.iterations_per_epoch = 0, 1
        self._critic_batch: list[tuple[Transfer, float, Any, Any, dict[str, Any]]] = []
        with torch.random.fork_rng(devices=[]):
            self._outside = _OutsideModuleTree(_built_teachers(teacher, teachers))
            self.transfers = _built_transfers(transfers)
            self._connect(torch.randn(self._probe_batch(), 3, *input_size))

    @property
    def teachers(self) -> dict[str, FrozenTeacher]:
        """The teachers by name; a single one is called `teacher`."""
        return self._outside.teachers

    @property
    def critics(self) -> list[nn.Module]:
        """The critics of adversarial transfers, which have an optimiser of their own."""
        return [t.loss.critic for t in self._recipe() if isinstance(t.loss, AdversarialLoss)]

    @property
    def skips_parameters(self) -> bool:
        """Whether some parameters get no gradient in some iterations."""
        weights = (self.task_weight.start, self.task_weight.end)
        untaught = self.criterion is None or min(weights) == 0 or super().skips_parameters
        return untaught or any(t.ever_off for t in self._recipe())

    def set_moment(self, iteration: int, iterations_per_epoch: int) -> None:
        """Tell the schedules where the training stands."""
        self.iteration, self.iterations_per_epoch = iteration, iterations_per_epoch

    def losses(self, inputs: Tensor, targets: Mapping[str, Any], meta: Sequence[Meta] = ()) -> dict[str, Tensor]:
        """Weighted task losses as `task.NAME`, weighted transfers as `kd.NAME`; a transfer that is off is absent."""
        strengths = {t: t.strength(self.iteration, self.iterations_per_epoch) for t in self._recipe()}
        active = {t: s for t, s in strengths.items() if s != 0}
        if any(t.needs_image_gradient for t in active):
            inputs = inputs.detach().requires_grad_()
        tapped_by_teacher = self._teach(inputs, active)
        outputs, tapped = self._student_taps.run(inputs)
        result = self._task_losses(outputs, targets)
        context = {**targets, "image": inputs}
        if any(t.reads("index") for t in active):
            context["index"] = places(meta, inputs.device)
        self._critic_batch = []
        for transfer, strength in active.items():
            student, teacher = transfer.pair(tapped, tapped if transfer.own_target else tapped_by_teacher)
            result[f"kd.{transfer.name}"] = strength * transfer(student, teacher, context)
            if transfer.adversarial and self.training:
                named = transfer.named(context)
                self._critic_batch.append((transfer, strength, detached(student), detached(teacher), named))
        if not result:
            raise UserError(f"no task loss and no transfer acts in iteration {self.iteration}: nothing to train on.")
        return result

    def train_step(self, data: dict[str, Any], optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One step of the student, then one of the critics if there are any."""
        return self.step_through(self, data, optim_wrapper)

    def step_through(
        self, forward: Callable[..., Any], data: dict[str, Any], optim_wrapper: OptimWrapper | OptimWrapperDict
    ) -> dict[str, Tensor]:
        """`train_step` with the forward pass through `forward`: this model, or its data-parallel wrapper."""
        student_optim = optim_wrapper["student"] if isinstance(optim_wrapper, OptimWrapperDict) else optim_wrapper
        with student_optim.optim_context(forward):
            batch = self.data_preprocessor(data, True)
            losses = forward(**batch, mode="loss")
        total, log = self.parse_losses(losses)
        student_optim.update_params(total)
        if self._critic_batch and isinstance(optim_wrapper, OptimWrapperDict):
            log.update(self._critic_step(optim_wrapper["critic"]))
        return log

    def _critic_step(self, optim: OptimWrapper) -> dict[str, Tensor]:
        """The critics' step on the tensors of the student's pass, before the student moved."""
        losses = {
            f"critic.{transfer.name}": strength * transfer.loss.critic_loss(student, teacher, **context)
            for transfer, strength, student, teacher, context in self._critic_batch
        }
        self._critic_batch = []
        optim.backward(optim.scale_loss(torch.stack(list(losses.values())).sum()))
        if optim.should_update():
            average_gradients(p for critic in self.critics for p in critic.parameters())
            optim.step()
            optim.zero_grad()
        return {name: value.detach() for name, value in losses.items()}

    def _task_losses(self, outputs: dict[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        weight = self.task_weight.at(self.iteration, self.iterations_per_epoch)
        if weight == 0 or self.criterion is None:
            return {}
        return {f"task.{name}": weight * value for name, value in self.criterion(outputs, targets).items()}

    def _teach(self, inputs: Tensor, active: Collection[Transfer]) -> dict[str, Tensor]:
        """Taps of all teachers that an active transfer reads, by the names that the transfers use."""
        wanted = {tap for t in active if not t.own_target for tap in t.teacher_taps}
        differentiable = any(t.needs_image_gradient for t in active)
        single = self._single_teacher
        found: dict[str, Tensor] = {}
        for name, teacher in self.teachers.items():
            prefix = "" if single else f"{name}."
            if any(tap.startswith(prefix) for tap in wanted):
                found.update({prefix + tap: value for tap, value in teacher.run(inputs, differentiable).items()})
        return found

    def _connect(self, probe: Tensor) -> None:
        """Find all taps, size connectors and losses, and try each transfer, on one input in eval mode."""
        recipe = self._recipe()
        if not recipe:
            raise UserError("model.transfers: a distiller needs at least one transfer.")
        own = [tap for t in recipe for tap in (*t.student_taps, *(t.teacher_taps if t.own_target else ()))]
        self._student_taps = Taps(self.network, own, probe, "model.student")
        mean, std = getattr(self.data_preprocessor, "mean", None), getattr(self.data_preprocessor, "std", None)
        for teacher in self.teachers.values():
            if mean is not None and std is not None:
                teacher.adopt_normalisation(mean, std)
        self._connect_teachers(recipe, probe)
        probe.requires_grad_(any(t.needs_image_gradient for t in recipe))
        taught = self._teach(probe, recipe)
        with evaluating(self.network), torch.enable_grad():
            _, tapped = self._student_taps.run(probe)
        for transfer in recipe:
            transfer.prepare(tapped, tapped if transfer.own_target else taught, probe)
        for teacher in self.teachers.values():
            teacher.compile()

    def _connect_teachers(self, recipe: Sequence[Transfer], probe: Tensor) -> None:
        names = [tap for t in recipe if not t.own_target for tap in t.teacher_taps]
        if names and not self.teachers:
            raise UserError("model: the transfers read a teacher, but there is none; give 'teacher' or use 'target'.")
        single = self._single_teacher
        strangers = [n for n in names if not single and n.split(".")[0] not in self.teachers]
        if strangers:
            known = ", ".join(self.teachers)
            raise UserError(f"model.transfers: {strangers[0]!r} begins with no teacher's name; teachers: {known}.")
        for name, teacher in self.teachers.items():
            if not (names if single else own_taps(name, names)):
                raise UserError(f"model.{teacher.where.removeprefix('model.')}: no transfer reads this teacher.")
        for transfer in recipe:
            transfer.show_modules(partial(self._module_behind, transfer))
        for name, teacher in self.teachers.items():
            teacher.connect(names if single else own_taps(name, names), probe)

    def _module_behind(self, transfer: Transfer, tap: str) -> nn.Module:
        """The module that a tap of the teacher's side reads, or of the student's where there is no other."""
        network, path = self.network, tap
        if transfer.reads_teacher and not transfer.own_target:
            name, _, path = ("teacher", "", tap) if self._single_teacher else tap.partition(".")
            network = self.teachers[name].network
        return network.get_submodule(path.removesuffix(INPUT_SUFFIX))

    @property
    def _single_teacher(self) -> bool:
        """Whether there is one teacher, whose taps are named without it."""
        return len(self.teachers) == 1 and "teacher" in self.teachers

    def _probe_batch(self) -> int:
        return max([SMALLEST_PROBE, *(getattr(t.loss, "smallest_batch", 1) for t in self._recipe())])

    def _recipe(self) -> list[Transfer]:
        return list(self.transfers.values())  # type: ignore[arg-type]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        super()._apply(fn, recurse)
        for teacher in self.teachers.values():
            teacher.apply(fn)
        return self


def places(meta: Sequence[Meta], device: torch.device) -> Tensor:
    """The samples' places in the data set, (N,).

    Raises:
        UserError: if the batch does not know them.
    """
    if not meta or any("index" not in sample for sample in meta):
        raise UserError("a transfer reads 'index', but the samples of this batch have no 'index' in their meta.")
    return torch.tensor([sample["index"] for sample in meta], device=device)


def own_taps(teacher: str, taps: Iterable[str]) -> list[str]:
    """Those of `taps` that read the teacher of that name, without the name."""
    return [tap.removeprefix(f"{teacher}.") for tap in taps if tap.startswith(f"{teacher}.")]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over all ranks, for parameters that the data-parallel wrapper does not see."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


@contextmanager
def without_critics(model: nn.Module) -> Iterator[nn.Module]:
    """`model` with its critics taken out of the module tree, for whatever must not see their parameters."""
    losses = [m for m in model.modules() if getattr(m, "critic", None) is not None and "critic" in m._modules]
    taken = [(loss, loss._modules.pop("critic")) for loss in losses]
    try:
        yield model
    finally:
        for loss, critic in taken:
            loss._modules["critic"] = critic


def _built_transfers(transfers: Mapping[str, Mapping[str, Any]]) -> nn.ModuleDict:
    built = nn.ModuleDict()
    for name, cfg in transfers.items():
        where = f"model.transfers.{name}"
        if "." in name or hasattr(built, name):
            raise UserError(f"{where}: a transfer cannot be called {name!r}; choose another name, without a dot.")
        built[name] = construct(Transfer, {**cfg, "name": name}, where)
    return built


def _built_teachers(
    teacher: FrozenTeacher | dict[str, Any] | None, teachers: Mapping[str, FrozenTeacher | dict[str, Any]] | None
) -> dict[str, FrozenTeacher]:
    if teacher is not None and teachers is not None:
        raise UserError("model: give 'teacher' or 'teachers', not both.")
    if teacher is not None:
        return {"teacher": _built_teacher("teacher", teacher)}
    return {name: _built_teacher(f"teachers.{name}", cfg) for name, cfg in (teachers or {}).items()}


def _built_teacher(name: str, cfg: FrozenTeacher | dict[str, Any]) -> FrozenTeacher:
    if isinstance(cfg, FrozenTeacher):
        return cfg
    own = {key: cfg[key] for key in TEACHER_KEYS if key in cfg}
    network = {key: value for key, value in cfg.items() if key not in TEACHER_KEYS}
    if own.get("checkpoint") is None and not network.get("pretrained"):
        print_log(f"model.{name} has no checkpoint: its weights are random", logger="current", level=30)
    return FrozenTeacher(network, **own, name=name)
