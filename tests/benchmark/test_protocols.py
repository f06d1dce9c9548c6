import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from salus.benchmark import evaluate
from salus.benchmark.measures import CasePixels, Group, Scored, by_finding, groups, patients_in, share_flagged
from salus.benchmark.pairing import pair
from salus.benchmark.protocols import Sample, beyond_chance, by_class, hit_below, hit_curve, laid, medianomaly
from salus.core import Case, Dataset, Finding, Image, Label, Source, Split
from salus.core.errors import ImageError
from salus.io import read_image, write_image
from salus.metrics import (
    FALSE_ALARMS,
    FROC_RATES,
    BoxHit,
    box_to_grid,
    chance_corrected_hit_rate,
    false_regions,
    froc,
    hit_ra2024,
    hit_rate,
    hit_rate_area,
    hit_rate_curve,
    hit_scale_free,
    hit_thor2024,
    interval,
    is_hit,
    known_healthy,
    mass_ratio,
    pointing_game,
    resample,
    weighted_mean,
    wilson,
)
from salus.preprocess import Preparation
from tests.benchmark.conftest import (
    ABNORMAL,
    CURVE_THRESHOLDS,
    DRAWS,
    GRID_THRESHOLD,
    HEALTHY,
    PIXEL_THRESHOLD,
    SIDE,
    Study,
)

BOX = (10, 10, 5, 4)  # of the worked example: 20 pixels
RULES = {"ra2024": hit_ra2024, "thor2024": hit_thor2024, "scale_free": hit_scale_free}


def measured(study, out):
    evaluate(study.results, study.data, out)
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def metrics(evaluated):
    return json.loads((evaluated[1] / "metrics.json").read_text())


def worked(*, hit: bool) -> np.ndarray:
    """Worked example D1 on a larger picture, what lies outside the box beyond its margin: P = 1 or 1.5, Q = 4 or 5."""
    a = np.zeros((SIDE, SIDE), dtype=np.float32)
    a[10, 10 : 13 if hit else 12] = 0.5
    a[28, 10:18] = 0.5
    a[30, 10:14] = 0.25
    return a


def drawn(tmp_path, monkeypatch, truth: str, factor: float = 1, uncounted: tuple[Finding, ...] = ()) -> dict:
    """One healthy case, two with the worked box as a box or a mask, and one of which no finding is known."""
    made = Study(data=tmp_path / "data", results=tmp_path / "results")
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[10:14, 10:15] = True
    cases = []
    for index, (kind, hit) in enumerate((("good", False), ("hole", False), ("hole", True), ("other", True))):
        name = f"test/{kind}/{index}"
        source = made.picture(name, index)
        made.mask(name, inside)
        made.result(name, 0.1 * index, index)
        anomaly = np.ones_like(inside, dtype=np.float32) if kind == "other" else worked(hit=hit)
        write_image(Image(array=np.float32(factor) * anomaly), made.results / name / "map.tif")
        mask = Source(path=made.data / f"ground_truth/{kind}/{index}_mask.png")
        finding = Finding(name="hole", box=BOX) if truth == "boxes" else Finding(name="hole", mask=mask)
        label = Label.NORMAL if kind == "good" else Label.ABNORMAL
        findings = (finding,) if kind == "hole" else ()
        images = (Source(path=source),)
        one = Case(case_id=name, patient_id=name, images=images, label=label, findings=findings, split=Split.TEST)
        cases.append(replace(one, uncounted=uncounted if findings else ()))
    monkeypatch.setattr("salus.benchmark.pairing.open_dataset", lambda name, root: Dataset("drawn", cases))
    thresholds = {"grid_threshold": 0.2 * factor, "pixel_threshold": 0.3 * factor}
    thresholds["curve_thresholds"] = [factor * t for t in (0.5, 0.25, 0.25, 0.1, 0)]
    made.run(calibration={"scores": [0.1], "false_alarms": 0.05, **thresholds}, threshold=None)
    return measured(made, tmp_path / "out")["protocols"]


