"""The page of a benchmark: ours beside the papers, codes of several sizes, ranks, cases, and the protocol card."""

import base64
import csv
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml

from salus.benchmark import figures
from salus.benchmark.beside import beside
from salus.benchmark.card import card
from salus.benchmark.differences import differences
from salus.benchmark.gallery import Gallery, chosen_of, gallery
from salus.benchmark.published import COLUMNS, METHODS, PAPERS, published
from salus.benchmark.rows import MEASURES, Row
from salus.benchmark.run import benchmark
from salus.benchmark.suite import Data, Method, Suite, read_suite
from salus.benchmark.suite_report import card_of, points, printed, rank_plot, sweep_plots, with_best, write_suite_report
from salus.benchmark.sweeps import sweeps
from salus.benchmark.tables import Scored, number_of, ranked, write_tables
from salus.datasets import covid_radiography, fastmri, grazpedwri, rsna
from salus.detectors import DETECTORS
from salus.metrics import delong_test, holm, mcnemar
from salus.metrics.comparison import critical_difference
from tests.benchmark.test_report import Page

TABLES = [f"ra2024 {k}" for k in (1, 2, 3)] + [f"cai2024 {k}" for k in (1, 2)]
CODES = (1, 2, 4)
FLAGGED = 0.5  # scores above it


@pytest.fixture
def trained(tmp_path):
    """Makes a row as a cell would have left it: `run.json`, `cases.csv` of (case, label, finding, score), metrics."""
    made = []

    def make(method="ra", *, data="brain", seed=0, detector="ra", settings=(), cases=(), **metrics) -> Row:
        folder = tmp_path / str(len(made))
        for part in ("results", "report"):
            (folder / part).mkdir(parents=True)
        plan = {"detector": detector, "preset": "paper", "settings": dict(settings), "recipe": {"epochs": 3}}
        run = {
            "detector": detector,
            "settings": dict(settings),
            "card": {
                "plan": plan,
                "counts": {"train": 8},
                "manifest_sha256": "ab",
                "remarks": ["1 child"],
                "also": [{"dataset": "ixi", "counts": {"train": 3}}],
            },
            "calibration": {"grid_threshold": 0.007},
            "preparation": {"size": 64},
        }
        (folder / "results" / "run.json").write_text(json.dumps(run))
        with (folder / "report" / "cases.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case_id", "patient_id", "label", "findings", "score", "verdict"])
            for name, label, finding, score in cases:
                verdict = "" if score == "" else "ABNORMAL" if score > FLAGGED else "NORMAL"
                writer.writerow([name, name[0], label, finding, score, verdict])
        empty = {"overall": None, "healthy": None, "findings": {}, "protocols": None, "seed": 0}
        content = {"dataset": "fastmri", **empty, **metrics}
        entries = {name: (content["overall"] or {}).get(name) for name in MEASURES}
        row = Row(
            data=data, method=method, score="own", seed=seed, map=f"{detector} + squared", metrics=content,
            entries=entries, folder=folder,
        )  # fmt: skip
        made.append(row)
        return row

    return make


def value(number: float) -> dict:
    return {"value": number, "ci95": [number - 0.1, number + 0.1]}


def hits(**classes: tuple[int, int, float]) -> dict:
    """`protocols` of metrics.json from (n, detected, F1) by class; `_` stands for a space or a hyphen in its name."""
    made = {
        name: {"n": n, "patients": n, "n_detected": found, "recall": value(found / n), "f1": value(f1)}
        for name, (n, found, f1) in classes.items()
    }
    n, found = sum(n for n, _, _ in classes.values()), sum(found for _, found, _ in classes.values())
    micro = {"n": n, "patients": n, "n_detected": found, "recall": value(found / n), "f1": value(0.25)}
    return {"ra2024": {"published": {"classes": made, "micro": micro}}}


def by_column(ours: list[dict], theirs: str) -> dict[tuple[str, str], dict]:
    return {(one["of"], one["measure"]): one for one in ours if one["theirs"] == theirs}


