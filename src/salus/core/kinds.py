"""Which files are images, told from their names, and where names say nothing, from their first bytes."""

from pathlib import Path

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", *DICOM_SUFFIXES)
DICOMDIR = "DICOMDIR"  # a table of contents, no image


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or where its name has none (IM000001, or a UID), by its bytes."""
    name = path.name.lower()
    if name.endswith(DICOM_SUFFIXES):
        return True
    ending = name.rpartition(".")[2] if "." in name else ""
    if path.name == DICOMDIR or name.startswith(".") or not (ending == "" or ending.isdigit()):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_image(path: Path) -> bool:
    """Whether a file is of a kind that can be read; hidden ones are not."""
    return not path.name.startswith(".") and (path.name.lower().endswith(SUFFIXES) or is_dicom(path))


def stem(name: str) -> str:
    """A file's name without its suffix, `.nii.gz` being one; a name without one of `SUFFIXES` as it is."""
    found = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return name[: -len(max(found, key=len))] if found else name
