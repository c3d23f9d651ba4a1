"""Person re-identification data: loaders against the official ones, labels, faults, samplers, augmentation."""

import json
import logging
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kd_reid.datasets import MSMT17, DukeMTMCreID, Market1501, ReIDFolder
from kd_reid.samplers import IdentitySampler, MixedIdentitySampler
from mmengine.logging import MMLogger
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import DataLoader

from kd_tasks.engine import samplers
from kd_tasks.engine.build import build_loader
from kd_tasks.engine.config_schema import arguments_of
from kd_tasks.engine.randomness import EpochIndex, sample_seed, seed_worker
from kd_tasks.errors import UserError
from kd_tasks.task import collate_samples
from kd_tasks.vision.augment import Augment
from kd_tasks.vision.cards import check_dataset, read_card
from kd_tasks.vision.images import write_image

LOADERS = Path(__file__).parents[1] / "fixtures" / "loaders"
MARKET = LOADERS / "market1501" / "Market-1501-v15.09.15"
CASES = [
    (Market1501, "market1501", "Market-1501-v15.09.15/{0}/", ("bounding_box_train", "query", "bounding_box_test")),
    (DukeMTMCreID, "dukemtmcreid", "DukeMTMC-reID/{0}/", ("bounding_box_train", "query", "bounding_box_test")),
    (MSMT17, "msmt17_v1", "MSMT17_V1/", ("list_train", "list_query", "list_gallery")),
    (MSMT17, "msmt17_v2", "MSMT17_V2/", ("list_train", "list_query", "list_gallery")),
]
RECIPE = [
    {"type": "Resize", "height": 256, "width": 128},
    {"type": "HorizontalFlip", "p": 0.5},
    {"type": "Pad", "padding": 10},
    {"type": "RandomCrop", "height": 256, "width": 128},
    {"type": "Erasing", "p": 0.5, "scale": (0.02, 0.4), "ratio": (0.3, 1.25), "fill": (124, 116, 104)},
]


def expected(name):
    return json.loads((LOADERS / name / "expected.json").read_text())


def read(dataset):
    """Path, identity, camera and role of each item."""
    items = [dataset[i] for i in range(len(dataset))]
    numbers = [(int(item["targets"]["identity"]), int(item["targets"]["camera"])) for item in items]
    return [(i["meta"]["path"], *n, i["meta"]["role"]) for i, n in zip(items, numbers, strict=True)]


def picture(path, seed=0):
    write_image(path, np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8))


def own(root, files):
    for number, file in enumerate(files):
        picture(root / file, number)
    return root


def market(root, train=(), query=(), gallery=()):
    for folder, names in (("bounding_box_train", train), ("query", query), ("bounding_box_test", gallery)):
        (root / folder).mkdir(parents=True)
        own(root / folder, names)
    return root