def test_findings_that_the_paper_calls_one_are_counted_together(trained):
    row = trained(protocols=hits(**{"Mass": (3, 2, 0.5), "Extra-axial mass": (1, 0, 0.1), "Edema": (4, 1, 0.3)}))
    ours = by_column(beside("ra2024 1", published("ra2024 1"), [row]), "RA")
    mass, f1 = ours["mass", "n_detected"], ours["mass", "f1"]
    assert (mass["mean"], mass["n"]) == (2, 4)
    assert mass["ci95"] == pytest.approx([0.150, 0.850], abs=1e-3), "Wilson of two of four"
    assert f1["mean"] == pytest.approx((3 * 0.5 + 0.1) / 4)
    assert f1["ci95"] is None
    assert (ours["total", "n_detected"]["mean"], ours["total", "f1"]["mean"]) == (3, 0.25)
    assert ours["edema", "n_detected"]["ci95"] == [0.15, 0.35], "the interval of metrics.json, of one class"
    assert ("resection", "f1") not in ours


def test_findings_of_a_patient_that_are_counted_together_have_no_wilson_interval(trained):
    protocols = hits(**{"Mass": (3, 2, 0.5), "Extra-axial mass": (1, 0, 0.1)})
    protocols["ra2024"]["published"]["micro"]["patients"] = 3
    found = by_column(beside("ra2024 1", published("ra2024 1"), [trained(protocols=protocols)]), "RA")
    assert (found["mass", "n_detected"]["mean"], found["mass", "n_detected"]["ci95"]) == (2, None)


def test_several_trainings_have_their_spread_and_no_interval(trained):
    rows = [trained(seed=seed, protocols=hits(Edema=(4, found, 0.5))) for seed, found in ((0, 1), (1, 3))]
    found = by_column(beside("ra2024 1", published("ra2024 1"), rows), "RA")["edema", "n_detected"]
    assert (found["mean"], found["ci95"]) == (2, None)
    assert found["seed_sd"] == pytest.approx(2**0.5)


def test_each_disease_comes_from_its_data_set_and_healthy_from_the_first(trained):
    healthy = {"ssim": value(0.7), "lpips": value(0.1), "lpips_ra2024": value(0.2)}
    auroc = {"findings": {"Lung Opacity": {"auroc": value(0.8)}}, "healthy": healthy}
    rows = [
        trained("vae", detector="vae", dataset="rsna", data="chest", **auroc),
        trained("vae", detector="vae", dataset="covid-radiography", findings={"COVID": {"auroc": value(0.6)}}),
    ]
    ours = beside("ra2024 3", published("ra2024 3"), rows)
    assert {(one["of"], one["measure"]): (one["mean"], one["data"]) for one in ours} == {
        ("healthy", "ssim"): (0.7, "chest"),
        ("healthy", "lpips"): (0.2, "chest"),
        ("pneumonia", "auroc"): (0.8, "chest"),
        ("COVID-19", "auroc"): (0.6, "brain"),
    }


def test_other_data_another_method_and_no_threshold_fill_no_column(trained):
    rows = [
        trained(dataset="phantom", protocols=hits(Edema=(4, 1, 0.3))),
        trained("ae", detector="ae", settings={"latent": 4}, protocols=hits(Edema=(4, 1, 0.3))),
        trained(protocols={"ra2024": {"published": None}}),
        Row(data="brain", method="ra", score="own", seed=1, reason="diverged"),
    ]
    assert beside("ra2024 1", published("ra2024 1"), rows) == []


def test_an_autoencoder_stands_under_its_own_size(trained):
    row = trained(
        "small", detector="ae", settings={"latent": 4}, dataset="medianomaly/rsna", overall={"auroc": value(0.7)}
    )
    (ours,) = beside("cai2024 1", published("cai2024 1"), [row])
    assert (ours["theirs"], ours["of"], ours["measure"], ours["method"]) == ("AE, d = 4", "RSNA", "auroc", "small")
    (ours,) = beside("cai2024 2", published("cai2024 2"), [row])
    assert (ours["theirs"], ours["method"]) == ("AE, d = 4, 4, 32, 16", "small")


