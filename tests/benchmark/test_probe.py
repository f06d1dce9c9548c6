"""Painted lesions are what they are said to be, and a probe counts what a model makes of them."""

import csv
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn

from salus.benchmark.probe import CONTRASTS, described, measured, outcomes, prepared, smallest, table, told, unseen
from salus.benchmark.probe_report import blind, sentences
from salus.core import Label, Split
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.detectors import Detection
from salus.metrics import wilson
from salus.model import Calibration, Model
from salus.preprocess import Preparation
from salus.preprocess.lesions import PLACES, area, depth, draw, foreground, has_room, intensity_range, places
from tests.conftest import discs

SIZES = (2.0, 3.0, 4.0, 6.0, 8.0)  # at 32 pixels a side
DISC = discs(1)[0, 0]
INSIDE = foreground(DISC)


def lesions(seed: int = 0):
    return draw(INSIDE, np.random.default_rng(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_a_lesion_has_the_stated_area_inside_the_foreground_at_every_place(size, seed):
    for lesion in lesions(seed):
        mask = lesion.mask(size)
        assert mask.sum() == area(size)
        assert not (mask & ~INSIDE).any()
        assert lesion.coverage(size).sum() == pytest.approx(np.pi * size**2 / 4, rel=0.1, abs=3)


def test_areas_are_those_of_discs():
    assert [area(size) for size in (2, 4, 8)] == [3, 13, 50]


def test_what_is_painted_is_the_stated_contrast_on_the_lesion_and_nothing_elsewhere():
    grey = np.full((32, 32), 0.5, dtype=np.float32)
    for contrast in (-0.2, 0.3):
        for lesion in lesions():
            added = lesion.painted(grey, 6.0, contrast) - grey
            assert added.flat[np.argmax(np.abs(added))] == pytest.approx(contrast, abs=1e-6)
            assert np.abs(added[lesion.mask(6.0)]).min() >= abs(contrast) / 2
            assert not added[~INSIDE].any()


def test_lesions_are_the_same_at_every_contrast_and_smaller_ones_lie_in_larger_ones():
    grey = np.full((32, 32), 0.5, dtype=np.float32)
    for lesion in lesions():
        faint, strong = (lesion.painted(grey, 4.0, added) - grey for added in (0.1, -0.4))
        assert np.allclose(strong, -4 * faint, atol=1e-6)
        for small, large in pairwise(SIZES):
            assert not (lesion.mask(small) & ~lesion.mask(large)).any()
            assert (lesion.coverage(small) <= lesion.coverage(large)).all()


def test_outlines_are_no_discs_and_differ():
    rows, columns = np.mgrid[:64, :64]
    a, b = (draw(np.ones((64, 64), dtype=bool), np.random.default_rng(seed))[0] for seed in (0, 1))
    for lesion in (a, b):
        y, x = np.unravel_index(lesion.distance.argmin(), lesion.distance.shape)
        disc = np.hypot(rows - y, columns - x) <= 8
        assert (lesion.mask(16) & ~disc).sum() > 0.03 * area(16)
    assert not np.array_equal(np.sort(a.distance, axis=None), np.sort(b.distance, axis=None))


def test_the_body_is_foreground_with_its_dark_parts_and_without_specks():
    picture = np.zeros((32, 32), dtype=np.float32)
    picture[6:26, 6:26] = 0.5
    picture[12:18, 12:18] = 0.01  # a ventricle
    picture[2, 2] = 1.0
    expected = np.zeros((32, 32), dtype=bool)
    expected[6:26, 6:26] = True
    assert np.array_equal(foreground(picture), expected)
    assert intensity_range(picture, expected) == pytest.approx(0.5)


def test_places_divide_the_foreground_by_depth_and_the_edge_of_the_image_is_a_border():
    whole = np.ones((30, 30), dtype=bool)
    parts = places(whole)
    assert tuple(parts) == PLACES
    assert (sum(part.astype(int) for part in parts.values()) == 1).all()
    assert parts["centre"][15, 15]
    assert parts["middle"][7, 15]
    assert parts["edge"][0, 15]
    assert depth(whole).max() == 1


def test_there_is_room_only_where_the_largest_lesion_is_half_of_the_foreground_at_most():
    assert has_room(INSIDE, 8.0)
    assert not has_room(INSIDE, 17.0)
    assert not has_room(np.zeros((32, 32), dtype=bool), 2.0)


class Knowing(nn.Module):
    """Knows every healthy image: restores the nearest (perfect) or the input as it is (blind)."""

    judged_by = ""

    def __init__(self, known: np.ndarray, *, blind: bool) -> None:
        super().__init__()
        self.register_buffer("known", torch.from_numpy(known))
        self.blind = blind

    def at_once(self, device: str) -> int:
        return 32

    def detect(self, x: torch.Tensor) -> Detection:
        nearest = torch.cdist(x.flatten(1), self.known.flatten(1)).argmin(dim=1)
        restored = x if self.blind else self.known[nearest]
        found = (x - restored).abs()
        return Detection(map=found, score=found.flatten(1).amax(dim=1), restored=restored)


def written(pictures: np.ndarray, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        Picture.fromarray(np.round(picture[0] * 255).astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return written(discs(5, seed=3), tmp_path_factory.mktemp("healthy") / "pictures")


@pytest.fixture
def knowing(healthy):
    """A model that knows the images in `healthy`, and the surface of what it sees."""
    dataset = open_dataset("folder", healthy)
    known = np.stack([np.asarray(Picture.open(case.images[0].path))[None] / np.float32(255) for case in dataset])

    def made(*, blind: bool, threshold: float = 0.01, calibration: bool = True):
        model = Model(
            name="knowing",
            settings={},
            score={},
            detector=Knowing(known.astype(np.float32), blind=blind),
            preparation=Preparation(size=32, intensity="depth", unit="px"),
            calibration=Calibration(scores=(threshold,) * 19, false_alarms=0.05, pixel_threshold=threshold)
            if calibration
            else None,
        )
        patients, _ = unseen(model, "folder", dataset, 0)
        return model, measured(model, patients, 0)

    return made


def test_a_perfect_model_sees_everything_and_heals_it(knowing):
    model, surface = knowing(blind=False)
    assert surface.sizes == SIZES
    shape = (5, 3, 5, len(CONTRASTS))
    for name, value in (("flagged", 1), ("hit", 1), ("auroc", 1), ("healed", 1)):
        assert surface.seen[name].shape == shape
        assert np.allclose(surface.seen[name], value, atol=0.01), name  # a soft edge reaches beyond the mask
    cells = table(surface, 0)
    assert len(cells) == 4 * 5 * len(CONTRASTS)
    assert all(row["half"] == row["most"] == 2.0 for row in smallest(cells))
    assert sentences(described(model, surface, cells), cells)[0] == (
        "At a contrast of 20 % of the image's range, lesions of no size tried are mostly missed by the map."
    )
    assert cells[0]["hit"] == {"value": 1.0, "ci95": [round(wilson(5, 5)[0], 6), 1.0], "n": 5}


def test_a_blind_model_sees_nothing_and_reproduces_it(knowing):
    model, surface = knowing(blind=True)
    for name, value in (("flagged", 0), ("hit", 0), ("auroc", 0.5), ("healed", 0)):
        assert np.allclose(surface.seen[name], value, atol=1e-6), name
    cells = table(surface, 0)
    assert all(row["half"] is row["most"] is None for row in smallest(cells))
    whatever = "Whatever their size up to 8 px, brighter and darker lesions of 50 % contrast or less are mostly"
    none = "0\N{NO-BREAK SPACE}%"
    assert sentences(described(model, surface, cells), cells) == [
        f"{whatever} missed by the map.",
        f"{whatever} not enough to get the case flagged.",
        f"Over all sizes and contrasts the map hits {none} of the lesions (centre {none}, middle {none}, edge {none}).",
        "Without any lesion it hits none of the same places.",
    ]


def test_the_smallest_size_is_told_in_pixels_and_millimetres_for_each_sign():
    rows = [(0.05, None), (0.1, None), (0.2, 6.0), (0.3, 2.0), (0.5, 2.0), (-0.05, None), (-0.1, 8.0), (-0.2, 4.0)]
    about = {
        "mm_per_pixel": {"median": 1.5},
        "sizes_px": SIZES,
        "smallest": [{"measure": "hit", "place": "anywhere", "contrast": c, "half": size} for c, size in rows],
    }
    assert blind(about, "hit", "missed") == [
        "At a contrast of 20 % of the image's range, brighter lesions below 6 px (about 9 mm) and darker lesions below "
        "4 px (about 6 mm) are mostly missed.",
        "Whatever their size up to 8 px (about 12 mm), brighter lesions of 10 % contrast or less and darker lesions of "
        "5 % contrast or less are mostly missed.",
    ]


def test_what_was_flagged_or_hit_without_the_lesion_does_not_count(knowing):
    _, surface = knowing(blind=True, threshold=-1.0)
    assert np.isnan(surface.seen["flagged"]).all()
    assert np.isnan(surface.seen["hit"]).all()
    assert table(surface, 0)[0]["hit"] is None


def test_the_painted_contrast_tells_what_clipping_took(knowing):
    _, surface = knowing(blind=True)
    painted = surface.seen["painted"]
    assert (np.abs(painted) <= np.abs(CONTRASTS) + 1e-5).all()
    assert np.allclose(painted[..., 4:7], CONTRASTS[4:7], atol=1e-3)
    assert painted[..., -1].min() < 0.35  # bright tissue has no room for half of the range


def test_a_model_without_a_threshold_has_no_flagged_cases_and_says_so(knowing):
    _, surface = knowing(blind=True, calibration=False)
    assert np.isnan(surface.seen["flagged"]).all()
    assert np.isnan(surface.seen["hit"]).all()
    assert np.isfinite(surface.seen["auroc"]).all()
    about = {"pixel_threshold": None, "no_threshold": "it is not calibrated"}
    assert sentences(about, table(surface, 0)) == ["Nothing can be called seen or missed: it is not calibrated."]


def test_shares_have_wilson_intervals_where_lesions_are_patients_and_drawn_ones_elsewhere():
    weights = np.ones((50, 4), dtype=np.int32)
    one = told(np.array([[1.0], [0.0], [np.nan], [1.0]]), weights, share=True)
    assert one == {"value": 0.666667, "ci95": [round(x, 6) for x in wilson(2, 3)], "n": 3}
    three = told(np.array([[1.0, 0.0, 1.0], [1.0, np.nan, 0.0], [1.0] * 3, [0.0] * 3]), weights, share=True)
    # Every draw is the same: as uncertain as four patients.
    assert three == {"value": 0.545455, "ci95": [round(x, 6) for x in wilson(6 / 11 * 4, 4)], "n": 11}
    sure = told(np.ones((4, 3)), weights, share=True)
    assert sure["ci95"] == [round(wilson(4, 4)[0], 6), 1.0]  # four patients, not twelve
    assert told(np.full((4, 1), np.nan), weights, share=True) is None


def test_only_patients_that_the_model_did_not_learn_from_are_painted_on(model, disc_folder, tmp_path):
    loaded = Model.load(model)
    dataset = open_dataset("folder", disc_folder)
    patients, _ = unseen(loaded, "folder", dataset, 0)
    held_out = split(dataset).only(split=(Split.VALIDATION, Split.CALIBRATION), label=Label.NORMAL)
    assert {case.case_id for cases in patients for case, _ in cases} == {case.case_id for case in held_out}

    data = written(discs(2, seed=8), tmp_path / "data")
    learned = next(case for case in split(dataset) if case.split == Split.TRAIN)
    shutil.copy(learned.images[0].path, data / "learned.png")
    rows = ["file,patient_id", "00.png,a", "01.png,b", "learned.png,a"]
    (data / "metadata.csv").write_text("\n".join(rows))
    patients, _ = unseen(loaded, "folder", open_dataset("folder", data), 0)
    assert [[case.case_id for case, _ in cases] for cases in patients] == [["01"]]


def test_a_volume_is_painted_on_in_one_slice_and_judged_by_its_worst(knowing, tmp_path):
    model, _ = knowing(blind=False)
    stack = np.moveaxis(discs(4, seed=3)[:, 0], 0, -1)
    nib.save(nib.Nifti1Image(stack, np.diag([1.5, 1.5, 4.0, 1.0])), tmp_path / "head.nii.gz")
    scans = replace(model, preparation=Preparation(size=32, intensity="minmax", unit="mm", slices="all"))
    case = open_dataset("folder", tmp_path)[0]
    subject = prepared(scans, case, np.random.default_rng(0), 8.0)
    assert subject.rows.shape == (4, 1, 32, 32)
    assert subject.spacing == pytest.approx(1.5)
    others = np.where(np.arange(4) == subject.chosen, 0, 9).astype(np.float32)
    calibration = Calibration(scores=(8.0,) * 19, false_alarms=0.05, pixel_threshold=0.0)
    found = outcomes(replace(scans, calibration=calibration), replace(subject, scores=others), SIZES)
    assert np.isnan(found["flagged"]).all()  # for its other slices
    calibration = replace(calibration, scores=(9.0,) * 19)
    found = outcomes(replace(scans, calibration=calibration), replace(subject, scores=others), SIZES)
    assert (found["flagged"] == 0).all()
    cells = table(measured(scans, [[(case, "0" * 64)]], 0), 0)
    assert cells[0]["size_mm"] == 3.0


@pytest.fixture(scope="module")
def model(disc_folder, tmp_path_factory) -> Path:
    from salus.training import train

    out = tmp_path_factory.mktemp("model") / "ae"
    train("ae", disc_folder, out, preset="tiny", epochs=2)
    return out


def test_the_command_writes_the_same_bytes_twice_and_says_what_is_missed(salus, model, healthy, tmp_path):
    for name in ("a", "b"):
        code, out, err = salus("probe", model, "--data", healthy, "--out", tmp_path / name, "--json")
        assert code == 0, err
    for name in ("probe.csv", "probe.json", "probe.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    answer = json.loads(out)
    about = json.loads((tmp_path / "a" / "probe.json").read_bytes())
    assert answer["summary"] == about["summary"]
    assert about["images"] == 5
    assert about["threshold"] is None  # six calibration patients are too few for 5 %
    assert "calibration patients" in " ".join(about["summary"])
    rows = list(csv.DictReader((tmp_path / "a" / "probe.csv").read_text().splitlines()))
    assert len(rows) == 4 * 5 * len(CONTRASTS)
    assert {row["flagged"] for row in rows} == {""}
    assert all(0 <= float(row["auroc_low"]) <= float(row["auroc"]) <= float(row["auroc_high"]) <= 1 for row in rows)
    page = (tmp_path / "a" / "probe.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert str(tmp_path) not in page
    assert set(about["definitions"]) >= {"size_px", "contrast", "place", "flagged", "hit", "auroc", "healed"}


def test_another_seed_paints_other_lesions(model, healthy):
    loaded = Model.load(model)
    patients, _ = unseen(loaded, "folder", open_dataset("folder", healthy), 0)
    one, same, other = (measured(loaded, patients[:1], seed).seen["auroc"] for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_one_image_that_cannot_be_used_is_named_and_the_others_are_probed(salus, model, healthy, tmp_path):
    data = shutil.copytree(healthy, tmp_path / "data")
    (data / "bad.png").write_text("no picture")
    small = np.zeros((32, 32), dtype=np.uint8)
    small[10:16, 10:16] = 200
    Picture.fromarray(small).save(data / "small.png")
    code, out, _ = salus("probe", model, "--data", data, "--out", tmp_path / "out")
    assert code == 3
    assert "bad.png was left out" in out
    assert "small.png was left out: small.png: its foreground is too small for lesions of 8 pixels" in out
    assert json.loads((tmp_path / "out" / "probe.json").read_bytes())["images"] == 5


def of_learned(tmp_path, disc_folder):
    data = tmp_path / "data"
    known = [case.images[0].path for case in split(open_dataset("folder", disc_folder)) if case.split == Split.TRAIN]
    data.mkdir()
    shutil.copy(known[0], data)
    return data, "none outside a test of patients it did not learn from"


def of_tested(tmp_path, disc_folder):
    shutil.copytree(disc_folder / "test", tmp_path / "data" / "test")
    return tmp_path / "data", "none outside a test"


def of_volumes(tmp_path, disc_folder):
    (tmp_path / "data").mkdir()
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 16)), np.eye(4)), tmp_path / "data" / "v.nii.gz")
    return tmp_path / "data", "none of 1 healthy patients can be used. v.nii.gz: a scan with a place"


def of_nothing(tmp_path, disc_folder):
    (tmp_path / "data").mkdir()
    return tmp_path / "data", "holds no image"


@pytest.mark.parametrize("bad", [of_learned, of_tested, of_volumes, of_nothing])
def test_bad_data_is_one_clear_message_and_an_earlier_probe_stays(bad, salus, model, disc_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "probe.csv").write_text("earlier")
    data, said = bad(tmp_path, disc_folder)
    code, out, err = salus("probe", model, "--data", data, "--out", tmp_path / "out")
    assert code == 2, out
    assert said in err
    assert "Traceback" not in err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["earlier"]


def test_a_folder_that_is_no_model_is_explained(salus, healthy, tmp_path):
    code, _, err = salus("probe", tmp_path, "--data", healthy, "--out", tmp_path / "out")
    assert code == 2
    assert "model.json is missing" in err
    assert not (tmp_path / "out").exists()