@pytest.fixture
def logged():
    """What the current logger says, as (level, text)."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelno, record.getMessage()))
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize(("cls", "name", "folder", "parts"), CASES)
def test_loaders_read_what_the_official_ones_read(cls, name, folder, parts):
    assert DATASETS.get(cls.__name__) is cls
    roles = ("train", "query", "gallery")
    wanted = {
        role: [(folder.format(part) + file, identity, camera, role) for file, identity, camera in expected(name)[part]]
        for role, part in zip(roles, parts, strict=True)
    }
    train, test = cls(LOADERS / name, "train"), cls(LOADERS / name, "test")
    assert read(train) == wanted["train"]
    assert read(test) == wanted["query"] + wanted["gallery"]
    identities = sorted({identity for _, identity, _, _ in wanted["train"]})
    assert train.metainfo == {"classes": [str(i) for i in identities], "palette": []}
    assert test.metainfo["classes"] == []
    for item, (_, identity, _, _) in zip((train[i] for i in range(len(train))), wanted["train"], strict=True):
        assert item["targets"]["label"] == identities.index(identity)
        assert {value.dtype for value in item["targets"].values()} == {torch.int64}
    assert all(test[i]["targets"]["label"] == -1 for i in range(len(test)))
    stored = cv2.imread(str(LOADERS / name / wanted["query"][0][0]))[..., ::-1]
    assert np.array_equal(test[0]["inputs"].permute(1, 2, 0).numpy(), stored)


def test_market_labels_are_in_numeric_order_and_counts_fit():
    train, test = Market1501(LOADERS / "market1501", "train"), Market1501(LOADERS / "market1501", "test")
    table = {
        str(int(item["targets"]["identity"])): int(item["targets"]["label"])
        for item in map(train.__getitem__, range(7))
    }
    assert table == expected("market1501")["train_relabel_sorted"]
    number = expected("market1501")["num"]
    roles = Counter(record[3] for record in read(test))
    assert (len(train), roles["query"], roles["gallery"]) == (number["train"], number["query"], number["gallery"])
    lines = train.summary().splitlines()
    assert lines[1].replace(" ", "") == "subset|#ids|#images|#cameras"
    assert lines[2].replace(" ", "") == f"train|{number['train_ids']}|{number['train']}|{number['cameras']}"


@pytest.mark.parametrize("place", ["Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15", "."])
def test_the_folders_may_lie_deeper_and_folder_names_mean_nothing(tmp_path, place):
    root = tmp_path / "run_12_c3" / "0007_c1"
    shutil.copytree(MARKET, root / place)
    found, wanted = Market1501(root, "train"), Market1501(MARKET, "train")
    assert [record[1:] for record in read(found)] == [record[1:] for record in read(wanted)]


def test_msmt17_takes_train_and_val_together_and_says_so():
    root = LOADERS / "msmt17_v1"
    both, alone = MSMT17(root, "train", train="trainval"), MSMT17(root, "train")
    listed = expected("msmt17_v1")["list_train"] + expected("msmt17_v1")["list_val"]
    assert [record[:3] for record in read(both)] == [(f"MSMT17_V1/{p}", i, c) for p, i, c in listed]
    assert "V1, list_train + list_val" in both.summary()
    assert "V1, list_train)" in alone.summary()
    assert both.metainfo == alone.metainfo


def test_msmt17_versions(tmp_path):
    with pytest.raises(UserError, match=r"version is 'v2'; it can be 'V1' or 'V2'\. Did you mean 'V2'"):
        MSMT17(LOADERS / "msmt17_v2", "train", version="v2")
    with pytest.raises(UserError, match="train is 'val'"):
        MSMT17(LOADERS / "msmt17_v2", "train", train="val")
    with pytest.raises(UserError, match="holds V2, not V1: correct 'version'"):
        MSMT17(LOADERS / "msmt17_v2", "train", version="V1")
    for version in ("V1", "V2"):
        source = LOADERS / f"msmt17_{version.lower()}" / f"MSMT17_{version}"
        assert len(MSMT17(source, "train", version=version)) == 3
        shutil.copytree(source, tmp_path / source.name)
    with pytest.raises(UserError, match="holds V1 and V2; say which one by 'version'"):
        MSMT17(tmp_path, "train")
    assert "mask_train_v2" in MSMT17(tmp_path, "train", version="V2")[0]["meta"]["path"]


def test_msmt17_reports_missing_files_and_lists(tmp_path):
    shutil.copytree(LOADERS / "msmt17_v1", tmp_path / "m")
    lost = "MSMT17_V1/train/0003/0003_019_10_0303noon_0284_2_ex.jpg"
    (tmp_path / "m" / lost).unlink()
    with pytest.raises(UserError, match=f"of 3 pictures of the split 'train', 1 are missing: {lost}"):
        MSMT17(tmp_path / "m", "train")
    assert MSMT17.survey(tmp_path / "m", "train").missing == [lost]
    (tmp_path / "m" / "MSMT17_V1" / "list_query.txt").unlink()
    with pytest.raises(UserError, match=r"list_query\.txt: no such list"):
        MSMT17(tmp_path / "m", "test")


# --- One's own folders -----------------------------------------------------------------------------------------------


def test_own_folders_number_people_and_read_cameras(tmp_path):
    root = own(
        tmp_path,
        [
            *("train/10/c2_a.jpg", "train/10/deep/b-c12.png", "train/9/mon_C1_x.jpg", "train/bob/x.jpg"),
            *("train/.h/x.jpg", "unlabelled/1/c3_z.jpg", "unlabelled/y.jpg"),
            *("query/ann/c1_q.jpg", "gallery/ann/c2_g.jpg", "gallery/ann/plain.jpg", "gallery/7/c1_d.jpg"),
        ],
    )
    train = ReIDFolder(root, "train")
    assert train.metainfo["classes"] == ["9", "10", "bob"]
    assert [record[:3] for record in read(train)] == [
        ("train/10/c2_a.jpg", 1, 1),
        ("train/10/deep/b-c12.png", 1, 11),
        ("train/9/mon_C1_x.jpg", 0, 0),
        ("train/bob/x.jpg", 2, -1),
        ("unlabelled/1/c3_z.jpg", -1, 2),
        ("unlabelled/y.jpg", -1, -1),
    ]
    assert train.labels == [1, 1, 0, 2, -1, -1]
    assert len(ReIDFolder(root, "train", unlabelled=False)) == 4
    test = ReIDFolder(root, "test")
    assert [record[1:] for record in read(test)] == [
        (1, 0, "query"),
        (0, 0, "gallery"),
        (1, 1, "gallery"),
        (1, -2, "gallery"),
    ]
    assert any("1 pictures name no camera" in warning and "plain.jpg" in warning for warning in test.warnings())


def test_pictures_without_a_camera_are_never_of_one_camera(tmp_path):
    root = own(tmp_path, ["query/a/1.jpg", "gallery/a/2.jpg", "gallery/b/3.jpg"])
    cameras = {role: camera for _, _, camera, role in read(ReIDFolder(root, "test"))}
    assert cameras["query"] != cameras["gallery"]
    assert ReIDFolder(root, "test").warnings() == []


def test_own_folders_may_hold_unlabelled_pictures_alone(tmp_path):
    dataset = ReIDFolder(own(tmp_path, ["unlabelled/c1_a.jpg", "unlabelled/c2_b.jpg"]), "train")
    assert dataset.labels == [-1, -1]
    assert dataset.metainfo["classes"] == []
    with pytest.raises(UserError, match=r"ReIDFolder: .* has no query picture"):
        ReIDFolder(tmp_path, "test")


def test_pictures_outside_a_persons_folder_are_named(tmp_path, logged):
    root = own(tmp_path, ["train/a/1.jpg", "train/lost.jpg"])
    assert len(ReIDFolder(root, "train")) == 1
    assert any(level == logging.WARNING and "train/lost.jpg" in text for level, text in logged)


# --- A few labelled identities ---------------------------------------------------------------------------------------


def test_some_identities_keep_their_label(tmp_path):
    names = [f"{identity:04d}_c{camera}s1_{identity:06d}_00.jpg" for identity in range(3, 43, 2) for camera in (1, 2)]
    root = market(tmp_path, names)
    chosen = {}
    for count in (3, 8, 20):
        dataset = Market1501(root, "train", labelled=count, seed=4)
        classes = dataset.metainfo["classes"]
        assert len(dataset) == 40
        assert len(classes) == count
        assert classes == sorted(classes, key=int)
        for place in range(40):
            targets = dataset[place]["targets"]
            name = str(int(targets["identity"]))
            assert targets["label"] == (classes.index(name) if name in classes else -1)
        chosen[count] = set(classes)
        few = Market1501(root, "train", labelled=count, seed=4, unlabelled=False)
        assert len(few) == 2 * count
        assert set(few.labels) == set(range(count))
    assert chosen[3] < chosen[8] < chosen[20]
    assert set(Market1501(root, "train", labelled=3, seed=5).classes) != chosen[3]
    assert Market1501(root, "train", labelled=0).metainfo["classes"] == []
    rows = Market1501(root, "train", labelled=3).summary().replace(" ", "").splitlines()
    assert {"train|3|6|2", "unlabelled|17|34|2"} == set(rows[2:])
    for wrong in (-1, 21, "3"):
        with pytest.raises(UserError, match=r"labelled=.*from 0 to 20"):
            Market1501(root, "train", labelled=wrong)
    with pytest.raises(UserError, match="'labelled' is for training"):
        Market1501(LOADERS / "market1501", "test", labelled=3)


# --- Faults ----------------------------------------------------------------------------------------------------------


def test_unparsable_names_are_counted_and_listed(tmp_path, logged):
    wrong = ["IMG_1.jpg", "0003-c1.jpg", "0003_c0s1.jpg", "x_c1s1.jpg"]
    root = market(tmp_path, ["0002_c1s1_000001_00.jpg", "._0002_c1s1_000001_00.jpg", *wrong])
    dataset = Market1501(root, "train")
    assert len(dataset) == 1
    (warning,) = [text for level, text in logged if level == logging.WARNING]
    assert "left out 4" in warning
    assert "bounding_box_train/0003-c1.jpg" in warning
    assert "and 1 more" in warning
    report = Market1501.survey(root, "train")
    assert report.found == 1
    assert not report.ok
    assert [name in fault for name, fault in zip(sorted(wrong), report.faults, strict=True)] == [True] * 4


def test_a_folder_in_which_no_name_can_be_read_says_so(tmp_path):
    root = market(tmp_path, ["a.jpg", "b.jpg"], ["c.jpg"], ["0001_c1s1_000001_00.jpg"])
    with pytest.raises(UserError, match=r"no picture for training\. 2 files cannot be read as .*b\.jpg"):
        Market1501(root, "train")
    with pytest.raises(UserError, match=r"no query picture\. 1 files cannot be read as .*query/c\.jpg"):
        Market1501(root, "test")


def test_malformed_lines_are_named_with_their_number(tmp_path):
    shutil.copytree(LOADERS / "msmt17_v1", tmp_path / "m")
    listed = tmp_path / "m" / "MSMT17_V1" / "list_train.txt"
    listed.write_text("\n" + listed.read_text() + "0000/no_label.jpg\n0000/name.jpg 0\n")
    dataset = MSMT17(tmp_path / "m", "train")
    assert len(dataset) == 3
    assert [line.partition(": ")[0] for line in dataset.unreadable] == [
        "MSMT17_V1/list_train.txt:5",
        "MSMT17_V1/list_train.txt:6",
    ]


def test_missing_folders_queries_and_matches(tmp_path, logged):
    with pytest.raises(UserError, match=r"(?s)has none of the folders .*Market-1501-v15\.09\.15/.*kd-tasks data synth"):
        Market1501(tmp_path, "train")
    root = market(tmp_path / "north", ["0002_c1s1_000001_00.jpg"], [], ["0001_c1s1_000001_00.jpg"])
    with pytest.raises(UserError, match="Its folders north are data sets of their own"):
        Market1501(tmp_path, "train")
    with pytest.raises(UserError, match="north has no query picture"):
        Market1501(root, "test")
    own(root / "query", ["0001_c2s1_000001_00.jpg", "0005_c2s1_000001_00.jpg"])
    dataset = Market1501(root, "test")
    assert len(dataset) == 3
    (warning,) = [text for level, text in logged if level == logging.WARNING]
    assert "1 queries show somebody who is not in the gallery: query/0005_c2s1" in warning
    assert not Market1501.survey(root, "test").ok
    shutil.rmtree(root / "bounding_box_test")
    with pytest.raises(UserError, match="bounding_box_test: no such folder"):
        Market1501(root, "test")


@pytest.mark.parametrize(("cls", "name", "folder", "parts"), CASES)
def test_check_holds_a_folder_against_its_card(cls, name, folder, parts):
    card = read_card(name.partition("_")[0])
    report = check_dataset(card.name, LOADERS / name)
    assert set(report.splits) == {"train", "test"}
    for split, found in report.splits.items():
        assert found.found == len(cls(LOADERS / name, split))
        assert found.expected == card.splits[split]
        assert not (found.faults or found.missing)
    assert not report.ok, "the fixture has fewer pictures than the benchmark"


def test_cards_have_the_published_counts():
    counts = {name: read_card(name).splits for name in ("market1501", "dukemtmcreid", "msmt17")}
    assert counts["market1501"] == {"train": 12936, "test": 3368 + 13115 + 2798}
    assert counts["dukemtmcreid"] == {"train": 16522, "test": 2228 + 17661}
    assert counts["msmt17"] == {"train": 30248, "test": 11659 + 82161}
    assert read_card("reid_folder").splits == {"train": None, "test": None}


def test_a_damaged_picture_is_one_clear_message(tmp_path):
    root = market(tmp_path, ["0002_c1s1_000001_00.jpg", "0002_c2s1_000001_00.jpg"])
    path = root / "bounding_box_train" / "0002_c2s1_000001_00.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"0002_c2s1_000001_00\.jpg: the image is truncated"):
        Market1501(root, "train")[1]
    assert len(Market1501.survey(root, "train").faults) == 1


# --- Samplers --------------------------------------------------------------------------------------------------------


class Labels:
    """A data set that has labels and nothing else."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)


