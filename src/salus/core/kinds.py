"""Which files are images, told from their names, and where names say nothing, from their first bytes."""

from pathlib import Path

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", *DICOM_SUFFIXES)
DICOMDIR = "DICOMDIR"  # a table of contents, no image
# What is never DICOM and often lies beside it; of every other suffix (.IMA, a UID's last number, none) bytes decide.
TEXTS = (".csv", ".tsv", ".txt", ".md", ".json", ".xml", ".html", ".yaml", ".yml", ".py", ".pdf", ".zip", ".h5", ".npz")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or where that says nothing (IM000001, .IMA, a UID), by its bytes."""
    name = path.name.lower()
    if name.endswith(DICOM_SUFFIXES):
        return True
    if name == DICOMDIR.lower() or name.startswith(".") or name.endswith((*SUFFIXES, *TEXTS)) or not path.is_file():
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
