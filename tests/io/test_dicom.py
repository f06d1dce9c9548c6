import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from highdicom.spatial import PixelToReferenceTransformer
from pydicom import Dataset, Sequence
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from salus.core import Source
from salus.core.errors import ImageError
from salus.io import dicom as reading
from salus.io import read_image, read_study
from salus.io.dicom import read_dicom
from salus.preprocess import resample
from tests.dicom import dicom, enhanced, program, radiograph, saved, series

RNG = np.random.default_rng(0)
TILTED = [1.0, 0.0, 0.0, 0.0, 0.9, -0.43588989]
OBLIQUE = [0.8, 0.36, 0.48, -0.6, 0.48, 0.64]


@pytest.fixture
def volume():
    return RNG.integers(0, 4000, (12, 10, 5)).astype(np.int16)


def across(orientation, mm):
    row, column = np.reshape(orientation, (2, 3))
    return (mm * np.cross(row, column)).tolist()


@pytest.mark.parametrize("orientation", [[1.0, 0, 0, 0, 1, 0], OBLIQUE, [0.0, 1, 0, 0, 0, -1], [1.0, 0, 0, 0, 0, -1]])
def test_a_series_lies_where_highdicom_says(tmp_path, volume, orientation):
    paths = series(tmp_path, volume, across(orientation, 2.5), ImageOrientationPatient=orientation)
    image = read_dicom(paths[::-1])
    for index, path in enumerate(image.origin.files):
        file = pydicom.dcmread(path)
        to_lps = PixelToReferenceTransformer(file.ImagePositionPatient, file.ImageOrientationPatient, file.PixelSpacing)
        for row, column in ((0, 0), (3, 7), (11, 9)):
            x, y, z = to_lps(np.array([[column, row]]))[0]
            np.testing.assert_allclose(image.affine @ [row, column, index, 1], [-x, -y, z, 1], atol=1e-4)
        np.testing.assert_array_equal(image.array[..., index], file.pixel_array)
    assert (image.unit, image.modality) == ("mm", "CT")
    assert np.linalg.det(image.affine[:3, :3]) != 0


def test_a_gantry_tilt_is_kept_as_shear(tmp_path, volume):
    image = read_dicom(series(tmp_path, volume, [0.0, 0.0, 3.0], ImageOrientationPatient=TILTED))
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, 3.0], atol=1e-6)
    np.testing.assert_allclose(image.affine @ [4, 0, 2, 1], [10, 20 - 4 * 0.5 * 0.9, 36 - 4 * 0.5 * 0.43588989, 1])


def test_a_slice_is_a_picture_in_its_place(tmp_path):
    pixels = RNG.integers(0, 4000, (12, 10)).astype(np.uint16)
    image = read_image(saved(tmp_path / "a.dcm", dicom(pixels, BitsStored=12, HighBit=11)))
    np.testing.assert_array_equal(image.array, pixels)
    assert (image.unit, image.depth, image.array.ndim) == ("mm", 12, 2)
    np.testing.assert_allclose(image.affine @ [2, 3, 0, 1], [10 - 3 * 0.75, 20 - 2 * 0.5, 30, 1])
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, 2])
    assert image.origin.uids == (pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID,)
    assert len(image.origin.sha256) == 64


@pytest.mark.parametrize("frames", [0, 1])
@pytest.mark.parametrize(("spacing", "found"), [(-2.5, 2.5), (float("nan"), None), (float("inf"), None)])
def test_a_slice_that_is_alone_is_as_thick_as_its_spacing_whatever_the_sign(tmp_path, frames, spacing, found):
    file = dicom(np.eye(8, dtype=np.uint8), SpacingBetweenSlices=spacing)
    if frames:
        file = enhanced(np.eye(8, dtype=np.uint8)[None], [30.0])
        file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = spacing
    path = saved(tmp_path / "a.dcm", file)
    if found is None:
        with pytest.raises(
            ImageError, match=r"a\.dcm cannot be read as DICOM: an attribute that is needed makes no sense"
        ):
            read_image(path)
    else:
        np.testing.assert_allclose(read_image(path).affine[:3, 2], [0, 0, found])


