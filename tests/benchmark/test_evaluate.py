import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from salus.benchmark import evaluate
from salus.benchmark.measures import Scored, divided, share_flagged, strata
from salus.benchmark.pairing import UNMATCHED, Judged, bare, inside_box
from salus.core import Case, Image, Label, Result, Source, Verdict
from salus.core.errors import LayoutError
from salus.io import file_sha256, read_image, write_image
from salus.io.results import write_result
from salus.metrics import aupro, best_dice, dice, hit_ra2024, hit_rate, pixel_ap, pixel_auroc, resample, ssim, wilson
from salus.preprocess import Preparation
from salus.scores.lpips import LPIPS
from tests.benchmark.conftest import DRAWS, MODEL, PIXEL_THRESHOLD, SIDE, THRESHOLD, Study

LABELS = {True: Label.ABNORMAL, False: Label.NORMAL}
PIXEL_KEYS = ("pixel_ap", "pixel_auroc", "aupro", "best_dice", "dice")


def measured(study, out):
    evaluate(study.results, study.data, out)
    return json.loads((out / "metrics.json").read_text())


def laid_out(study, leave_out=()):
    """Maps and masks of all cases but some, for the exact pooled metrics."""
    names = [name for name in study.maps if name not in leave_out]
    nothing = np.zeros((SIDE, SIDE), dtype=bool)
    return [study.maps[name] for name in names], [study.masks.get(name, nothing) for name in names]


@pytest.fixture
def metrics(evaluated):
    return json.loads((evaluated[1] / "metrics.json").read_text())


def test_ranking_agrees_with_counting_pairs_by_hand(metrics):
    overall = metrics["overall"]
    assert (overall["n_normal"], overall["n_abnormal"], overall["prevalence"]) == (5, 4, pytest.approx(4 / 9, abs=1e-6))
    assert overall["auroc"]["value"] == pytest.approx((1 + 3 + 5 + 5) / 20)  # healthy ones below each abnormal one
    # From the top: two abnormal, two healthy, 0.35 abnormal (3 of 5), two healthy, 0.15 abnormal (4 of 8).
    assert overall["auprc"]["value"] == pytest.approx((1 + 1 + 3 / 5 + 4 / 8) / 4)
    assert overall["fpr_at_tpr95"]["value"] == pytest.approx(4 / 5)  # all must be found: threshold 0.15
    lower, upper = overall["auroc"]["ci95"]
    assert lower < overall["auroc"]["value"] < upper


def test_a_finding_is_measured_beside_all_healthy_cases(metrics):
    assert metrics["findings"]["hole"] == metrics["overall"]  # the only finding there is


def test_pixel_metrics_agree_with_the_exact_pooled_ones(evaluated, metrics):
    maps, masks = laid_out(evaluated[0])
    overall = metrics["overall"]
    assert overall["pixel_ap"]["value"] == pytest.approx(pixel_ap(maps, masks), abs=1e-3)
    assert overall["pixel_auroc"]["value"] == pytest.approx(pixel_auroc(maps, masks), abs=1e-3)
    assert overall["aupro"]["value"] == pytest.approx(aupro(maps, masks), abs=1e-3)
    assert overall["best_dice"]["value"] == pytest.approx(best_dice(maps, masks)[0], abs=1e-3)
    assert overall["best_dice"]["oracle"] is True
    assert overall["dice"]["value"] == pytest.approx(dice(maps, masks, PIXEL_THRESHOLD), abs=1e-6)
    for key in PIXEL_KEYS:
        lower, upper = overall[key]["ci95"]
        assert lower - 1e-3 <= overall[key]["value"] <= upper + 1e-3


def test_findings_are_hit_as_the_metrics_say(evaluated, metrics):
    study, overall = evaluated[0], metrics["overall"]
    maps, masks = zip(*[(study.maps[name], study.masks[name]) for name in study.masks], strict=True)
    boxes = [hit_ra2024(a, inside, ~inside, PIXEL_THRESHOLD) for a, inside in zip(maps, masks, strict=True)]
    assert overall["n_findings"] == 4
    assert overall["hit_rate"]["value"] == pytest.approx(hit_rate(maps, masks, PIXEL_THRESHOLD))
    assert overall["f1_ra2024"]["value"] == pytest.approx(np.mean([box.f1 for box in boxes]), abs=1e-6)
    assert overall["n_detected"]["value"] == sum(box.hit for box in boxes)
    assert overall["hit_rate"]["ci95"][0] == pytest.approx(wilson(4, 4)[0], abs=1e-6)  # all hit: draws would say [1, 1]


