"""Synthetic twins: the benchmarks' formats, the same bytes for the same seed, uneven classes, no data overwritten."""

from pathlib import Path

import numpy as np
import pytest
from kd_segmentation.datasets import CamVid, Cityscapes
from kd_segmentation.synthetic import draw_scene, write_camvid, write_cityscapes

from kd_tasks.errors import UserError
from kd_tasks.vision.cards import check_dataset
from kd_tasks.vision.images import read_labels

SIZE = (48, 64)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def shares(dataset) -> np.ndarray:
    counts = sum(np.bincount(dataset.load(i)["mask"].ravel(), minlength=256) for i in range(len(dataset)))
    return counts / counts.sum()


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "camvid"
    write_camvid(root, seed=3, train=60, val=6, test=4, size=SIZE)
    return root


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "cityscapes"
    write_cityscapes(root, seed=3, train=60, val=6, test=4, size=(64, 128))
    return root


def test_the_ordinary_loaders_read_the_twins(camvid, cityscapes):
    for cls, root, size in ((CamVid, camvid, SIZE), (Cityscapes, cityscapes, (64, 128))):
        for split, count in (("train", 60), ("val", 6), ("test", 4)):
            dataset = cls(root, split)
            assert len(dataset) == count
            item = dataset[0]
            assert item["inputs"].shape == (3, *size)
            assert item["targets"]["mask"].shape == size


def test_the_check_accepts_the_twins_and_says_what_they_are(camvid, cityscapes):
    for name, root in (("camvid", camvid), ("cityscapes", cityscapes)):
        report = check_dataset(name, root)
        assert report.ok, report.lines()
        assert report.synthetic is not None
        assert report.synthetic["seed"] == 3
        assert "synthetic twin" in report.lines()[0]
        assert not report.duplicates
    one = next((camvid / "val").iterdir())
    moved = one.rename(camvid / one.name)
    try:
        assert not check_dataset("camvid", camvid).ok
    finally:
        moved.rename(one)


def test_every_class_occurs_and_shares_are_uneven(camvid, cityscapes):
    for cls, root in ((CamVid, camvid), (Cityscapes, cityscapes)):
        share = shares(cls(root, "train"))
        present = share[: len(cls.classes)]
        assert (present > 0).all(), dict(zip(cls.classes, present, strict=True))
        assert present.max() > 15 * present.min()
        assert 0 < share[255] < 0.1


def test_camvid_is_in_segnets_format(camvid):
    values = {int(v) for path in (camvid / "trainannot").iterdir() for v in np.unique(read_labels(path))}
    assert values == set(range(12)), "void is stored as 11"
    first = (camvid / "train.txt").read_text().splitlines()[0]
    assert first == "/SegNet/CamVid/train/0001TP_006690.png /SegNet/CamVid/trainannot/0001TP_006690.png"


def test_cityscapes_is_in_its_own_format(cityscapes):
    dataset = Cityscapes(cityscapes, "train")
    counted = {24, 25, 26, 27, 28, 31, 32, 33}
    for pair in dataset.items:
        labels = read_labels(pair.label)
        instances = read_labels(pair.label.with_name(pair.label.name.replace("labelIds", "instanceIds")))
        assert labels.dtype == np.uint8
        assert instances.shape == labels.shape
        ids = np.where(instances >= 1000, instances // 1000, instances)
        assert np.array_equal(ids[labels != 255], labels[labels != 255])
        assert set(np.unique(ids[instances >= 1000])) <= counted
        assert not counted & set(np.unique(instances))
    values = {int(v) for pair in Cityscapes(cityscapes, "test").items for v in np.unique(read_labels(pair.label))}
    assert values <= {0, 1, 2, 3}, "the labels of the test split hold void alone"


def test_the_seed_decides_every_byte(camvid, tmp_path):
    write_camvid(tmp_path / "again", seed=3, train=60, val=6, test=4, size=SIZE)
    assert contents(tmp_path / "again") == contents(camvid)
    write_camvid(tmp_path / "other", seed=4, train=3, val=0, test=0, size=SIZE)
    ours, other = contents(camvid), contents(tmp_path / "other")
    assert all(ours[name] != other[name] for name in other if name.startswith("train/"))
    write_camvid(tmp_path / "fewer", seed=3, train=3, val=0, test=0, size=SIZE)
    fewer = contents(tmp_path / "fewer")
    assert all(ours[name] == fewer[name] for name in fewer if name.startswith("train/"))


def test_splits_share_no_picture(camvid):
    pictures = [path.read_bytes() for split in ("train", "val", "test") for path in (camvid / split).iterdir()]
    assert len(set(pictures)) == len(pictures) == 70


def test_an_interrupted_twin_is_completed_and_other_data_is_left_alone(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        write_camvid(tmp_path / "t", train=5, val=1, test=1, size=SIZE, progress=stop)
    assert not check_dataset("camvid", tmp_path / "t").ok
    steps = []
    write_camvid(tmp_path / "t", train=5, val=1, test=1, size=SIZE, progress=lambda *step: steps.append(step))
    assert steps == [(done, 7) for done in range(1, 8)]
    assert check_dataset("camvid", tmp_path / "t").ok
    with pytest.raises(UserError, match="another synthetic twin"):
        write_camvid(tmp_path / "t", train=4, val=1, test=1, size=SIZE)
    with pytest.raises(UserError, match="another synthetic twin"):
        write_cityscapes(tmp_path / "t", train=5, val=1, test=1, size=SIZE)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "train.txt").write_text("real data")
    with pytest.raises(UserError, match="is not empty"):
        write_camvid(tmp_path / "real", train=5, val=1, test=1, size=SIZE)
    with pytest.raises(UserError, match="size is"):
        write_camvid(tmp_path / "small", size=(8, 8))


def test_colour_alone_does_not_give_the_class_away():
    """The best guess from a pixel's colour is far from the truth, so that shape and place have to be learnt."""
    scenes = [draw_scene(seed, SIZE) for seed in range(120)]
    colours = [scene.image.reshape(-1, 3) // 32 for scene in scenes]
    codes = [c[:, 0].astype(int) * 64 + c[:, 1] * 8 + c[:, 2] for c in colours]
    labels = [scene.labels.ravel() for scene in scenes]
    votes = np.zeros((512, 256), np.int64)
    np.add.at(votes, (np.concatenate(codes[:90]), np.concatenate(labels[:90])), 1)
    guess, truth = votes.argmax(axis=1)[np.concatenate(codes[90:])], np.concatenate(labels[90:])
    assert 0.25 < (guess == truth).mean() < 0.6
    things = np.isin(truth, (17, 20, 24, 25, 32, 33))
    assert (guess == truth)[things].mean() < 0.1