def test_pixels_beside_cai_et_al_are_measured_as_theirs(trained):
    overall = {"auroc": value(0.7), "pixel_ap": value(0.9), "best_dice": value(0.9)}
    own = {"medianomaly": {"pixel_ap": {"value": 0.3, "ci95": None}, "best_dice": {"value": 0.4, "ci95": None}}}
    how = {"detector": "ae", "settings": {"latent": 16}, "dataset": "medianomaly/brats2021", "overall": overall}
    ours = by_column(beside("cai2024 1", published("cai2024 1"), [trained("ae", protocols=own, **how)]), "AE, d = 16")
    found = {measure: one["mean"] for (_, measure), one in ours.items()}
    assert found == {"auroc": 0.7, "pixel_ap": 0.3, "best_dice": 0.4}
    (ours,) = beside("cai2024 1", published("cai2024 1"), [trained("ae", **how)])
    assert ours["measure"] == "auroc", "an evaluation of before it was measured fills no column"


def test_a_published_table_is_laid_out_as_in_print_with_ours_below(trained):
    rows = [trained(protocols=hits(Edema=(4, 1, 0.3)))]
    numbers = published("ra2024 1")
    table = printed("ra2024 1", [number_of(number) for number in numbers], beside("ra2024 1", numbers, rows))
    assert [of for of, _ in table["groups"]][:3] == ["total", "edema", "mass"]
    assert [measure for _, measure in table["groups"][0][1]] == ["n_detected", "f1"]
    assert list(table["rows"]) == ["DAE", "MKD", "LTM", "VAE", "MAE", "SI-VAE", "DDPM", "RA"]
    assert table["rows"]["RA"]["theirs"]["edema", "n_detected"]["value"] == 12
    assert list(table["rows"]["RA"]["ours"]) == [("ra", "own")]
    assert set(table["rows"]["RA"]["ours"]["ra", "own"]["cells"]) == {
        (of, measure) for of in ("total", "edema") for measure in ("n_detected", "f1")
    }
    assert not any(table["rows"][name]["ours"] for name in table["rows"] if name != "RA")


@pytest.mark.parametrize("table", TABLES)
def test_every_published_row_and_column_has_its_counterpart(table):
    for number in published(table):
        assert METHODS[number.method][0] in DETECTORS
        assert f"{table} {number.of}" in COLUMNS
    assert table.split()[0] in PAPERS


def test_columns_name_the_findings_as_readers_spell_them():
    spelled = {
        grazpedwri.NAME: set(grazpedwri.CLASSES),
        rsna.NAME: {rsna.OPACITY},
        covid_radiography.NAME: set(covid_radiography.ABNORMAL),
    }
    for data, findings in COLUMNS.values():
        assert data in {*spelled, fastmri.NAME} or data.startswith("medianomaly/")
        assert set(findings) <= spelled.get(data, set(findings))


def test_codes_of_three_sizes_make_a_curve_with_errors_of_healthy_and_abnormal(trained):
    rows = [
        trained(
            f"ae-{d}", seed=seed, detector="ae", settings={"latent": d, "size": 64}, overall={"auroc": value(0.1 * d)},
            cases=[("a", "normal", "", 0.2 / d), ("b", "abnormal", "", 0.6 / d), ("c", "abnormal", "", 0.4 / d),
                   ("d", "abnormal", "", "")],
        )
        for d in CODES
        for seed in (0, 1)
    ]  # fmt: skip
    other = trained("wide", detector="ae", settings={"latent": 8, "size": 128})
    assert sweeps([*rows[:4], other], {}) == [], "two sizes, and another picture's third"
    (sweep,) = sweeps([*rows, other], {})
    points = sweep["data"]["brain"]
    assert [(one["latent"], one["method"]) for one in points] == [(1, "ae-1"), (2, "ae-2"), (4, "ae-4")]
    assert [one["auroc"]["mean"] for one in points] == pytest.approx([0.1, 0.2, 0.4])
    assert points[0]["auroc"]["seed_sd"] == 0
    assert [one["normal"]["mean"] for one in points] == pytest.approx([0.2, 0.1, 0.05])
    assert [one["abnormal"]["mean"] for one in points] == pytest.approx([0.5, 0.25, 0.125])
    assert points[0]["auprc"] is None
    assert [heading for heading, _ in sweep_plots(sweep)] == ["AUROC", "mean score of test images (squared)"]
    assert sweep["published"] == {}
    chosen = [trained("auto", detector="ae", settings={"latent": 2, "size": 64}, overall={"auroc": value(0.9)})]
    chosen[0].run["card"]["plan"]["settings"]["latent"] = "auto"
    assert sweeps([*rows, *chosen], {}) == [sweep], "a size that was chosen is no point of the curve"


