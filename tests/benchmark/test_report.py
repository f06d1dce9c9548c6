import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from salus.benchmark import evaluate
from salus.benchmark.floors import unbeaten
from salus.benchmark.report import cell, coded, number, percent
from salus.io.results import read_result
from tests.benchmark.conftest import PIXEL_THRESHOLD

VOID = {"meta", "img", "br", "link", "input", "hr", "source"}
DATA_URI = re.compile(r"data:[\w/+]+;base64,[\w+/=]+")


class Page(HTMLParser):
    """Checks that tags balance, and gathers what a test asks for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.wrong, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.attributes.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def text(evaluated):
    return (evaluated[1] / "report.html").read_text()


@pytest.fixture
def page(text):
    return Page(text)


def test_every_tag_is_closed_in_order(page):
    assert page.wrong == []
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_anywhere(text, page):
    assert "http" not in DATA_URI.sub("", text)
    for tag, attributes in page.attributes:
        assert tag not in ("script", "link", "iframe")
        for key in ("src", "srcset", "href"):
            assert attributes.get(key, "#").startswith(("data:", "#"))
    for uri in DATA_URI.findall(text):
        if uri.startswith("data:image/svg"):
            drawing = base64.b64decode(uri.split(",")[1]).decode()
            assert "<image" not in drawing or 'href="data:' in drawing
            assert 'href="http' not in drawing


def test_no_folder_of_this_machine_is_named(evaluated, text):
    study, out = evaluated
    assert str(study.data) not in text
    assert str(out) not in text
    assert "bad.png is empty" in text  # the left-out training image, its folder gone


def test_all_sections_are_there_and_linked(page):
    ids = {attributes.get("id") for _, attributes in page.attributes}
    links = {attributes["href"][1:] for tag, attributes in page.attributes if tag == "a"}
    expected = {"scores", "numbers", "findings", "protocols", "restoration", "cases", "settings", "problems"}
    expected |= {"definitions"}
    assert expected == links
    assert expected | {"found", "missed", "alarms"} <= ids


def test_the_first_sentence_tells_the_result(page):
    lead = "Of 5 healthy test cases 1 (20 %) was flagged at the 5 % threshold; of 4 abnormal 2 (50 %)."
    assert lead in page.words
    assert "For research use only" in page.words
    assert "AUROC 0.700" in page.words


def test_every_picture_has_words(page):
    pictures = [attributes for tag, attributes in page.attributes if tag == "img"]
    assert len(pictures) > 20
    assert all(len(picture["alt"]) > 10 for picture in pictures)


def test_method_and_floors_share_the_table(evaluated, page):
    metrics = json.loads((evaluated[1] / "metrics.json").read_text())
    for name in ("hand + made", "mean intensity", "PCA residual"):
        assert name in page.words
    assert cell(metrics["overall"]["pixel_ap"]) in page.words


def test_the_published_protocol_stands_beside_its_sound_reading_with_its_trap(evaluated, page):
    protocols = json.loads((evaluated[1] / "metrics.json").read_text())["protocols"]
    shown = page.words[page.words.index("Published protocols") : page.words.index("Restoration of healthy")]
    for which in ("published", "sound"):
        assert cell(protocols["ra2024"][which]["micro"]["f1"]) in shown
    assert "maps with small values get a better F1" in shown
    assert cell(protocols["sound"]["mass_ratio"]) in shown
    curve = [cell(entry) for entry in protocols["sound"]["hit_rate_curve"].values()]
    assert all(value in shown for value in [*curve, cell(protocols["sound"]["hit_rate_area"])])
    assert "Healthy pixels flagged 0.5 % 1 % 2 % 5 % 10 % Area" in shown
    assert "Macro average each class counts the same" in shown


def test_the_settings_tell_the_precision_of_screening(page):
    assert "precision bf16" in page.words


def test_the_small_print_tells_whose_interval_it_is(page):
    assert "draws of patients (Wilson where a share is 0 or 1)" in page.words


def test_a_phone_gets_a_score_plot_of_its_own_width(page):
    narrow = next(attributes for tag, attributes in page.attributes if tag == "source")
    wide = next(attributes for tag, attributes in page.attributes if tag == "img")
    widths = [
        float(re.search(r'width="([\d.]+)pt"', base64.b64decode(uri.split(",")[1]).decode()).group(1))
        for uri in (narrow["srcset"], wide["src"])
    ]
    assert widths[0] < 300 < 600 < widths[1]


def test_worst_misses_are_cases_that_were_not_flagged(text):
    missed = text[text.index('id="missed"') : text.index('id="alarms"')]
    assert "test/hole/00" in missed
    assert "test/hole/03" not in missed


def test_the_file_stays_small(evaluated):
    assert (evaluated[1] / "report.html").stat().st_size < 2_000_000


def test_a_report_without_masks_or_pictures_is_whole_too(study, tmp_path, few):
    made = study(masks=False)
    for name in ("overlay.png", "map.tif", "restored.tif"):
        for file in made.results.rglob(name):
            file.unlink()
    for file in made.results.rglob("result.json"):
        written = json.loads(file.read_text())
        file.write_text(json.dumps({**written, "files": {}}))
        assert read_result(file.parent) is not None
    page = Page(evaluate(made.results, made.data, tmp_path / "out").read_text())
    assert page.wrong == page.open == []
    assert "The results hold no restored images." in page.words
    assert "Pixel AP" not in page.words.split("Definitions")[0]


def test_a_report_in_which_nothing_could_be_judged_is_whole_too(study, tmp_path, few):
    made = study()
    for name in made.maps:
        shutil.rmtree(made.results / name)
        made.cannot_judge(name, "too <dark> & small")
    page = Page(evaluate(made.results, made.data, tmp_path / "out").read_text())
    assert page.wrong == page.open == []
    assert "None of the test cases could be judged" in page.words
    assert "too <dark> & small" in page.words


def test_healthy_cases_alone_make_a_report(study, tmp_path, few):
    made = study()
    for folder in (made.data / "test/hole", made.data / "ground_truth", made.results / "test/hole"):
        shutil.rmtree(folder)
    page = Page(evaluate(made.results, made.data, tmp_path / "out").read_text())
    assert page.wrong == page.open == []
    assert "Of 5 healthy test cases 1 (20 %) was flagged" in page.words
    assert "there is no curve" in page.words


def test_what_a_terminal_puts_between_backticks_is_code_on_a_page(study, tmp_path, few):
    made = study()
    made.run(calibration={"scores": [0.1, 0.2, 0.45], "false_alarms": 0.05, "pixel_threshold": PIXEL_THRESHOLD})
    made.cannot_judge("test/good/00", "run `salus calibrate` with <more>")
    text = evaluate(made.results, made.data, tmp_path / "out").read_text()
    assert text.count("<code>salus calibrate</code>") == 3, "in two notes and in a reason"
    assert "with &lt;more&gt;" in text
    assert "`" not in Page(text).words
    assert coded("a lone ` stays") == "a lone ` stays"


def test_numbers_keep_digits_that_mean_something():
    assert (number(0.12345), percent(0.067), percent(0.614)) == ("0.123", "6.7\xa0%", "61\xa0%")
    assert (cell(None), cell({"value": 0.0042}), cell({"value": 0.5})) == ("–", "0.0042", "0.500")


def with_aurocs(method, **floors):
    """As much of metrics.json as tells whether a floor is beaten."""
    measures = {name: {"auroc": value and {"value": value}} for name, value in {"method": method, **floors}.items()}
    there = {name.replace("_", "-"): {"overall": measures[name]} for name in floors}
    return {"overall": measures["method"], "floors": {**there, "pca-same-map": None}}


def test_a_floor_that_is_not_beaten_is_named_beside_the_headline():
    said = "The floor PCA residual has AUROC 0.700: this method does not beat it."
    assert unbeaten(with_aurocs(0.65, mean_intensity=0.5, pca=0.7)) == said
    assert unbeaten(with_aurocs(0.7, mean_intensity=0.5, pca=0.7)) == said
    assert unbeaten(with_aurocs(0.71, mean_intensity=0.5, pca=0.7)) == ""
    assert unbeaten(with_aurocs(None, mean_intensity=0.5, pca=0.7)) == ""  # one class
    assert unbeaten(with_aurocs(0.6, mean_intensity=None)) == ""
    assert unbeaten({"overall": None, "floors": None}) == ""