def test_rescale_signed_values_and_padding(tmp_path):
    pixels = np.array([[-2000, 0], [100, 1000]], dtype=np.int16)
    file = dicom(pixels, RescaleSlope=2, RescaleIntercept=-1024, PixelPaddingValue=-2000)
    image = read_image(saved(tmp_path / "a.dcm", file))
    np.testing.assert_array_equal(image.array, [[-1024, -1024], [-824, 976]])
    assert image.depth == 0


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, [[200, 200], [200, 700]]),
        ({"PhotometricInterpretation": "MONOCHROME1"}, [[3395, 3395], [3895, 3395]]),  # 4095 less the stored
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, [[3395, 3395], [3895, 3395]]),
        ({"RescaleSlope": -1, "PhotometricInterpretation": "MONOCHROME1"}, [[-700, -700], [-700, -200]]),
    ],
)
@pytest.mark.parametrize("padding", [0, 4095])
def test_padding_is_the_lowest_value_after_everything(tmp_path, attributes, expected, padding):
    pixels = np.array([[padding, padding], [200, 700]], dtype=np.uint16)
    file = dicom(pixels, PixelPaddingValue=padding, BitsStored=12, HighBit=11, **attributes)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.dcm", file)).array, expected)


def test_a_slice_of_padding_alone_is_as_low_as_the_lowest_of_the_others(tmp_path, volume):
    stored = volume + np.int16(40)
    stored[..., 0] = -2000
    image = read_dicom(series(tmp_path, stored, [0.0, 0.0, 2.5], PixelPaddingValue=-2000))
    assert (image.array[..., 0] == stored[..., 1:].min()).all()
    np.testing.assert_array_equal(image.array[..., 1:], stored[..., 1:])
    alone = read_image(saved(tmp_path / "alone.dcm", dicom(stored[..., 0].copy(), PixelPaddingValue=-2000)))
    assert (alone.array == alone.array[0, 0]).all()


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"RescaleSlope": 2}, 200),
        ({"RescaleIntercept": -1024}, -924),
        ({"RescaleSlope": "", "RescaleIntercept": 7}, 107),
    ],
)
def test_a_slope_or_an_intercept_alone_counts(tmp_path, attributes, expected):
    image = read_image(saved(tmp_path / "a.dcm", dicom(np.full((4, 4), 100, np.uint16), **attributes)))
    assert (image.array == expected).all()
    assert image.depth == 0


def test_empty_attributes_are_none(tmp_path):
    pixels = RNG.integers(0, 4000, (12, 10)).astype(np.uint16)
    empty = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit"), "")
    image = read_image(saved(tmp_path / "a.dcm", dicom(pixels, **empty)))
    np.testing.assert_array_equal(image.array, pixels)
    assert image.depth == 16


def test_monochrome1_is_turned_round_and_a_window_is_not_applied(tmp_path):
    pixels = RNG.integers(0, 1024, (12, 10)).astype(np.uint16)
    file = radiograph(pixels, BitsStored=10, HighBit=9, PhotometricInterpretation="MONOCHROME1", WindowCenter=500)
    file.WindowWidth = 10
    image = read_image(saved(tmp_path / "a.dicom", file))
    np.testing.assert_array_equal(image.array, 1023 - pixels)
    assert (image.unit, image.depth, image.modality) == ("px", 10, "DX")


def test_a_voi_lut_is_applied(tmp_path):
    pixels = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [4, 0, 16])
    lut.add_new("LUTData", "US", [10, 100, 1000, 10000])
    image = read_image(saved(tmp_path / "a.dcm", radiograph(pixels, VOILUTSequence=Sequence([lut]))))
    np.testing.assert_array_equal(image.array, [[10, 100], [1000, 10000]])
    assert image.depth == 0


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_compressed_files_hold_the_same_values(tmp_path, syntax, kind):
    file = dicom(RNG.integers(0, 120, (64, 64)).astype(kind))
    plain = read_image(saved(tmp_path / "plain.dcm", file)).array
    file.compress(syntax)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "small.dcm", file)).array, plain)


