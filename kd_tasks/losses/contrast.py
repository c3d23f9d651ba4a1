"""Noise contrast of rows with a large memory of rows, of which each row meets some."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

DENSE = 32  # Below this ratio of memory to chosen rows, multiplying with all of it is faster than reading the chosen.
PART = 2**26  # Bytes that the scores of one part of a batch may take.


class NoiseContrast(torch.autograd.Function):
    """Noise contrast of rows with chosen rows of a memory; the gradient is taken in the forward pass.

    With u = score / temperature - shift: the batch mean of softplus(-u) of the first and softplus(u) of the others.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, memory: Tensor, chosen: Tensor, shift: Tensor, temperature: float) -> Tensor:
        gradient = torch.empty_like(rows)
        values = []
        for part in range_parts(rows, memory, chosen):
            scores, pulled = similarities(rows[part], memory, chosen[part])
            scores = scores.div_(temperature).sub_(shift)
            values.append(F.softplus(scores[:, 1:]).sum() + F.softplus(-scores[:, 0]).sum())
            if ctx.needs_input_grad[0]:
                slopes = scores.sigmoid_()
                slopes[:, 0] -= 1
                gradient[part] = pulled(slopes)
        ctx.save_for_backward(gradient.div_(temperature * len(rows)))
        return torch.stack(values).sum() / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None


def similarities(rows: Tensor, memory: Tensor, chosen: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Products of each row with the rows of `memory` that are `chosen` for it, (N, K + 1).

    Also what takes the gradient of these products to that of the rows; it may be called once.
    """
    if dense(memory, chosen):
        products = rows @ memory.T
        return products.gather(1, chosen), lambda slopes: products.zero_().scatter_add_(1, chosen, slopes) @ memory
    read = memory.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
    return (read @ rows[:, :, None])[:, :, 0], lambda slopes: (slopes[:, None] @ read)[:, 0]


def dense(memory: Tensor, chosen: Tensor) -> bool:
    """Whether all products with a memory cost less than to read the rows that are chosen."""
    return len(memory) <= DENSE * chosen.shape[1]


def range_parts(rows: Tensor, memory: Tensor, chosen: Tensor) -> list[slice]:
    """The batch in parts whose `similarities` stay within the memory set aside for them."""
    numbers = 2 * len(memory) if dense(memory, chosen) else memory.shape[1] * chosen.shape[1]
    step = max(1, PART // (numbers * memory.element_size()))
    return [slice(i, i + step) for i in range(0, len(rows), step)]


def last_of_each(index: Tensor) -> Tensor:
    """For each element the position of the last one that equals it."""
    ordered, positions = index.sort(stable=True)
    return positions[torch.searchsorted(ordered, index, right=True) - 1]
