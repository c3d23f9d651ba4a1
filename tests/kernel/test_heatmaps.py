"""Heatmap codecs: the official codes' maps and points, round trips, borders, mirroring, precision, refusals."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from kd_tasks.engine.config_check import find_faults
from kd_tasks.errors import UserError
from kd_tasks.registry import CODECS, CRITERIA
from kd_tasks.vision.heatmaps import DarkHeatmap, GaussianHeatmap, HeatmapCodec, PeakHeatmap, UDPHeatmap
from kd_tasks.vision.heatmaps import smoothing as smoothing_module
from kd_tasks.vision.heatmaps.smoothing import blurred, log_block, taylor
from tests.benchmarks import heatmaps as by_hand

FIXTURES = Path(__file__).parents[1] / "fixtures"
INPUT, MAP = (256, 192), (64, 48)

CODEC = {
    "gaussian": GaussianHeatmap(),
    "gaussian_hrnet": GaussianHeatmap(rule="hrnet"),
    "dark": DarkHeatmap(),
    "udp": UDPHeatmap(),
    "udp_combined": UDPHeatmap("combined"),
    "peak": PeakHeatmap(sigma=5.0),
    "peak_background": PeakHeatmap(sigma=5.0, background=True),
}
every = pytest.mark.parametrize("codec", CODEC.values(), ids=CODEC.keys())


def fixture(path: str) -> dict[str, Tensor]:
    with np.load(FIXTURES / path, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fib"}


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(points: Tensor) -> Tensor:
    return torch.ones(points.shape[:2], dtype=torch.bool)


def inside(seed: int, margin: float, faces: int = 3, points: int = 40, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points at least `margin` pixels of the map inside."""
    stride = INPUT[0] / MAP[0]
    size = torch.tensor(INPUT[::-1], dtype=dtype)
    return margin * stride + random(seed, faces, points, 2, dtype=dtype) * (size - 1 - 2 * margin * stride)


# --- The official codes ----------------------------------------------------------------------------------------------

OFFICIAL = {
    "msra": GaussianHeatmap(2),
    "msra_s3": GaussianHeatmap(3),
    "dark": DarkHeatmap(2, blur=11),
    "udp": UDPHeatmap("gaussian", 2, blur=11),
    "udp_combined": UDPHeatmap("combined", 2, blur=11),
}
UNDEFINED = [2, 5, 9]  # what the official UDP makes of blank maps