def test_a_published_sweep_of_the_same_data_is_drawn_in_grey_beside_ours(trained):
    rows = [
        trained(f"{data}-{d}", data=data, dataset=dataset, detector="ae", settings={"latent": d},
                overall={"auroc": value(0.1 * d), "pixel_ap": value(0.3)})
        for data, dataset in (("chest", "medianomaly/rsna"), ("heads", "phantom"))
        for d in CODES
    ]  # fmt: skip
    (sweep,) = sweeps(rows, {table: published(table) for table in TABLES})
    assert list(sweep["published"]) == ["chest"], "nobody prints anything of phantoms"
    theirs = sweep["published"]["chest"]
    assert [one["latent"] for one in theirs] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [one["auroc"]["mean"] for one in theirs[:3]] == [0.665, 0.675, 0.729]
    assert theirs[0]["pixel_ap"] is None, "RSNA has no masks"
    (_, auroc), (_, pixel_ap) = sweep_plots(sweep)
    said = [re.findall("<!-- (.+) -->", base64.b64decode(plot.split(",")[1]).decode()) for plot in (auroc, pixel_ap)]
    assert [name for name in said[0] if name[0] in "ch"] == ["chest", "chest, published", "heads"]
    assert "chest, published" not in said[1]
    assert figures.QUIET in base64.b64decode(auroc.split(",")[1]).decode()
    (vae,) = sweeps([trained(f"v-{d}", dataset="medianomaly/rsna", detector="vae", settings={"latent": d})
                     for d in CODES], {"cai2024 1": published("cai2024 1")})  # fmt: skip
    assert vae["published"] == {}, "of another detector"


def test_ranks_and_their_critical_difference_are_drawn():
    line = {"score": "own", "floor": False}
    data = {
        name: [{"method": m, "measures": {"auroc": {"mean": mean}}, **line} for m, mean in means.items()]
        for name, means in {str(k): {"a": 0.9, "b": 0.8, "c": 0.7 + 0.15 * (k == 0)} for k in range(5)}.items()
    }
    ranks = ranked(data)
    assert ranks["mean_rank"] == {"a + own": 1.0, "b + own": 2.2, "c + own": 2.8}
    assert ranks["critical_difference"] == pytest.approx(critical_difference(3, 5), abs=1e-3)
    drawing = base64.b64decode(rank_plot(ranks).split(",")[1]).decode()
    said = re.findall("<!-- (.+) -->", drawing)
    assert said.index("a + own") < said.index("b + own") < said.index("c + own")
    assert f"critical difference {ranks['critical_difference']:.2f}" in said


def test_every_two_methods_are_compared_by_patient_and_corrected_for_all_pairs():
    rng = np.random.default_rng(0)
    abnormal = np.arange(60) % 2 == 0
    cases = tuple((f"c{case:02}", f"p{case // 2:02}") for case in range(60))
    patients = [patient for _, patient in cases]

    def of(shift: float, runs: int = 2, cases: tuple = cases) -> Scored:
        said = [rng.normal(size=60) + shift * abnormal for _ in range(runs)]
        return Scored(cases=cases, abnormal=abnormal, runs=said, floor=None, same_map=True, found=None)

    lines = {"a + own": of(4), "b + own": of(1, runs=1), "c + own": of(0.8)}
    made = differences(list(lines.items()))
    assert [(pair["first"], pair["second"]) for pair in made] == list(combinations(lines, 2))
    tests = [delong_test(abnormal, np.stack(lines[one].runs), np.stack(lines[other].runs), patients)
             for one, other in combinations(lines, 2)]  # fmt: skip
    assert [pair["value"] for pair in made] == pytest.approx([test.difference for test in tests], abs=1e-6)
    assert [pair["p"] for pair in made] == pytest.approx([test.p for test in tests], rel=5e-3)
    assert [pair["p_holm"] for pair in made] == pytest.approx(holm([test.p for test in tests]), rel=5e-3)
    assert made[0]["p_holm"] < 0.001 < 0.05 < made[2]["p_holm"]
    assert all(pair["ci95"][0] < pair["value"] < pair["ci95"][1] for pair in made)
    others = tuple((case, patient) for case, patient in cases[::-1])
    assert differences([("a", of(1)), ("b", of(1, cases=others))]) == [], "other cases are not compared"
    few = tuple((case, "p0" if is_ill else f"p{case}") for (case, _), is_ill in zip(cases, abnormal, strict=True))
    assert differences([("a", of(1, cases=few)), ("b", of(1, cases=few))]) == [], "one patient has no variance"