def uneven(loose=0):
    """14 identities of 2 to 15 pictures, mixed up, and pictures without a label."""
    labels = np.repeat(np.arange(-1, 14), [loose, *range(2, 16)])
    return Labels(np.random.default_rng(0).permutation(labels).tolist())


def on_rank(monkeypatch, rank, world):
    monkeypatch.setattr(samplers, "get_dist_info", lambda: (rank, world))


def cut(indices, size):
    indices = list(indices)
    assert len(indices) % size == 0
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def views(indices):
    return [(int(index), index.epoch, index.seed) for index in indices]


@pytest.mark.parametrize(("identities", "pictures"), [(2, 2), (4, 4), (5, 3), (14, 2)])
def test_batches_have_p_identities_with_k_pictures(identities, pictures):
    data = uneven(loose=30)
    sampler = IdentitySampler(data, identities, pictures, seed=1)
    batches = cut(sampler, identities * pictures)
    assert len(sampler) == len(batches) * identities * pictures
    for batch in batches:
        groups = [[data.labels[i] for i in group] for group in cut(batch, pictures)]
        assert all(len(set(group)) == 1 and group[0] >= 0 for group in groups)
        assert len({group[0] for group in groups}) == identities
    drawn = views(index for batch in batches for index in batch)
    assert len(set(drawn)) == len(drawn), "nobody is seen twice in the same view"