def test_shares_at_the_threshold_carry_the_interval_of_the_draws(metrics):
    alarms, found = metrics["healthy"]["false_alarm_rate"], metrics["overall"]["sensitivity"]
    assert (alarms["value"], alarms["n"]) == (0.2, [1, 5])
    assert (found["value"], found["n"]) == (0.5, [2, 4])
    # Quantiles of a binomial of five at 0.2, and of four at 0.5, in fifths and quarters.
    assert alarms["ci95"] == pytest.approx([0, 0.6])
    assert found["ci95"] == pytest.approx([0, 1])


def test_the_threshold_is_told_with_what_it_can_promise(metrics):
    low, high = metrics["flagged_share"]  # one of three calibration scores at the threshold: 1 - (1 - x)^3
    assert (1 - (1 - low) ** 3, 1 - (1 - high) ** 3) == pytest.approx((0.025, 0.975))


def test_a_share_of_many_cases_of_two_patients_is_as_uncertain_as_two_patients():
    patients = ["a"] * 50 + ["b"] * 50
    weights = resample(patients, np.ones(100, dtype=bool), replicates=DRAWS)
    method = Scored(score=np.repeat([0.0, 1.0], 50), threshold=0.5, pixels={})
    share = share_flagged(method, np.arange(100), weights)
    assert share == {"value": 0.5, "ci95": [0, 1], "n": [50, 100]}  # Wilson of 100 cases: 0.40 to 0.60


@pytest.mark.parametrize("flagged", [0, 4])
def test_a_share_of_none_or_all_carries_wilsons_interval(flagged):
    weights = resample(list("abcd"), np.ones(4, dtype=bool), replicates=DRAWS)
    method = Scored(score=np.full(4, flagged), threshold=0.5, pixels={})
    assert share_flagged(method, np.arange(4), weights)["ci95"] == pytest.approx(wilson(flagged, 4), abs=1e-6)