@pytest.fixture(scope="module")
def codes() -> dict[str, Tensor]:
    parts = (fixture(f"metrics/heatmap_codecs/{name}.npz") for name in ("codecs", "codecs_flip_hrnet"))
    return {key: value for part in parts for key, value in part.items()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_targets_of_mmpose(codes, name):
    maps, weights = OFFICIAL[name].encode(codes["keypoints"], codes["visible"] > 0, INPUT, MAP)
    torch.testing.assert_close(maps[0], codes[f"{name}_heatmaps"], rtol=1e-5, atol=1e-6)
    each = OFFICIAL[name].maps_per_point
    torch.testing.assert_close(weights, codes[f"{name}_weights"].repeat_interleave(each, dim=1), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["msra", "dark", "udp", "udp_combined"])
def test_points_of_mmpose(codes, name):
    points, scores = OFFICIAL[name].decode(codes[f"{name}_dec_in"][None], INPUT)
    wanted = codes[f"{name}_dec_kpts"]
    if name.startswith("udp"):  # mmpose scales by W / (w - 1), although it encodes with (W - 1) / (w - 1)
        size = torch.tensor(INPUT[::-1])
        wanted = wanted * (size - 1) / size
        assert (points[0, [2, 9]] == -torch.tensor([191 / 47, 255 / 63])).all() or name == "udp_combined"
        kept = [row for row in range(17) if row not in UNDEFINED]
        points, wanted = points[:, kept], wanted[:, kept]
    torch.testing.assert_close(points.double(), wanted.double(), rtol=0, atol=5e-4)
    torch.testing.assert_close(scores, codes[f"{name}_dec_scores"], rtol=1e-5, atol=1e-6)


def test_targets_and_points_of_hrnet(codes):
    codec = GaussianHeatmap(2, rule="hrnet")
    maps, weights = codec.encode(codes["keypoints"], codes["visible"] > 0, INPUT, MAP)
    torch.testing.assert_close(maps[0], codes["hrnet_target"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights[0, :, None], codes["hrnet_weight"], rtol=0, atol=0)
    points, scores = codec.locate(codes["msra_dec_in"][None])
    stride = codes["hrnet_scale"] * 200 / torch.tensor(MAP[::-1])
    original = codes["hrnet_center"] + (points - torch.tensor(MAP[::-1]) / 2) * stride
    torch.testing.assert_close(original, codes["hrnet_final_preds"], rtol=0, atol=1e-3)
    torch.testing.assert_close(scores[..., None], codes["hrnet_maxvals"], rtol=0, atol=0)


@pytest.mark.parametrize(("shift", "name"), [(True, "shift"), (False, "noshift")])
def test_merging_as_mmpose(codes, shift, name):
    swaps = json.loads((FIXTURES / "metrics/heatmap_codecs/index.json").read_text())[1]["flip_indices"]
    flipped, maps = codes["flip_out_of_flipped_image"], codes["msra_dec_in"][None]
    for codec in [GaussianHeatmap(shift=shift), DarkHeatmap(shift=shift), *([] if shift else [UDPHeatmap()])]:
        assert torch.equal(codec.mirror(flipped, swaps), codes[f"flip_{name}"])
        torch.testing.assert_close(codec.merge_flipped(maps, flipped, swaps), codes[f"flip_avg_{name}"])


def test_discs_and_ways_mirrored_as_mmpose(codes):
    swaps = json.loads((FIXTURES / "metrics/heatmap_codecs/index.json").read_text())[1]["flip_indices"]
    candidates = [codes["udp_combined_heatmaps"][None], codes["udp_combined_dec_in"][None]]
    codec = UDPHeatmap("combined")
    assert any(torch.equal(codec.mirror(maps, swaps), codes["flip_udp_combined"]) for maps in candidates)


def test_targets_and_points_of_fast_pose_distillation():
    data = fixture("losses/fpd_target_decode.npz")
    codec = GaussianHeatmap(2, rule="hrnet")
    maps, weights = codec.encode(data["in_joints"][None, :, :2], data["in_vis"][None, :, 0] > 0, (64, 64), (16, 16))
    torch.testing.assert_close(maps[0].float(), data["out"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights[0, :, None].float(), data["out_weight"], rtol=0, atol=0)
    points, scores = codec.locate(data["in_heatmap"])
    torch.testing.assert_close(points.float(), data["out_quarter_offset"], rtol=0, atol=0)
    torch.testing.assert_close(scores[..., None].clamp(min=0), data["out_maxval"].clamp(min=0), rtol=0, atol=0)


def test_points_of_hrnet_for_faces():
    """It counts from 1, adds half a pixel, and truncates in the original picture."""
    data = fixture("metrics/landmarks/decode.npz")
    points, _ = GaussianHeatmap(rule="mmpose").locate(data["heatmaps"])
    side = 200 * data["scale"].double().round(decimals=4)[:, None, None]
    original = (points.double() + 0.5 - 32) * side / 64 + data["center"][:, None].double()
    assert torch.equal((original.trunc() + 1).float(), data["preds"])


def test_points_of_the_peaks_of_teacher_supervises_students():
    data = fixture("losses/ts3_peak_decode.npz")
    points, scores = PeakHeatmap().decode(data["in_heatmap"][None], (128, 128))
    torch.testing.assert_close(points[0], data["out"], rtol=0, atol=1e-5)  # single precision there
    torch.testing.assert_close(scores[0], data["out_score"], rtol=0, atol=0)


def test_targets_of_supervision_by_registration():
    data = fixture("losses/landmark_targets_loss.npz")
    x, y, annotated = data["in_points"]
    codec = PeakHeatmap(sigma=4, background=True)
    maps, weights = codec.encode(torch.stack((x, y), dim=-1)[None], annotated[None] > 0, (64, 64), (8, 8))
    torch.testing.assert_close(maps[0].permute(1, 2, 0).float(), data["out_label_map"], rtol=0, atol=1e-6)
    assert torch.equal(weights[0].float(), data["out_mask"].flatten())
    assert torch.equal(weights[0] > 0, data["in_mask"][0, :, 0, 0])


@pytest.mark.parametrize("name", ["300W", "WFLW", "AFLW", "COFW"])
def test_mirrored_maps_belong_to_the_mirrored_points(name):
    case = json.loads((FIXTURES / "metrics/landmarks/flip.json").read_text())[name]
    width, points = case["width"], torch.tensor(case["points"])
    hrnet = torch.stack((width - points[:, 0], points[:, 1]), dim=1)
    swaps = torch.cdist(torch.tensor(case["hrnet_flipped"]), hrnet).argmin(dim=1).tolist()
    assert [swaps[i] for i in swaps] == list(range(len(points)))
    mirrored = torch.stack((width - 1 - points[:, 0], points[:, 1]), dim=1)[swaps]  # from 0 on, the last pixel is w - 1
    visible, sizes = seen(points[None]), ((width, width), (64, 64))
    for codec in (UDPHeatmap(), UDPHeatmap("combined"), PeakHeatmap(8.0), PeakHeatmap(8.0, background=True)):
        straight, _ = codec.encode(points[None], visible, *sizes)
        flipped, _ = codec.encode(mirrored[None], visible, *sizes)
        unequal = (codec.mirror(flipped, swaps) - straight).abs() > 1e-3
        assert unequal.float().mean() < 1e-4  # where a disc or a patch ends, rounding decides
        merged = codec.merge_flipped(straight, flipped, swaps)
        before, after = (codec.decode(maps, sizes[0])[0] for maps in (straight, merged))
        torch.testing.assert_close(after, before, rtol=0, atol=0.02)


@pytest.mark.parametrize("codec", [GaussianHeatmap(), DarkHeatmap()], ids=["gaussian", "dark"])
def test_the_shift_makes_up_for_most_of_what_lies_between_mirrored_maps(codec):
    points = inside(0, margin=8)
    mirrored = torch.stack((INPUT[1] - 1 - points[..., 0], points[..., 1]), dim=-1)
    maps, flipped = (codec.encode(p, seen(points), INPUT, MAP)[0] for p in (points, mirrored))
    swaps = range(points.shape[1])
    errors = {}
    for shift in (True, False):
        other = type(codec)(shift=shift)
        found, _ = other.decode(other.mirror(flipped, swaps), INPUT)
        errors[shift] = (found - points)[..., 0].mean().item()
    assert errors[False] == pytest.approx(-3, abs=0.3)  # stride - 1 pixels of the input
    assert errors[True] == pytest.approx(1, abs=0.3)
    assert (codec.decode(maps, INPUT)[0] - points).mean().abs() < 0.3


# --- Round trips -----------------------------------------------------------------------------------------------------

ROUND_TRIPS = [
    # (codec, pixels of the map that a point is inside, largest error in pixels of the map in x and in y)
    (GaussianHeatmap(2), 2, 0.501),
    (GaussianHeatmap(2, rule="hrnet"), 2, 0.501),
    (DarkHeatmap(1), 6, 0.01),
    (DarkHeatmap(2), 8, 1e-3),
    (DarkHeatmap(3), 11, 2e-4),
    (UDPHeatmap(sigma=1), 6, 2e-3),
    (UDPHeatmap(sigma=2), 8, 1e-4),
    (UDPHeatmap(sigma=3), 11, 1e-4),
    (UDPHeatmap("combined"), 0, 1e-4),
    (PeakHeatmap(4), 5, 0.02),
    (PeakHeatmap(5), 5, 0.02),
    (PeakHeatmap(8, radius=6), 7, 0.02),
    (PeakHeatmap(4, background=True), 5, 0.02),
]


@pytest.mark.parametrize(("codec", "margin", "bound"), ROUND_TRIPS)
def test_round_trip(codec, margin, bound):
    points = inside(1, margin)
    maps, weights = codec.encode(points, seen(points), INPUT, MAP)
    assert maps.shape == (3, codec.channels(40), *MAP) and weights.shape == maps.shape[:2] and weights.all()
    found, scores = codec.decode(maps, INPUT)
    error = (found - points) / 4
    assert error.abs().max() <= bound
    assert error.mean(dim=(0, 1)).abs().max() <= bound / 5  # no side is preferred
    assert found.shape == points.shape and (scores > 0.2).all() and (scores <= 1).all()


def test_only_rounding_separates_gaussians_from_whole_pixels():
    codec = GaussianHeatmap()
    points = 4 * (5 + 30 * random(2, 2, 9, 2)).floor()
    maps, _ = codec.encode(points, seen(points), INPUT, MAP)
    assert torch.equal(codec.decode(maps, INPUT)[0], points)


@every
def test_other_sizes_and_a_batch_of_one(codec):
    points = torch.tensor([[[150.0, 60.0], [77.0, 31.0]]])
    sizes = (100, 290), (23, 61)
    maps, _ = codec.encode(points, seen(points), *sizes)
    found, _ = codec.decode(maps, sizes[0])
    assert maps.shape == (1, codec.channels(2), 23, 61)
    assert ((found - points).abs() <= 0.75 * 290 / 61).all()
    larger = torch.cat((torch.zeros_like(maps), maps))
    assert torch.equal(codec.decode(larger, sizes[0])[0][1], found[0])


@every
def test_double_precision_stays(codec):
    points = inside(3, 9, dtype=torch.float64)
    maps, weights = codec.encode(points, seen(points), INPUT, MAP)
    found, scores = codec.decode(maps, INPUT)
    assert {maps.dtype, weights.dtype, found.dtype, scores.dtype} == {torch.float64}
    single, _ = codec.decode(codec.encode(points.float(), seen(points), INPUT, MAP)[0], INPUT)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=0, atol=1e-2)


# --- Against loops and whole maps ------------------------------------------------------------------------------------


def noisy(seed: int, codec: HeatmapCodec, margin: float, noise: float) -> Tensor:
    points = inside(seed, margin)
    maps, _ = codec.encode(points, seen(points), INPUT, MAP)
    return maps + noise * normal(seed, *maps.shape)


LOOPS = [
    (GaussianHeatmap(), by_hand.quarter_step),
    (DarkHeatmap(), by_hand.taylor_step),
    (UDPHeatmap(), by_hand.udp_step),
    (PeakHeatmap(sigma=6.0), by_hand.soft_argmax),
]


@pytest.mark.parametrize(("codec", "read"), LOOPS, ids=["gaussian", "dark", "udp", "peak"])
@pytest.mark.parametrize(("margin", "scale"), [(8, 1), (-4, 1), (-4, 1e-3), (-4, 80)])
def test_points_as_a_loop_reads_them(codec, read, margin, scale):
    """At the border, outside, and where values are clamped as well."""
    maps = scale * noisy(4, codec, margin, 0.02)
    with np.errstate(all="ignore"):
        wanted = by_hand.by_hand(maps, read)()
    found, _ = codec.locate(maps)
    peaks = np.array([[by_hand.peak(one) for one in sample] for sample in maps.numpy()])
    near = np.abs(wanted - peaks).max(axis=-1, keepdims=True) < getattr(codec, "blur", math.inf)
    np.testing.assert_allclose(found, np.where(near | (wanted == -1), wanted, peaks), rtol=0, atol=2e-3)


@pytest.mark.parametrize("blur", [5, 11, 17])
@pytest.mark.parametrize(("reach", "floor", "ceiling"), [(2, 1e-10, math.inf), (1, 1e-3, 50.0)])
@pytest.mark.parametrize("size", [(64, 64), (31, 12), (5, 7)])
def test_a_blurred_neighbourhood_is_that_of_the_blurred_map(blur, reach, floor, ceiling, size):
    """Maps of small, of usual and of large values, peaks everywhere; OpenCV blurs them with zeros around."""
    maps = torch.tensor([1e-4, 1.0, 80.0])[:, None, None, None] * random(5, 3, 60, *size).pow(4).double()
    maps[:, ::3] -= maps[:, ::3].amax(dim=(-2, -1), keepdim=True) / 2
    at = maps.flatten(2).argmax(dim=-1)
    peaks = torch.stack((at % size[1], at // size[1]), dim=-1)
    block = log_block(maps, peaks, blur, reach, floor, ceiling)
    edge = blur // 2
    for found, values, (x, y) in zip(block.flatten(0, 1), maps.flatten(0, 1).numpy(), peaks.flatten(0, 1), strict=True):
        whole = cv2.GaussianBlur(np.pad(values, edge), (blur, blur), 0)[edge:-edge, edge:-edge]
        log = np.log(np.clip(whole * (values.max() / whole.max()), floor, ceiling))
        wanted = np.pad(log, reach, mode="edge")[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
        difference = found.numpy() - wanted  # a constant, which no derivative sees
        clamped = (wanted.min() <= np.log(floor) + 1e-9) or (wanted.max() >= np.log(ceiling) - 1e-9)
        np.testing.assert_allclose(difference, 0 if clamped else difference[0, 0], rtol=0, atol=1e-6)


def test_only_maps_that_are_clamped_are_blurred_as_a_whole(monkeypatch):
    blurred_maps = []
    monkeypatch.setattr(smoothing_module, "blurred", lambda maps, blur: blurred_maps.append(len(maps)) or maps)
    points = inside(6, 8)
    maps, _ = UDPHeatmap().encode(points, seen(points), INPUT, MAP)
    UDPHeatmap().decode(maps, INPUT)
    DarkHeatmap().decode(maps, INPUT)
    assert blurred_maps == []
    maps[0, :2] *= 1e-3
    UDPHeatmap().decode(maps, INPUT)
    assert blurred_maps == [2]


@pytest.mark.parametrize("size", [(40, 30), (7, 9), (1, 1), (2, 5)])
def test_reflected_blur_is_that_of_opencv(size):
    maps = random(7, 4, *size, dtype=torch.float64)
    wanted = [cv2.GaussianBlur(one.numpy(), (23, 23), 0, borderType=cv2.BORDER_REFLECT_101) for one in maps]
    np.testing.assert_allclose(blurred(maps, 23, reflect=True), np.stack(wanted), rtol=0, atol=1e-12)


# --- Maps that say nothing, points outside ---------------------------------------------------------------------------

NOTHING = {
    "zeros": torch.zeros(MAP),
    "ones": torch.ones(MAP),
    "negative": torch.full(MAP, -1.0),
    "large": torch.full(MAP, 3e38),
    "nan": torch.full(MAP, math.nan),
    "one nan": torch.ones(MAP).index_put((torch.tensor(5), torch.tensor(7)), torch.tensor(math.nan)),
    "infinite": torch.ones(MAP).index_put((torch.tensor(5), torch.tensor(7)), torch.tensor(math.inf)),
    "minus infinite": torch.full(MAP, -math.inf),
    "one pixel": torch.zeros(MAP).index_put((torch.tensor(30), torch.tensor(20)), torch.tensor(1.0)),
    "holes": torch.ones(MAP).index_fill(0, torch.tensor([3]), -math.inf),
}


@every
@pytest.mark.parametrize("what", NOTHING)
def test_maps_without_a_peak_give_finite_points(codec, what):
    maps = NOTHING[what].repeat(2, codec.channels(3), 1, 1)
    points, scores = codec.locate(maps)
    assert points.isfinite().all() and scores.isfinite().all()
    assert (points >= -1.01).all() and (points <= torch.tensor(MAP[::-1]) * 2).all()
    if not NOTHING[what].isfinite().all() and what != "holes":
        assert (scores == 0).all()


def test_where_undetected_points_are():
    blank = torch.zeros(1, 3, *MAP)
    for codec, place in ((GaussianHeatmap(), -1), (DarkHeatmap(), -1), (UDPHeatmap(), -1), (PeakHeatmap(), 0)):
        assert (codec.locate(blank)[0] == place).all()
    assert (GaussianHeatmap(rule="hrnet").locate(blank)[0] == 0).all()
    assert (DarkHeatmap(rule="hrnet").locate(blank)[0] == 0).all()


def test_the_two_rules_at_the_border():
    """mmpose looks at x and y apart; HRNet takes no step at all."""
    maps = torch.zeros(1, 1, *MAP)
    maps[0, 0, 1, 20], maps[0, 0, 1, 21], maps[0, 0, 2, 20] = 1, 0.5, 0.5
    assert GaussianHeatmap().locate(maps)[0].tolist() == [[[20.25, 1.0]]]
    assert GaussianHeatmap(rule="hrnet").locate(maps)[0].tolist() == [[[20.0, 1.0]]]


@every
def test_points_at_the_border_and_outside(codec):
    far = [[-1e30, 5.0], [1e30, 1e30], [-1e6, 40.0], [96.0, 1e9], [-60.0, -60.0]]
    edge = [[0.0, 0.0], [191.0, 255.0], [0.0, 100.0], [-0.5, 255.5]]
    points = torch.tensor([far + edge])
    maps, weights = codec.encode(points, seen(points), INPUT, MAP)
    found, _ = codec.decode(maps, INPUT)
    assert found.isfinite().all()
    assert ((found[0, 5:] - points[0, 5:]).abs() <= 12).all()
    if codec.maps_per_point == 1:
        assert maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1
        blank = maps[0, :5].flatten(1).amax(dim=1) < 0.01
        assert blank.all()
    if isinstance(codec, GaussianHeatmap) or codec is CODEC["udp"]:
        assert weights[0].tolist() == [0] * 5 + [1] * 4


@pytest.mark.parametrize("codec", [GaussianHeatmap(2), UDPHeatmap(sigma=2)], ids=["gaussian", "udp"])
def test_a_gaussian_beside_the_map_has_no_weight(codec):
    points = codec.to_input(torch.tensor([[[-6.0, 20.0], [-7.5, 20.0], [53.0, 20.0], [54.0, 20.0]]]), INPUT, MAP)
    maps, weights = codec.encode(points, seen(points), INPUT, MAP)
    assert weights.tolist() == [[1, 0, 1, 0]]
    assert (maps.flatten(2).amax(dim=-1) > 0).tolist() == [[True, False, True, False]]


def test_centres_beside_the_map_are_cut_off_towards_it():
    """As `int` does it in the code bases."""
    maps, _ = GaussianHeatmap().encode(torch.tensor([[[-4 * 1.2, 80.0]]]), torch.ones(1, 1).bool(), INPUT, MAP)
    assert maps[0, 0, 20, 0] == 1


def test_no_step_to_a_far_extremum():
    near, far, none = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([-1.0, -0.01, 0.0]), torch.tensor([0.0, 0.0, 0.0])
    steps = taylor(near, none, far, torch.full((3,), -1.0), none, limit=11)
    assert steps.tolist() == [[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]


@every
def test_invisible_points_are_blank_whatever_their_place(codec):
    points = inside(8, 9)
    visible = random(9, 3, 40) < 0.5
    visible[2] = False
    maps, weights = codec.encode(points, visible, INPUT, MAP)
    hidden = torch.where(visible[..., None], points, math.nan)
    hidden[0, ~visible[0]] = math.inf
    for other in (codec.encode(hidden, visible, INPUT, MAP), codec.encode(hidden, seen(points), INPUT, MAP)):
        assert torch.equal(other[0], maps) and torch.equal(other[1], weights)
    count = codec.maps_per_point
    assert torch.equal(weights[:, : 40 * count : count] > 0, visible)
    assert (maps[:, : 40 * count].flatten(2).abs().amax(dim=-1) > 0).equal(visible.repeat_interleave(count, dim=1))
    assert (weights[2] == 0).all()


@every
def test_no_faces_and_no_points(codec):
    for points in (torch.zeros(0, 5, 2), torch.zeros(2, 0, 2)):
        if codec.channels(0) and not points.shape[1]:
            continue
        maps, weights = codec.encode(points, seen(points), INPUT, MAP)
        assert maps.shape[:2] == weights.shape == (len(points), codec.channels(points.shape[1]))
        found, scores = codec.decode(maps, INPUT)
        assert found.shape == points.shape and scores.shape == points.shape[:2]


# --- Mirroring -------------------------------------------------------------------------------------------------------


@every
def test_mirroring_twice_changes_nothing(codec):
    swaps = [1, 0, 2, 4, 3]
    maps = normal(10, 2, codec.channels(5), *MAP)
    twice = codec.mirror(codec.mirror(maps, swaps), swaps)
    if not getattr(codec, "shift", False):
        assert torch.equal(twice, maps)
        return
    assert torch.equal(twice[..., 1:-1], maps[..., 1:-1])  # the shift is undone as well; only what left is lost


@every
def test_merging_with_the_own_mirrored_maps_changes_nothing(codec):
    if getattr(codec, "shift", False):
        codec = type(codec)(shift=False, rule=codec.rule)
    swaps = [1, 0, 2, 4, 3]
    maps = normal(11, 2, codec.channels(5), *MAP)
    torch.testing.assert_close(codec.merge_flipped(maps, codec.mirror(maps, swaps), swaps), maps)


# --- Precision and gradients -----------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_of_autocast_are_read_in_full_precision(codec, dtype):
    points = inside(12, 9)
    maps = codec.encode(points, seen(points), INPUT, MAP)[0].to(dtype)
    wanted, _ = codec.decode(maps.float(), INPUT)
    with torch.autocast("cpu", dtype=dtype):
        found, scores = codec.decode(maps, INPUT)
    assert found.dtype == scores.dtype == torch.float32
    assert torch.equal(found, wanted)


@every
def test_gradients_flow_through_the_soft_argmax_alone(codec):
    points = inside(13, 9, faces=1, points=3, dtype=torch.float64)
    maps, weights = codec.encode(points.requires_grad_(), seen(points), INPUT, MAP)
    assert not maps.requires_grad and not weights.requires_grad
    maps = (maps + 0.01).requires_grad_()
    found, _ = codec.decode(maps, INPUT)
    assert found.requires_grad == isinstance(codec, PeakHeatmap)
    if found.requires_grad:
        (gradient,) = torch.autograd.grad(found[0, 0, 0], maps)
        assert (gradient[0, 1:] == 0).all() and (gradient[0, 0] != 0).sum() >= 8 * 9
        step = 1e-4 * normal(14, *maps.shape)
        change = codec.decode(maps + step, INPUT)[0] - codec.decode(maps - step, INPUT)[0]
        assert change[0, 0, 0].item() == pytest.approx(2 * (gradient * step).sum().item(), rel=1e-3)


# --- Names and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"type": "GausianHeatmap"}, "codec.*'GaussianHeatmap'"),
        ({"type": "GaussianHeatmap", "sigmas": 2}, "'sigma'"),
        ({"type": "GaussianHeatmap", "rule": "mmpos"}, "rule 'mmpos'.*'mmpose'"),
        ({"type": "UDPHeatmap", "kind": "combine"}, "kind 'combine'.*'combined'"),
        ({"type": "UDPHeatmap", "radius": 0}, "radius must be more than 0"),
        ({"type": "DarkHeatmap", "blur": 10}, "blur must be odd"),
        ({"type": "DarkHeatmap", "sigma": -1}, "sigma must be more than 0"),
        ({"type": "PeakHeatmap", "radius": 1.5}, "radius must be a whole number"),
    ],
)
def test_what_no_codec_takes(config, says):
    with pytest.raises(UserError, match=says):
        CODECS.build(config, "model.criterion.codec")


@pytest.mark.parametrize("name", ["GaussianHeatmap", "DarkHeatmap", "UDPHeatmap", "PeakHeatmap"])
def test_codecs_are_built_by_name(name):
    assert type(CODECS.build({"type": name, "sigma": 3.0})).__name__ == name


def test_faults_of_a_codec_in_a_config():
    @CRITERIA.register
    class CriterionWithCodec(nn.Module):
        def __init__(self, codec: dict) -> None:
            raise AssertionError("the check builds nothing")

    codec = {"type": "UDPHeatmap", "sigm": 2}
    model = {"type": "TaskModel", "network": {"type": "CriterionWithCodec"}}
    model["criterion"] = {"type": "CriterionWithCodec", "codec": codec}
    faults = find_faults(Config({"model": model}), files=False)
    assert any(f.startswith("model.criterion.codec.sigm: ") and "Did you mean 'sigma'?" in f for f in faults)
    codec["type"] = "PixelWise"
    faults = find_faults(Config({"model": model}), files=False)
    assert any(f.startswith("model.criterion.codec.type: ") and "is a loss, but a codec belongs" in f for f in faults)


def test_wrong_numbers_of_maps():
    with pytest.raises(UserError, match="4 maps are not 3 for every point"):
        UDPHeatmap("combined").decode(torch.zeros(1, 4, *MAP), INPUT)
    with pytest.raises(UserError, match="3 points need 3 maps, not 4"):
        GaussianHeatmap().mirror(torch.zeros(1, 4, *MAP), [1, 0, 2])
    assert PeakHeatmap(background=True).mirror(torch.zeros(1, 4, *MAP), [1, 0, 2]).shape == (1, 4, *MAP)
