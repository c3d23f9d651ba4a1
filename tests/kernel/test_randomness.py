"""Samplers and seeds: what a run draws depends on seed, epoch and index alone."""

import pickle
import random
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS
from torch.utils.data import DataLoader, Dataset

from kd_tasks.engine import randomness
from kd_tasks.engine.randomness import (
    EpochIndex,
    EpochSampler,
    capture_random_state,
    restore_random_state,
    sample_seed,
    seeded,
)
from kd_tasks.errors import UserError


def sampler_of(monkeypatch, rank, world, length, **options):
    monkeypatch.setattr(randomness, "get_dist_info", lambda: (rank, world))
    return EpochSampler(range(length), seed=3, **options)


def batches(indices, size):
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_epoch_index_is_an_int_that_survives_pickling():
    index = pickle.loads(pickle.dumps(EpochIndex(7, epoch=4, seed=9)))
    assert (index, index.epoch, index.seed) == (7, 4, 9)
    assert isinstance(index, int)
    assert [10, 20, 30][EpochIndex(1, 5, 5)] == 20


def test_sample_seeds_are_stable_and_differ_by_each_part():
    assert sample_seed(EpochIndex(5, 2, 1)) == sample_seed(EpochIndex(5, 2, 1))
    assert sample_seed(5) == sample_seed(EpochIndex(5, 0, 0))
    seeds = [sample_seed(EpochIndex(i, e, s)) for i in range(20) for e in range(20) for s in range(20)]
    assert len(set(seeds)) > 7990
    assert all(0 <= seed < 2**31 for seed in seeds)
    # values of another process and machine: Python's own hash would change them
    assert [sample_seed(EpochIndex(i, 1, 2)) for i in (0, 1)] == [215252663, 450594750]


def test_seeded_repeats_and_leaves_the_outer_stream_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(5):
        first = draws()
    with pytest.raises(ZeroDivisionError), seeded(6):
        draws()
        _ = 1 / 0
    assert draws() == expected
    with seeded(5):
        assert draws() == first
    assert first != expected


def test_an_epoch_is_a_permutation_that_changes_with_epoch_and_seed():
    sampler = EpochSampler(range(50), seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first == again != second
    assert {index.epoch for index in first} == {0}
    assert {(index.epoch, index.seed) for index in second} == {(1, 0)}
    assert list(EpochSampler(range(50), seed=1)) != first
    assert list(EpochSampler(range(5), shuffle=False, seed=0)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_draw_the_batches_of_one_process(monkeypatch, world):
    single = list(sampler_of(monkeypatch, 0, 1, 48))
    ranks = [list(sampler_of(monkeypatch, rank, world, 48)) for rank in range(world)]
    for whole, *parts in zip(batches(single, 4 * world), *(batches(r, 4) for r in ranks), strict=True):
        assert sorted(whole) == sorted(index for part in parts for index in part)


def test_round_up_gives_equal_lengths_and_without_it_nothing_is_drawn_twice(monkeypatch):
    padded = [list(sampler_of(monkeypatch, rank, 4, 10)) for rank in range(4)]
    assert [len(part) for part in padded] == [3, 3, 3, 3]
    assert set(chain(*padded)) == set(range(10))
    samplers = [sampler_of(monkeypatch, rank, 4, 10, round_up=False, shuffle=False) for rank in range(4)]
    exact = [list(sampler) for sampler in samplers]
    assert [len(part) for part in exact] == [len(sampler) for sampler in samplers] == [3, 3, 2, 2]
    assert Counter(chain(*exact)) == Counter(range(10))
    more_ranks_than_samples = [list(sampler_of(monkeypatch, rank, 8, 3)) for rank in range(8)]
    assert all(len(part) == 1 for part in more_ranks_than_samples)


def test_infinite_stream_goes_through_epochs_and_divides_evenly(monkeypatch):
    single = list(islice(sampler_of(monkeypatch, 0, 1, 7, infinite=True), 42))
    assert [index.epoch for index in single] == [e for e in range(6) for _ in range(7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in batches(single, 7))
    for world in (2, 3, 9):
        ranks = [list(islice(sampler_of(monkeypatch, r, world, 7, infinite=True), 42 // world)) for r in range(world)]
        joined = [index for group in zip(*ranks, strict=True) for index in group]
        assert joined == single[: len(joined)]
        assert [i.epoch for i in joined] == [i.epoch for i in single[: len(joined)]]


@pytest.mark.parametrize("world", [1, 2])
def test_start_at_goes_on_where_a_run_was_stopped(monkeypatch, world):
    for rank in range(world):
        whole = list(islice(sampler_of(monkeypatch, rank, world, 11, infinite=True), 40))
        resumed = sampler_of(monkeypatch, rank, world, 11, infinite=True)
        resumed.start_at(17)
        rest = list(islice(resumed, 23))
        assert rest == whole[17:]
        assert [index.epoch for index in rest] == [index.epoch for index in whole[17:]]
    sampler = sampler_of(monkeypatch, 0, 1, 10)
    sampler.set_epoch(2)
    whole = list(sampler)
    resumed = sampler_of(monkeypatch, 0, 1, 10)
    resumed.start_at(24)
    resumed.set_epoch(2)
    assert list(resumed) == whole[4:]
    assert list(resumed) == whole, "the position holds for one iteration"


def test_set_epoch_of_an_infinite_stream_starts_that_epoch(monkeypatch):
    stream = list(islice(sampler_of(monkeypatch, 0, 1, 7, infinite=True), 30))
    sampler = sampler_of(monkeypatch, 0, 1, 7, infinite=True)
    sampler.set_epoch(2)
    assert list(islice(sampler, 9)) == stream[14:23]


def test_an_empty_data_set_is_refused():
    with pytest.raises(UserError, match="no samples"):
        EpochSampler([])


def test_random_state_comes_back_from_a_file_without_pickled_classes(tmp_path):
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    random.gauss(0, 1), np.random.standard_normal()  # both keep a spare number
    torch.save(capture_random_state(), tmp_path / "state.pth")
    expected = draws(), random.gauss(0, 1), np.random.standard_normal()
    draws()
    restore_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert (draws(), random.gauss(0, 1), np.random.standard_normal()) == expected


class _Draws(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([random.random(), float(np.random.rand())])


def test_workers_are_registered_and_do_not_repeat_themselves_by_epoch():
    loader = DataLoader(_Draws(), num_workers=2, worker_init_fn=FUNCTIONS.get("seed_worker"))
    epochs = [torch.cat(list(loader)) for _ in range(2)]
    assert not torch.equal(*epochs)
    assert len(torch.cat(epochs).unique(dim=0)) == 8
    assert DATA_SAMPLERS.get("EpochSampler") is EpochSampler
