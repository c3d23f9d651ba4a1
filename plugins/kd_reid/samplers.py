"""Samplers that fill each batch with P identities of K pictures, alone or beside unlabelled pictures.

Like `EpochSampler` they yield `EpochIndex`, depend on seed and epoch alone, and go on after a resume where a run was
stopped. They yield whole batches one after the other, so that the loader's `batch_size` has to be theirs.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS

from kd_tasks.engine.randomness import EpochIndex, mixed_seed
from kd_tasks.engine.samplers import BatchwiseSampler
from kd_tasks.errors import UserError

Batches = list[list[EpochIndex]]  # the batches of all ranks together


@DATA_SAMPLERS.register_module()
class IdentitySampler(BatchwiseSampler):
    """P identities with K pictures each in every batch, as batch-hard triplets need them (Hermans et al., 2017).

    An epoch draws a picture at most once, K of an identity at a time, and ends when fewer identities have K pictures
    left than a batch needs; the order in which they are used up keeps that rest small. An identity with fewer than K
    pictures is drawn once an epoch, some pictures more than once, with another augmentation each time. With several
    ranks, the identities of a global batch differ from each other. Samples without a label are left out.

    Args:
        dataset: a data set with `labels`, the label of each sample, -1 for none.
        identities: P, of one rank.
        pictures: K, at least 2. The loader's `batch_size` must be P * K.
        seed: the same on all ranks. None draws one at random and shares it.
        infinite: go on through the epochs; training by iterations sets it.

    Raises:
        UserError: if the data set has too few identities, or none has two pictures.
    """

    def __init__(
        self,
        dataset: Any,
        identities: int = 16,
        pictures: int = 4,
        seed: int | None = None,
        infinite: bool = False,
    ) -> None:
        super().__init__(identities * pictures, seed, infinite)
        self._plan = _IdentityPlan(labels_of(dataset, self), identities, pictures, self.world_size, self.seed, self)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self._plan.batches

    def batch(self, epoch: int, number: int) -> list[EpochIndex]:
        """This rank's batch `number` of an epoch, the pictures of an identity side by side."""
        return self._plan.batch(epoch, number, self.rank)


@DATA_SAMPLERS.register_module()
class MixedIdentitySampler(BatchwiseSampler):
    """Unlabelled pictures and, behind them, P identities with K labelled pictures each, in every batch.

    An epoch goes through the unlabelled pictures once, each at most once; the labelled ones are gone through as
    `IdentitySampler` does, as often as that takes, with another augmentation each time.

    Args:
        dataset: a data set with `labels`, the label of each sample, -1 for none.
        unlabelled: pictures without a label, of one rank.
        identities: P, of one rank.
        pictures: K, at least 2. The loader's `batch_size` must be unlabelled + P * K.
        seed: the same on all ranks. None draws one at random and shares it.
        infinite: go on through the epochs; training by iterations sets it.

    Raises:
        UserError: if the data set has too few unlabelled pictures or identities, or no identity has two pictures.
    """

    def __init__(
        self,
        dataset: Any,
        unlabelled: int = 32,
        identities: int = 4,
        pictures: int = 4,
        seed: int | None = None,
        infinite: bool = False,
    ) -> None:
        super().__init__(unlabelled + identities * pictures, seed, infinite)
        labels = labels_of(dataset, self)
        self._plan = _IdentityPlan(labels, identities, pictures, self.world_size, self.seed, self)
        self._loose = np.flatnonzero(labels < 0)
        self.unlabelled = unlabelled
        if unlabelled < 1:
            raise UserError("MixedIdentitySampler: unlabelled is 1 or more; without any, use IdentitySampler.")
        needed = unlabelled * self.world_size
        if len(self._loose) < needed:
            raise UserError(
                f"MixedIdentitySampler: a batch over all processes takes {needed} unlabelled pictures, and the data "
                f"set has {len(self._loose)}. Lower 'unlabelled', or let the data set keep its unlabelled pictures "
                "(labelled=<number of identities>, unlabelled=True)."
            )

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return len(self._loose) // (self.unlabelled * self.world_size)

    def batch(self, epoch: int, number: int) -> list[EpochIndex]:
        """This rank's batch `number` of an epoch: unlabelled first, then the identities."""
        size = self.unlabelled * self.world_size
        order = np.random.default_rng(mixed_seed("unlabelled", self.seed, epoch)).permutation(self._loose)
        loose = order[number * size : (number + 1) * size][self.rank :: self.world_size]
        labelled = divmod(epoch * self.batches + number, self._plan.batches)
        return [*(EpochIndex(i, epoch, self.seed) for i in loose.tolist()), *self._plan.batch(*labelled, self.rank)]