@pytest.mark.parametrize("process", ["+e1", "+el"])  # selection value 1, which most scanners write, and any
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_jpeg_lossless_holds_the_same_values(tmp_path, process, kind):
    pixels = RNG.integers(np.iinfo(kind).min // 2, np.iinfo(kind).max, (64, 64), kind)
    plain = saved(tmp_path / "plain.dcm", dicom(pixels))
    subprocess.run([program("dcmcjpeg", "dcmtk"), process, plain, tmp_path / "small.dcm"], check=True)
    assert "JPEG Lossless" in pydicom.dcmread(tmp_path / "small.dcm").file_meta.TransferSyntaxUID.name
    np.testing.assert_array_equal(read_image(tmp_path / "small.dcm").array, read_image(plain).array)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless, JPEG2000Lossless, "dcmcjpls", "dcmcjpeg"])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_beyond_those_stored_count_for_nothing(tmp_path, syntax, signed):
    meant = RNG.integers(-2000 * signed, 2000, (64, 64)).astype(np.int16)
    overlay = 0 if signed else RNG.integers(0, 2, meant.shape).astype(np.uint16) << 15  # signed: without their sign
    stored = (meant & 0xFFF).astype(np.uint16) | overlay
    file = dicom(stored.astype(np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=int(signed))
    path = saved(tmp_path / "a.dcm", file)
    if isinstance(syntax, str) and syntax.startswith("dcm"):
        subprocess.run([program(syntax, "dcmtk"), path, path], check=True)
    elif syntax:
        file.compress(syntax)
        saved(path, file)
    np.testing.assert_array_equal(read_image(path).array, meant)


def test_a_rounding_error_of_jpeg_2000_does_not_wrap_round(tmp_path):
    meant = np.where(RNG.random((64, 64)) < 0.5, 0, 4095).astype(np.uint16)
    file = dicom(meant)
    file.compress(JPEG2000, j2k_psnr=[50])
    file.BitsStored, file.HighBit = 12, 11
    image = read_image(saved(tmp_path / "a.dcm", file))
    assert image.array.max() > 4095
    np.testing.assert_allclose(image.array, meant, atol=1000)


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_values_in_the_higher_bits_are_refused(tmp_path, syntax):
    file = dicom(RNG.integers(0, 4096, (8, 8)).astype(np.uint16) << 4, BitsStored=12, HighBit=15)
    if syntax:
        file.compress(syntax)
    with pytest.raises(
        ImageError, match=r"a\.dcm stores its values beside the lowest bits.*HighBit is not BitsStored - 1"
    ):
        read_image(saved(tmp_path / "a.dcm", file))


def test_an_enhanced_file_is_a_volume_in_the_order_of_its_positions(tmp_path, volume):
    frames = np.moveaxis(volume, 2, 0)
    upside_down = enhanced(np.ascontiguousarray(frames[::-1]), [38.0, 36.0, 34.0, 32.0, 30.0])
    image = read_image(saved(tmp_path / "e.dcm", upside_down))
    np.testing.assert_array_equal(image.array, 2.0 * volume + 5)
    np.testing.assert_allclose(image.affine[:3], [[0, -0.75, 0, 10], [-0.5, 0, 0, 20], [0, 0, 2, 30]])


def gap(paths):
    paths[2].unlink()
    return [p for p in paths if p.exists()]


def twice(paths):
    file = pydicom.dcmread(paths[0])
    file.SOPInstanceUID = "1.2.3.99"
    return [*paths, saved(paths[0].with_name("copy.dcm"), file)]


def changed(at=1, **attributes):
    def change(paths):
        file = pydicom.dcmread(paths[at])
        for name, value in attributes.items():
            setattr(file, name, value)
        file.save_as(paths[at])
        return paths

    return change


def unplaced(paths):
    for path in paths:
        file = pydicom.dcmread(path)
        del file.ImagePositionPatient
        file.save_as(path)
    return paths


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (gap, r"5 mm between .* usually 2.5: slices are missing"),
        (twice, r"00.dcm and copy.dcm lie at one place"),
        (changed(SeriesInstanceUID="9.9"), "no slice of one volume with 00.dcm: its SeriesInstanceUID is another"),
        (changed(ImageOrientationPatient=OBLIQUE), "with 00.dcm: its orientation or spacing is another"),
        (changed(PixelSpacing=[0.6, 0.75]), "with 00.dcm: its orientation or spacing is another"),
        (changed(PhotometricInterpretation="MONOCHROME1"), "its PhotometricInterpretation is another"),
        (changed(PatientID="other"), "its PatientID is another"),
        (changed(PatientName="Roe^Jo"), "its PatientName is another"),
        (changed(PatientBirthDate="19510101"), "its PatientBirthDate is another"),
        (changed(StudyInstanceUID="9.9"), "its StudyInstanceUID is another"),
        (changed(FrameOfReferenceUID="9.9"), "its FrameOfReferenceUID is another"),
        (changed(Modality="PT"), "its Modality is another"),
        (changed(ImagePositionPatient=[-9.6, -20, 32.5]), r"00.dcm and others lie up to 0.4 mm off the even line"),
        (changed(ImagePositionPatient=[20, -20, 32.5]), r"lie up to 30 mm off the even line from it to 06.dcm"),
        (changed(4, ImagePositionPatient=[-10, 10, 40.0]), "lie up to 22.5 mm off the even line"),
        (unplaced, "5 of 5 slices have no position"),
    ],
)
def test_slices_that_make_no_volume_are_refused(tmp_path, volume, damage, reason):
    paths = damage(series(tmp_path, volume, [0.0, 0.0, 2.5]))
    with pytest.raises(ImageError, match=reason):
        read_dicom(paths)


