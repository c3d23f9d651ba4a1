"""Tensors of all ranks side by side, with gradient: the one module of the losses that speaks to other processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def all_gather(tensor: Tensor) -> Tensor:
    """The rows of `tensor` on every rank, (B, ...) to (N * B, ...), in the order of the ranks; differentiable.

    The backward pass sums the gradients that all N ranks send to a row. A loss that every rank computes on the gathered
    rows is therefore counted N times in each rank's gradient, and the mean over ranks that data-parallel training takes
    removes that factor: N processes with batch B have the loss, and after the averaging the parameter gradients, of one
    process with batch N * B. Neither the loss nor its weight needs a correction.

    Without an initialised process group, or with one rank, it returns `tensor` itself. It can be differentiated once.

    Raises:
        ValueError: on every rank, if the shapes differ between ranks.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    _check_one_shape(tensor)
    gathered: Tensor = _AllGather.apply(tensor)
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def _check_one_shape(tensor: Tensor) -> None:
    own = torch.tensor([len(tensor), tensor.numel()], device=tensor.device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    found = torch.stack(sizes).tolist()
    if any(size != found[0] for size in found):
        raise ValueError(
            "gathering over ranks needs one batch size and one shape on all of them, but the ranks hold "
            f"{', '.join(f'{rows} rows with {elements} elements' for rows, elements in found)}. "
            "Use drop_last=True in the training data loader."
        )
