"""A step of the optimiser where `paramwise_cfg` tells parameters apart, against mmengine's group for each of them."""

import torch
from kd_lanes.networks import ENetSAD
from mmengine.optim import OptimWrapper, build_optim_wrapper

from kd_tasks.engine.compat import join_groups
from tests.benchmarks import Row, in_turns

LIMIT = 0.9


def run(rounds: int = 25) -> list[Row]:
    """AdamW with the rates of the demonstration of lanes, on a CPU."""
    rows = []
    for kind, options in (("loop", {}), ("fused", {"fused": True})):
        joined, single = (wrapper(options) for _ in range(2))
        join_groups(joined.optimizer)
        name = f"AdamW ({kind}), 269 parameters: a group each"
        rows.append(in_turns(name, joined.optimizer.step, single.optimizer.step, LIMIT, rounds))
    return rows


def wrapper(options: dict[str, bool]) -> OptimWrapper:
    """The optimiser of a small ENet-SAD, with gradients to go by."""
    network = ENetSAD(width=0.5, depth=(1, 4), num_lanes=4, input_size=(56, 160))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    return build_optim_wrapper(
        network,
        {
            "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 1e-4, **options},
            "paramwise_cfg": {"custom_keys": {"existence": {"lr_mult": 0.1}}},
        },
    )