@pytest.mark.parametrize("truth", ["boxes", "masks"])
def test_the_worked_boxes_come_out_of_a_whole_evaluation(tmp_path, monkeypatch, numbers_only, truth):
    seen = drawn(tmp_path, monkeypatch, truth)
    assert (seen["findings"], seen["size"]) == (2, SIDE)
    for which, precision, f1 in (("published", 1 / 4, 0.4), ("sound", 1 / 3, 0.5)):
        hole = seen["ra2024"][which]["classes"]["hole"]
        assert (hole["n"], hole["n_detected"]) == (2, 1)  # two pixels of twenty are not more than a tenth
        assert hole["recall"]["value"] == 0.5
        assert hole["precision"]["value"] == pytest.approx(precision / 2, abs=1e-6)
        assert hole["f1"]["value"] == pytest.approx(f1 / 2, abs=1e-6)
        assert seen["thor2024"][which] == seen["scale_free"][which] == seen["ra2024"][which]  # no FP above ten
    assert seen["sound"]["hit_rate"]["value"] == 0.5
    assert [entry["value"] for entry in seen["sound"]["hit_rate_curve"].values()] == [0, 0.5, 0.5, 0.5, 0.5]
    assert seen["sound"]["hit_rate_area"]["value"] == pytest.approx(0.5 - 0.25 * np.log(2) / np.log(20), abs=1e-6)
    assert seen["sound"]["false_regions_healthy"]["value"] == 1  # row 28; the row in the box is too small
    assert seen["sound"]["false_regions_abnormal"]["value"] == 1  # and the picture lit everywhere is not asked
    assert seen["sound"]["pointing_game"]["value"] == pytest.approx((2 / 10 + 3 / 11) / 2, abs=1e-6)
    assert seen["sound"]["mass_ratio"]["value"] == pytest.approx((1 / 6 + 1.5 / 6.5) / 2, abs=1e-6)


def test_where_an_artefact_lies_nothing_is_false(tmp_path, monkeypatch, numbers_only):
    artefact = Finding(name="Possible artifact", box=(9, 27, 10, 3))  # over both rows of the map that lie outside
    seen = drawn(tmp_path, monkeypatch, "boxes", uncounted=(artefact,))
    for which in ("published", "sound"):
        micro = seen["ra2024"][which]["micro"]
        assert (micro["n"], micro["precision"]["value"], micro["f1"]["value"]) == (2, 0.5, pytest.approx(0.5, abs=1e-6))
        assert list(seen["ra2024"][which]["classes"]) == ["hole"]
    assert seen["sound"]["mass_ratio"]["value"] == 1
    assert seen["sound"]["false_regions_abnormal"]["value"] == 0
    assert seen["sound"]["false_regions_healthy"]["value"] == 1
    assert seen["sound"]["froc"]["1"] == 1, "two false regions, in the healthy picture of three"
    outside = Finding(name="Possible artifact", box=(9, 300, 10, 3))
    aside = drawn(tmp_path / "outside", monkeypatch, "boxes", uncounted=(outside,))
    assert aside == (without := drawn(tmp_path / "none", monkeypatch, "boxes")), (
        "it hides nothing, and costs no finding"
    )
    assert without["sound"]["froc"]["1"] == 0


def test_a_tenth_of_the_map_pleases_the_published_rule_alone(tmp_path, monkeypatch, numbers_only):
    seen = drawn(tmp_path, monkeypatch, "boxes", factor=0.1)
    assert seen["ra2024"]["sound"]["micro"]["f1"]["value"] == 0.5  # one hit, without false positives
    assert seen["scale_free"]["sound"]["micro"]["f1"]["value"] == 0.25


