import nibabel
import numpy as np
import pytest

from salus.core import Image
from salus.core.errors import ConfigError, LayoutError
from salus.planning import Fingerprint, finest, plan, proposed, read_plan
from salus.preprocess import Preparation
from tests.conftest import discs
from tests.datasets.layouts import png
from tests.dicom import radiograph, saved

RNG = np.random.default_rng(0)


def values(found: Fingerprint) -> dict:
    return {key: value for key, (value, _) in proposed(found).items()}


def test_8_bit_pictures_keep_their_grey_values(tmp_path):
    for index, picture in enumerate(discs(6)):
        png(tmp_path / f"d/{index}.png", picture[0])
    assert values(plan(tmp_path / "d", tmp_path / "p.yaml"))["intensity"] == "depth"
    assert read_plan(tmp_path / "p.yaml") == {"prepare.intensity": "depth", "prepare.border": "keep"}


def test_a_collimated_radiograph_loses_its_border_and_a_head_does_not(tmp_path):
    for index in range(6):
        bone = RNG.integers(100, 1000, (24, 20)).astype(np.uint16)
        saved(tmp_path / f"x/{index}.dcm", radiograph(np.pad(bone, 3), BitsStored=10, HighBit=9, PatientID=str(index)))
        head = np.pad(np.maximum(0, 900 - 80 * np.hypot(*np.mgrid[-12:12, -12:12])), 4).astype(np.uint16)
        png(tmp_path / f"h/{index}.png", head / 900, bits=16)
    collimated = values(plan(tmp_path / "x", tmp_path / "x.yaml"))
    assert collimated == {"intensity": "percentile", "lower": 0.0, "upper": 98.0, "border": "crop"}
    assert values(plan(tmp_path / "h", tmp_path / "h.yaml"))["border"] == "keep"


def test_skull_stripped_volumes_are_scaled_by_what_is_left_in_their_finest_plane(tmp_path):
    (tmp_path / "v").mkdir()
    for index in range(4):
        brain = np.pad(RNG.uniform(100, 900, (12, 6, 14)), 6).astype(np.float32)
        nibabel.Nifti1Image(brain, np.diag([1.0, 5.0, 1.0, 1.0])).to_filename(tmp_path / f"v/{index}.nii.gz")
    found = plan(tmp_path / "v", tmp_path / "p.yaml")
    assert values(found) == {
        "intensity": "percentile", "lower": 0.5, "upper": 99.5, "foreground": True, "border": "keep",
        "plane": "coronal", "slices": "mid",
    }  # fmt: skip
    text = (tmp_path / "p.yaml").read_text()
    assert "4 of 4 healthy images" in text
    assert "a background that was cut away" in text
    Preparation(**{key.removeprefix("prepare."): value for key, value in read_plan(tmp_path / "p.yaml").items()})


@pytest.mark.parametrize(("spacing", "plane"), [((1, 1, 5), "axial"), ((1, 5, 1), "coronal"), ((5, 1, 1), "sagittal")])
def test_the_finest_plane_by_hand(spacing, plane):
    volume = Image(array=np.zeros((4, 5, 6), np.float32), affine=np.diag([*map(float, spacing), 1.0]), unit="mm")
    assert finest(volume) == plane
    assert finest(Image(array=np.zeros((4, 5), np.float32))) == "axial"


def test_nearly_isotropic_heads_are_seen_from_below_and_floating_point_pictures_are_no_radiographs():
    ixi = Image(array=np.zeros((4, 5, 6), np.float32), affine=np.diag([1.2, 0.94, 0.94, 1.0]), unit="mm")
    assert finest(ixi) == "axial"
    common = {
        "images": 4,
        "healthy": 4,
        "modalities": {},
        "volumes": 0,
        "slices": 1,
        "smallest": (9, 9),
        "largest": (9, 9),
    }
    seen = {"spacing": (1.0, 1.0, 1.0), "plane": "axial", "empty": 0.1, "border": 0.0, "spread": 2.0}
    assert values(Fingerprint(**common, **seen, units={"px": 4}, depths={0: 4}))["upper"] == 99.5  # fastMRI
    assert values(Fingerprint(**common, **seen, units={"px": 4}, depths={16: 4}))["upper"] == 98.0


def test_a_plan_is_what_training_uses_and_set_wins(tmp_path, salus):
    for index, picture in enumerate(discs(12)):
        png(tmp_path / f"d/{index}.png", picture[0])
    code, out, _ = salus("plan", "--data", tmp_path / "d", "--out", tmp_path / "p.yaml")
    assert code == 0
    assert "intensity: depth" in out
    (tmp_path / "p.yaml").write_text(
        "prepare: {intensity: percentile, upper: 98.0, border: crop}\nrecipe: {batch: 4}\n"
    )
    how = ("--preset", "tiny", "--epochs", 1, "--plan", tmp_path / "p.yaml", "--set", "prepare.upper=97")
    assert salus("train", "ae", "--data", tmp_path / "d", "--out", tmp_path / "m", *how)[0] == 0
    from salus.model import Model

    model = Model.load(tmp_path / "m")
    assert (model.preparation.upper, model.preparation.border, model.preparation.intensity) == (
        97,
        "crop",
        "percentile",
    )
    assert model.card["plan"]["recipe"]["batch"] == 4


def test_an_edited_plan_is_not_overwritten(tmp_path):
    (tmp_path / "p.yaml").write_text("prepare: {}\n")
    with pytest.raises(ConfigError, match="may have been edited"):
        plan(tmp_path, tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prepare: [", "cannot be read as YAML"),
        ("just words", "is no plan: it has groups"),
        ("prepare: 3", "is no plan: it has groups"),
        ("prepair: {upper: 98}", "no group 'prepair'. Did you mean 'prepare'"),
        ("prepare: {uper: 98}", r"no setting 'prepare.uper'. Did you mean 'upper'"),
        ("prepare: !!python/object:os.system {}", "cannot be read as YAML"),
    ],
)
def test_what_is_no_plan_is_told_with_file_and_place(tmp_path, content, message):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_plan(tmp_path / "p.yaml")


def test_nothing_to_look_at(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.png").write_text("no picture")
    with pytest.raises(LayoutError, match=r"no healthy image can be read: .*a\.png"):
        plan(tmp_path / "d", tmp_path / "p.yaml")
    assert not (tmp_path / "p.yaml").exists()