def test_orders_that_never_overlap_have_no_p_but_count_among_the_pairs():
    abnormal = np.arange(40) < 20
    cases = tuple((str(case), str(case)) for case in range(40))
    rng = np.random.default_rng(1)
    runs = {"a": abnormal * 1.0, "b": rng.normal(size=40), "c": -1.0 * abnormal}
    made = differences([
        (k, Scored(cases=cases, abnormal=abnormal, runs=[v], floor=None, same_map=True, found=None))
        for k, v in runs.items()
    ])  # fmt: skip
    assert [pair["p"] is None for pair in made] == [False, True, False]
    assert made[1]["p_holm"] is None
    assert made[0]["p_holm"] > made[0]["p"] * 1.99


def test_abnormal_patients_found_are_compared_by_mcnemar_and_corrected_for_all_pairs():
    abnormal = np.arange(40) < 24
    cases = tuple((str(case), str(case)) for case in range(40))
    rng = np.random.default_rng(2)
    found = {"a": np.arange(40) < 20, "b": np.arange(40) % 2 == 0, "c": np.arange(40) < 10, "none": None}

    def of(found: np.ndarray | None, cases: tuple = cases) -> Scored:
        return Scored(
            cases=cases, abnormal=abnormal, runs=[rng.normal(size=40)], floor=None, same_map=True, found=found
        )

    made = differences([(name, of(seen)) for name, seen in found.items()])
    seen = {(pair["first"], pair["second"]): pair["found"] for pair in made}
    assert [pair for pair, of_both in seen.items() if of_both is None] == [(name, "none") for name in "abc"]
    tests = {(x, y): mcnemar(found[x][:24], found[y][:24]) for x, y in combinations("abc", 2)}
    assert (seen["a", "b"]["only_first"], seen["a", "b"]["only_second"]) == (10, 2), "of 24 abnormal cases"
    assert seen["a", "b"]["p"] == pytest.approx(0.0386, abs=1e-4), "2 (1 + 12 + 66) / 2^12"
    assert [seen[pair]["p"] for pair in tests] == pytest.approx([test.p for test in tests.values()], rel=5e-3)
    corrected = holm([test.p for test in tests.values()])
    assert [seen[pair]["p_holm"] for pair in tests] == pytest.approx(corrected, rel=5e-3), "a pair without p is none"
    twice = tuple((case, str(int(case) // 2)) for case, _ in cases)
    (by_patient,) = differences([(name, of(found[name], twice)) for name in "ab"])
    assert (by_patient["found"]["only_first"], by_patient["found"]["only_second"]) == (0, 2), "b finds one of each two"


def test_a_case_is_found_where_most_trainings_flag_it(trained):
    def rows(*scores: tuple) -> list[Row]:
        kinds = (("a", "abnormal"), ("b", "abnormal"), ("c", "normal"))
        return [trained(cases=[(*kind, "", score) for kind, score in zip(kinds, one, strict=True)]) for one in scores]

    assert Scored.of(rows((1, 1, 0), (1, 0, 0), (0, 0, 1))).found.tolist() == [True, False, False]
    assert Scored.of(rows((1, 1, 0), (1, 0, 0))).found.tolist() == [True, False, False], "one of two is not most"
    undecided = rows((1, 1, 0), (1, 0, 0))
    table = undecided[1].folder / "report" / "cases.csv"
    table.write_text(table.read_text().replace("ABNORMAL", "CANNOT_JUDGE"))
    assert Scored.of(undecided).found is None


def test_only_the_best_method_is_called_best():
    lines = [{"method": name, "score": "own", "floor": name == "pca"} for name in ("pca", "a", "b", "c")]
    pair = {"first": "b + own", "second": "c + own"}
    told = with_best(lines, [pair])
    assert [line["is_best"] for line in told] == [False, True, False, False]
    assert [line["with_best"] for line in told] == [None] * 4, "a judged other cases, so nothing was compared with it"
    told = with_best(lines, [{**pair, "first": "a + own"}, pair])
    assert [line["with_best"] for line in told] == [None, None, None, {**pair, "first": "a + own"}]


def test_the_methods_together_choose_the_best_and_the_middle_case_of_each_finding(trained):
    def cases(*scores: float) -> list[tuple]:
        names = (*((f"e{k}", "abnormal", "edema") for k in range(3)), ("m", "abnormal", "mass"), ("n", "normal", ""))
        return [(*case, score) for case, score in zip(names, scores, strict=True)]

    rows = [trained(cases=cases(5, 3, 4, 2, 1)), trained("vae", cases=cases(0.3, 0.4, 0.5, 0.2, 0.1))]
    assert chosen_of(rows) == [  # e2 has ranks 4 and 5, e0 5 and 3, e1 3 and 4
        ("e2", "edema, ranked highest"),
        ("e0", "edema, in the middle"),
        ("m", "mass, ranked highest"),
    ]


def test_the_card_tells_what_the_cells_recorded(trained):
    said = {
        "versions": {"salus": "1"}, "replicates": 20, "calibration_cases": 7, "false_alarms": 0.05,
        "threshold": 0.4, "pixel_threshold": None, "counts": {"judged": 3}, "notes": ["a note"],
    }  # fmt: skip
    tested = [("a1", "abnormal", "mass; edema", 1), ("a2", "abnormal", "mass", 2), ("b", "normal", "", 3)]
    rows = [
        trained(seed=0, cases=tested, overall={"best_dice": {**value(0.5), "oracle": True}}, **said),
        trained(seed=1, cases=tested[::-1], **said),
    ]
    suite = Suite(datasets={"brain": Data(reader="fastmri", path="x")}, methods={"ra": Method()}, seeds=(0, 1))
    made = card(suite, rows, {card(suite, rows, {})["data"]["brain"]["test_sha256"][0]: 6, "of another test": 3})
    assert made["data"]["brain"]["looks"] == 6
    assert made["used_test_labels"] == ["best_dice"]
    assert made["data"]["brain"]["of_which_also"] == [[{"dataset": "ixi", "counts": {"train": 3}}]]
    brain = made["data"]["brain"]
    assert brain["test_cases"] == {"normal": 1, "abnormal": 2}
    assert brain["test_patients"] == {"normal": 1, "abnormal": 1}
    assert brain["test_findings"] == {"edema": 1, "mass": 2}
    assert len(brain["test_sha256"]) == 1, "the order of cases is no other test"
    assert brain["learned_cases"] == [{"train": 8}]
    assert brain["passed_over"] == ["1 child"]
    keys = ("seed", "calibration_patients", "image", "pixel", "published_grid")
    assert [[one[key] for key in keys] for one in brain["thresholds"]] == [
        [0, 7, 0.4, None, 0.007],
        [1, 7, 0.4, None, 0.007],
    ]
    assert made["methods"]["ra"]["recipe"] == [{"epochs": 3}]
    assert made["evaluated"] == [], "cells of before did not write it down"
    days = [replace(row, evaluated=day) for row, day in zip(rows, ("2026-03-02", "2026-03-01"), strict=True)]
    made = card(suite, days, {})
    assert made["evaluated"] == ["2026-03-01", "2026-03-02"]
    told = dict(card_of(made)["run"])
    assert told["Evaluated on"] == "2026-03-01 to 2026-03-02"
    assert told["Intervals"].startswith("95 %, percentile bootstrap")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[Suite, Path]:
    """Autoencoders of three sizes on drawn heads, beside a paper that knows neither."""
    place = tmp_path_factory.mktemp("page")
    drawn = {"train": 24, "test_normal": 2, "per_finding": 2, "side": 32}
    small = {"detector": "ae", "preset": "tiny"}
    content = {
        "datasets": {"heads": {"phantom": drawn}},
        "methods": {f"ae-{d}": {**small, "set": {"recipe.epochs": 1, "latent": d}} for d in CODES},
        "published": ["cai2024 1"],
    }
    (place / "suite.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALUS_CACHE", str(place / "cache"))
        benchmark(place / "suite.yaml", place / "out", workers=1)
    return read_suite(place / "suite.yaml"), place / "out"


def test_the_page_is_whole_and_every_section_is_linked(page):
    text = (page[1] / "report.html").read_text()
    read = Page(text)
    assert read.wrong == read.open == []
    ids = {attributes.get("id") for _, attributes in read.attributes}
    links = {attributes["href"][1:] for tag, attributes in read.attributes if tag == "a"}
    assert {"heads", "sweeps", "published", "card"} == links <= ids
    assert "No method of this suite was measured on the data of this table." in read.words
    assert "SHA-256" in read.words
    assert f"Evaluated on {json.loads(next(page[1].rglob('cell.json')).read_text())['evaluated']} " in read.words
    pairs = json.loads((page[1] / "summary.json").read_text())["pairs"]["heads"]
    assert len(pairs) == 3, "of three methods"
    assert "Below the best" in read.words
    for pair in pairs[:2]:
        assert f"{pair['value']:.3f}" in read.words
        assert f"p {pair['p_holm']:.3f}" in read.words
    assert text.count('class="gallery"') == 1


def test_what_the_best_or_another_alone_finds_is_told_where_there_are_verdicts(page, tmp_path):
    summary = json.loads((page[1] / "summary.json").read_text())
    pairs = summary["pairs"]["heads"]
    assert [pair["found"] for pair in pairs] == [None] * 3, "too few calibration cases for a threshold"
    galleries = {"heads": Gallery()}
    before = Page(write_suite_report(tmp_path / "a.html", summary, galleries).read_text())
    assert "the best : this" not in before.words
    pairs[0]["found"] = {"only_first": 11, "only_second": 3, "p": 0.02, "p_holm": 0.057}
    read = Page(write_suite_report(tmp_path / "b.html", summary, galleries).read_text())
    assert read.wrong == read.open == []
    assert "the best : this" in read.words
    assert "11 : 3 p 0.057" in read.words


def test_every_picture_of_a_case_is_there_once_a_method_and_small(page):
    out = page[1]
    pictures = [a for tag, a in Page((out / "report.html").read_text()).attributes if a.get("width") == "104"]
    assert len(pictures) == 6 * (1 + 2 * len(CODES)), "three findings, two cases each: input, restored images and maps"
    assert all(picture["src"].startswith("data:image/png") and len(picture["alt"]) > 10 for picture in pictures)
    assert (out / "report.html").stat().st_size < 1_000_000


def test_tables_made_again_have_the_same_bytes(page):
    suite, out = page
    before = {name: (out / name).read_bytes() for name in ("summary.json", "results.csv", "report.html")}
    write_tables(suite, "suite", out)
    assert {name: (out / name).read_bytes() for name in before} == before


def test_data_that_is_gone_leaves_a_reason_and_the_tables(page, trained, tmp_path):
    suite = Suite(datasets={"brain": Data(reader="fastmri", path="gone")}, methods={"ra": Method()})
    rows = [trained(cases=[("a", "abnormal", "", 1)])]
    assert gallery(suite, "brain", rows, tmp_path, None).cases == ()
    seen = gallery(suite, "brain", rows, tmp_path, tmp_path)
    assert "gone" in seen.reason
    assert str(tmp_path) not in seen.reason


def test_costs_are_drawn_with_the_own_score_and_not_with_the_one_that_labels_like_best():
    def line(score: str, auroc: float) -> dict:
        return {"method": "ae", "score": score, "measures": {"auroc": {"value": auroc}}, "costs": {"ms": 1.0}}

    assert points([line("residual", 0.9), line("own", 0.7)]) == [("ae", 1.0, 0.7)]
    assert points([line("squared", 0.9), line("residual", 0.6)]) == [("ae", 1.0, 0.6)]


@pytest.mark.parametrize(("costs", "labels"), [((0.21, 0.35), {"0.2", "0.3"}), ((0.3, 300.0), {"1", "10", "100"})])
def test_the_axis_of_costs_has_labels_however_wide_it_is(costs, labels):
    drawn = figures.cost_figure([("a", costs[0], 0.8), ("b", costs[1], 0.7)])
    words = re.findall("<!-- (.*?) -->", base64.b64decode(drawn.partition(",")[2]).decode())
    shown = set(words[: words.index("ms an image (log)")])
    assert labels <= shown
    assert len(shown) < 9