def test_every_rule_agrees_with_its_metric_on_the_prepared_grid(evaluated, metrics):
    study, seen = evaluated[0], metrics["protocols"]
    assert seen["thresholds"] == {"published": GRID_THRESHOLD, "sound": PIXEL_THRESHOLD}
    for rule, hit in RULES.items():
        for which, threshold in seen["thresholds"].items():
            hits = [hit(a, inside, healthy, threshold) for a, inside, healthy in laid_out(study)]
            table = seen[rule][which]
            for measure in ("recall", "precision", "f1"):
                mean = np.mean([getattr(hit, measure) for hit in hits])
                assert table["micro"][measure]["value"] == pytest.approx(mean, abs=1e-6)
            assert table["micro"]["n_detected"] == sum(hit.hit for hit in hits)


def laid_out(study):
    """Map, finding and known healthy of each case with a finding."""
    found = []
    for name, inside in study.masks.items():
        prepared = Preparation(size=SIDE, intensity="depth")(read_image(study.data / f"{name}.png")).array
        found.append((study.maps[name], inside, known_healthy(prepared > prepared.min(), [inside])))
    return found


def test_sound_measures_agree_with_their_metrics(evaluated, metrics):
    study, seen = evaluated[0], metrics["protocols"]["sound"]
    maps, masks, healthy = zip(*laid_out(study), strict=True)
    well = [study.maps[f"test/good/{k:02}"] for k in range(len(HEALTHY))]
    nothing = np.zeros((SIDE, SIDE), dtype=bool)
    assert seen["hit_rate"]["value"] == pytest.approx(hit_rate(maps, masks, PIXEL_THRESHOLD))
    assert seen["pointing_game"]["value"] == pytest.approx(pointing_game(maps, masks))
    mass = np.mean([mass_ratio(*one) for one in zip(maps, masks, healthy, strict=True)])
    assert seen["mass_ratio"]["value"] == pytest.approx(mass, abs=1e-6)
    false = false_regions(maps, masks, PIXEL_THRESHOLD, min_area=seen["min_area"])
    assert seen["false_regions_abnormal"]["value"] == pytest.approx(false)
    false = false_regions(well, [nothing] * len(well), PIXEL_THRESHOLD, min_area=seen["min_area"])
    assert seen["false_regions_healthy"]["value"] == pytest.approx(false)
    curve = froc([*maps, *well], [*([mask] for mask in masks), *([] for _ in well)], PIXEL_THRESHOLD)
    assert list(seen["froc"]) == list(map(str, FROC_RATES))
    assert list(seen["froc"].values()) == pytest.approx(curve.tolist(), abs=1e-6)
    corrected = chance_corrected_hit_rate(maps, masks, PIXEL_THRESHOLD)
    assert seen["chance_corrected_hit_rate"]["chance"] == pytest.approx(corrected.chance, abs=1e-6)
    assert seen["chance_corrected_hit_rate"]["value"] == pytest.approx(corrected.value, abs=1e-6)


def test_the_hit_rate_curve_is_at_the_thresholds_of_the_calibration(evaluated, metrics):
    study, seen = evaluated[0], metrics["protocols"]["sound"]
    maps, masks, _ = zip(*laid_out(study), strict=True)
    curve = hit_rate_curve(maps, masks, CURVE_THRESHOLDS)
    assert len(set(curve)) > 2, "thresholds that tell nothing apart prove nothing"
    assert list(seen["hit_rate_curve"]) == ["0.005", "0.01", "0.02", "0.05", "0.1"]
    assert [entry["value"] for entry in seen["hit_rate_curve"].values()] == pytest.approx(curve.tolist())
    assert seen["hit_rate_area"]["value"] == pytest.approx(hit_rate_area(curve), abs=1e-6)
    entries = [*seen["hit_rate_curve"].values(), seen["hit_rate_area"]]
    assert all(entry["ci95"][0] <= entry["value"] <= entry["ci95"][1] for entry in entries)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_a_finding_is_hit_below_its_limit_and_nowhere_else(seed):
    rng = np.random.default_rng(seed)
    maps = np.round(rng.random((4, 9, 9)), 1).astype(np.float32)  # one decimal, so that ties happen
    masks = rng.random((4, 9, 9)) < rng.uniform(0.1, 0.9, (4, 1, 1))
    masks[:, 0, 0] = True
    for a, inside in zip(maps, masks, strict=True):
        limit = hit_below(a, inside)
        assert is_hit(a, inside, np.nextafter(limit, -1))
        assert not is_hit(a, inside, limit)