def test_an_epoch_draws_nearly_every_picture_once():
    data = Labels(np.repeat(np.arange(40), 12).tolist())
    drawn = Counter(int(i) for i in IdentitySampler(data, 8, 4, seed=0))
    assert drawn == Counter(range(480))
    data = uneven()
    counts = Counter(int(i) for i in IdentitySampler(data, 2, 2, seed=0))
    assert set(counts.values()) == {1}
    whole_groups = sum(2 * (count // 2) for count in Counter(data.labels).values())
    assert sum(counts.values()) == 4 * (whole_groups // 4)


def test_identities_with_few_pictures_repeat_them_with_another_augmentation(logged):
    data = Labels([0, 0, 0, 1, 1, 1, 1, 1, 2])
    sampler = IdentitySampler(data, 3, 4, seed=0)
    for group in cut(sampler, 4):
        members = [i for i, label in enumerate(data.labels) if label == data.labels[group[0]]]
        assert set(group) <= set(members)
        assert len(set(group)) == min(4, len(members))
        assert len({sample_seed(i) for i in group}) == 4
    (warning,) = [text for level, text in logged if level == logging.WARNING]
    assert "1 of 3 identities have a single picture" in warning


def test_the_order_depends_on_seed_and_epoch_alone():
    def epoch(number, seed=0):
        sampler = IdentitySampler(uneven(), 4, 2, seed=seed)
        sampler.set_epoch(number)
        return views(sampler)

    assert epoch(0) == epoch(0)
    assert epoch(3) == epoch(3)
    assert len({tuple(i for i, _, _ in view) for view in (epoch(0), epoch(1), epoch(0, seed=1))}) == 3
    assert {e for _, e, _ in epoch(3)} == {3}


SAMPLERS = [
    (IdentitySampler, {"identities": 3, "pictures": 2}, 6),
    (MixedIdentitySampler, {"unlabelled": 5, "identities": 2, "pictures": 3}, 11),
]


@pytest.mark.parametrize(("cls", "options", "size"), SAMPLERS)
def test_they_are_registered_and_named_arguments_are_explicit(cls, options, size):
    assert DATA_SAMPLERS.get(cls.__name__) is cls
    assert not arguments_of(cls).open
    assert set(options) <= set(arguments_of(cls).required)
    assert cls(uneven(60), **options, seed=0).batch_size == size


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("cls", "options", "size"), SAMPLERS)
def test_a_resumed_run_goes_on_exactly(monkeypatch, cls, options, size, world):
    for rank in range(world):
        on_rank(monkeypatch, rank, world)

        def new(infinite=True):
            return cls(uneven(60), **options, seed=3, infinite=infinite)

        whole = list(islice(new(), 40 * size))
        per_epoch = len(new())
        assert [index.epoch for index in whole[:size]] == [0] * size
        for iterations in (0, 1, per_epoch // size, 17):
            resumed = new()
            resumed.set_epoch(0)
            resumed.start_at(iterations * size)
            assert views(islice(resumed, 10 * size)) == views(whole[iterations * size : (iterations + 10) * size])
        second = new(infinite=False)
        second.set_epoch(1)
        assert views(second) == views(whole[per_epoch : 2 * per_epoch])
        within = new(infinite=False)
        within.start_at(per_epoch + size)
        within.set_epoch(1)
        assert views(within) == views(whole[per_epoch + size : 2 * per_epoch])
        assert views(within) == views(whole[per_epoch : 2 * per_epoch]), "the position holds for one iteration"


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_draw_the_batches_of_one_process(monkeypatch, world):
    def ranks(build, count):
        found = []
        for rank in range(count):
            on_rank(monkeypatch, rank, count)
            found.append(build())
        return found

    data = uneven(80)
    parts = ranks(lambda: cut(IdentitySampler(data, 2, 2, seed=5), 4), world)
    (whole,) = ranks(lambda: cut(IdentitySampler(data, 2 * world, 2, seed=5), 4 * world), 1)
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(views(batch)) == sorted(view for share in shares for view in views(share))
        assert len({data.labels[i] for share in shares for i in share}) == 2 * world

    mixed = ranks(lambda: cut(MixedIdentitySampler(data, 3, 2, 2, seed=5), 7), world)
    (whole,) = ranks(lambda: cut(MixedIdentitySampler(data, 3 * world, 2 * world, 2, seed=5), 7 * world), 1)
    assert {len(part) for part in mixed} == {len(whole)}
    for batch, *shares in zip(whole, *mixed, strict=True):
        assert sorted(views(batch)) == sorted(view for share in shares for view in views(share))


def test_mixed_batches_hold_unlabelled_and_identities(monkeypatch):
    data = uneven(loose=100)
    sampler = MixedIdentitySampler(data, unlabelled=10, identities=3, pictures=4, seed=0, infinite=True)
    batches = cut(islice(sampler, 60 * 22), 22)
    for batch in batches:
        assert all(data.labels[i] == -1 for i in batch[:10])
        groups = [{data.labels[i] for i in group} for group in cut(batch[10:], 4)]
        assert all(len(group) == 1 for group in groups)
        assert len(set.union(*groups)) == 3
        assert -1 not in set.union(*groups)
    assert len(sampler) == 10 * 22
    first = [int(i) for batch in batches[:10] for i in batch[:10]]
    assert sorted(first) == [i for i, label in enumerate(data.labels) if label == -1]
    assert first != [int(i) for batch in batches[10:20] for i in batch[:10]]
    labelled = views(i for batch in batches for i in batch[10:])
    assert len(set(labelled)) == len(labelled), "each time in another view"


def test_samplers_refuse_what_they_cannot_fill(monkeypatch):
    with pytest.raises(UserError, match=r"takes 16 identities, and the data set has 14 .*Lower 'identities'"):
        IdentitySampler(uneven())
    with pytest.raises(UserError, match="none of the 4 identities has two pictures"):
        IdentitySampler(Labels([0, 1, 2, 3]), 2, 2)
    for wrong in ({"identities": 0}, {"pictures": 1}):
        with pytest.raises(UserError, match="at least two pictures"):
            IdentitySampler(uneven(), **{"identities": 2, "pictures": 2, **wrong})
    with pytest.raises(UserError, match="list has no 'labels'"):
        IdentitySampler([1, 2, 3])
    with pytest.raises(UserError, match=r"takes 32 unlabelled pictures, and the data set has 5"):
        MixedIdentitySampler(uneven(5))
    with pytest.raises(UserError, match="use IdentitySampler"):
        MixedIdentitySampler(uneven(5), unlabelled=0)
    on_rank(monkeypatch, 0, 4)
    with pytest.raises(UserError, match=r"takes 16 identities \(4 processes\)"):
        IdentitySampler(uneven(), 4, 2)


def test_a_wrong_batch_size_is_noticed_when_a_run_goes_on():
    sampler = IdentitySampler(uneven(), 3, 2, seed=0, infinite=True)
    sampler.start_at(3 * 8 + 4)
    with pytest.raises(UserError, match=r"batch_size: IdentitySampler makes batches of 6.*Set batch_size=6"):
        list(islice(sampler, 1))


# --- Together --------------------------------------------------------------------------------------------------------


def people(root):
    names = [
        f"{identity:04d}_c{camera}s1_{n:06d}_00.jpg" for identity in range(1, 7) for camera in (1, 2) for n in (1, 2)
    ]
    return market(root, names)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_batches_are_the_same_with_any_number_of_workers(tmp_path):
    dataset = Market1501(people(tmp_path), "train", transforms=RECIPE, labelled=3)
    loaded = []
    for workers in (0, 2):
        sampler = MixedIdentitySampler(dataset, 4, 2, 2, seed=1)
        loader = DataLoader(
            dataset,
            batch_size=8,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate_samples,
            worker_init_fn=seed_worker,
        )
        loaded.append([(batch["inputs"], batch["targets"]["label"]) for batch in loader])
    assert len(loaded[0]) == len(loaded[1]) == 3
    for (images, labels), (others, same) in zip(*loaded, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, same)
        assert (labels >= 0).tolist() == [False] * 4 + [True] * 4


def test_the_runner_builds_the_loader(tmp_path):
    loader = build_loader(
        {
            "batch_size": 6,
            "sampler": {"type": "IdentitySampler", "identities": 3, "pictures": 2},
            "dataset": {"type": "Market1501", "data_root": str(people(tmp_path)), "split": "train"},
        },
        seed=2,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    assert all(len(batch["targets"]["label"].unique()) == 3 for batch in batches)


def test_the_usual_recipe_works_through_albumentations():
    augment = Augment(RECIPE)
    image = np.full((128, 64, 3), 200, np.uint8)
    erased, padded = [], 0
    for seed in range(300):
        result = augment(image, seed=seed)["image"]
        assert result.shape == (256, 128, 3)
        share = (result == (124, 116, 104)).all(axis=2).mean()
        erased.append(share)
        padded += bool((result == 0).all(axis=2).any())
    erased = np.array(erased)
    assert 0.4 < (erased > 0).mean() < 0.6
    assert 0.3 < erased.max() < 0.42, "up to 0.4 of the picture, as in the paper"
    assert padded > 200
    assert np.array_equal(augment(image, seed=7)["image"], augment(image, seed=7)["image"])


def test_epoch_index_reaches_the_augmentation(tmp_path):
    dataset = Market1501(people(tmp_path), "train", transforms=RECIPE)
    first = dataset[EpochIndex(0, 0, 1)]["inputs"]
    assert torch.equal(first, dataset[EpochIndex(0, 0, 1)]["inputs"])
    assert not torch.equal(first, dataset[EpochIndex(0, 1, 1)]["inputs"])
