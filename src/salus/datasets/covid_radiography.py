"""COVID-19 Radiography Database: chest radiographs of adults; its children are left out.

    root/COVID-19_Radiography_Dataset/<Class>/images/<Class>-<n>.png   299 x 299, 8 bits; early versions: no images/
    root/COVID-19_Radiography_Dataset/<Class>.metadata.xlsx            FILE NAME, FORMAT, SIZE, URL

Classes COVID, Lung_Opacity, Normal, Viral Pneumonia. Chowdhury et al. 2020, doi:10.1109/ACCESS.2020.3010287; Rahman et
al. 2021, doi:10.1016/j.compbiomed.2021.104319. The trap: all of Viral Pneumonia and 1,341 of Normal are children, and
which of Normal they are is told in two ways. Whoever is a child by either way is left out.
"""

import warnings
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from salus.core import Case, Dataset, Finding, Label, Source
from salus.core.errors import LayoutError, did_you_mean
from salus.datasets._layout import by_stem, differences, find
from salus.datasets.protocol import hold_out

NAME = "covid-radiography"
NORMAL = "Normal"
ABNORMAL = ("COVID", "Lung_Opacity")
CHILDREN = "Viral Pneumonia"
CHILDRENS_URL = "chest-xray-pneumonia"  # Kaggle's copy of Kermany et al. 2018, children of one to five years
CHILDRENS_NUMBERS = frozenset(
    map(str, range(63, 1_404))
)  # of Normal-<n>, 1,341 that are no image of the RSNA; see the page
PUBLISHED = {
    "images of COVID": 3_616,
    "images of Lung_Opacity": 6_012,
    "images of Normal": 10_192,
    "images of Viral Pneumonia": 1_345,
    "children among the rows of Normal": 1_341,
}
TESTED = 1_019 / 10_192  # of the normal images, MorphAEus' share of normal test images
FOLDER = "COVID-19_Radiography_Dataset"
EXPECTED = f"{FOLDER} with Normal, COVID, Lung_Opacity, Viral Pneumonia and their .metadata.xlsx"


def covid_radiography(root: Path) -> Dataset:
    """The images of adults under `root`; none is opened.

    NORMAL: folder Normal. ABNORMAL: folders COVID and Lung_Opacity. The group `source` is the address an image is said
    to come from. All abnormal images, and 10 % of the normal ones, are in the test. A patient is an image.

    Raises:
        LayoutError: not laid out so, or a metadata file that is no sheet or has other columns.
    """
    top = find(root, f"{FOLDER}/{NORMAL}", NORMAL, expected=EXPECTED).parent
    cases, left_out, counts = [], [], Counter[str]()
    for name in (*ABNORMAL, NORMAL):
        images = _images(top, name)
        addresses = _addresses(find(top, f"{name}.metadata.xlsx", expected=EXPECTED))
        counts[f"images of {name}"] = len(images)
        there = {stem.casefold() for stem in images}
        left_out += [(row, "no image") for row in addresses if row not in there]
        for stem, image in images.items():
            address = addresses.get(stem.casefold(), "")
            if not address:
                left_out.append((stem, f"no address in {name}.metadata.xlsx, so it may be a child"))
            elif CHILDRENS_URL in address:
                left_out.append((stem, "a child by its address"))
            elif name == NORMAL and stem.rpartition("-")[2] in CHILDRENS_NUMBERS:
                left_out.append((stem, "a child by its pixels, as others report"))
            else:
                cases.append(_case(name, stem, image, address))
        if name == NORMAL:
            counts["children among the rows of Normal"] = sum(CHILDRENS_URL in url for url in addresses.values())
    children = _images(top, CHILDREN)
    counts[f"images of {CHILDREN}"] = len(children)
    left_out += [(stem, f"a child, as all of {CHILDREN}") for stem in children]
    return Dataset(NAME, hold_out(NAME, cases, TESTED), left_out, differences(counts, PUBLISHED))


def _images(top: Path, name: str) -> dict[str, Path]:
    return by_stem(find(top, f"{name}/images", name, expected=EXPECTED), ".png")


def _case(name: str, stem: str, image: Path, address: str) -> Case:
    return Case(
        case_id=stem,
        patient_id=stem,
        images=(Source(path=image),),
        label=Label.NORMAL if name == NORMAL else Label.ABNORMAL,
        findings=() if name == NORMAL else (Finding(name=name),),
        groups={"source": address},
    )


def _addresses(path: Path) -> dict[str, str]:
    """Host and path of the URL of each file name, in small letters and without suffix: the sheet spells NORMAL-1.

    Of a name's rows the first counts.
    """
    from openpyxl import load_workbook

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions; only cells matter here
            book = load_workbook(path, read_only=True, data_only=True)
            rows = [[str(cell or "").strip() for cell in row] for row in book.worksheets[0].iter_rows(values_only=True)]
            book.close()
    except Exception as error:  # a damaged byte makes it fail in any way at all
        raise LayoutError(f"{path} cannot be read as a sheet: {error!r}. Download it again.") from error
    header = rows[0] if rows else []
    for column in ("FILE NAME", "URL"):
        if column not in header:
            raise LayoutError(f"{path} has no column '{column}'.{did_you_mean(column, header)}")
    found: dict[str, str] = {}
    for row in (dict(zip(header, cells, strict=False)) for cells in rows[1:]):
        if name := row["FILE NAME"].casefold().removesuffix(".png"):
            url = urlsplit(row.get("URL", ""))
            found.setdefault(name, f"{url.netloc}{url.path}".rstrip("/"))
    return found
