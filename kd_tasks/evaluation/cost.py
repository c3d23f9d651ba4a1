"""What a network costs: parameters, multiply-adds, bytes on disk."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters(module: nn.Module) -> int:
    """How many parameters `module` has, shared ones counted once; buffers are not parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-add operations of one forward pass in eval mode.

    Counted are convolutions (grouped and transposed ones too), matrix products and attention, one for each product of
    two numbers that is summed up. Biases, normalisation, activations, pooling and interpolation are not counted;
    neither are recurrent cells. The module is run once on zeros and left in the mode it was in.

    Args:
        module: a network that takes one tensor.
        input_shape: shape of the input with its batch dimension, such as (1, 3, H, W).
    """
    modes = [(part, part.training) for part in module.modules()]
    like = next(module.parameters(), torch.zeros(()))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        module.eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module(torch.zeros(*input_shape, device=like.device, dtype=like.dtype))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for part, training in modes:
            part.training = training
    return counter.get_total_flops() // 2


def file_size(path: str | Path) -> int:
    """Size of the file in bytes."""
    return Path(path).stat().st_size
