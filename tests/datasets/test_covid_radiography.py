import shutil
from collections import Counter

import pytest

from salus.core import Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.covid_radiography import CHILDRENS_NUMBERS
from tests.datasets.layouts import ABNORMAL, HEALTHY, LAYOUTS
from tests.datasets.layouts.covid_radiography import BIMCV, FOLDER, KERMANY, RSNA, sheet

NAME = "covid-radiography"


@pytest.fixture
def root(tmp_path):
    LAYOUTS[NAME](tmp_path)
    return tmp_path


def test_labels_sources_and_what_is_left_out(root):
    dataset = open_dataset(NAME, root)
    assert Counter(c.label for c in dataset) == {Label.NORMAL: HEALTHY, Label.ABNORMAL: ABNORMAL}
    sick = dataset.only(label=Label.ABNORMAL)
    assert {c.split for c in sick} == {Split.TEST}
    assert [(c.case_id, c.findings[0].name, c.groups["source"]) for c in sick[::2]] == [
        ("COVID-1", "COVID", "bimcv.cipf.es/bimcv-projects/bimcv-covid19"),
        ("Lung_Opacity-1", "Lung_Opacity", "www.kaggle.com/c/rsna-pneumonia-detection-challenge/data"),
    ]
    assert len(dataset.only(split=Split.TEST, label=Label.NORMAL)) == round(0.1 * HEALTHY)
    assert not any("masks" in c.images[0].path.parts for c in dataset)


def test_no_child_is_left_whichever_way_it_is_told(root):
    left_out = dict(open_dataset(NAME, root).left_out)
    assert left_out["Normal-10192"] == "a child by its address"
    assert left_out["Normal-63"] == "a child by its pixels, as others report"
    assert left_out["Viral Pneumonia-1"] == "a child, as all of Viral Pneumonia"
    assert len(CHILDRENS_NUMBERS) == 1_341


def test_an_early_version_has_no_folder_called_images(root):
    expected = [c.case_id for c in open_dataset(NAME, root)]
    for name in ("Normal", "COVID", "Lung_Opacity", "Viral Pneumonia"):
        shutil.rmtree(root / FOLDER / name / "masks")
        for image in (root / FOLDER / name / "images").iterdir():
            image.rename(root / FOLDER / name / image.name)
        (root / FOLDER / name / "images").rmdir()
    assert [c.case_id for c in open_dataset(NAME, root)] == expected
    assert [c.case_id for c in open_dataset(NAME, root / FOLDER)] == expected  # or the folder itself


def test_half_a_download_is_told(root):
    (root / FOLDER / "Normal/images/Normal-2001.png").unlink()
    dataset = open_dataset(NAME, root)
    assert dict(dataset.left_out)["normal-2001"] == "no image"
    assert "13 images of Normal, published: 10,192" in dataset.notes


def test_an_image_without_an_address_may_be_a_child(root):
    sheet(root / FOLDER / "Normal.metadata.xlsx", [("NORMAL-2001", "PNG", "256*256", RSNA), ("Normal-2002.png",)])
    dataset = open_dataset(NAME, root)
    assert [c.case_id for c in dataset.only(label=Label.NORMAL)] == ["Normal-2001"]
    assert dict(dataset.left_out)["Normal-2002"] == "no address in Normal.metadata.xlsx, so it may be a child"


def test_the_first_of_two_rows_counts(root):
    sheet(root / FOLDER / "COVID.metadata.xlsx", [("COVID-1", "", "", BIMCV), ("COVID-2", "", "", RSNA), ("COVID-1",)])
    assert open_dataset(NAME, root)[0].groups["source"].startswith("bimcv.cipf.es")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda top: shutil.rmtree(top / "Normal"), f"holds no {FOLDER}/Normal or Normal. Expected {FOLDER} with"),
        (lambda top: shutil.rmtree(top / "COVID"), "holds no COVID/images or COVID"),
        (lambda top: (top / "Normal.metadata.xlsx").unlink(), "holds no Normal.metadata.xlsx"),
        (lambda top: (top / "Normal.metadata.xlsx").write_bytes(b"PK\3\4"), "cannot be read as a sheet: .*again"),
        (
            lambda top: sheet(top / "Normal.metadata.xlsx", [], ["FILE NAME", "FORMAT", "SIZE", "URLS"]),
            "Normal.metadata.xlsx has no column 'URL'. Did you mean 'URLS'",
        ),
    ],
)
def test_another_folder_is_refused(root, damage, message):
    damage(root / FOLDER)
    with pytest.raises(LayoutError, match=message):
        open_dataset(NAME, root)


@pytest.mark.slow
def test_the_real_names_are_counted_as_published(shared_data, tmp_path):
    lists = shared_data / "annotations/cxr_splits"
    names = [line for path in sorted(lists.glob("*.csv")) for line in path.read_text().split()[1:]]
    places = [name.removeprefix("./data/CXR/") for name in names]  # <Class>/images/<Class>-<n>.png
    for name in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        (tmp_path / name / "images").mkdir(parents=True)
    for place in places:
        (tmp_path / place).touch()
    numbers = range(1, 10_193)
    rows = [(f"NORMAL-{n}", "PNG", "256*256", KERMANY if n > 8_851 else RSNA) for n in numbers]
    sheet(tmp_path / "Normal.metadata.xlsx", rows)
    sheet(tmp_path / "COVID.metadata.xlsx", [(f"COVID-{n}", "PNG", "256*256", BIMCV) for n in range(1_143, 3_617)])
    sheet(tmp_path / "Lung_Opacity.metadata.xlsx", [(f"Lung_Opacity-{n}", "", "", RSNA) for n in range(1, 6_013)])
    dataset = open_dataset(NAME, tmp_path)
    assert dataset.notes == (
        "2,474 images of COVID, published: 3,616",
        "0 images of Viral Pneumonia, published: 1,345",
    )
    assert Counter(reason for _, reason in dataset.left_out) == {
        "a child by its address": 1_341,
        "a child by its pixels, as others report": 1_341,
    }
    assert Counter(c.label for c in dataset) == {Label.NORMAL: 7_510, Label.ABNORMAL: 6_012 + 2_474}
    parts = [(lists / f"cxr_normal_{part}.csv").read_text().split()[1:] for part in ("train", "val", "test")]
    above = [sum(int(name.rpartition("-")[2][:-4]) > 8_851 for name in part) for part in parts]
    assert above == [1_072, 133, 136]
