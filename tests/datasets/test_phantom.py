"""The generated heads: what is healthy stays the same, what is a finding is where its mask says."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, binary_fill_holes, gaussian_filter

from salus.core.errors import ConfigError, LayoutError
from salus.datasets import _anatomy, phantom
from salus.datasets.phantom import FINDINGS, phantom_slice, write_phantom

SMALL = {"train": 2, "test_normal": 1, "per_finding": 1, "side": 32}


def head(image):
    """Pixels of the head: whatever is not background, holes filled."""
    return binary_dilation(binary_fill_holes(gaussian_filter(image, 0.7) > 0.12), iterations=2)


@pytest.fixture(scope="module")
def heads():
    return [_anatomy.build(seed) for seed in range(24)]


def files_under(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_seven_findings_of_the_paper_are_there():
    assert tuple(sorted(phantom.CHANGES)) == FINDINGS
    assert len(FINDINGS) == 7


@pytest.mark.parametrize("finding", ["", *FINDINGS])
def test_the_same_arguments_give_the_same_bytes(finding):
    once, again = (phantom_slice(7, side=48, finding=finding) for _ in "ab")
    assert once.image.tobytes() == again.image.tobytes()
    assert once.mask.tobytes() == again.mask.tobytes()


@pytest.mark.parametrize("side", [16, 50, 64, 300])
def test_pictures_are_in_range_at_any_side(side):
    drawn = phantom_slice(3, side=side, finding="mass")
    assert drawn.image.shape == drawn.healthy.shape == drawn.mask.shape == (side, side)
    assert drawn.image.dtype == drawn.healthy.dtype == np.float32
    assert drawn.mask.dtype == bool
    assert drawn.image.min() >= 0
    assert drawn.image.max() <= 1


def test_a_healthy_slice_is_its_own_twin():
    drawn = phantom_slice(3, side=64)
    assert np.array_equal(drawn.image, drawn.healthy)
    assert not drawn.mask.any()
    assert (drawn.finding, drawn.size, drawn.contrast) == ("", 0.0, 0.0)


@pytest.mark.parametrize("finding", FINDINGS)
def test_the_twin_is_the_head_the_seed_gives_without_a_finding(finding):
    assert np.array_equal(phantom_slice(5, side=64, finding=finding).healthy, phantom_slice(5, side=64).image)


@pytest.mark.parametrize("seed", [1, 12])
@pytest.mark.parametrize("finding", sorted(set(FINDINGS) - {"mass", "enlarged_ventricles"}))
def test_a_local_finding_leaves_the_rest_of_the_head_alone(finding, seed):
    drawn = phantom_slice(seed, finding=finding)
    near = binary_dilation(drawn.mask, iterations=9)  # soft borders and the blur of the scanner reach beyond the mask
    spill = 0.01 if finding == "edema" else 0.0  # a breath of it is in the cortex, well below the noise
    assert np.abs(drawn.image - drawn.healthy)[~near].max() <= spill


@pytest.mark.parametrize("finding", ["mass", "enlarged_ventricles"])
def test_a_finding_that_takes_room_pushes_the_brain_but_not_the_skull(finding):
    # These two move tissue well beyond their mask, so nearness to the mask cannot be asked of them.
    drawn = phantom_slice(2, finding=finding)
    skull_and_outside = gaussian_filter(drawn.healthy, 1) < 0.04
    difference = np.abs(drawn.image - drawn.healthy)
    assert difference[skull_and_outside].max() < 0.05
    assert difference[drawn.mask].mean() > 4 * difference[~drawn.mask].mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("finding", FINDINGS)
def test_the_mask_lies_in_the_head_and_the_picture_differs_there(finding, seed):
    drawn = phantom_slice(seed, side=64, finding=finding)
    assert drawn.mask.any()
    assert not (drawn.mask & ~head(drawn.healthy)).any()
    assert np.abs(drawn.image - drawn.healthy)[drawn.mask].mean() > 0.05


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_larger_finding_has_a_larger_mask(finding):
    areas = [phantom_slice(4, finding=finding, size=size).mask.sum() for size in (0.6, 1.0, 1.5)]
    assert areas[0] < areas[1] < areas[2]


@pytest.mark.parametrize("finding", FINDINGS)
def test_more_contrast_is_a_larger_difference_from_the_twin(finding):
    inside = phantom_slice(4, side=64, finding=finding).mask
    drawn = [phantom_slice(4, side=64, finding=finding, contrast=c) for c in (0.3, 0.6, 1.0)]
    faint, middle, usual = (np.abs(d.image - d.healthy)[inside].mean() for d in drawn)
    assert faint < middle < usual


def test_a_smaller_picture_is_the_same_head():
    large = phantom_slice(8, side=128).image.reshape(64, 2, 64, 2).mean((1, 3))
    assert np.corrcoef(large.ravel(), phantom_slice(8, side=64).image.ravel())[0, 1] > 0.99


def test_healthy_heads_differ_as_people_do(heads):
    ventricles = np.array([h.ventricles.sum() for h in heads])
    whole = np.array([(h.surface > 0).sum() for h in heads])
    white = np.array([h.white.sum() / (h.brain > 0).sum() for h in heads])
    assert ventricles.std() / ventricles.mean() > 0.15
    assert 0.03 < whole.std() / whole.mean() < 0.2
    assert 0.2 < white.min() < white.max() < 0.65


def test_the_more_folds_are_their_own_the_more_heads_differ():
    def spread(own_folds):
        return np.std([_anatomy.build(seed, own_folds).white for seed in range(8)], axis=0).mean()

    assert spread(0.0) < spread(_anatomy.OWN_FOLDS) < 0.95 * spread(1.0)


def test_every_head_fits_into_the_picture(heads):
    edge = np.ones((_anatomy.GRID, _anatomy.GRID), dtype=bool)
    edge[1:-1, 1:-1] = False
    assert all((h.surface[edge] < 0).all() for h in heads)


def test_an_unknown_finding_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'edema'"):
        phantom_slice(0, finding="oedema")


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0.0},
        {"contrast": -1.0},
        {"size": 9.0},
        {"side": 4},
        {"contrast": np.nan},
        {"own_folds": 1.5},
        {"own_folds": np.nan},
    ],
)
def test_a_dial_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        phantom_slice(0, finding="edema", **wrong)


def test_the_folder_is_complete_and_reads_back(tmp_path):
    root = write_phantom(tmp_path / "phantom", **SMALL, seed=3)
    with (root / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    pictures = {p for p in files_under(root) if p.endswith(".png") and not p.startswith("ground_truth")}
    assert {row["file"] for row in rows} == pictures
    assert len({row["patient_id"] for row in rows}) == len(rows) == 2 + 1 + 7
    for row in rows:
        made = phantom_slice(int(row["seed"]), side=32, finding="" if row["finding"] == "good" else row["finding"])
        picture = Image.open(root / row["file"])
        assert picture.mode == "L"
        assert np.abs(np.asarray(picture) / 255 - made.image).max() < 0.5 / 255 + 1e-6
        assert int(row["lesion_px"]) == made.mask.sum()
        if made.finding:
            mask = np.asarray(Image.open(root / f"ground_truth/{made.finding}/0000_mask.png"))
            assert np.array_equal(mask, made.mask * 255)


def test_writing_again_changes_nothing(tmp_path):
    root = write_phantom(tmp_path / "a", **SMALL)
    stamps = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    write_phantom(root, **SMALL)
    assert stamps == {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert files_under(root) == files_under(write_phantom(tmp_path / "b", **SMALL))


def test_a_folder_from_before_own_folds_was_a_dial_is_known(tmp_path):
    root = write_phantom(tmp_path / "a", **SMALL)
    about = json.loads((root / "phantom.json").read_text())
    assert about.pop("own_folds") == 0.3
    (root / "phantom.json").write_text(json.dumps(about))
    write_phantom(root, **SMALL)
    with pytest.raises(LayoutError, match="not the data set asked for"):
        write_phantom(root, **SMALL, own_folds=0.5)


def test_other_contents_are_refused_and_kept(tmp_path):
    root = write_phantom(tmp_path / "phantom", **SMALL)
    with pytest.raises(LayoutError, match="not the data set asked for"):
        write_phantom(root, **SMALL, seed=1)
    (root / "train/good/0001.png").unlink()
    with pytest.raises(LayoutError, match=r"1 of its pictures are missing, first train/good/0001.png"):
        write_phantom(root, **SMALL)
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "beach.jpg").write_text("")
    with pytest.raises(LayoutError, match=r"holds: beach.jpg"):
        write_phantom(other, **SMALL)
    assert os.listdir(other) == ["beach.jpg"]


def test_an_interrupted_run_leaves_no_folder_behind(tmp_path, monkeypatch):
    drawn = []

    def tires(seed, **settings):
        drawn.append(seed)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        assert not (tmp_path / "phantom").exists()  # nothing under this name until all is there
        return phantom_slice(seed, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(phantom, "phantom_slice", tires)
        with pytest.raises(KeyboardInterrupt):
            write_phantom(tmp_path / "phantom", **SMALL)
    assert list(tmp_path.iterdir()) == []
    assert json.loads((write_phantom(tmp_path / "phantom", **SMALL) / "phantom.json").read_text())["side"] == 32


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "phantom").mkdir()
    assert (write_phantom(tmp_path / "phantom", **SMALL) / "metadata.csv").is_file()