def test_positions_written_with_one_digit_make_a_volume(tmp_path):
    orientation = np.reshape(OBLIQUE, (2, 3))
    thin = np.arange(40)[:, None] * 0.6 * np.cross(*orientation) + [3.14, -2.71, 1.41]
    paths = []
    for index, position in enumerate(np.round(thin, 1).tolist()):
        file = dicom(np.eye(8, dtype=np.uint8), ImageOrientationPatient=OBLIQUE, ImagePositionPatient=position)
        paths.append(saved(tmp_path / f"{index:02}.dcm", file))
    image = read_dicom(paths)
    for index, position in enumerate(thin):
        np.testing.assert_allclose(image.affine @ [0, 0, index, 1], [*(position * [-1, -1, 1]), 1], atol=0.2)


@pytest.mark.parametrize("frame", [2, 4])
def test_a_frame_off_the_line_is_refused(tmp_path, volume, frame):
    file = enhanced(np.moveaxis(volume, 2, 0).copy(), [30.0, 32, 34, 36, 38])
    file.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0].ImagePositionPatient[0] = 20
    with pytest.raises(ImageError, match=r"e.dcm, frame 1 and others lie up to .* mm off the even line"):
        read_image(saved(tmp_path / "e.dcm", file))


def test_files_that_are_no_picture_say_so(tmp_path):
    pixels = np.zeros((8, 8), dtype=np.uint8)
    cases = {
        "report.dcm": (dicom(pixels, Modality="SR", PixelData=None), "of kind SR, which holds no image"),
        "empty.dcm": (dicom(pixels, PixelData=None), "DICOM without pixels"),
        "palette.dcm": (dicom(pixels, PhotometricInterpretation="PALETTE COLOR"), "no grey values: its Photometric"),
        "film.dcm": (
            dicom(np.zeros((3, 8, 8), np.uint8), NumberOfFrames=3),
            "3 frames without a position each, a film",
        ),
        "huge.dcm": (
            dicom(pixels, Rows=60_000, Columns=60_000),
            "claims 3,600,000,000 voxels; reading them takes 54,932 MiB",
        ),
        "short.dcm": (dicom(pixels, Rows=9), "pixels cannot be decoded"),
        "fmri.dcm": (
            dicom(pixels, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]),
            "is a mosaic, many slices in one",
        ),
    }
    for name, (file, reason) in cases.items():
        saved(tmp_path / name, file)
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)
    (tmp_path / "text.dcm").write_text("not a picture at all")
    with pytest.raises(ImageError, match=r"text\.dcm cannot be read as DICOM"):
        read_image(tmp_path / "text.dcm")


def test_a_multi_frame_file_too_large_for_memory_is_refused_before_it_is_decoded(tmp_path, volume, monkeypatch):
    path = saved(tmp_path / "e.dcm", enhanced(np.moveaxis(volume, 2, 0).copy(), [30.0, 32, 34, 36, 38]))
    monkeypatch.setattr(reading, "memory", lambda: 4000.0)
    with pytest.raises(ImageError, match="claims 600 voxels"):
        read_image(path)


def test_a_syntax_without_a_decoder_names_the_extra_only_where_that_helps(tmp_path, monkeypatch):
    file = dicom(np.zeros((8, 8), dtype=np.uint8))
    file.compress(RLELossless)
    reasons = {}
    for syntax in (JPEGLosslessSV1, MPEG2MPML):
        file.file_meta.TransferSyntaxUID = syntax
        path = saved(tmp_path / "a.dcm", file)
        with pytest.raises(ImageError) as damaged:
            read_image(path)
        with monkeypatch.context() as without:
            without.setattr(get_decoder(JPEGLosslessSV1), "_available", {})
            with pytest.raises(ImageError) as missing:
                read_image(path)
        reasons[syntax] = [str(raised.value).removeprefix(str(tmp_path)) for raised in (damaged, missing)]
    assert reasons[JPEGLosslessSV1][0] == "/a.dcm: its pixels cannot be decoded. It may be truncated or damaged."
    assert reasons[JPEGLosslessSV1][1] == (
        f"/a.dcm is compressed as {JPEGLosslessSV1.name}, and no decoder for it is here: pip install '.[dicom]'."
    )
    assert set(reasons[MPEG2MPML]) == {
        "/a.dcm is stored in a transfer syntax that nothing here decodes. Have it written uncompressed."
    }