def test_each_value_of_a_group_is_measured_by_itself(study, tmp_path, numbers_only):
    study = study()
    names = sorted(study.maps)
    rows = [
        f"{name}.png,{place},{age}" for age, (name, place) in enumerate(zip(names, ["A", "B", ""] * 3, strict=True))
    ]
    (study.data / "metadata.csv").write_text("\n".join(["file,scanner,age", *rows]) + "\n")
    found = measured(study, tmp_path / "out")
    scores = {row["case_id"]: row for row in csv.DictReader((tmp_path / "out" / "cases.csv").read_text().splitlines())}
    assert set(found["groups"]) == {"scanner"}, "what has a value a case is no group"
    for value, group in found["groups"]["scanner"].items():
        here = [scores[n] for n in names if (scores[n]["group:scanner"] or "unknown") == value]
        well = [float(row["score"]) for row in here if row["label"] == "normal"]
        ill = [float(row["score"]) for row in here if row["label"] == "abnormal"]
        assert (group["n_normal"], group["n_abnormal"]) == (len(well), len(ill))
        assert group["false_alarm_rate"]["n"] == [sum(score > THRESHOLD for score in well), len(well)]
        pairs = [(a > b) + (a == b) / 2 for a in ill for b in well]
        assert group["auroc"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert sum(group["n_normal"] for group in found["groups"]["scanner"].values()) == 5


def test_a_group_of_one_class_has_no_ranking():
    method = Scored(score=np.array([0.1, 0.2, 0.3, 0.4, 0.0, 0.1]), threshold=0.25, pixels={})
    ill = (True, True, False, False, False, False)
    cases = [Case(case_id=str(k), patient_id=str(k), images=(Source(path=Path(str(k))),), label=LABELS[a],
                  groups={"view": "AP" if a else f"PA{k // 4}", "lesion": "large" if a else "none"})
             for k, a in enumerate(ill)]  # fmt: skip
    judged = [Judged(case=case, result=None, folder=Path(), score=0.0) for case in cases]
    made = strata(method, judged, seed=0)
    assert set(made) == {"view"}, "what the healthy all share is a property of findings"
    assert made["view"]["AP"]["auroc"] is None
    assert made["view"]["AP"]["sensitivity"]["value"] == 0
    assert made["view"]["PA0"]["false_alarm_rate"]["value"] == 1
    assert made["view"]["PA1"]["false_alarm_rate"]["value"] == 0
    assert made["view"]["PA0"]["sensitivity"] is None


@pytest.mark.parametrize(
    "healthy", [["0"] * 8, ["unknown"] * 8, ["0"] * 4 + ["unknown"] * 4, ["0", "0.0", "-0", "nan"] * 2]
)
def test_what_only_the_abnormal_have_is_cut_into_thirds_against_all_healthy(healthy):
    sizes = np.array(["5", "90", "12.5", "7", "40", "200", "unknown", *healthy])
    well = np.arange(15) > 6
    parts = divided(sizes, well)
    assert {name: sizes[members[~well[members]]].tolist() for name, members in parts.items()} == {
        "5 to 7": ["5", "7"], "12.5 to 40": ["12.5", "40"], "90 to 200": ["90", "200"], "unknown": ["unknown"]
    }  # fmt: skip
    assert all(well[members].sum() == 8 for members in parts.values())


def test_few_sizes_of_lesions_are_no_groups_of_people():
    sizes = np.array(["1", "2", "3"] * 4 + ["0"] * 6 + ["unknown"] * 6)
    parts = divided(sizes, np.arange(24) > 11)
    assert {name: len(members) for name, members in parts.items()} == {"1": 4 + 12, "2": 4 + 12, "3": 4 + 12}


def test_ages_are_cut_into_thirds():
    ages = np.array([str(age) for age in (*range(20, 50), 49)] + ["unknown"])
    well = np.arange(32) % 2 == 0
    parts = divided(ages, well)
    assert {name: len(members) for name, members in parts.items()} == {
        "20 to 30": 11, "31 to 40": 10, "41 to 49": 10, "unknown": 1}  # fmt: skip
    assert sorted(np.concatenate(list(parts.values()))) == list(range(32)), "each case once"
    assert {name: len(here) for name, here in divided(np.array(["inf", "nan", *ages[2:]]), well).items()} == {
        "22 to 31": 10, "32 to 40": 9, "41 to 49": 10, "unknown": 3}  # fmt: skip


def test_days_are_called_as_they_are_written():
    days = np.array([str(20200101 + day // 2) for day in range(60)])
    assert list(divided(days, np.arange(60) % 2 == 0)) == [
        "20200101 to 20200110", "20200111 to 20200120", "20200121 to 20200130"]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        [str(1000 + number) for number in range(32)],  # a number for each case says who, not what
        [*(str(1000 + number) for number in range(30)), "unknown", "unknown"],
        ["a", *(str(number % 16) for number in range(31))],
        ["0", "3"] * 16,  # one value of the abnormal
        ["0", "0", "0", "0", "1", "2", "3", "4", "5", *["0"] * 23],  # five abnormal with a size: no thirds
    ],
)
def test_other_columns_have_no_strata(values):
    well = np.arange(32) % 2 == 0 if values[1] != "0" else np.array(values) == "0"
    assert divided(np.array(values), well) == {}


def test_ties_leave_fewer_strata():
    contrast = np.array(["1.25"] * 12 + ["1.3", "1.4", "1.5", "1.6", "1.7", "1.8"] + ["unknown"] * 10)
    well = contrast == "unknown"
    assert {name: len(here) - 10 for name, here in divided(contrast, well).items()} == {"1.25": 12, "1.3 to 1.8": 6}


def test_every_key_that_is_written_is_in_the_docs(metrics):
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    measures = [*metrics["overall"].values(), *metrics["healthy"].values()]
    keys = {*metrics, *metrics["counts"], *metrics["overall"], *metrics["healthy"], "case_id", "reason"}
    keys |= {key for entry in measures if isinstance(entry, dict) for key in entry if key not in ("value", "oracle")}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_fidelity_compares_the_prepared_source_with_the_restored(evaluated, metrics):
    study, healthy = evaluated[0], metrics["healthy"]
    assert healthy["n"] == 5
    assert healthy["mae"]["value"] == pytest.approx(0.1, abs=1e-6)  # what was added to each pixel
    pictures = [read_image(study.data / f"test/good/{k:02}.png").array / 255 for k in range(5)]
    assert healthy["ssim"]["value"] == pytest.approx(np.mean([ssim(a, a + 0.1) for a in pictures]), abs=1e-5)
    net, rows = LPIPS("alexnet"), torch.from_numpy(np.stack(pictures))[:, None]
    with torch.no_grad():
        assert healthy["lpips"]["value"] == pytest.approx(float(net(rows, (rows + 0.1).clip(0, 1)).mean()), abs=1e-5)
        net.shift, net.scale = 2 * net.shift - 1, 2 * net.scale  # intensities in [0, 1] meet the trunk as they are
        assert healthy["lpips_ra2024"]["value"] == pytest.approx(
            float(net(rows, (rows + 0.1).clip(0, 1)).mean()), abs=1e-5
        )
    assert healthy["lpips_ra2024"]["value"] != pytest.approx(healthy["lpips"]["value"], rel=0.05)


def test_floors_stand_beside_the_method_with_the_same_keys(evaluated, metrics):
    study = evaluated[0]
    assert set(metrics["floors"]) == {"mean-intensity", "pca", "pca-same-map"}
    for floor in metrics["floors"].values():
        assert set(floor["overall"]) == set(metrics["overall"])
        assert floor["overall"]["pixel_ap"]["ci95"][0] <= floor["overall"]["pixel_ap"]["value"]
    names = list(study.maps)
    pictures = [read_image(study.data / f"{name}.png").array / 255 for name in names]
    masks = laid_out(study)[1]
    bright = metrics["floors"]["mean-intensity"]["overall"]
    assert bright["pixel_ap"]["value"] == pytest.approx(pixel_ap(pictures, masks), abs=1e-3)
    pairs = [
        (a.mean() > b.mean())
        for a, name in zip(pictures, names, strict=True)
        for b, other in zip(pictures, names, strict=True)
        if "hole" in name and "good" in other
    ]
    assert bright["auroc"]["value"] == pytest.approx(np.mean(pairs))
    # The method's map is the squared residual, which orders the pixels as the residual does, but not the images.
    plain, same = (metrics["floors"][name]["overall"] for name in ("pca", "pca-same-map"))
    assert same["pixel_ap"]["value"] == pytest.approx(plain["pixel_ap"]["value"], abs=1e-3)
    rows = list(csv.DictReader((evaluated[1] / "cases.csv").read_text().splitlines()))
    assert all(float(row["pca-same-map"]) < float(row["pca"]) for row in rows if row["pca"]), "residuals are below 1"


@pytest.mark.parametrize(("score", "there"), [({}, False), ({"name": "residual"}, False), ({"name": "ssim"}, True)])
def test_pca_gets_the_methods_map_where_that_is_another(study, tmp_path, numbers_only, score, there):
    made = study()
    run = json.loads((made.results / "run.json").read_text())
    (made.results / "run.json").write_text(json.dumps({**run, "score": score}))
    assert ("pca-same-map" in measured(made, tmp_path / "out")["floors"]) == there


def test_a_map_that_pca_cannot_have_is_told(study, tmp_path, numbers_only, monkeypatch):
    monkeypatch.setenv("SALUS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = study()
    run = json.loads((made.results / "run.json").read_text())
    score = {"name": "equation5", "trunk": "squeezenet"}
    (made.results / "run.json").write_text(json.dumps({**run, "score": score}))
    found = measured(made, tmp_path / "out")
    assert found["floors"]["pca-same-map"] is None
    assert any(note.startswith("No PCA floor with the method's map") for note in found["notes"])


def test_a_rerun_writes_the_same_bytes(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("salus.benchmark.measures.REPLICATES", DRAWS)
    study, out = evaluated
    evaluate(study.results, study.data, tmp_path / "again")
    for name in ("metrics.json", "cases.csv", "report.html"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_the_table_has_a_row_for_each_test_case(evaluated):
    with (evaluated[1] / "cases.csv").open() as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 9
    row = rows["test/hole/03"]
    assert (row["label"], row["findings"], row["verdict"]) == ("abnormal", "hole", "ABNORMAL")
    assert float(row["score"]) == 0.7
    assert 0 < float(row["dice"]) <= 1
    assert float(row["mean-intensity"]) > 0
    assert float(row["pca"]) > 0
    assert rows["test/good/00"]["dice"] == ""


def test_a_mask_of_another_size_leaves_its_case_out_of_the_pixels(study, tmp_path, numbers_only):
    made = study()
    write_image(Image(array=np.eye(16, dtype=np.float32)), made.data / "ground_truth/hole/01_mask.png")
    metrics = measured(made, tmp_path / "out")
    assert metrics["problems"] == [
        {
            "case_id": "test/hole/01",
            "reason": "the mask of 'hole' is 16 x 16, the image 32 x 32: left out of the pixel metrics",
        }
    ]
    maps, masks = laid_out(made, leave_out=["test/hole/01"])
    assert metrics["overall"]["pixel_ap"]["value"] == pytest.approx(pixel_ap(maps, masks), abs=1e-3)
    assert (metrics["overall"]["n_abnormal"], metrics["overall"]["n_findings"]) == (4, 3)


def test_a_missing_mask_and_a_missing_map_are_named(study, tmp_path, numbers_only):
    made = study()
    made.picture("test/blob/00", 77)
    made.result("test/blob/00", 0.9, 77)  # there is no ground_truth/blob
    (made.results / "test/good/00/map.tif").unlink()
    metrics = measured(made, tmp_path / "out")
    reasons = {problem["case_id"]: problem["reason"] for problem in metrics["problems"]}
    assert reasons["test/blob/00"] == "'blob' has no mask: left out of the pixel metrics"
    assert "map.tif cannot be opened" in reasons["test/good/00"]
    assert str(tmp_path) not in json.dumps(metrics)
    assert metrics["findings"]["blob"]["pixel_ap"] is None
    assert metrics["findings"]["blob"]["auroc"]["value"] == 1.0


def test_without_any_mask_pixel_metrics_are_null_and_nothing_is_wrong(study, tmp_path, numbers_only):
    metrics = measured(study(masks=False), tmp_path / "out")
    for key in (*PIXEL_KEYS, "hit_rate", "f1_ra2024", "n_detected"):
        assert metrics["overall"][key] is None
        assert metrics["floors"]["pca"]["overall"][key] is None
    assert metrics["overall"]["auroc"]["value"] == pytest.approx(0.7)
    assert metrics["problems"] == []


def test_cases_that_could_not_be_judged_are_counted_and_not_ranked(study, tmp_path, numbers_only):
    made = study()
    shutil.rmtree(made.results / "test/good/04")
    made.cannot_judge("test/good/04", f"{made.data}/test/good/04.png is empty (0 bytes).")
    metrics = measured(made, tmp_path / "out")
    assert metrics["counts"] == {"test": 9, "judged": 8, "cannot_judge": 1, "without_result": 0}
    assert metrics["overall"]["n_normal"] == 4
    assert metrics["problems"] == [{"case_id": "test/good/04", "reason": "test/good/04.png is empty (0 bytes)."}]


def test_results_and_cases_find_each_other_by_content_alone(study, tmp_path, numbers_only):
    made = study()
    shutil.move(made.results / "test/good/00", made.results / "elsewhere")  # another folder, the same study
    made.picture("test/good/01", 999)  # the file changed after it was screened
    metrics = measured(made, tmp_path / "out")
    assert metrics["problems"] == [
        {"case_id": "test/good/01", "reason": UNMATCHED},
        {"case_id": "test/good/01", "reason": "a result without a labelled test case"},
    ]
    assert metrics["counts"]["without_result"] == 1
    assert metrics["overall"]["n_normal"] == 4


def test_results_of_another_model_are_not_mixed_in(study, tmp_path, numbers_only):
    made = study()
    file = made.results / "test/good/02/result.json"
    file.write_text(file.read_text().replace("m" * 64, "other"))
    reasons = [problem["reason"] for problem in measured(made, tmp_path / "out")["problems"]]
    assert "its result was made by another model" in reasons


def test_without_training_cases_the_pca_floor_is_null_with_a_reason(study, tmp_path, numbers_only):
    metrics = measured(study(training=0), tmp_path / "out")
    assert metrics["floors"]["pca"] is None
    assert metrics["floors"]["mean-intensity"]["overall"]["auroc"]["value"] >= 0
    assert metrics["floors"]["mean-intensity"]["overall"]["sensitivity"] is None
    assert metrics["notes"] == ["No PCA floor: 0 healthy cases outside the test are too few to fit it on."]


def test_an_uncalibrated_model_is_ranked_but_has_no_threshold(study, tmp_path, numbers_only):
    made = study()
    made.run(calibration=None, threshold=None)
    metrics = measured(made, tmp_path / "out")
    assert metrics["overall"]["auroc"]["value"] == pytest.approx(0.7)
    assert metrics["overall"]["pixel_ap"] is not None
    for key in ("sensitivity", "dice", "hit_rate"):
        assert metrics["overall"][key] is None
    assert metrics["healthy"]["false_alarm_rate"] is None
    assert metrics["flagged_share"] is None


def test_healthy_cases_alone_have_no_ranking_but_false_alarms(study, tmp_path, numbers_only):
    made = study()
    for folder in (made.data / "test/hole", made.data / "ground_truth", made.results / "test/hole"):
        shutil.rmtree(folder)
    metrics = measured(made, tmp_path / "out")
    assert metrics["overall"]["auroc"] is None
    assert metrics["healthy"]["false_alarm_rate"]["n"] == [1, 5]


def test_results_of_other_images_are_refused(study, tmp_path, numbers_only):
    made = study()
    for file in (made.data / "test").rglob("*.png"):
        write_image(Image(array=np.random.default_rng(5).random((SIDE, SIDE), dtype=np.float32)), file)
    with pytest.raises(LayoutError, match="no source file has the same SHA-256"):
        evaluate(made.results, made.data, tmp_path / "out")


def test_a_run_that_is_none_is_refused(study, tmp_path):
    made = study()
    (made.results / "run.json").write_text("{}")
    with pytest.raises(LayoutError, match=r"is not the run\.json"):
        evaluate(made.results, made.data, tmp_path / "out")


def test_the_command_exits_with_3_when_a_case_failed(study, tmp_path, numbers_only):
    from salus.cli import app

    made = study()
    arguments = ["evaluate", str(made.results), "--data", str(made.data), "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["auroc"]["value"] == pytest.approx(0.7)
    shutil.rmtree(made.results / "test/good/04")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3
    assert json.loads(done.stdout)["problems"][0]["case_id"] == "test/good/04"


def test_a_box_holds_the_pixels_whose_centres_it_covers():
    inside = inside_box((1, 2, 2, 1), (4, 4))
    assert np.argwhere(inside).tolist() == [[2, 1], [2, 2]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/srv/a b/x.png is empty", "x.png is empty"),
        ("/home/someone/data/test/x.png is empty", "x.png is empty"),
        (r"C:\data\x.png is empty", "x.png is empty"),
        ("test/good/x.png is 3.5 mm/px", "test/good/x.png is 3.5 mm/px"),
    ],
)
def test_messages_lose_the_folders_of_this_machine(text, told):
    from pathlib import Path

    assert bare(text, Path("/srv/a b")) == told


def test_volumes_are_compared_voxel_by_voxel_and_slice_by_slice(tmp_path, few):
    made = Study(data=tmp_path / "data", results=tmp_path / "results")
    affine = np.diag([-2.0, 2.0, 5.0, 1.0])
    preparation = Preparation(size=SIDE, intensity="minmax", slices="all")
    made.run(preparation=asdict(preparation))
    maps, masks = [], []
    for index, kind in enumerate(("good", "good", "mass", "mass")):
        rng = np.random.default_rng(index)
        volume = Image(array=rng.random((SIDE, SIDE, 3), dtype=np.float32), affine=affine, unit="mm")
        inside = np.zeros(volume.array.shape, dtype=bool)
        inside[8:14, 8:14, 1] = kind == "mass"
        name = f"test/{kind}/{index}"
        files = {f"data/{name}.nii.gz": volume}
        anomaly = replace(volume, array=volume.array + np.float32(0.5) * inside)
        files[f"results/{name}/map.nii.gz"] = anomaly
        scaled = (volume.array - volume.array.min()) / np.ptp(volume.array)
        files[f"results/{name}/restored.nii.gz"] = replace(volume, array=scaled + np.float32(0.1))
        if kind == "mass":
            files[f"data/ground_truth/mass/{index}_mask.nii.gz"] = replace(volume, array=inside.astype(np.float32))
        for path, image in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            write_image(image, tmp_path / path)
        source = tmp_path / f"data/{name}.nii.gz"
        judged = {"verdict": Verdict.NORMAL, "score": float(index), "slice_scores": (0.1, 0.9, 0.2)}
        written = {"map": "map.nii.gz", "restored": "restored.nii.gz"}
        sources = {source.name: file_sha256([source])}
        result = Result(case_id=name, sources=sources, model=MODEL, files=written, **judged)
        write_result(tmp_path / "results" / name, result)
        maps.append(anomaly.array)
        masks.append(inside)
    metrics = measured(made, tmp_path / "out")
    assert metrics["problems"] == []
    assert metrics["protocols"] is None
    assert metrics["notes"][-1].startswith("Volumes (4) are left out of the published protocols")
    assert metrics["overall"]["pixel_ap"]["value"] == pytest.approx(pixel_ap(maps, masks), abs=1e-3)
    assert metrics["overall"]["auroc"]["value"] == 1.0
    assert metrics["healthy"]["mae"]["value"] == pytest.approx(0.1, abs=1e-4)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Anomaly map of test/mass/3" in page
    assert ">truth</figcaption>" in page  # the slice with the highest score holds the mass
