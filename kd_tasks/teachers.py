"""Frozen teachers: networks that give targets and never change."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.inference import Preparation, prepare_for_inference
from kd_tasks.registry import NETWORKS, construct
from kd_tasks.taps import Taps

MODES = ("eval", "batch_stats")


class FrozenTeacher:
    """A network in eval mode that is run without gradients, outside every checkpoint and optimiser.

    It is deliberately no `nn.Module`: held by a distiller, its tensors are in none of the distiller's parameters.

    Args:
        network: the network, or its config.
        checkpoint: its weights: a `student.pth`, a run's checkpoint, or a run folder.
        mean: per channel, RGB, in 0..255, if the teacher was trained with another normalisation than the student.
        std: likewise.
        size: (H, W) at which the teacher sees the picture; the student's size by default.
        prepare: `dict(fold_batchnorm=, channels_last=, dtype=, compile=)`, see `Preparation`.
        mode: `eval`, or `batch_stats` where a method wants batch statistics in the teacher's batch normalisation, which
            is then not folded; the running statistics stay untouched in both.
        name: the teacher's key in the config, for messages.

    Attributes:
        classes: names of its classes in the order of its logits, as the checkpoint records them; else empty.

    Raises:
        UserError: for an unknown mode, or a checkpoint that is missing or of another architecture.
    """

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        checkpoint: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: Sequence[int] | None = None,
        prepare: Mapping[str, Any] | None = None,
        mode: str = "eval",
        name: str = "teacher",
    ) -> None:
        self.where = f"model.{name}"
        if mode not in MODES:
            raise UserError(f"{self.where}.mode: {mode!r} is none of {', '.join(MODES)}.")
        if (mean is None) != (std is None):
            raise UserError(f"{self.where}: 'mean' and 'std' belong together; give both or neither.")
        self.network: nn.Module = NETWORKS.build(network, self.where) if isinstance(network, Mapping) else network
        self.classes: tuple[str, ...] = ()
        if checkpoint is not None:
            from kd_tasks.engine.checkpoints import class_names, load_network

            self.classes = class_names(load_network(self.network, checkpoint, f"{self.where}.checkpoint"))
        self.network.eval().requires_grad_(False)
        self.mode = mode
        self.size = tuple(size) if size is not None else None
        self.preparation: Preparation | None = None
        if prepare is not None:
            self.preparation = construct(Preparation, prepare, f"{self.where}.prepare")
            if mode == "batch_stats":
                self.preparation = replace(self.preparation, fold_batchnorm=False)
        self._statistics = (mean, std)
        self._scale: tuple[Tensor, Tensor] | None = None

    def adopt_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Learn the student's normalisation, so that the teacher can undo it and apply its own."""
        own_mean, own_std = self._statistics
        if own_mean is None or own_std is None:
            return
        target_mean = torch.tensor(own_mean, dtype=mean.dtype, device=mean.device).view_as(mean)
        target_std = torch.tensor(own_std, dtype=std.dtype, device=std.device).view_as(std)
        if torch.equal(target_mean, mean) and torch.equal(target_std, std):
            return
        self._scale = (std / target_std, (mean - target_mean) / target_std)

    def connect(self, taps: Iterable[str], probe: Tensor) -> None:
        """Name the taps that will be read, and prepare the network for inference as asked."""
        names = tuple(taps)
        view = self.view(probe)
        if self.preparation is not None:
            self.network = prepare_for_inference(self.network, self.preparation, names, view)
        if self.mode == "batch_stats":
            use_batch_statistics(self.network)
        self._taps = Taps(self.network, names, view, self.where)

    def compile(self) -> None:
        """Compile the network if its preparation says so: after all probing, which has another device and size."""
        if self.preparation is not None and self.preparation.compile:
            self.network.compile()

    def view(self, inputs: Tensor) -> Tensor:
        """The student's input (N, 3, H, W) as this teacher sees it."""
        if self._scale is not None:
            scale, shift = self._scale
            inputs = inputs * scale + shift
        if self.size is not None and tuple(inputs.shape[-2:]) != self.size:
            inputs = F.interpolate(inputs, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        return inputs if self.preparation is None else self.preparation.input(inputs)

    def run(self, inputs: Tensor, differentiable: bool = False) -> dict[str, Tensor]:
        """The tapped tensors for the student's input, in float32 where the teacher is prepared in half precision.

        Such a teacher computes in the precision it was given; any other runs under the student's autocast.

        Args:
            inputs: (N, 3, H, W), as the student gets them.
            differentiable: keep the graph to `inputs`, for a loss on gradients; the weights stay frozen.
        """
        with torch.set_grad_enabled(differentiable):
            if self.preparation is None or self.preparation.dtype is None:
                return self._taps.run(self.view(inputs))[1]
            with torch.autocast(inputs.device.type, enabled=False):
                _, tapped = self._taps.run(self.view(inputs))
            return {name: value.float() for name, value in tapped.items()}

    def apply(self, function: Any) -> None:
        """Apply `function` to every parameter and buffer, as `nn.Module._apply` does; moves the teacher to a device."""
        self.network._apply(function)
        if self._scale is not None:
            self._scale = (function(self._scale[0]), function(self._scale[1]))


def use_batch_statistics(network: nn.Module) -> None:
    """Let batch normalisation use the batch's statistics and leave its running statistics bit-identical."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = True
            module.track_running_stats = False