def test_findings_that_are_all_hit_stay_uncertain():
    weights = resample(list("abcd"), np.ones(4, dtype=bool), replicates=DRAWS)
    samples = [Sample(case=k, name="", boxes={}, hit=1, chance=0, mass=1, limit=0.8) for k in range(4)]
    area = hit_curve(samples, [0.7] * len(FALSE_ALARMS), weights)["hit_rate_area"]
    assert area == {"value": 1, "ci95": [pytest.approx(wilson(4, 4)[0], abs=1e-6), 1]}


def test_chance_is_taken_from_the_hit_rate(tmp_path, monkeypatch, numbers_only):
    corrected = drawn(tmp_path, monkeypatch, "boxes")["sound"]["chance_corrected_hit_rate"]
    rolled = [
        (np.roll(worked(hit=hit), (row, column), (0, 1))[10:14, 10:15] > 0.3).sum() > 2
        for hit in (False, True)
        for row in range(SIDE)
        for column in range(SIDE)
    ]
    assert corrected["chance"] == pytest.approx(np.mean(rolled), abs=1e-6)
    assert corrected["value"] == pytest.approx(1 - 0.5 / (1 - corrected["chance"]), abs=1e-5)


def test_a_hit_rate_of_all_stays_uncertain_beyond_chance():
    weights = resample(list("abcd"), np.ones(4, dtype=bool), replicates=DRAWS)
    seen = beyond_chance(np.ones(4), np.full(4, 0.2), weights)
    assert seen == {"value": 1, "chance": 0.2, "ci95": [pytest.approx(1 - (1 - wilson(4, 4)[0]) / 0.8, abs=1e-6), 1]}


def test_classes_have_wilsons_interval_and_averages_that_of_the_draws(tmp_path, study, numbers_only, monkeypatch):
    made = study()
    for index in range(2):
        name = f"test/blob/{index}"
        made.picture(name, 70 + index)
        inside = np.zeros((SIDE, SIDE), dtype=bool)
        inside[20:25, 20:25] = True
        made.mask(name, inside)
        made.result(name, 0.9, 70 + index)
        if index == 0:
            write_image(Image(array=np.zeros((SIDE, SIDE), np.float32)), made.results / name / "map.tif")  # a miss
    monkeypatch.setattr("salus.benchmark.measures.REPLICATES", DRAWS)
    table = measured(made, tmp_path / "out")["protocols"]["ra2024"]["sound"]
    blob, hole = table["classes"]["blob"], table["classes"]["hole"]
    assert (blob["n"], blob["n_detected"], hole["n"], hole["n_detected"]) == (2, 1, 4, len(ABNORMAL))
    assert blob["recall"] == {"value": 0.5, "ci95": pytest.approx(wilson(1, 2), abs=1e-6)}
    assert table["micro"]["recall"]["value"] == pytest.approx(5 / 6, abs=1e-6)
    assert table["macro"]["recall"]["value"] == 0.75
    judged = pair(made.results, made.data, "folder").judged
    weights = groups(judged, 0)[0].weights[:, [k for k, one in enumerate(judged) if one.abnormal]]
    hits = np.array([float("blob/0" not in one.case.case_id) for one in judged if one.abnormal])
    assert table["micro"]["recall"]["ci95"] == pytest.approx(interval(weighted_mean(hits, weights)), abs=1e-6)


