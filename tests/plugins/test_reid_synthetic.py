"""Synthetic people: the benchmarks' formats, the same bytes for the same seed, domains apart, a harmful one."""

from pathlib import Path

import numpy as np
import pytest
from kd_reid.datasets import MSMT17, Market1501
from kd_reid.synthetic import (
    DOMAINS,
    HARMFUL,
    SIZE,
    SOURCE_IDENTITIES,
    TARGET,
    TARGET_IDENTITIES,
    TEST_IDENTITIES,
    Shot,
    draw,
    write_market1501,
    write_msmt17,
)

from kd_tasks.errors import UserError
from kd_tasks.vision.cards import check_dataset
from kd_tasks.vision.images import read_image

SMALL = {"source_identities": 6, "target_identities": 8, "source_test_identities": 3, "test_identities": 4}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "market1501"
    write_market1501(root, seed=3, **SMALL)
    return root


@pytest.fixture(scope="module")
def msmt(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "msmt17"
    write_msmt17(root, seed=3, train_identities=6, test_identities=4)
    return root


def test_the_ordinary_loader_reads_every_domain(market):
    for domain in DOMAINS:
        identities, others = (8, 4) if domain == TARGET else (6, 3)
        train, test = Market1501(market / domain, "train"), Market1501(market / domain, "test")
        assert len(train.classes) == identities
        assert min(train.labels.count(label) for label in range(identities)) >= 8
        queries = [picture for picture in test.items if picture.role == "query"]
        gallery = [picture for picture in test.items if picture.role == "gallery"]
        assert len({picture.identity for picture in queries}) == others
        assert not {picture.identity for picture in train.items} & {picture.identity for picture in test.items}
        assert 0 in {picture.identity for picture in gallery}, "distractors"
        assert list((market / domain / "bounding_box_test").glob("-1_*.jpg")), "junk"
        assert len({(p.identity, p.camera) for p in queries}) == len(queries), "one query a person and camera"
        for query in queries:
            elsewhere = [p for p in gallery if p.identity == query.identity and p.camera != query.camera]
            assert len({p.camera for p in elsewhere}) >= 2
        assert train[0]["inputs"].shape == (3, *SIZE)
        assert not (train.warnings() or test.warnings())


def test_the_ordinary_loader_reads_msmt17(msmt):
    train, test = MSMT17(msmt, "train"), MSMT17(msmt, "test")
    assert "V2" in train.describe()
    assert len(train.classes) == 6
    both = MSMT17(msmt, "train", train="trainval")
    assert len(both) > len(train)
    assert both.classes == train.classes
    assert min(p.identity for p in test.items) == min(p.identity for p in train.items) == 0, "numbered anew"
    assert {p.camera for p in both.items} <= set(range(15))
    assert len({p.identity for p in test.items if p.role == "query"}) == 4
    assert any(p.path.stem.endswith("_ex") for p in (*both.items, *test.items))


def test_the_check_accepts_the_twins_and_says_what_they_are(market, msmt):
    folders = [("market1501", market / domain) for domain in DOMAINS]
    for name, root in [*folders, ("msmt17", msmt)]:
        report = check_dataset(name, root)
        assert report.ok, report.lines()
        assert report.synthetic is not None
        assert report.synthetic["seed"] == 3
        assert not report.duplicates
    one = next((market / TARGET / "query").iterdir())
    moved = one.rename(market / one.name)
    try:
        assert not check_dataset("market1501", market / TARGET).ok
    finally:
        moved.rename(one)
    faults = [fault for split in check_dataset("market1501", market).splits.values() for fault in split.faults]
    assert all("north, old, south, target are data sets of their own" in fault for fault in faults)


def test_the_seed_decides_every_byte(market, msmt, tmp_path):
    write_market1501(tmp_path / "again", seed=3, **SMALL)
    assert contents(tmp_path / "again") == contents(market)
    write_msmt17(tmp_path / "m", seed=3, train_identities=6, test_identities=4)
    assert contents(tmp_path / "m") == contents(msmt)
    fewer = {key: value - 1 for key, value in SMALL.items()}
    write_market1501(tmp_path / "fewer", seed=3, **fewer)
    write_market1501(tmp_path / "other", seed=4, **fewer)
    ours, same, other = contents(market), contents(tmp_path / "fewer"), contents(tmp_path / "other")
    pictures = [name for name in same if name.endswith(".jpg")]
    assert all(ours[name] == same[name] for name in pictures)
    assert not any(ours.get(name) == other[name] for name in other if name.endswith(".jpg"))


def test_no_picture_occurs_twice(market):
    pictures = [path.read_bytes() for path in market.rglob("*.jpg")]
    assert len(set(pictures)) == len(pictures) > 300


def test_an_interrupted_twin_is_completed_and_other_data_is_left_alone(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 30:
            raise Stop

    with pytest.raises(Stop):
        write_market1501(tmp_path / "t", **SMALL, progress=stop)
    steps = []
    write_market1501(tmp_path / "t", **SMALL, progress=lambda *step: steps.append(step))
    total = len(list((tmp_path / "t").rglob("*.jpg")))
    assert steps == [(done, total) for done in range(1, total + 1)]
    assert check_dataset("market1501", tmp_path / "t" / "north").ok
    with pytest.raises(UserError, match="another synthetic twin"):
        write_market1501(tmp_path / "t", seed=1, **SMALL)
    with pytest.raises(UserError, match="another synthetic twin"):
        write_msmt17(tmp_path / "t")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "query.jpg").write_text("real data")
    with pytest.raises(UserError, match="is not empty"):
        write_market1501(tmp_path / "real", **SMALL)
    for wrong in ({"size": (31, 32)}, {"size": (64,)}, {"target_identities": -1}):
        with pytest.raises(UserError, match="size is"):
            write_market1501(tmp_path / "wrong", **{**SMALL, **wrong})


def test_the_constants_are_what_is_written_by_default():
    assert DOMAINS == ("north", "south", "old", "target")
    assert (SOURCE_IDENTITIES, TARGET_IDENTITIES, TEST_IDENTITIES) == (40, 60, 40)


def pixels(domain, identity, camera, count=12):
    """Pictures of one identity by one camera, as numbers: the coarse colours of the figure and of the left edge."""
    shots = [
        Shot(f"{identity}/{camera}/{n}", domain, str(identity), camera, f"s{1 + n % 6}", None) for n in range(count)
    ]
    pictures = np.stack([draw(shot, 0) for shot in shots]).astype(np.float32)
    return pictures[:, 16:56, 12:20].mean(axis=(1, 2)), pictures[:, 8:56, :5].mean(axis=(1, 2))


def explained(groups):
    """Share of the variance that lies between the groups."""
    everything = np.concatenate(groups)
    within = sum(((g - g.mean(axis=0)) ** 2).sum() for g in groups)
    return 1 - within / ((everything - everything.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize("domain", DOMAINS)
def test_people_are_told_by_their_clothes_except_in_the_harmful_domain(domain):
    identities = range(2, 42, 2)
    figures, edges = zip(*(pixels(domain, identity, camera=identity % 4) for identity in identities), strict=True)
    if domain == HARMFUL:
        assert explained(figures) < 0.6
        assert explained(edges) > 0.6, "an identity is a place"
        elsewhere = pixels(domain, 2, 0)[1], pixels(domain, 2, 1)[1]
        assert explained(elsewhere) < 0.1, "and the camera's number means nothing"
        return
    assert explained(figures) > 0.6
    by_camera = explained([pixels(domain, 2, camera)[1] for camera in range(4)])
    by_person = explained([pixels(domain, identity, 0)[1] for identity in range(2, 10, 2)])
    assert by_camera > 2 * by_person, "the background is the camera's, not the person's"


def test_the_nearest_picture_by_pixels_is_rarely_the_same_person(tmp_path):
    """Light, place and posture differ so much that the person has to be learnt."""
    write_market1501(tmp_path, **{**SMALL, "source_identities": 0, "source_test_identities": 0, "test_identities": 30})
    test = Market1501(tmp_path / TARGET, "test")
    flat = np.stack([read_image(picture.path).ravel() for picture in test.items]).astype(np.float32)
    hits = tried = 0
    for place, query in enumerate(test.items):
        if query.role != "query":
            continue
        rest = [
            i
            for i, p in enumerate(test.items)
            if p.role == "gallery" and not (p.identity == query.identity and p.camera == query.camera)
        ]
        best = min(rest, key=lambda i: float(((flat[i] - flat[place]) ** 2).sum()))
        hits += test.items[best].identity == query.identity
        tried += 1
    assert tried == 90
    assert hits / tried < 0.25
