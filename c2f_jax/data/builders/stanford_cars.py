"""Stanford Cars (Cars196): makes, models and years, with a box; in both layouts that are in circulation.

Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization, 3dRR 2013. The first layout has
the folders `cars_train` and `cars_test`, and the files of its `devkit` beside `cars_test_annos_withlabels.mat`; the
second one folder, `car_ims`, and `cars_annos.mat` for both parts. Its publisher's addresses are dead. Boxes count
pixels from 1, both ends included, as MATLAB does.
"""

import numpy as np

from c2f_jax.data.builders import layout
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.data.builders.files import Files
from c2f_jax.data.builders.layout import Annotations, Dataset, Photo
from c2f_jax.errors import UserError

META, TRAIN, TEST, BOTH = "cars_meta.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_annos.mat"


def read(files: Files) -> Annotations:
    """Parses the annotations of the layout that is there; of both, the first."""
    if _is_first(files):
        names = layout.matlab(files, _where(files, META), "class_names")
        rows = {
            part: [
                (f"cars_{part}/{row['fname']}", row)
                for row in _annotations(files, _where(files, table), ("fname", "class"))
            ]
            for part, table in (("train", TRAIN), ("test", TEST))
        }
    else:
        names = layout.matlab(files, BOTH, "class_names")
        rows = {"train": [], "test": []}
        for row in _annotations(files, BOTH, ("relative_im_path", "class", "test")):
            rows["test" if np.any(row["test"]) else "train"].append((str(row["relative_im_path"]), row))
    class_names = tuple(str(name) for name in names)
    if len(set(class_names)) < len(class_names):
        class_names = layout.told_apart(class_names, [str(label + 1) for label in range(len(class_names))])
    photos = {part: [_photo(files, name, row, len(class_names)) for name, row in rows[part]] for part in rows}
    return Annotations({"label": class_names}, photos)


def _is_first(files: Files) -> bool:
    """Whether it is the first layout; raises UserError unless the tables and photos of one are there."""
    missing = [name for name in (TRAIN, TEST, META) if _find(files, name) is None]
    both, separate, together = files.find(BOTH) is not None, files.holds("cars_train"), files.holds("car_ims")
    if not missing and (separate or not (both or together)):
        return True
    if both and (together or not separate):
        return False
    if together and not separate:
        raise UserError(f"{files.path}: {BOTH} is missing, for the photos of car_ims: others are numbered otherwise")
    found = f"; {BOTH} is for car_ims, whose photos are numbered otherwise" if both else ""
    if len(missing) < 3 or separate:
        are = " and ".join(missing) + (" is" if len(missing) == 1 else " are")
        raise UserError(f"{files.path}: {are} missing, for the photos of cars_train and cars_test{found}")
    raise UserError(
        f"{files.path}: holds neither {TRAIN}, {TEST} and {META} (in devkit/) nor {BOTH}; "
        "dataset.path is the folder that holds them beside the photos"
    )


def _photo(files: Files, name: str, row: np.void, classes: int) -> Photo:
    try:
        label = int(row["class"])
        x1, y1, x2, y2 = (float(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{files.path}: {name} has no number for its class, or for its box; fetch it again") from error
    if not 1 <= label <= classes:
        raise UserError(f"{files.path}: {name} has the class {label}, of 1 to {classes}")
    return Photo(name, name.rpartition("/")[2], (label - 1,), (x1 - 1, y1 - 1, x2, y2))


def _annotations(files: Files, table: str, columns: tuple[str, ...]) -> np.ndarray:
    rows = layout.matlab(files, table, "annotations")
    lacking = [name for name in (*columns, "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2") if name not in _names(rows)]
    if lacking:
        remedy = f"; the publisher gives {TEST.replace('_withlabels', '')} without: get the one with labels"
        remedy = remedy if lacking[0] == "class" else "; fetch it again"
        raise UserError(f"{files.path}: {table} has no {lacking[0]}{remedy}")
    return rows


def _names(rows: np.ndarray) -> tuple[str, ...]:
    return rows.dtype.names or ()


def _find(files: Files, name: str) -> bytes | None:
    return files.find(f"devkit/{name}") or files.find(name)


def _where(files: Files, name: str) -> str:
    return f"devkit/{name}" if files.find(f"devkit/{name}") is not None else name


_SOURCE = "TFDS 4.9.10, url_checksums/cars196.txt"

DATASET = Dataset(
    name="stanford_cars",
    title="Stanford Cars",
    homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    archives=(
        Archive(
            "cars_train.tgz",
            "",
            size=979_269_282,
            sha256="512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
            source=_SOURCE,
            photos=True,
        ),
        Archive(
            "cars_test.tgz",
            "",
            size=977_350_468,
            sha256="bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
            source=_SOURCE,
            photos=True,
        ),
        Archive(
            "car_devkit.tgz",
            "",
            size=330_960,
            sha256="b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
            source=_SOURCE,
        ),
        Archive(
            TEST,
            "",
            size=185_758,
            sha256="790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
            source=_SOURCE,
        ),
        # The other layout's, beside cars_annos.mat.
        Archive(
            "car_ims.tgz",
            "",
            md5="d5c8f0aa497503f355e17dc7886c3f14",
            source="a public loader; not the publisher's word",
            photos=True,
            optional=True,
        ),
    ),
    read=read,
    folders=("cars_train", "cars_test", "car_ims"),
    tables=(META, TRAIN, TEST, f"devkit/{META}", f"devkit/{TRAIN}", f"devkit/{TEST}", BOTH),
    members=rf"(^|/)({'|'.join((META, TRAIN, TEST, BOTH))})$",
    counts={"train": 8144, "test": 8041, "classes": 196},
    counts_source="torchvision's docs of StanfordCars",
)
