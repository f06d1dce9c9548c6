"""NIfTI volumes from training to screening: oblique, anisotropic, compressed or not; a map comes home to its scan."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from salus.core import Verdict
from salus.io.results import read_results
from tests.conftest import discs

DEPTH = 5
ILL = 1  # the slice with a hole


def oblique(turn: float) -> np.ndarray:
    """Voxels of 2 x 2 x 6 mm, turned about two axes, off the origin."""
    c, s = np.cos(turn), np.sin(turn)
    about_z, about_x = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([2.0, 2.0, 6.0])
    affine[:3, 3] = -30, 12, 5
    return affine


def scan(path: Path, seed: int, *, hole: bool = False) -> Path:
    """Discs as slices, one of them holed."""
    slices = discs(DEPTH, seed=seed)[:, 0]
    if hole:
        slices[ILL] = discs(DEPTH, hole=True, seed=seed)[ILL, 0]
    volume = 1000 * np.moveaxis(slices, 0, -1)
    nib.save(nib.Nifti1Image(volume.astype(np.float32), oblique(0.02 * (seed % 9))), path)
    return path


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    for seed in range(220):
        scan(folder / f"{seed}.nii", seed)
    return folder


@pytest.mark.parametrize("slices", ["all", "mid"])
def test_a_volume_s_map_comes_home_to_its_grid(slices, salus, healthy, tmp_path):
    code, *_ = salus(
        "train", "ae", "--data", healthy, "--out", tmp_path / "m", "--preset", "tiny", "--epochs", 12,
        "--set", "prepare.plane=axial", "--set", f"prepare.slices={slices}",
    )  # fmt: skip
    assert code == 0
    new = tmp_path / "new"
    new.mkdir()
    files = [scan(new / "packed.nii.gz", 900, hole=True), scan(new / "bare.nii", 904, hole=True)]
    code, *_ = salus("screen", new, "--model", tmp_path / "m", "--out", tmp_path / "r")
    assert code == 0
    results = {result.case_id: (folder, result) for folder, result in read_results(tmp_path / "r")}
    for file in files:
        folder, result = results[file.name.partition(".")[0]]
        source = nib.load(file)
        for role in ("map", "restored"):
            made = nib.load(folder / result.files[role])
            assert made.shape == source.shape
            np.testing.assert_allclose(made.affine, source.affine, atol=1e-5)
        seen = np.asarray(nib.load(folder / "map.nii.gz").dataobj)
        judged = np.flatnonzero(seen.any(axis=(0, 1)))
        assert (result.slices, len(result.slice_scores)) == (DEPTH, DEPTH if slices == "all" else 1)
        assert judged.tolist() == ([*range(DEPTH)] if slices == "all" else [DEPTH // 2])
        if slices == "all":
            assert np.argmax(result.slice_scores) == ILL
            assert result.score == max(result.slice_scores)
            assert result.verdict == Verdict.ABNORMAL
            assert seen[..., ILL].max() == seen.max()