def test_a_study_of_several_files_is_read_as_one(tmp_path, volume):
    paths = series(tmp_path, volume, [0.0, 0.0, 2.5])
    image = read_study([Source(path=path) for path in paths])
    np.testing.assert_array_equal(image.array, volume)
    assert [p.name for p in image.origin.files] == [p.name for p in paths]


def test_the_real_files_decode_alike_whatever_their_compression(shared_data):
    files = sorted((shared_data / "formats/dicom").glob("MR_small*.dcm"))
    assert len(files) == 6
    plain = read_image(files[0]).array
    assert all(np.array_equal(read_image(file).array, plain) for file in files)


def test_the_real_radiograph_is_bright_where_bone_is(shared_data):
    path = shared_data / "formats/dicom/dx_image.dcm"
    stored = pydicom.dcmread(path)
    assert stored.PhotometricInterpretation == "MONOCHROME1"
    np.testing.assert_array_equal(read_image(path).array, 255 - stored.pixel_array.astype(np.float32))


def as_nifti(folder, into):
    """The volume that dcm2niix makes of a folder."""
    subprocess.run(
        [program("dcm2niix", "dcm2niix"), "-f", "v", "-o", into, folder], check=True, capture_output=True, text=True
    )
    return read_image(into / "v.nii")


@pytest.mark.parametrize("orientation", [[1.0, 0, 0, 0, 1, 0], OBLIQUE, [0.0, 1, 0, 0, 0, -1], [1.0, 0, 0, 0, 0, -1]])
def test_a_series_is_the_volume_that_dcm2niix_makes_of_it(tmp_path, volume, orientation):
    (tmp_path / "nifti").mkdir()
    paths = series(tmp_path / "dicom", volume, across(orientation, 2.5), ImageOrientationPatient=orientation)
    image = read_dicom(paths)
    theirs = resample(as_nifti(tmp_path / "dicom", tmp_path / "nifti"), like=image, order=0)
    np.testing.assert_array_equal(theirs.array, image.array)


def test_the_real_series_is_the_volume_that_dcm2niix_makes_of_it(shared_data, tmp_path):
    (tmp_path / "nifti").mkdir()
    (tmp_path / "dicom").mkdir()
    paths = sorted((shared_data / "formats/dicom/ct_series").glob("*.dcm"))[1:]  # the first lies 20 cm away
    for path in paths:
        shutil.copy(path, tmp_path / "dicom")
    image = read_dicom(paths)
    assert image.array.shape == (16, 16, 3)
    theirs = resample(as_nifti(tmp_path / "dicom", tmp_path / "nifti"), like=image, order=0)
    np.testing.assert_allclose(theirs.array, image.array, atol=0.5)


def test_a_volume_of_monochrome1_is_turned_round_as_a_whole(tmp_path):
    stored = (np.arange(5) * 100 + RNG.integers(0, 50, (12, 10, 5))).astype(np.int16)
    paths = series(
        tmp_path, stored, [0.0, 0.0, 2.5], PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=-7
    )
    image = read_dicom(paths)
    np.testing.assert_array_equal(image.array, 2.0 * (stored.min() + stored.max() - stored) - 7)


def test_frames_of_several_orientations_are_no_volume(tmp_path, volume):
    file = enhanced(np.moveaxis(volume, 2, 0).copy(), [30.0, 32, 34, 36, 38])
    turned = Dataset()
    turned.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    file.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = Sequence([turned])
    with pytest.raises(ImageError, match=r"frame 2 is no slice of one volume with e.dcm, frame 1"):
        read_image(saved(tmp_path / "e.dcm", file))