def test_findings_of_one_patient_are_no_trials_of_their_own():
    """Sixty boxes of three people, forty of them hit: no more certain than two people of three."""
    case_of, hit_of = np.repeat(np.arange(3), 20), np.repeat(np.array([True, True, False]), 20)
    everybody = resample(list("abc"), np.ones(3, dtype=bool), replicates=DRAWS)
    samples = [
        (case, "hole", BoxHit(hit=bool(hit), false_positives=0, precision=float(hit), recall=float(hit), f1=float(hit)))
        for case, hit in zip(case_of.tolist(), hit_of, strict=True)
    ]
    table = by_class(samples, everybody)
    hole, micro = table["classes"]["hole"], table["micro"]
    assert (hole["n"], hole["patients"], hole["n_detected"], micro["patients"]) == (60, 3, 40, 3)
    assert hole["recall"]["ci95"] == micro["recall"]["ci95"] == [0, 1]
    assert wilson(40, 60)[0] > 0.5, "what sixty people would say"


@pytest.mark.parametrize(("patients", "trials"), [("aaaa", 1), ("aabb", 2)], ids=["one", "each half"])
def test_what_no_draw_changes_is_as_uncertain_as_the_patients(patients, trials):
    weights = resample(list(patients), np.ones(4, dtype=bool), replicates=DRAWS)
    hits = [
        BoxHit(hit=hit, false_positives=0, precision=1.0 * hit, recall=1.0 * hit, f1=1.0 * hit) for hit in (1, 0)
    ] * 2
    recall = by_class([(case, "hole", hit) for case, hit in enumerate(hits)], weights)["classes"]["hole"]["recall"]
    assert recall == {"value": 0.5, "ci95": pytest.approx(wilson(trials / 2, trials), abs=1e-6)}
    assert recall["ci95"][1] - recall["ci95"][0] > 0.8


def test_all_hit_without_false_positives_is_as_uncertain_as_its_recall():
    a, inside = np.zeros((6, 6), np.float32), np.zeros((6, 6), bool)
    inside[2:4, 2:4] = a[2:4, 2:4] = 1
    weights = resample(list("abc"), np.ones(3, dtype=bool), replicates=DRAWS)
    hole = by_class([(case, "hole", hit_ra2024(a, inside, ~inside, 0.5)) for case in range(3)], weights)["classes"][
        "hole"
    ]
    assert hole["f1"]["ci95"] == pytest.approx(hole["recall"]["ci95"], abs=1e-6)
    assert hole["recall"]["ci95"] == pytest.approx(wilson(3, 3), abs=1e-6)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_all_or_none_of_a_few_patients_findings_stay_as_uncertain_as_the_patients(rate):
    patients, names = list("aaabbbccc"), ["hole"] * 9
    weights = resample(patients, np.ones(9, dtype=bool), replicates=DRAWS)
    assert patients_in(weights) == 3
    hit = BoxHit(hit=bool(rate), false_positives=0, precision=rate, recall=rate, f1=rate)
    table = by_class([(case, name, hit) for case, name in enumerate(names)], weights)
    wanted = {"value": rate, "ci95": pytest.approx(wilson(round(3 * rate), 3), abs=1e-6)}
    for measure in ("recall", "precision", "f1"):
        assert table["classes"]["hole"][measure] == table["micro"][measure] == table["macro"][measure] == wanted
    pixels = [(k, CasePixels(counts=None, overlap=None, hits=(("hole", bool(rate), hit),))) for k in range(9)]
    group = Group(finding=None, members=np.arange(9), abnormal=np.ones(9, dtype=bool), weights=weights)
    found = by_finding(pixels, group)
    assert found["hit_rate"] == found["f1_ra2024"] == wanted
    ends = [9 * end for end in wilson(round(3 * rate), 3)]
    assert found["n_detected"] == {"value": 9 * rate, "ci95": pytest.approx(ends, abs=1e-5)}
    share = share_flagged(Scored(score=np.full(9, rate), threshold=0.5, pixels={}), np.arange(9), weights)
    assert share == {**wanted, "n": [round(9 * rate), 9]}


