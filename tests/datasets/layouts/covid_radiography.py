from collections.abc import Sequence
from pathlib import Path

from tests.datasets.layouts import ABNORMAL, HEALTHY, pictures, png

RSNA = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data"
KERMANY = "https://www.kaggle.com/paultimothymooney/chest-xray-pneumonia"
BIMCV = "https://bimcv.cipf.es/bimcv-projects/bimcv-covid19/#1590858128006-9e640421-6711"
FOLDER = "COVID-19_Radiography_Dataset"


def write(root: Path) -> None:
    """Masks beside images, sheets that spell NORMAL-1, children among the normal by address and by number."""
    top, half = root / FOLDER, ABNORMAL // 2
    addresses = dict.fromkeys(range(2001, 2001 + HEALTHY), RSNA) | {63: RSNA, 10192: KERMANY}
    healthy, sick = pictures(HEALTHY + 2), pictures(ABNORMAL + 2, hole=True)
    for index, picture in zip(addresses, healthy, strict=True):
        png(top / "Normal/images" / f"Normal-{index}.png", picture)
        png(top / "Normal/masks" / f"Normal-{index}.png", picture)
    for name, part in (("COVID", sick[:half]), ("Lung_Opacity", sick[half:ABNORMAL]), ("Viral Pneumonia", sick[-2:])):
        for index, picture in enumerate(part, start=1):
            png(top / name / "images" / f"{name}-{index}.png", picture)
            png(top / name / "masks" / f"{name}-{index}.png", picture)
    sheet(
        top / "Normal.metadata.xlsx", [(f"NORMAL-{index}", "PNG", "256*256", url) for index, url in addresses.items()]
    )
    for name, url, count in (("COVID", BIMCV, half), ("Lung_Opacity", RSNA, half), ("Viral Pneumonia", KERMANY, 2)):
        sheet(top / f"{name}.metadata.xlsx", [(f"{name}-{i}", "PNG", "256*256", url) for i in range(1, count + 1)])


def sheet(
    path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("FILE NAME", "FORMAT", "SIZE", "URL")
) -> None:
    from openpyxl import Workbook

    book = Workbook()
    for row in (header, *rows):
        book.active.append(list(row))
    book.save(path)