@pytest.mark.parametrize(
    "attributes",
    [
        {"PixelSpacing": [0.5]},
        {"PixelSpacing": [0.5, 0.0]},
        {"ImageOrientationPatient": [1.0, 0, 0, 0, 1]},
        {"ImageOrientationPatient": [0.0] * 6},
        {"ImagePositionPatient": [1.0, 2.0]},
    ],
)
def test_a_place_that_makes_no_sense_is_an_image_error(tmp_path, attributes):
    path = saved(tmp_path / "a.dcm", dicom(np.eye(8, dtype=np.uint8), **attributes))
    with pytest.raises(ImageError, match=rf"a\.dcm lies nowhere that makes sense: .*{next(iter(attributes))}"):
        read_image(path)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PhotometricInterpretation": "DOE^JANE"}, "holds no grey values"),
        ({"PhotometricInterpretation": "DOE^JANE", "SamplesPerPixel": 3}, "cannot be decoded"),
        ({"PixelSpacing": ["DOE^JANE", "1"]}, "lies nowhere that makes sense"),
        ({"BitsAllocated": 17}, "cannot be decoded"),
    ],
)
def test_what_a_header_holds_is_not_told(tmp_path, attributes, reason):
    file = dicom(np.eye(8, dtype=np.uint8))
    for keyword, value in attributes.items():
        file[keyword] = pydicom.DataElement(keyword, "US" if isinstance(value, int) else "LO", value)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(saved(tmp_path / "a.dcm", file))
    assert "DOE" not in str(caught.value)
    assert "17" not in str(caught.value).removeprefix(str(tmp_path))


def test_an_attribute_that_makes_no_sense_is_an_image_error_without_its_value(tmp_path):
    file = dicom(np.eye(8, dtype=np.uint8))
    file.add_new("RescaleSlope", "LO", "Doe^Jane")
    file.RescaleIntercept = 0
    with pytest.raises(ImageError, match="an attribute that is needed makes no sense") as caught:
        read_image(saved(tmp_path / "a.dcm", file))
    assert "Doe" not in str(caught.value)


def test_a_file_larger_than_memory_is_refused_from_its_header(tmp_path, volume, monkeypatch):
    path = saved(tmp_path / "e.dcm", enhanced(np.moveaxis(volume, 2, 0).copy(), [30.0, 32, 34, 36, 38]))
    monkeypatch.setattr(reading, "memory", lambda: 4000.0)
    read, whole = pydicom.dcmread, []
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: whole.append(k) or read(*a, **k))
    with pytest.raises(ImageError, match="claims 600 voxels"):
        read_image(path)
    assert [k.get("stop_before_pixels") for k in whole] == [True]


def test_a_series_larger_than_memory_names_its_first_file(tmp_path, volume, monkeypatch):
    paths = series(tmp_path, volume, [0.0, 0.0, 2.5])
    monkeypatch.setattr(reading, "memory", lambda: 2.0**12)
    with pytest.raises(ImageError, match=rf"^{paths[0]}: its series of 5 slices takes 0 MiB, this machine has 0\.$"):
        read_dicom(paths)


def deflated(path, **changed):
    file = dicom(np.zeros((512, 512), np.uint16), **changed)
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return saved(path, file)


def test_a_deflated_file_is_measured_by_what_it_unpacks_to(tmp_path, monkeypatch):
    path = deflated(tmp_path / "a.dcm")
    assert read_image(path).array.shape == (512, 512)
    assert 100 * path.stat().st_size < 512 * 512 * 2
    monkeypatch.setattr(reading, "memory", lambda: 8.0 * 512 * 512 * 2)  # a little less than pixels and header need
    monkeypatch.setattr(pydicom, "dcmread", None)  # nothing is unpacked to be held
    with pytest.raises(ImageError, match=r"a\.dcm: this machine has too little memory to read it"):
        read_image(path)


def test_a_deflated_series_is_measured_by_what_it_unpacks_to(tmp_path, monkeypatch):
    paths = [deflated(tmp_path / f"{i}.dcm", ImagePositionPatient=[0, 0, i]) for i in range(4)]
    monkeypatch.setattr(reading, "memory", lambda: 30.0 * 512 * 512 * 2)  # three slices fit
    assert read_dicom(paths[:3]).array.shape == (512, 512, 3)
    with pytest.raises(ImageError, match=r"0\.dcm: this machine has too little memory to read it"):
        read_dicom(paths)


def test_a_file_that_only_names_the_deflated_syntax_is_read(tmp_path):
    file = dicom(np.eye(8, dtype=np.uint8), StudyDescription=str(DeflatedExplicitVRLittleEndian))
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.dcm", file)).array, np.eye(8))