def test_a_model_calibrated_before_has_neither_published_threshold_nor_curve(study, tmp_path, few):
    made = study()
    made.run(calibration={"scores": [0.1, 0.2, 0.45], "false_alarms": 0.05, "pixel_threshold": PIXEL_THRESHOLD})
    metrics = measured(made, tmp_path / "out")
    assert metrics["protocols"]["ra2024"]["published"] is None
    assert metrics["protocols"]["ra2024"]["sound"]["micro"]["n"] == 4
    assert [note[:22] for note in metrics["notes"][-2:]] == ["No published threshold", "No hit-rate curve: the"]
    assert metrics["protocols"]["sound"]["hit_rate_curve"] is None
    assert "published 0" not in (tmp_path / "out/report.html").read_text()


def test_an_uncalibrated_model_keeps_what_needs_no_threshold(study, tmp_path, few):
    made = study()
    made.run(calibration=None, threshold=None)
    metrics = measured(made, tmp_path / "out")
    seen = metrics["protocols"]
    assert seen["ra2024"] == {"published": None, "sound": None}
    known = {name for name, value in seen["sound"].items() if value is not None}
    assert known == {"min_area", "pointing_game", "mass_ratio"}
    assert metrics["notes"] == []
    assert "Box hits" not in (tmp_path / "out/report.html").read_text()


def test_without_a_place_of_any_finding_there_are_no_protocols(study, tmp_path, few):
    assert measured(study(masks=False), tmp_path / "out")["protocols"] is None
    assert "Published protocols" not in (tmp_path / "out/report.html").read_text()


def test_the_image_metrics_of_table_3_are_there(metrics):
    for key in ("auroc", "auprc", "fpr_at_tpr95", "fpr_at_tpr99"):
        assert 0 <= metrics["findings"]["hole"][key]["value"] <= 1
    for key in ("ssim", "lpips"):
        assert 0 < metrics["healthy"][key]["value"] < 1


