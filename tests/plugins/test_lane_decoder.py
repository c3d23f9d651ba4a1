"""From maps to lanes: the rules of CULane and TuSimple against loops over rows, geometry, options, masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kd_lanes.decoder import LaneDecoder, largest_components, smoothed
from scipy import ndimage

from kd_tasks.errors import UserError
from kd_tasks.registry import DECODERS

FIXTURE = Path(__file__).parents[1] / "fixtures" / "losses" / "lane_culane_decode.npz"
CULANE = {"original_size": (590, 1640), "input_size": (208, 976), "crop_top": 240}
TUSIMPLE = {"original_size": (720, 1280), "input_size": (92, 160), "h_samples": list(range(160, 711, 10))}


def logits_of(probabilities):
    """Logits (1, L + 1, h, w) of independent maps (L, h, w) that sum to less than one."""
    maps = torch.as_tensor(np.asarray(probabilities, np.float64))
    return torch.cat([1 - maps.sum(dim=0, keepdim=True), maps]).clamp_min(1e-12).log()[None]


def sigmoid_logit(value):
    return float(np.log(value / (1 - value)))


def bump(height, width, columns, peak=0.9, reach=2.0):
    """A map with a ridge at `columns` (h,), nan where there is none."""
    distance = np.arange(width) - np.asarray(columns, float)[:, None]
    return np.nan_to_num(peak * np.exp(-(distance**2) / (2 * reach**2)))


def random_slots(seed, lanes=4, height=104, width=200):
    """Maps of lanes, some of them broken and some too weak, with noise; (lanes, h, w)."""
    generator = np.random.default_rng(seed)
    maps = []
    for slot in range(lanes):
        columns = generator.uniform(20, width - 20) + generator.uniform(-0.6, 0.6) * np.arange(height)
        columns[generator.random(height) < 0.2] = np.nan
        columns[: generator.integers(0, height // 2)] = np.nan
        maps.append(bump(height, width, columns, peak=(0.24, 0.24, 0.2, 0.12)[slot]))
    return np.stack(maps) + 0.001 * generator.random((lanes, height, width))


# --- The rule of CULane -----------------------------------------------------------------------------------------------


def test_points_are_those_of_the_official_code():
    data = np.load(FIXTURE)
    outputs = {"logits": logits_of(data["in_score"][None] / 255.0)}
    (prediction,) = LaneDecoder(smoothing=1)(outputs, [CULANE])
    (lane,) = prediction["lanes"]
    found = data["out"] > 0
    assert len(lane) == data["out_count"]
    np.testing.assert_allclose(lane[:, 0], data["out"][found] * 1640 / 976, rtol=1e-6)
    assert lane[:, 1].tolist() == (590 - 20 * np.flatnonzero(found)).tolist()


def culane_by_loops(maps, threshold, meta, step=20, points=18, minimum=2):
    """Lanes of smoothed maps (L, h, w), row by row and column by column."""
    (height, width), top = meta["original_size"], meta["crop_top"]
    lanes = []
    for map_ in maps:
        lane = []
        for i in range(points):
            row = int(map_.shape[0] - i * step / (height - top) * map_.shape[0] - 1)
            if map_.shape[0] - i * step / (height - top) * map_.shape[0] - 1 < 0:
                break
            best, column = max((value, -c) for c, value in enumerate(map_[row]))
            if best > threshold and column < 0:
                lane.append((-column * width / map_.shape[1], height - i * step))
        lanes.append(lane if len(lane) >= minimum else None)
    return lanes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("smoothing", [1, 9])
def test_lanes_are_those_of_a_loop_over_rows(seed, smoothing):
    maps = random_slots(seed)
    meta = {"original_size": (295, 820), "input_size": maps.shape[1:], "crop_top": 120}
    blurred = [cv2.blur(m, (smoothing, smoothing)) for m in maps]
    decoder = LaneDecoder(threshold=0.08, smoothing=smoothing, row_step=10, min_points=4)
    (prediction,) = decoder({"logits": logits_of(maps)}, [meta])
    wanted = culane_by_loops(blurred, 0.08, meta, step=10, minimum=4)
    slots = [i + 1 for i, lane in enumerate(wanted) if lane]
    assert prediction["slots"].tolist() == slots
    assert len(slots) >= 2
    for lane, slot in zip(prediction["lanes"], slots, strict=True):
        assert lane.dtype == np.float32
        np.testing.assert_allclose(lane, np.array(wanted[slot - 1]), rtol=1e-6)


def test_smoothing_is_that_of_opencv():
    maps = torch.rand(2, 3, 20, 31, dtype=torch.float64)
    for side in (1, 3, 9):
        wanted = np.stack([[cv2.blur(m, (side, side)) for m in sample] for sample in maps.numpy()])
        np.testing.assert_allclose(smoothed(maps, side).numpy(), wanted, rtol=1e-12)
    with pytest.raises(UserError, match="too large for maps of"):
        smoothed(maps[..., :4, :], 9)


# --- The rule of TuSimple ---------------------------------------------------------------------------------------------


def test_rows_are_those_of_h_samples_and_gaps_are_joined():
    columns = 40 + 0.5 * np.arange(92.0)
    columns[60:70] = np.nan  # hidden behind a car
    decoder = LaneDecoder(rule="tusimple", smoothing=1, largest_component=False)
    outputs = {"logits": logits_of([bump(92, 160, columns)])}
    (lane,) = decoder(outputs, [TUSIMPLE])[0]["lanes"]
    rows = np.arange(710, 159, -10)
    assert lane[:, 1].tolist() == rows.tolist()
    in_map = (rows * 92 / 720).astype(int)
    seen = ~np.isnan(columns[in_map])
    assert 5 < (~seen).sum() < 10
    wanted = np.full(len(rows), np.nan)
    for i in np.flatnonzero(seen):
        wanted[i] = 8 * max(range(160), key=lambda c: bump(92, 160, columns)[in_map[i], c])
    np.testing.assert_allclose(lane[seen, 0], wanted[seen], rtol=1e-6)
    first, last = np.flatnonzero(~seen)[[0, -1]]
    straight = np.linspace(wanted[first - 1], wanted[last + 1], last - first + 3)[1:-1]
    np.testing.assert_allclose(lane[~seen, 0], straight, rtol=1e-6)

    (open_lane,) = LaneDecoder(rule="tusimple", smoothing=1, largest_component=False, connect=False)(
        outputs, [TUSIMPLE]
    )[0]["lanes"]
    assert open_lane[:, 1].tolist() == rows[seen].tolist()


def test_only_the_largest_part_of_a_slot_counts():
    columns = np.full(92, np.nan)
    columns[30:] = 60
    columns[3:24] = 130  # something else that looks like a lane
    outputs = {"logits": logits_of([bump(92, 160, columns)])}
    meta = {**TUSIMPLE, "h_samples": list(range(0, 711, 10))}
    (lane,) = LaneDecoder(rule="tusimple", smoothing=1)(outputs, [meta])[0]["lanes"]
    assert set(lane[:, 0]) == {480}
    assert lane[-1, 1] == 240
    (both,) = LaneDecoder(rule="tusimple", smoothing=1, largest_component=False)(outputs, [meta])[0]["lanes"]
    assert {480, 1040} <= set(both[:, 0])


def test_parts_are_those_of_scipy():
    generator = np.random.default_rng(0)
    above = ndimage.gaussian_filter(generator.random((2, 3, 60, 80)), (0, 0, 2, 2)) > 0.52
    above[1, 1] = False
    found = largest_components(above)
    for map_, kept in zip(above.reshape(-1, 60, 80), found.reshape(-1, 60, 80), strict=True):
        parts, count = ndimage.label(map_, np.ones((3, 3)))
        sizes = [(parts == i).sum() for i in range(1, count + 1)]
        assert count != 1
        assert kept.sum() == max(sizes, default=0)
        assert not (kept & ~map_).any()
        assert len(np.unique(parts[kept])) <= 1


@pytest.mark.parametrize("start", [160, 240])
def test_rows_may_be_56_or_48_and_those_cut_off_above_are_absent(start):
    meta = {
        "original_size": (720, 1280),
        "input_size": (46, 160),
        "crop_top": 360,
        "h_samples": list(range(start, 711, 10)),
    }
    outputs = {"logits": logits_of([bump(46, 160, np.full(46, 50))])}
    (lane,) = LaneDecoder(rule="tusimple", smoothing=1)(outputs, [meta])[0]["lanes"]
    assert lane.tolist() == [[400, y] for y in range(710, 359, -10)]
    (other,) = LaneDecoder(rule="tusimple", smoothing=1)(
        outputs, [{k: v for k, v in meta.items() if k != "h_samples"}]
    )[0]["lanes"]
    assert np.array_equal(lane, other)


# --- Geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["culane", "tusimple"])
def test_a_lane_drawn_in_the_original_is_found_there(rule):
    height, width, top = 590, 1640, 240
    picture = np.zeros((height, width), np.float32)
    cv2.line(picture, (300, 589), (900, 250), 1.0, 16)
    small = cv2.resize(picture[top:], (488, 104), interpolation=cv2.INTER_AREA)
    meta = {
        "original_size": (height, width),
        "input_size": (104, 488),
        "crop_top": top,
        "h_samples": [*range(260, 590, 10)],
    }
    (prediction,) = LaneDecoder(rule=rule)({"logits": logits_of([0.98 * small])}, [meta])
    (lane,) = prediction["lanes"]
    assert len(lane) >= 15
    assert (np.diff(lane[:, 1]) < 0).all()
    assert lane[0, 1] > 560
    wanted = 300 + (589 - lane[:, 1]) * 600 / 339
    assert np.abs(lane[:, 0] - wanted).max() < 16


def test_logits_below_the_input_size_and_padding():
    columns = np.full(64, 70)
    maps = bump(64, 160, columns)
    plain = logits_of([maps])
    meta = {"original_size": (128, 320), "input_size": (64, 160)}
    decoder = LaneDecoder(row_step=10, points=10)
    (wanted,) = decoder({"logits": plain}, [meta])
    padded = F.pad(plain, (0, 32, 0, 16), value=9.0)  # rubbish where the padding was
    (found,) = decoder({"logits": padded}, [{**meta, "padded_size": (80, 192)}])
    assert np.array_equal(found["lanes"][0], wanted["lanes"][0])
    halved = F.interpolate(plain, scale_factor=0.5, mode="bilinear", align_corners=False)
    (found,) = LaneDecoder(row_step=10, points=10, align_corners=False)({"logits": halved}, [meta])
    np.testing.assert_allclose(found["lanes"][0], wanted["lanes"][0], atol=2.1)


def test_a_batch_of_different_pictures_is_each_of_them_alone():
    maps = [random_slots(seed) for seed in range(4)]
    sizes = [(590, 1640), (295, 820), (590, 1640), (590, 1640)]
    metas = [
        {"original_size": size, "input_size": (104, 200), "crop_top": top}
        for size, top in zip(sizes, (240, 0, 240, 100), strict=True)
    ]
    logits = torch.cat([logits_of(m) for m in maps])
    exist = torch.tensor([[2.0, 1, -1, 3], [1, 1, 1, 1], [-5, 4, 4, -5], [9, 9, 9, 9]])
    decoder = LaneDecoder(threshold=0.05, mask=True)
    together = decoder({"logits": logits, "exist": exist}, metas)
    for i, found in enumerate(together):
        (alone,) = decoder({"logits": logits[i : i + 1], "exist": exist[i : i + 1]}, [metas[i]])
        assert list(found) == ["lanes", "scores", "slots", "mask"]
        assert len(found["lanes"]) == len(alone["lanes"]) == len(found["slots"])
        assert all(np.array_equal(a, b) for a, b in zip(found["lanes"], alone["lanes"], strict=True))
        assert np.array_equal(found["mask"], alone["mask"])
        assert tuple(found["mask"].shape) == metas[i]["original_size"]


# --- Options ----------------------------------------------------------------------------------------------------------


def test_existence_decides_and_is_the_score():
    maps = np.stack([bump(64, 160, np.full(64, c), peak=0.4) for c in (40, 80, 120)])
    meta = {"original_size": (128, 320), "input_size": (64, 160)}
    outputs = {
        "logits": logits_of(maps),
        "exist": torch.tensor([[sigmoid_logit(p) for p in (0.7, 0.45, 0.95)]]),
    }
    options = {"row_step": 10, "smoothing": 1}
    (half,) = LaneDecoder(**options)(outputs, [meta])
    assert half["slots"].tolist() == [1, 3]
    assert half["scores"] == pytest.approx([0.7, 0.95])
    (low,) = LaneDecoder(exist_threshold=0.4, **options)(outputs, [meta])
    assert low["slots"].tolist() == [1, 2, 3]
    assert [lane[0, 0] for lane in low["lanes"]] == [80, 160, 240]
    (high,) = LaneDecoder(exist_threshold=0.9, **options)(outputs, [meta])
    assert high["slots"].tolist() == [3]
    (without,) = LaneDecoder(**options)({"logits": outputs["logits"]}, [meta])
    assert without["slots"].tolist() == [1, 2, 3]
    assert without["scores"] == pytest.approx([0.4] * 3, rel=1e-5)
    (strict,) = LaneDecoder(threshold=0.41, **options)(outputs, [meta])
    assert strict["lanes"] == []
    assert len(strict["scores"]) == 0


def test_few_points_are_no_lane_and_column_0_is_no_point():
    columns = np.full(64, np.nan)
    columns[55:] = 30
    meta = {"original_size": (128, 320), "input_size": (64, 160)}
    outputs = {"logits": logits_of([bump(64, 160, columns)])}
    (found,) = LaneDecoder(row_step=10, smoothing=1)(outputs, [meta])
    assert len(found["lanes"][0]) == 2
    (none,) = LaneDecoder(row_step=10, smoothing=1, min_points=3)(outputs, [meta])
    assert none["lanes"] == []
    outputs = {"logits": logits_of([bump(64, 160, np.zeros(64))])}
    assert LaneDecoder(row_step=10, smoothing=1)(outputs, [meta])[0]["lanes"] == []


def test_the_mask_is_the_most_probable_class_at_the_original_size():
    logits = torch.randn(2, 3, 20, 40)
    metas = [
        {"original_size": (50, 80), "input_size": (20, 40), "crop_top": 10},
        {"original_size": (30, 60), "input_size": (20, 40)},
    ]
    decoder = DECODERS.build({"type": "LaneDecoder", "rule": "mask", "align_corners": False}, "model.decoder")
    found = decoder({"logits": logits}, metas)
    assert [p["lanes"] for p in found] == [[], []]
    large = F.interpolate(logits[:1], size=(40, 80), mode="bilinear", align_corners=False).argmax(dim=1)[0]
    assert found[0]["mask"].dtype == torch.uint8
    assert not found[0]["mask"][:10].any()
    assert torch.equal(found[0]["mask"][10:].long(), large)
    assert tuple(found[1]["mask"].shape) == (30, 60)
    assert "mask" not in LaneDecoder(smoothing=1)({"logits": logits[1:]}, metas[1:])[0]


def test_half_precision_gives_nearly_the_same_points():
    outputs = {"logits": logits_of(random_slots(0)), "exist": torch.full((1, 4), 3.0)}
    meta = {"original_size": (590, 1640), "input_size": (104, 200), "crop_top": 240}
    decoder = LaneDecoder(threshold=0.05)
    (wanted,) = decoder(outputs, [meta])
    (found,) = decoder({name: value.bfloat16() for name, value in outputs.items()}, [meta])
    assert found["slots"].tolist() == wanted["slots"].tolist()
    for a, b in zip(found["lanes"], wanted["lanes"], strict=True):
        common = np.isin(a[:, 1], b[:, 1])
        np.testing.assert_allclose(a[common, 0], b[np.isin(b[:, 1], a[:, 1]), 0], atol=25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "tusimpel"}, r"no rule 'tusimpel'\. Did you mean 'tusimple'"),
        ({"smoothing": 4}, "must be odd"),
        ({"smoothing": 0}, "must be odd"),
        ({"points": 0}, "must be positive"),
        ({"row_step": 0}, "must be positive"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LaneDecoder(**options)


def test_existence_of_other_lanes_than_the_maps_is_refused():
    with pytest.raises(UserError, match="tells of 6 lanes whether they exist, but has maps of 4"):
        LaneDecoder()({"logits": torch.zeros(1, 5, 20, 20), "exist": torch.zeros(1, 6)}, [CULANE])
