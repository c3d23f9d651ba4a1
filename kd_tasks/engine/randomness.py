"""Randomness that depends on (seed, epoch, index) alone: not on workers, ranks or where a run was stopped.

The sampler yields `EpochIndex`, an index that knows its epoch and seed; the data set seeds each sample from it. The
same sample then gets the same augmentation with 0, 2 or 4 workers, another one in the next epoch, and a resumed run
goes on in the same stream without loading what it skips.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS
from torch.utils.data import Sampler

from kd_tasks.errors import UserError

RandomState = dict[str, Any]

_SEED_BITS = 0x7FFFFFFF


class EpochIndex(int):
    """The index of a sample that also says in which epoch, and under which seed, it is drawn.

    Arithmetic on it gives plain ints, and a wrapper that looks the index up in a list of its own (`torch`'s `Subset`)
    loses epoch and seed: such a wrapper should pass on `EpochIndex(its_index, index.epoch, index.seed)`.
    """

    epoch: int
    seed: int

    def __new__(cls, index: int, epoch: int = 0, seed: int = 0) -> "EpochIndex":
        self = super().__new__(cls, index)
        self.epoch = epoch
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[type["EpochIndex"], tuple[int, int, int]]:
        return EpochIndex, (int(self), self.epoch, self.seed)


def sample_seed(index: int) -> int:
    """The seed of one sample, 0 to 2^31 - 1: a hash of (seed, epoch, index) that is the same on every machine.

    Args:
        index: an `EpochIndex`; a plain int counts as epoch 0 of seed 0.
    """
    return mixed_seed(getattr(index, "seed", 0), getattr(index, "epoch", 0), int(index))


def mixed_seed(*parts: int | str) -> int:
    """A seed, 0 to 2^31 - 1, from several numbers or words, in which a change of any part changes every bit."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") & _SEED_BITS


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and torch inside the block, and put them back after it.

    Third-party transforms that draw from a global generator are then as repeatable as the others, and loading in the
    main process leaves the stream of the training loop alone. CUDA generators are not touched.
    """
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler[int]):
    """Draws each sample once an epoch, in an order that depends on the seed and the epoch alone.

    Rank r of w ranks takes every w-th entry of the epoch's order, from r on. So the batches of w ranks, of B samples
    each, hold together the samples of one process's batch of w * B.

    With `infinite` the epochs follow each other without an end, for training by iterations: one stream is divided
    among the ranks, without padding between epochs, so that the statement above holds for every batch.

    Args:
        dataset: anything with a length.
        shuffle: a new order each epoch; otherwise 0, 1, 2, …
        seed: the same on all ranks. None draws one at random and shares it.
        round_up: repeat the first samples of the order until every rank has equally many. Without it the last ranks
            may have one sample less, which suits testing. Has no meaning with `infinite`.
        infinite: go on through the epochs.

    Raises:
        UserError: if the data set is empty.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
        infinite: bool = False,
    ) -> None:
        if len(dataset) == 0:
            raise UserError(f"the data set ({type(dataset).__name__}) has no samples, so there is nothing to draw.")
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.shuffle = shuffle
        self.seed = int(sync_random_seed()) if seed is None else seed
        self.round_up = round_up
        self.infinite = infinite
        self.epoch = 0
        self._drawn = 0

    def __len__(self) -> int:
        """Samples that this rank draws in an epoch; with `infinite`, the larger share that a rank can have."""
        if self.round_up or self.infinite:
            return -(-self.size // self.world_size)
        return len(range(self.rank, self.size, self.world_size))

    def __iter__(self) -> Iterator[int]:
        drawn, self._drawn = self._drawn, 0
        if self.infinite:
            return self._stream(drawn)
        order = self._order(self.epoch)
        total = len(self) * self.world_size if self.round_up else self.size
        places = range(self.rank, total, self.world_size)[drawn:]
        return (EpochIndex(order[place % self.size], self.epoch, self.seed) for place in places)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a position that `start_at` set within this epoch stays."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self._drawn = -(-max(epoch * self.size - self.rank, 0) // self.world_size) if self.infinite else 0

    def start_at(self, samples_drawn_per_rank: int) -> None:
        """Let the next iteration begin where a run was stopped, without loading what it had already seen.

        Args:
            samples_drawn_per_rank: samples that each rank had drawn since the run began: iterations times the batch
                size of one rank.
        """
        if self.infinite:
            self._drawn = samples_drawn_per_rank
            return
        self.epoch, self._drawn = divmod(samples_drawn_per_rank, len(self))

    def _stream(self, drawn: int) -> Iterator[int]:
        place = self.rank + drawn * self.world_size
        while True:
            self.epoch, within = divmod(place, self.size)
            order, epoch = self._order(self.epoch), self.epoch
            for entry in range(within, self.size, self.world_size):
                yield EpochIndex(order[entry], epoch, self.seed)
                place += self.world_size

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        return np.random.default_rng(mixed_seed("order", self.seed, epoch)).permutation(self.size).tolist()


def capture_random_state() -> RandomState:
    """The state of every generator of this process: Python, NumPy, torch on CPU and, where it is in use, on its GPU.

    Of several GPUs only the current one counts: each rank draws on one of its own, and in the other processes its
    generator stands where it was seeded.

    Returns:
        numbers, lists and tensors only, so that `torch.load(..., weights_only=True)` reads it back.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `capture_random_state` gave; the state of a GPU goes to this process's, if there is one."""
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    keys = legacy["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state((legacy["name"], keys, legacy["position"], legacy["has_gauss"], legacy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0].cpu())


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Prepare a loader's worker process: `worker_init_fn=dict(type='seed_worker')`.

    mmengine's own function gives a worker the same seed at the start of every epoch, so that whatever draws from a
    global generator repeats itself. This one takes torch's base seed, which is another one each epoch. Samples need
    neither, since each is seeded by itself; this covers what runs outside of a sample, such as a collate function.
    Threads are set to one, or the workers would fight over the cores.
    """
    import cv2

    seed = torch.initial_seed() & _SEED_BITS
    random.seed(seed)
    np.random.seed(seed)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