def test_pixels_are_measured_as_medianomaly_does(evaluated, metrics):
    study, seen = evaluated[0], metrics["protocols"]["medianomaly"]
    names = [name for name in study.maps if "test" in name]
    score = np.concatenate([study.maps[name].ravel() for name in names])
    truth = np.concatenate([study.masks.get(name, np.zeros((SIDE, SIDE), bool)).ravel() for name in names])
    assert seen["pictures"] == len(names) == 9
    assert seen["pixel_ap"]["value"] == pytest.approx(average_precision_score(truth, score), abs=1e-6)
    assert seen["pixel_auroc"]["value"] == pytest.approx(roc_auc_score(truth, score), abs=1e-6)
    grid = np.sort(score)[:: score.size // 200]
    dice = max(2 * (truth & (score > t)).sum() / (truth.sum() + (score > t).sum()) for t in grid)
    assert seen["best_dice"] == {"value": pytest.approx(dice, abs=1e-6), "ci95": None, "oracle": True}


def test_what_medianomaly_measures_needs_pixels_of_both_kinds_and_room_to_sort_them(monkeypatch):
    a, half = np.random.default_rng(0).random((20, 20), dtype=np.float32), np.arange(400).reshape(20, 20) < 200
    assert medianomaly([(a, half)])["pictures"] == 1
    assert medianomaly([(a, half | True)]) is medianomaly([(a, half & False)]) is medianomaly([]) is None
    assert medianomaly([(a[:9], half[:9])]) is None, "fewer than its grid has thresholds"
    monkeypatch.setattr("salus.benchmark.protocols.MOST_PIXELS", 399)
    assert medianomaly([(a, half)]) is None


def test_of_too_many_pixels_not_all_are_held(study, tmp_path, numbers_only, monkeypatch):
    made, held = study(), []
    monkeypatch.setattr("salus.benchmark.protocols.MOST_PIXELS", 3 * SIDE**2)
    monkeypatch.setattr("salus.benchmark.protocols.medianomaly", lambda masked: held.append(len(masked)))
    assert measured(made, tmp_path / "out")["protocols"]["medianomaly"] is None
    assert held == [4], "of nine, one more than there is room for"


def test_what_medianomaly_measures_needs_masks(tmp_path, monkeypatch, numbers_only):
    assert drawn(tmp_path / "boxes", monkeypatch, "boxes")["medianomaly"] is None
    assert drawn(tmp_path / "masks", monkeypatch, "masks")["medianomaly"]["pictures"] == 3


def test_every_key_of_the_protocols_is_in_the_docs(metrics):
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    seen = metrics["protocols"]
    table = seen["ra2024"]["sound"]
    keys = {*seen, *seen["thresholds"], *seen["sound"], *table, *table["classes"]["hole"], *seen["medianomaly"]}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


# Findings on the network's grid


def test_a_box_is_padded_and_scaled_with_its_picture():
    source = Image(array=np.random.default_rng(0).random((233, 197), dtype=np.float32))
    prepared = Preparation(size=128, intensity="minmax")(source)
    box = (50, 91, 7, 6)
    seen = laid(Finding(name="a", box=box), np.zeros((1, 1), dtype=bool), source, prepared)
    assert np.array_equal(seen, box_to_grid(box, (128, 128), offset=(0, 18), scale=128 / 233))  # D8


@pytest.mark.parametrize("spacing", [(1, 1), (1, 2)])  # pixels that are not square, too
@given(st.integers(0, 10_000))
def test_box_and_mask_of_the_same_pixels_come_to_lie_alike(spacing, seed):
    rng = np.random.default_rng(seed)
    affine = np.diag([*spacing, 1.0, 1.0])
    # Of 47 and 31 pixels no edge falls on a centre of the new grid.
    source = Image(array=rng.random((47, 31), dtype=np.float32), affine=affine, unit="mm")
    prepared = Preparation(size=32, intensity="minmax")(source)
    x, y, width, height = (int(v) for v in rng.integers([0, 0, 4, 4], [28, 44, 9, 11]))
    inside = np.zeros((47, 31), dtype=bool)
    inside[y : y + height, x : x + width] = True
    box = laid(Finding(name="a", box=(x, y, width, height)), inside, source, prepared)
    mask = laid(Finding(name="a", mask=Source(path=Path("a.png"))), inside, source, prepared)
    assert np.array_equal(box, mask)


def test_a_mask_that_holds_no_centre_keeps_the_nearest_pixel():
    source = Image(array=np.random.default_rng(0).random((128, 128), dtype=np.float32))
    prepared = Preparation(size=16, intensity="minmax")(source)
    inside = np.zeros((128, 128), dtype=bool)
    inside[41, 90] = True
    seen = laid(Finding(name="a", mask=Source(path=Path("a.png"))), inside, source, prepared)
    assert np.argwhere(seen).tolist() == [[41 // 8, 90 // 8]]


@pytest.mark.parametrize("truth", [{"box": (1, 1, 2, 2)}, {"mask": Source(path=Path("a.png"))}])
def test_a_finding_in_a_border_that_is_cut_off_is_named(truth):
    array = np.zeros((64, 64), dtype=np.float32)
    array[20:60, 20:60] = np.random.default_rng(0).random((40, 40))
    source = Image(array=array)
    prepared = replace(Preparation(size=32, intensity="minmax"), border="crop")(source)
    inside = np.zeros((64, 64), dtype=bool)
    inside[1:3, 1:3] = True
    with pytest.raises(ImageError, match="'a' lies where the model does not look"):
        laid(Finding(name="a", **truth), inside, source, prepared)
