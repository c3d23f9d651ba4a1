"""Batches of labelled and unlabelled samples: what they hold, and what they depend on."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from kd_landmarks.datasets import FacesFolder
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader

from kd_tasks.engine import samplers
from kd_tasks.engine.build import build_loader
from kd_tasks.engine.randomness import sample_seed
from kd_tasks.engine.samplers import MixedSampler
from kd_tasks.errors import UserError
from kd_tasks.task import collate_samples
from kd_tasks.vision.images import write_image


class Marked:
    """Samples of which the first ones are labelled."""

    def __init__(self, labelled, unlabelled):
        self.is_labelled = np.arange(labelled + unlabelled) < labelled

    def __len__(self):
        return len(self.is_labelled)

    def __getitem__(self, index):
        return {"inputs": torch.tensor([int(index), sample_seed(index)]), "targets": {}, "meta": {}}


def batches(sampler, count=None):
    drawn = list(sampler) if count is None else list(islice(sampler, count * sampler.batch_size))
    size = sampler.batch_size
    return [[(int(i), sample_seed(i)) for i in drawn[n : n + size]] for n in range(0, len(drawn), size)]


def places(batch):
    return [index for index, _ in batch]


def epochs(sampler, count):
    found = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found += batches(sampler)
    return found


def as_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(samplers, "get_dist_info", lambda: (rank, world_size))


def test_batches_hold_labelled_samples_and_then_others():
    sampler = MixedSampler(Marked(10, 30), batch_size=8, labelled=3, batches=12, seed=0)
    assert DATA_SAMPLERS.get("MixedSampler") is MixedSampler
    assert len(sampler) == 96
    drawn = epochs(sampler, 5)
    assert len(drawn) == 60
    assert all(index < 10 for batch in drawn for index in places(batch)[:3])
    assert all(index >= 10 for batch in drawn for index in places(batch)[3:])
    # each pass goes through all of them
    labelled = [index for batch in drawn for index in places(batch)[:3]]
    assert all(sorted(labelled[n : n + 10]) == list(range(10)) for n in range(0, 180, 10))
    others = [index for batch in drawn for index in places(batch)[3:]]
    assert all(sorted(others[n : n + 30]) == list(range(10, 40)) for n in range(0, 300, 60))
    assert set(Counter(others).values()) == {10}
    # in another order, with another augmentation each time
    assert len({tuple(labelled[n : n + 10]) for n in range(0, 180, 10)}) == 18
    repeats = Counter(pair for batch in drawn for pair in batch)
    assert set(repeats.values()) == {1}


def test_labelled_samples_do_not_depend_on_the_others():
    few = [b[:4] for b in epochs(MixedSampler(Marked(11, 40), 8, 4, batches=5, seed=3), 6)]
    alone = epochs(MixedSampler(Marked(11, 0), 4, 4, batches=5, seed=3), 6)
    more = [b[:4] for b in epochs(MixedSampler(Marked(11, 900), 64, 4, batches=10, seed=3), 3)]
    assert few == alone == more
    changed = MixedSampler(Marked(11, 40), 8, 4, batches=5, seed=3)
    changed.pool = [12, 20]
    assert [b[:4] for b in epochs(changed, 6)] == few
    assert [b[:4] for b in epochs(MixedSampler(Marked(11, 40), 8, 4, batches=5, seed=4), 6)] != few


def test_the_pool_can_be_set_between_epochs():
    sampler = MixedSampler(Marked(10, 30), batch_size=8, labelled=3, batches=4, seed=0)
    assert list(sampler.pool) == list(range(10, 40))
    sampler.pool = [15, 30, 39]
    drawn = batches(sampler)
    assert {index for batch in drawn for index in places(batch)[3:]} == {15, 30, 39}
    assert len({pair for batch in drawn for pair in batch}) == 32
    sampler.set_epoch(1)
    sampler.pool = ()
    drawn = batches(sampler)
    assert all(index < 10 for batch in drawn for index in places(batch))
    assert len({pair for batch in drawn for pair in batch}) == 32
    sampler.set_epoch(2)
    sampler.pool = np.arange(10, 40)
    fresh = MixedSampler(Marked(10, 30), batch_size=8, labelled=3, batches=4, seed=0)
    fresh.set_epoch(2)
    assert batches(sampler) == batches(fresh)
    with pytest.raises(UserError, match="pool holds indices from 3 to 40; the data set has 0 to 39"):
        sampler.pool = [3, 40]


def test_a_new_pool_counts_at_once_when_training_goes_by_iterations():
    sampler = MixedSampler(Marked(4, 30), batch_size=4, labelled=2, batches=3, seed=0, infinite=True)
    stream = iter(sampler)
    list(islice(stream, 12))
    sampler.pool = [7]
    assert [int(i) for i in islice(stream, 4)][2:] == [7, 7]


@pytest.mark.parametrize("infinite", [False, True])
def test_a_resumed_run_goes_on_in_the_same_stream(infinite):
    def fresh():
        return MixedSampler(Marked(7, 20), 6, 2, batches=5, seed=1, infinite=infinite)

    whole = batches(fresh(), 15) if infinite else epochs(fresh(), 3)
    for stopped in (0, 3, 5, 8):
        sampler = fresh()
        sampler.start_at(stopped * 6)
        rest = batches(sampler, 15 - stopped) if infinite else batches(sampler)
        assert rest == whole[stopped : stopped + len(rest)]
        assert len(rest) == (15 - stopped if infinite else 5 - stopped % 5)
    with pytest.raises(UserError, match="batch_size=6"):
        sampler.start_at(7)
        iter(sampler)


def test_ranks_draw_together_what_one_process_draws(monkeypatch):
    def run(batch, labelled):
        return epochs(MixedSampler(Marked(9, 25), batch, labelled, batches=6, seed=2), 3)

    alone = run(12, 4)
    shares = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        shares.append(run(6, 2))
    for whole, first, second in zip(alone, *shares, strict=True):
        assert sorted(first[:2] + second[:2]) == sorted(whole[:4])
        assert sorted(first[2:] + second[2:]) == sorted(whole[4:])


def test_an_epoch_goes_through_the_pool_once_unless_its_batches_are_given(monkeypatch):
    assert MixedSampler(Marked(5, 30), 8, 3, seed=0).batches == 6
    assert MixedSampler(Marked(5, 31), 8, 3, seed=0).batches == 7
    assert MixedSampler(Marked(21, 0), 8, 8, seed=0).batches == 3
    assert MixedSampler(Marked(21, 0), 8, 3, seed=0).batches == 3
    as_rank(monkeypatch, 0, 2)
    assert MixedSampler(Marked(5, 30), 8, 3, seed=0).batches == 3


def test_samples_are_the_same_with_any_number_of_workers():
    data = Marked(6, 18)
    runs = [
        [
            batch["inputs"]
            for batch in DataLoader(
                data, 6, sampler=MixedSampler(data, 6, 2, batches=4, seed=0), num_workers=n, collate_fn=collate_samples
            )
        ]
        for n in (0, 2)
    ]
    assert len(runs[0]) == 4
    assert all(torch.equal(torch.stack(list(a)), torch.stack(list(b))) for a, b in zip(runs[0], runs[1], strict=True))


def test_it_is_built_from_a_config_and_a_run_on_the_labelled_part_sees_the_same(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        write_image(tmp_path / f"train/{i}.png", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        points = "".join(f"{x} {y}\n" for x, y in rng.uniform(8, 32, (5, 2)))
        (tmp_path / f"train/{i}.pts").write_text(f"version: 1\nn_points: 5\n{{\n{points}}}\n")
    turn = [{"type": "Affine", "rotate": (-30, 30), "p": 1.0}]

    def loader(batch, **options):
        return build_loader(
            {
                "batch_size": batch,
                "num_workers": 0,
                "sampler": {"type": "MixedSampler", "batch_size": batch, "labelled": 2, "batches": 4},
                "dataset": {
                    "type": "FacesFolder",
                    "data_root": str(tmp_path),
                    "split": "train",
                    "size": 16,
                    "transforms": turn,
                    "labelled": 3,
                    **options,
                },
            },
            seed=7,
        )

    mixed, alone = list(loader(5)), list(loader(2, keep_unlabelled=False))
    assert len(mixed) == len(alone) == 4
    for both, labelled in zip(mixed, alone, strict=True):
        assert both["targets"]["labelled"].tolist() == [True, True, False, False, False]
        assert torch.equal(torch.stack(list(both["inputs"][:2])), torch.stack(list(labelled["inputs"])))
        assert torch.equal(both["targets"]["points"][:2], labelled["targets"]["points"])
    assert isinstance(loader(5).dataset, FacesFolder)


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (Marked(0, 5), {}, "no labelled sample"),
        (Marked(5, 5), {"labelled": 0}, "labelled=0, batch_size=8"),
        (Marked(5, 5), {"labelled": 9}, "labelled=9, batch_size=8"),
        (Marked(5, 5), {"batches": 0}, "batches=0"),
        ([1, 2, 3], {}, "list has no 'is_labelled'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(data, options, reason):
    with pytest.raises(UserError, match=reason):
        MixedSampler(**{"dataset": data, "batch_size": 8, "labelled": 2, "seed": 0, **options})
