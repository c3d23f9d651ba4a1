"""Samplers that draw whole batches: the base of such, and one for labelled samples beside unlabelled ones.

Like `EpochSampler` they yield `EpochIndex`, depend on seed and epoch alone, and go on after a resume where a run was
stopped. They yield whole batches one after the other, so that the loader's `batch_size` has to be theirs.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from kd_tasks.engine.randomness import EpochIndex, mixed_seed
from kd_tasks.errors import UserError

Indices = npt.NDArray[np.int64]


class BatchwiseSampler(Sampler[int]):
    """Yields the batches of an epoch one after the other, without a rest.

    All ranks plan the same global batches; rank r of w ranks takes its part of each. So every rank has equally many
    batches, and w ranks draw together what one process with a batch w times as large draws.

    Args:
        batch_size: of one rank.
        seed: the same on all ranks. None draws one at random and shares it.
        infinite: go on through the epochs; training by iterations sets it.
    """

    def __init__(self, batch_size: int, seed: int | None, infinite: bool) -> None:
        self.rank, self.world_size = get_dist_info()
        self.batch_size = batch_size
        self.seed = int(sync_random_seed()) if seed is None else seed
        self.infinite = infinite
        self.epoch = 0
        self._drawn = 0

    @property
    @abstractmethod
    def batches(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def batch(self, epoch: int, number: int) -> list[EpochIndex]:
        """This rank's batch `number` of an epoch."""

    def __len__(self) -> int:
        """Samples that each rank draws in an epoch."""
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        drawn, self._drawn = self._drawn, 0
        first, within = divmod(drawn, self.batch_size)
        if within:
            raise UserError(
                f"train_dataloader.batch_size: {type(self).__name__} makes batches of {self.batch_size}, and a run "
                f"cannot go on after {drawn} samples. Set batch_size={self.batch_size}."
            )
        return self._stream(first)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a position that `start_at` set within this epoch stays."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self._drawn = epoch * len(self) if self.infinite else 0

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

    def _stream(self, first: int) -> Iterator[int]:
        if not self.infinite:
            epoch = self.epoch
            for number in range(first, self.batches):
                yield from self.batch(epoch, number)
            return
        while True:
            self.epoch, number = divmod(first, self.batches)
            yield from self.batch(self.epoch, number)
            first += 1


@DATA_SAMPLERS.register_module()
class MixedSampler(BatchwiseSampler):
    """Labelled samples and, behind them, samples of a pool of unlabelled ones, in every batch.

    The labelled samples are gone through again and again, each time in a new order and with another augmentation. Which
    of them are in the n-th batch of a run depends on `seed` and `labelled` alone, not on the pool, the rest of the
    batch, or the length of an epoch: a run on the labelled samples by themselves (`batch_size=labelled`) sees the same.
    The pool is gone through likewise, from its start in each epoch.

    Like `EpochSampler` it yields `EpochIndex`, goes on after a resume where a run was stopped, and gives w ranks
    together what one process with a batch w times as large draws; `batch_size` and `labelled` are those of one rank.
    Batches follow one after the other, so that the loader's `batch_size` has to be the sampler's.

    Attributes:
        pool: the indices behind the labelled samples; at first all unlabelled ones. It can be set between epochs. While
            it is empty, labelled samples take its place.

    Args:
        dataset: a data set with `is_labelled`, one bool a sample.
        batch_size: samples of a batch, labelled and not.
        labelled: labelled samples of a batch; 1 to `batch_size`.
        batches: of an epoch. None: as many as go through the unlabelled samples once, or through the labelled ones
            where there is no other in a batch.
        seed: the same on all ranks. None draws one at random and shares it.
        infinite: go on through the epochs; training by iterations sets it.

    Raises:
        UserError: if the data set does not say which samples are labelled, has none, or the numbers do not fit.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        labelled: int,
        batches: int | None = None,
        seed: int | None = None,
        infinite: bool = False,
    ) -> None:
        flags = _flags(dataset)
        if not 1 <= labelled <= batch_size:
            raise UserError(
                f"MixedSampler: labelled={labelled!r}, batch_size={batch_size!r}: of the samples of a batch, at least "
                "one and at most all are labelled."
            )
        if batches is not None and batches < 1:
            raise UserError(f"MixedSampler: batches={batches!r}: an epoch has at least one.")
        if not flags.any():
            raise UserError(
                f"MixedSampler: {type(dataset).__name__} has no labelled sample, and each batch needs some."
            )
        super().__init__(batch_size, seed, infinite)
        self.labelled = labelled
        self._size = len(flags)
        self._labelled: Indices = np.flatnonzero(flags)
        self._pool: Indices = np.flatnonzero(~flags)
        self._order = lru_cache(maxsize=8)(self._shuffled)
        self._batches = self._whole_epoch() if batches is None else batches

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self._batches

    @property
    def pool(self) -> Sequence[int]:
        """The indices behind the labelled samples; see the class."""
        return self._pool.tolist()

    @pool.setter
    def pool(self, indices: Sequence[int]) -> None:
        chosen = np.asarray(list(indices), dtype=np.int64)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= self._size):
            raise UserError(
                f"MixedSampler: the pool holds indices from {chosen.min()} to {chosen.max()}; the data set has 0 to "
                f"{self._size - 1}."
            )
        self._pool = chosen
        self._order.cache_clear()

    def batch(self, epoch: int, number: int) -> list[EpochIndex]:
        """This rank's batch `number` of an epoch: labelled samples, then those of the pool."""
        passed = epoch * self.batches + number
        certain = self._part("labelled", 0, passed, self.labelled)
        others = self.batch_size - self.labelled
        if not others:
            return certain
        if len(self._pool):
            return certain + self._part("pool", epoch, number, others)
        return certain + self._part("rest", 0, passed, others)

    def _part(self, stream: str, epoch: int, number: int, count: int) -> list[EpochIndex]:
        """This rank's share of the `number`-th `count` samples, of each rank, of a stream.

        Each pass through the indices has an order and a seed of augmentation of its own.
        """
        total = count * self.world_size
        drawn = []
        for place in range(number * total + self.rank, (number + 1) * total, self.world_size):
            turn, within = divmod(place, len(self._indices(stream)))
            index = int(self._order(stream, epoch, turn)[within])
            drawn.append(EpochIndex(index, epoch, mixed_seed(stream, self.seed, turn)))
        return drawn

    def _indices(self, stream: str) -> Indices:
        return self._pool if stream == "pool" else self._labelled

    def _shuffled(self, stream: str, epoch: int, turn: int) -> Indices:
        rng = np.random.default_rng(mixed_seed(stream, "order", self.seed, epoch, turn))
        return rng.permutation(self._indices(stream))

    def _whole_epoch(self) -> int:
        others = (self.batch_size - self.labelled) * self.world_size
        if others and len(self._pool):
            return -(-len(self._pool) // others)
        return -(-len(self._labelled) // (self.batch_size * self.world_size))


def _flags(dataset: Any) -> npt.NDArray[np.bool_]:
    flags = getattr(dataset, "is_labelled", None)
    if flags is None:
        raise UserError(
            f"MixedSampler: {type(dataset).__name__} has no 'is_labelled', one bool a sample, which this sampler needs."
        )
    return np.asarray(flags, bool)[: len(dataset)]
