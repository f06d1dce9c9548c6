"""The papers' tables do their own arithmetic."""

from collections import defaultdict
from dataclasses import replace

import pytest

from salus.benchmark.gallery import Gallery
from salus.benchmark.published import COLUMNS, STAR, TOTAL, published
from salus.benchmark.suite import Data, Suite
from salus.benchmark.suite_report import write_suite_report
from salus.benchmark.tables import summarised
from salus.core.errors import ConfigError
from salus.datasets.medianomaly import COUNTS
from salus.metrics import class_averages
from tests.benchmark.test_report import Page


def by_method(name: str, measure: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for number in published(name):
        if number.measure == measure:
            found[number.method][number.of] = number.value
    return found


@pytest.mark.parametrize("measure", ["recall", "f1"])
def test_averages_of_table_2_are_weighted_by_findings(measure):
    n = {number.of: number.n[0] for number in published("ra2024 2") if number.of != TOTAL}
    assert sum(n.values()) == 12_895
    for method, values in by_method("ra2024 2", measure).items():
        total = values.pop(TOTAL)
        means = class_averages({name: [value] * n[name] for name, value in values.items()})
        assert means.micro == pytest.approx(total, abs=1.01e-4), method


def test_the_ranking_of_table_2_changes_with_unweighted_means():
    recall = by_method("ra2024 2", "recall")
    macro = {}
    for method, values in recall.items():
        values.pop(TOTAL)
        macro[method] = class_averages({name: [value] for name, value in values.items()}).macro
    assert max(macro, key=macro.__getitem__) == "DDPM"
    f1 = by_method("ra2024 2", "f1")
    for values in f1.values():
        values.pop(TOTAL)
    unweighted = {
        method: (100 * value, 100 * sum(f1[method].values()) / len(f1[method])) for method, value in macro.items()
    }
    printed = {
        "RA": (65.9, 21.0),
        "DDPM": (71.4, 18.4),
        "SI-VAE": (61.2, 17.6),
        "DAE": (56.7, 17.8),
        "VAE": (53.3, 15.7),
        "LTM": (50.8, 15.6),
        "MAE": (48.6, 16.8),
    }
    assert unweighted == {method: pytest.approx(pair, abs=0.05) for method, pair in printed.items()}


@pytest.mark.parametrize(
    ("method", "of", "found"),
    [("RA", "bone anomaly", 118), ("RA", "fracture", 6639), ("RA", "periosteal", 1229), ("DAE", "metal", 402)],
)
def test_recalls_of_table_2_are_counts(method, of, found):
    (one,) = (n for n in published("ra2024 2") if (n.method, n.of, n.measure) == (method, of, "recall"))
    assert round(found / one.n[0], 4) == pytest.approx(one.value, abs=1.01e-4)
    assert round(one.value * one.n[0]) == found


def test_fracture_is_79_percent_of_table_2():
    n = {number.of: number.n[0] for number in published("ra2024 2") if number.of != TOTAL}
    assert n["fracture"] / sum(n.values()) == pytest.approx(0.79, abs=0.005)


def test_false_positive_rates_of_table_3_are_multiples_of_one_healthy_image():
    rates = [n for n in published("ra2024 3") if n.measure.startswith("fpr_at_tpr")]
    assert len(rates) == 8 * 2 * 2
    for one in rates:
        healthy = one.n[1]
        assert abs(round(one.value * healthy) / healthy - one.value) < 1e-4, one


@pytest.mark.parametrize(("of", "prevalence"), [("pneumonia", 0.855), ("COVID-19", 0.6585)])
def test_prevalences_of_table_3(of, prevalence):
    for number in published("ra2024 3"):
        if number.of == of:
            assert number.n[0] / sum(number.n) == pytest.approx(prevalence, abs=5e-4)


def test_f1_of_a_single_finding_lies_on_the_lattice():
    f1 = {method: values["absent septum"] for method, values in by_method("ra2024 1", "f1").items()}
    assert f1["RA"] == pytest.approx(2 / 13, abs=5e-5)
    assert f1["MKD"] == pytest.approx(2 / 4, abs=5e-5)
    lattice = [0.0] + [2 / (2 + k) for k in range(100)]
    off = {method for method, value in f1.items() if min(abs(value - point) for point in lattice) > 5e-5}
    assert off == {"DDPM"}, "its 5.82 is of no such form"


def test_findings_of_classes_that_are_not_printed_are_what_is_left():
    detected = by_method("ra2024 1", "n_detected")
    left = {method: values.pop(TOTAL) - sum(values.values()) for method, values in detected.items()}
    assert left == {"RA": 50, "LTM": 41, "DDPM": 39, "VAE": 36, "SI-VAE": 36, "MAE": 35, "DAE": 26, "MKD": 22}


def test_ra_has_a_mean_f1_of_32_9_on_findings_that_are_not_printed():
    ours = [n for n in published("ra2024 1") if (n.method, n.measure) == ("RA", "f1")]
    (total,) = (n for n in ours if n.of == TOTAL)
    printed = [n for n in ours if n.of != TOTAL]
    count = total.n[0] - sum(n.n[0] for n in printed)
    assert count == 60
    rest = total.value * total.n[0] - sum(n.value * n.n[0] for n in printed)
    rounding = 0.005 * (171 + 111) / 60  # of the printed shares
    assert 100 * rest / count == pytest.approx(32.9, abs=0.05 + rounding)


@pytest.mark.parametrize(
    ("table", "method", "of", "measure", "low", "high"),
    [
        ("1", "RA", "total", "n_detected", 0.767, 0.879),
        ("1", "LTM", "total", "n_detected", 0.581, 0.722),
        ("1", "RA", "edema", "n_detected", 0.437, 0.837),
        ("1", "RA", "resection", "n_detected", 0.722, 1.0),
        ("1", "RA", "absent septum", "n_detected", 0.207, 1.0),
        ("1", "DAE", "absent septum", "n_detected", 0.0, 0.793),
        ("2", "RA", "foreign body", "recall", 0.301, 0.954),
        ("2", "RA", "pronator", "recall", 0.208, 0.939),
        ("2", "RA", "soft tissue", "recall", 0.222, 0.427),
        ("3", "RA", "pneumonia", "auroc", 0.8464 - 0.0102, 0.8464 + 0.0102),
        ("3", "DAE", "COVID-19", "auroc", 0.789 - 0.014, 0.789 + 0.014),
    ],
)
def test_intervals_follow_from_the_printed_counts(table, method, of, measure, low, high):
    (one,) = (n for n in published(f"ra2024 {table}") if (n.method, n.of, n.measure) == (method, of, measure))
    assert one.ci95 == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(
    ("of", "area", "half"),
    [("RSNA", 73, 2.2), ("VinDr-CXR", 73, 2.2), ("Brain Tumor", 75, 2.7), ("BraTS2021", 82.6, 1.5)],
)
def test_half_widths_of_cai_et_al_follow_from_the_counts(of, area, half):  # protocols.md, A12
    areas = [n for n in published("cai2024 1") if (n.of, n.measure) == (of, "auroc")]
    assert len(areas) == 8
    low, high = replace(areas[0], value=area / 100).ci95
    assert round(50 * (high - low), 1) == half
    assert all(one.ci95[0] < one.value < one.ci95[1] for one in areas)


@pytest.mark.parametrize("table", ["cai2024 1", "cai2024 2"])
def test_counts_of_cai_et_al_are_those_that_the_reader_checks(table):
    for number in published(table):
        data, _ = COLUMNS[f"{table} {number.of}"]
        _, normal, abnormal = COUNTS[data.removeprefix("medianomaly/").lower()]
        assert number.n == (abnormal, normal)


def test_only_shares_of_findings_and_aurocs_have_an_interval():
    for table in ("ra2024 1", "ra2024 2", "ra2024 3", "cai2024 1", "cai2024 2"):
        for number in published(table):
            assert (number.ci95 is not None) == (number.measure in ("n_detected", "recall", "auroc")), number


def test_values_stay_as_printed_with_the_star_and_what_it_says():
    numbers = published("ra2024 3")
    starred = {(n.method, n.measure): (n.printed, n.value) for n in numbers if n.note}
    assert starred == {("DAE", "ssim"): ("96.3*", 0.963), ("DAE", "lpips"): ("1.2*", 0.012)}
    assert {n.printed for n in numbers if (n.method, n.measure) == ("DAE", "auroc")} == {"82.6", "78.9"}


def test_the_page_shows_printed_digits_and_a_footnote_to_the_star(tmp_path):
    suite = Suite(datasets={"heads": Data()}, methods={}, published=("ra2024 2", "ra2024 3", "cai2024 1"))
    summary = summarised(suite, "papers", [], {})
    read = Page(write_suite_report(tmp_path / "report.html", summary, {"heads": Gallery()}).read_text())
    assert read.wrong == read.open == []
    assert "DAE 96.3* 1.2* 82.6 81.5–83.7 95.81" in read.words
    assert read.words.count(f"* DAE: {STAR['ra2024']}.") == 1
    assert " 7.4 28.94 " in read.words, "and neither 7.40 ..."
    assert " 100 " in read.words, "... nor 100.00"
    assert "BraTS2021 n 1948/828" in read.words


def test_the_best_latent_size_differs_between_data_sets():
    auroc = by_method("cai2024 1", "auroc")
    best = {data: max(auroc, key=lambda method: auroc[method][data]) for data in auroc["AE, d = 1"]}
    assert best == {
        "RSNA": "AE, d = 4",
        "VinDr-CXR": "AE, d = 4",
        "Brain Tumor": "AE, d = 32",
        "BraTS2021": "AE, d = 16",
    }


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="ra2024 4"):
        published("ra2024 4")