class _IdentityPlan:
    """Which pictures of which identities are in which batch.

    Args:
        labels: (N,), -1 for none.
        identities: P, of one rank.
        pictures: K.
        world_size: ranks.
        seed: of the plan.
        sampler: for messages.
    """

    def __init__(
        self, labels: np.ndarray, identities: int, pictures: int, world_size: int, seed: int, sampler: object
    ) -> None:
        name = type(sampler).__name__
        if identities < 1 or pictures < 2:
            raise UserError(
                f"{name}: identities={identities}, pictures={pictures}: a batch needs at least one identity, and of "
                "each at least two pictures."
            )
        self.pictures, self.seed, self.world_size = pictures, seed, world_size
        self.wanted = identities * world_size
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
        self._check(name)
        self.groups = np.array([max(1, len(m) // pictures) for m in self.members])
        self.batches = _full_batches(self.groups, self.wanted)
        self.of_epoch = lru_cache(maxsize=2)(self._epoch)

    def batch(self, epoch: int, number: int, rank: int) -> list[EpochIndex]:
        """The pictures of one rank's batch."""
        groups = self.of_epoch(epoch)[number][rank :: self.world_size]
        return [index for group in groups for index in group]

    def _check(self, name: str) -> None:
        if len(self.members) < self.wanted:
            among = f" ({self.world_size} processes)" if self.world_size > 1 else ""
            raise UserError(
                f"{name}: a batch takes {self.wanted} identities{among}, and the data set has {len(self.members)} "
                "with a label. Lower 'identities' and the batch size, or label more."
            )
        single = sum(len(m) < 2 for m in self.members)
        if single == len(self.members):
            raise UserError(
                f"{name}: none of the {single} identities has two pictures, so there is no pair to learn from."
            )
        if single:
            print_log(
                f"{name}: {single} of {len(self.members)} identities have a single picture, which fills all of their "
                "places in a batch",
                logger="current",
                level=logging.WARNING,
            )

    def _epoch(self, epoch: int) -> list[Batches]:
        """For each global batch, the groups of `pictures` indices."""
        rng = np.random.default_rng(mixed_seed("identities", self.seed, epoch))
        decks = [self._deck(member, count, epoch, rng) for member, count in zip(self.members, self.groups, strict=True)]
        left = np.minimum(self.groups, self.batches)
        plan = []
        for _ in range(self.batches):
            # the identities with most groups left, ties at random: so the fewest remain at the end
            chosen = np.lexsort((rng.random(len(left)), -left))[: self.wanted]
            left[chosen] -= 1
            plan.append([decks[i].pop() for i in rng.permutation(chosen)])
        return [plan[place] for place in rng.permutation(len(plan))]

    def _deck(self, member: np.ndarray, count: int, epoch: int, rng: np.random.Generator) -> Batches:
        """The groups of one identity: pictures in a new order, repeated where there are fewer than a group takes."""
        order = rng.permutation(member).tolist()
        drawn = [
            EpochIndex(order[n % len(order)], epoch, self._repeat_seed(n // len(order)))
            for n in range(count * self.pictures)
        ]
        return [drawn[n : n + self.pictures] for n in range(0, len(drawn), self.pictures)]

    def _repeat_seed(self, repeat: int) -> int:
        return mixed_seed("repeat", self.seed, repeat) if repeat else self.seed


def labels_of(dataset: Any, sampler: object) -> np.ndarray:
    """The label of each sample of a data set, int64 (N,), -1 for none.

    Raises:
        UserError: if the data set does not say.
    """
    labels: Sequence[int] | None = getattr(dataset, "labels", None)
    if labels is None:
        raise UserError(
            f"{type(sampler).__name__}: {type(dataset).__name__} has no 'labels', one a sample, which this sampler "
            "needs. Use a data set of identities, such as Market1501."
        )
    return np.asarray(labels, dtype=np.int64)[: len(dataset)]


def _full_batches(groups: np.ndarray, wanted: int) -> int:
    """The most batches of `wanted` different identities that can be filled, identity i having `groups[i]` groups."""
    low, high = 1, int(groups.sum()) // wanted
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= middle * wanted:
            low = middle
        else:
            high = middle - 1
    return low
