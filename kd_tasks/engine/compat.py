"""Where mmengine's ground does not carry: data-parallel and autocast on a CPU, parameters split over two optimisers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import MODEL_WRAPPERS, OPTIM_WRAPPERS
from torch import Tensor, nn

from kd_tasks.distiller import Distiller, without_critics
from kd_tasks.errors import UserError

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


@OPTIM_WRAPPERS.register_module()
class DeviceOptimWrapper(OptimWrapper):
    """mmengine's optimiser wrapper that leaves the norm of clipped gradients on the device, where `grad_norm` is it.

    mmengine's own reads it in every iteration, and the GPU waits.
    """

    grad_norm: Tensor | None = None

    def _clip_grad(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if parameters:
            self.grad_norm = self.clip_func(parameters, **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(DeviceOptimWrapper):
    """An optimiser wrapper whose forward pass runs under autocast on any device; mmengine's own needs a GPU.

    Args:
        optimizer: the optimiser.
        dtype: `bfloat16`, which needs no loss scaling.
        accumulative_counts: iterations over which gradients are accumulated.
        clip_grad: arguments of `torch.nn.utils.clip_grad_norm_`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        dtype: str = "bfloat16",
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, accumulative_counts, clip_grad)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = self.optimizer.param_groups[0]["params"][0].device.type
        with super().optim_context(model), torch.autocast(device, dtype=self.dtype):
            yield


class StudentAndCritic(OptimWrapperDict):
    """The optimisers of student and critics, both of which count iterations; mmengine's own counts for neither."""

    def initialize_count_status(self, model: nn.Module, cur_iter: int, max_iters: int) -> None:
        for wrapper in self.values():
            wrapper.initialize_count_status(model, cur_iter, max_iters)


def gradient_norms(optim_wrapper: OptimWrapper) -> dict[str, float]:
    """The norms before the last clipping, where gradients are clipped, read from the device."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        named = {f"{name}.grad_norm": wrapper for name, wrapper in optim_wrapper.items()}
    else:
        named = {"grad_norm": optim_wrapper}
    norms = {name: getattr(wrapper, "grad_norm", None) for name, wrapper in named.items()}
    return {name: float(norm) for name, norm in norms.items() if norm is not None}


def with_amp(optim_wrapper: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """An optimiser config for mixed precision: `bf16` on any device, `fp16` with loss scaling on a GPU.

    Raises:
        UserError: for `fp16` without a GPU, or an unknown precision.
    """
    if precision not in DTYPES:
        raise UserError(f"--amp: {precision!r} is none of {', '.join(DTYPES)}.")
    if precision == "bf16":
        return {**optim_wrapper, "type": "AutocastOptimWrapper", "dtype": "bfloat16"}
    if not torch.cuda.is_available():
        raise UserError("--amp fp16 needs a GPU; on a CPU use --amp bf16.")
    return {**optim_wrapper, "type": "AmpOptimWrapper", "dtype": "float16"}


def build_optimisers(model: nn.Module, cfg: Mapping[str, Any]) -> OptimWrapper | OptimWrapperDict:
    """The student's optimiser, and the critics' beside it where the config has `critic`.

    Raises:
        UserError: if the model has critics and the config no optimiser for them, or the other way round.
    """
    bare: nn.Module = getattr(model, "module", model)
    critics = bare.critics if isinstance(bare, Distiller) else []
    own = dict(cfg)
    critic_cfg = own.pop("critic", None)
    own.setdefault("type", DeviceOptimWrapper.__name__)
    if critics and critic_cfg is None:
        raise UserError("optim_wrapper: an adversarial transfer needs optim_wrapper.critic=dict(optimizer=dict(...)).")
    if critic_cfg is not None and not critics:
        raise UserError("optim_wrapper.critic: no transfer has a critic; leave this key out.")
    if not critics:
        return _built(bare, own)
    with without_critics(bare):
        student = _built(bare, own)
    critic = _built(nn.ModuleList(critics), {"type": DeviceOptimWrapper.__name__, **critic_cfg})
    return StudentAndCritic(student=student, critic=critic)


def _built(model: nn.Module, cfg: Mapping[str, Any]) -> OptimWrapper:
    wrapper = build_optim_wrapper(model, cfg)
    join_groups(wrapper.optimizer)
    return wrapper


def join_groups(optimizer: torch.optim.Optimizer) -> None:
    """Join the groups of parameters whose options are equal, before the first step.

    With `paramwise_cfg` mmengine makes a group of every single parameter, and an optimiser's kernels over many
    parameters work within a group.
    """
    joined: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        options = {**group, "params": None}
        same = next((other for other in joined if {**other, "params": None} == options), None)
        if same is None:
            joined.append({**group, "params": list(group["params"])})
        else:
            same["params"].extend(group["params"])
    optimizer.param_groups = joined


@MODEL_WRAPPERS.register_module()
class DistillDataParallel(MMDistributedDataParallel):
    """mmengine's data-parallel wrapper, on GPUs and on a CPU, that leaves a distiller's step to the distiller.

    Critics stand outside it: their gradients are averaged by the distiller after their own backward pass.
    """

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        critics = module.critics if isinstance(module, Distiller) else []
        hidden = {id(p) for critic in critics for p in critic.parameters()}
        hidden |= {id(b) for critic in critics for b in critic.buffers()}
        named = [*module.named_parameters(), *module.named_buffers()]
        self._set_params_and_buffers_to_ignore_for_model(module, [name for name, t in named if id(t) in hidden])
        for critic in critics:
            broadcast(critic)
        super().__init__(module=module, **kwargs)

    def train_step(self, data: dict[str, Any], optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        if isinstance(self.module, Distiller):
            return self.module.step_through(self, data, optim_wrapper)
        return super().train_step(data, optim_wrapper)


def broadcast(module: nn.Module) -> None:
    """Give every rank the parameters and buffers that rank 0 has."""
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.data, src=0)


def synchronise_norms(model: nn.Module) -> None:
    """Let batch normalisation outside the critics take the statistics of all ranks' batches.

    The modules stay the same objects, with the hooks of taps. Critics keep their own batches' statistics, since a
    gradient penalty differentiates twice, which synchronised normalisation cannot.

    Raises:
        UserError: without a GPU.
    """
    if not torch.cuda.is_available():
        raise UserError("sync_bn: batch normalisation over several processes needs GPUs. Leave it out on a CPU.")
    with without_critics(model):
        norms: list[Any] = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.__class__ = nn.SyncBatchNorm
        norm.process_group = None


def start_process_group(launcher: str) -> bool:
    """Join the processes that torchrun started: NCCL with GPUs, gloo without. False if there is nothing to join.

    Raises:
        UserError: if torchrun did not start this process, or started more than there are GPUs.
    """
    if launcher == "none" or dist.is_initialized():
        return False
    if launcher != "pytorch":
        raise UserError(f"--launcher: {launcher!r} is none of 'none', 'pytorch'.")
    if not dist.is_torchelastic_launched():
        raise UserError(
            "--launcher pytorch: start it with torchrun, such as 'torchrun --nproc-per-node 2 -m kd_tasks.cli train …'."
        )
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return True
    rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= count:
        raise UserError(f"--launcher pytorch: there are {count} GPUs; start torchrun with --nproc-per-node {count}.")
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    return True
