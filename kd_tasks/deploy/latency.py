"""How long a network takes, in torch or in a runtime."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Latency:
    """Times of one network.

    Attributes:
        median_ms: median time of one image, in milliseconds.
        p95_ms: time that 95 % of the single images stay below, in milliseconds.
        throughput_img_s: images a second at the batch size `batch`, from the median time of a batch.
        batch: batch size of the throughput.
        threads: threads of torch during the measurement.
        runs: how many single images were timed.
    """

    median_ms: float
    p95_ms: float
    throughput_img_s: float
    batch: int
    threads: int
    runs: int


def measure_latency(
    network: Callable[[Tensor], Any],
    input_shape: Sequence[int],
    warmup: int = 5,
    runs: int = 30,
    threads: int = 1,
    batch: int = 8,
    device: str | torch.device = "cpu",
) -> Latency:
    """Time `network` on noise: single images first, then batches.

    `threads` sets torch's threads and is put back afterwards. An ONNX network has its threads from `load_network`; give
    both the same number for times that can be compared.

    Args:
        network: a network in eval mode, of any runtime.
        input_shape: shape of one input, such as (3, H, W).
        warmup: calls before the first that counts.
        runs: single images to time, at least 1.
        threads: threads of torch.
        batch: batch size of the throughput.
        device: where the inputs lie; CUDA is synchronised before each reading of the clock.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        singles = sorted(_times(network, _noise(1, input_shape, device), warmup, max(1, runs)))
        batches = _times(network, _noise(batch, input_shape, device), 1, max(3, runs // batch))
    finally:
        torch.set_num_threads(before)
    return Latency(
        median_ms=1e3 * statistics.median(singles),
        p95_ms=1e3 * singles[min(len(singles) - 1, int(0.95 * len(singles)))],
        throughput_img_s=batch / statistics.median(batches),
        batch=batch,
        threads=threads,
        runs=len(singles),
    )


def _noise(batch: int, shape: Sequence[int], device: str | torch.device) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)


@torch.no_grad()
def _times(network: Callable[[Tensor], Any], inputs: Tensor, warmup: int, runs: int) -> list[float]:
    for _ in range(warmup):
        network(inputs)
    times = []
    for _ in range(runs):
        _wait(inputs)
        start = time.perf_counter()
        network(inputs)
        _wait(inputs)
        times.append(time.perf_counter() - start)
    return times


def _wait(inputs: Tensor) -> None:
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
