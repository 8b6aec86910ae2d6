"""Small data sets in the layouts that published ones have, as their archives unpack."""

import json
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from PIL import Image

LEFT, RIGHT = (220, 30, 30), (20, 40, 230)  # colours of the object and of the rest


class Wanted(NamedTuple):
    """What an example must be: labels by level, and the box x1, y1, x2, y2 on the upright photo of that size."""

    name: str
    labels: dict[str, str]
    box: tuple[float, float, float, float] | None
    size: tuple[int, int]


def photo(path: Path, size: tuple[int, int], box: tuple[int, int, int, int], kind: str = "RGB") -> None:
    """A file whose object is a block of another colour; kind: a mode of Pillow, or turned by EXIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, RIGHT)
    image.paste(LEFT, box)
    exif = Image.Exif()
    if kind == "EXIF":
        exif[0x0112] = 6  # to be turned clockwise
    elif kind != "RGB":
        image = image.convert(kind)
    # By what it is, whatever it is called: some published files are PNG by the name of JPEG.
    image.save(path, "PNG" if kind in ("P", "RGBA") else "JPEG", quality=95, exif=exif)


def lines(path: Path, text: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text) + "\n")


def fgvc_aircraft(root: Path) -> dict[str, list[Wanted]]:
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = {"F-16A/B": ("F-16", "Lockheed Martin"), "737-700": ("Boeing 737", "Boeing")}
    variants["707-320"] = ("Boeing 707", "Boeing")
    rows = [
        ("0034309", "train", "707-320", (1, 1, 30, 20)),
        ("1025794", "val", "737-700", (11, 6, 40, 30)),
        ("0056978", "train", "F-16A/B", (5, 5, 10, 10)),
        ("0481847", "test", "737-700", (2, 3, 40, 30)),
    ]
    lines(data / "variants.txt", list(variants))
    lines(data / "families.txt", ["F-16", "Boeing 737", "Boeing 707"])
    lines(data / "manufacturers.txt", ["Boeing", "Lockheed Martin"])
    lines(data / "images_box.txt", [f"{name} {' '.join(map(str, box))}" for name, _, _, box in rows])
    wanted: dict[str, list[Wanted]] = {"train": [], "test": []}
    for level in ("variant", "family", "manufacturer"):
        for part in ("train", "val", "test"):
            of = [(name, _aircraft(level, variant, variants)) for name, p, variant, _ in rows if p == part]
            lines(data / f"images_{level}_{part}.txt", [f"{name} {label}" for name, label in of])
    for part in ("train", "val", "test"):
        for name, of, variant, (x1, y1, x2, y2) in rows:
            if of == part:
                photo(data / "images" / f"{name}.jpg", (40, 50), (x1 - 1, y1 - 1, x2, y2))
                labels = {level: _aircraft(level, variant, variants) for level in ("variant", "family", "manufacturer")}
                box = (x1 - 1, y1 - 1, x2, y2)  # pixels counted from 1, both ends included
                side = "test" if part == "test" else "train"
                wanted[side].append(Wanted(f"images/{name}.jpg", labels, box, (40, 30)))  # without the banner
    return wanted


def _aircraft(level: str, variant: str, variants: dict[str, tuple[str, str]]) -> str:
    return {"variant": variant, "family": variants[variant][0], "manufacturer": variants[variant][1]}[level]


CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]
_CARS = [("train", 1, "RGB"), ("train", 2, "L"), ("train", 3, "CMYK"), ("test", 2, "RGB"), ("test", 3, "RGB")]


def _structs(rows: list[tuple], names: list[str]) -> np.ndarray:
    found = np.zeros((1, len(rows)), [(name, object) for name in names])
    found[0] = rows
    return found


def stanford_cars(root: Path) -> dict[str, list[Wanted]]:
    """With a devkit."""
    devkit = root / "devkit"
    devkit.mkdir(parents=True)
    scipy.io.savemat(devkit / "cars_meta.mat", {"class_names": np.array([CARS], object)})
    wanted: dict[str, list[Wanted]] = {"train": [], "test": []}
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for part, place in (("train", devkit / "cars_train_annos.mat"), ("test", root / "cars_test_annos_withlabels.mat")):
        rows = []
        for number, (_, label, kind) in enumerate((row for row in _CARS if row[0] == part), 1):
            name = f"{number:05d}.jpg"
            photo(root / f"cars_{part}" / name, (40, 30), (4, 5, 24, 20), kind)
            rows.append((5, 6, 24, 20, label, name))
            labels = {"label": CARS[label - 1]}
            wanted[part].append(Wanted(f"cars_{part}/{name}", labels, (4, 5, 24, 20), (40, 30)))
        scipy.io.savemat(place, {"annotations": _structs(rows, fields)})
    return wanted


def stanford_cars_in_one_folder(root: Path) -> dict[str, list[Wanted]]:
    """With cars_annos.mat."""
    wanted: dict[str, list[Wanted]] = {"train": [], "test": []}
    rows = []
    for number, (part, label, kind) in enumerate(_CARS, 1):
        name = f"car_ims/{number:06d}.jpg"
        photo(root / name, (40, 30), (4, 5, 24, 20), kind)
        rows.append((name, 5, 6, 24, 20, label, int(part == "test")))
        wanted[part].append(Wanted(name, {"label": CARS[label - 1]}, (4, 5, 24, 20), (40, 30)))
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    table = {"annotations": _structs(rows, fields), "class_names": np.array([CARS], object)}
    scipy.io.savemat(root / "cars_annos.mat", table)
    return wanted


def stanford_dogs(root: Path) -> dict[str, list[Wanted]]:
    folders = ["n02085620-Chihuahua", "n02086240-Shih-Tzu"]
    rows = [("train", 1, "n02085620_7", "RGB"), ("train", 2, "n02086240_10", "RGB"), ("test", 1, "n02085620_199", "L")]
    wanted: dict[str, list[Wanted]] = {"train": [], "test": []}
    for part, label, stem, kind in rows:
        name = f"{folders[label - 1]}/{stem}"
        photo(root / "Images" / f"{name}.jpg", (40, 30), (4, 5, 24, 20), kind)
        boxes = [(4, 5, 14, 15), (10, 12, 24, 20)] if label == 1 else [(4, 5, 24, 20)]
        objects = "".join(
            f"<object><name>dog</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for x1, y1, x2, y2 in boxes
        )
        lines(root / "Annotation" / name, [f"<annotation><folder>x</folder>{objects}</annotation>"])
        wanted[part].append(Wanted(f"Images/{name}.jpg", {"label": folders[label - 1]}, (4, 5, 24, 20), (40, 30)))
    for part in ("train", "test"):
        of = [(f"{folders[label - 1]}/{stem}.jpg", label) for p, label, stem, _ in rows if p == part]
        table = {"file_list": np.array([[name] for name, _ in of], object), "labels": np.array([[n] for _, n in of])}
        table["annotation_list"] = np.array([[name[:-4]] for name, _ in of], object)
        scipy.io.savemat(root / f"{part}_list.mat", table)
    return wanted


def nabirds(root: Path) -> dict[str, list[Wanted]]:
    """Ids are no integers, classes.txt has inner nodes, and a name comes twice."""
    data = root / "nabirds"
    nodes = {"0": "Birds", "1": "Ducks, Geese, and Swans", "2": "Loons", "295": "Common Loon", "296": "Mallard"}
    nodes |= {"817": "Common Loon", "818": "Mallard (Breeding male)"}  # 817: in another plumage, by the same name
    hierarchy = {"1": "0", "2": "0", "295": "2", "817": "2", "296": "1", "818": "296"}
    names = {"295": "Common Loon (295)", "817": "Common Loon (817)", "818": "Mallard (Breeding male)"}
    rows = [
        ("0000139e-21dc-4d0c-bfe1-4cae3c85c829", "295", 1, "RGB"),
        ("0000d9fc-4e02-4c06-a0af-a55cfb16b12b", "817", 1, "EXIF"),
        ("00019306-9d83-4334-b255-a447742edce3", "818", 1, "RGB"),
        ("0001afd4-99a1-4a67-b940-d419413e23b3", "295", 0, "L"),
    ]
    wanted: dict[str, list[Wanted]] = {"train": [], "test": []}
    tables: dict[str, list[str]] = {}
    for image_id, class_id, is_train, kind in rows:
        name = f"{int(class_id):04d}/{image_id.replace('-', '')}.jpg"
        photo(data / "images" / name, (40, 30), (4, 5, 24, 20), kind)
        parts = [f"{image_id} {part} {part + 3} {part + 7} {part % 2}" for part in range(11)]
        for table, text in (
            ("images.txt", [f"{image_id} {name}"]),
            ("image_class_labels.txt", [f"{image_id} {class_id}"]),
            ("train_test_split.txt", [f"{image_id} {is_train}"]),
            ("bounding_boxes.txt", [f"{image_id} 4 5 20 15"]),
            ("sizes.txt", [f"{image_id} 40 30"]),
            ("parts/part_locs.txt", parts[::-1]),
        ):
            tables[table] = tables.get(table, []) + text
        labels = {"label": names[class_id], "order": nodes["1"] if class_id == "818" else nodes["2"]}
        # Turned clockwise, the bottom left corner comes to the top left.
        box, size = ((30 - 20, 4, 30 - 5, 24), (30, 40)) if kind == "EXIF" else ((4, 5, 24, 20), (40, 30))
        wanted["train" if is_train else "test"].append(Wanted(f"images/{name}", labels, box, size))
    for table, text in tables.items():
        lines(data / table, text)
    lines(data / "classes.txt", [f"{node} {name}" for node, name in nodes.items()])
    lines(data / "hierarchy.txt", [f"{child} {parent}" for child, parent in hierarchy.items()])
    return wanted


def oxford_iiit_pet(root: Path) -> dict[str, list[Wanted]]:
    rows = [
        ("Abyssinian_100", 1, 1, "train", "RGB"),
        ("american_bulldog_2", 2, 2, "train", "RGBA"),
        ("Abyssinian_5", 1, 1, "test", "P"),
    ]
    wanted: dict[str, list[Wanted]] = {"train": [], "test": []}
    for name, _, species, part, kind in rows:
        photo(root / "images" / f"{name}.jpg", (40, 30), (4, 5, 24, 20), kind)
        mask = np.full((30, 40), 2, np.uint8)
        mask[5:20, 4:24] = 3
        mask[7:18, 6:22] = 1
        (root / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / "annotations" / "trimaps" / f"{name}.png")
        (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"Mac OS X")  # as in the official archive
        labels = {"label": name.rpartition("_")[0], "species": ("Cat", "Dog")[species - 1]}
        wanted[part].append(Wanted(f"images/{name}.jpg", labels, (4, 5, 24, 20), (40, 30)))
    for table, part in (("trainval", "train"), ("test", "test")):
        of = [f"{name} {breed} {species} 1" for name, breed, species, p, _ in rows if p == part]
        lines(root / "annotations" / f"{table}.txt", of)
    lines(root / "annotations" / "list.txt", ["#Image CLASS-ID SPECIES BREED ID"])
    return wanted


def inat2021(root: Path, train: str = "train") -> dict[str, list[Wanted]]:
    taxa = [
        ("Turdus merula", "Turdus", "Birds"),
        ("Turdus pilaris", "Turdus", "Birds"),
        ("Bellis perennis", "Bellis", "Plants"),
    ]
    categories = []
    for number, (name, genus, group) in enumerate(taxa):
        kingdom = "Plantae" if group == "Plants" else "Animalia"
        row = {"id": number, "name": name, "common_name": "", "supercategory": group, "kingdom": kingdom}
        row |= {"phylum": "P", "class": "C", "order": "O", "family": "F", "genus": genus, "specific_epithet": name}
        categories.append(row | {"image_dir_name": f"{number:05d}_{name.replace(' ', '_')}"})
    wanted: dict[str, list[Wanted]] = {"train": [], "test": []}
    for part, folder, of in (("train", train, (2, 0, 1, 0)), ("test", "val", (0, 2))):
        images, annotations = [], []
        for number, category in enumerate(of):
            name = f"{folder}/{categories[category]['image_dir_name']}/{part}{number}.jpg"
            photo(root / name, (40, 30), (4, 5, 24, 20))
            images.append({"id": 100 + number, "width": 40, "height": 30, "file_name": name, "latitude": float("nan")})
            annotations.insert(0, {"id": number, "image_id": 100 + number, "category_id": category})
            labels = {"species": taxa[category][0], "genus": taxa[category][1], "supercategory": taxa[category][2]}
            wanted[part].append(Wanted(name, labels, None, (40, 30)))
        table = {"info": {}, "images": images, "categories": categories, "annotations": annotations}
        (root / f"{folder}.json").write_text(json.dumps(table))
    return wanted


def inat2021_mini(root: Path) -> dict[str, list[Wanted]]:
    return inat2021(root, "train_mini")


def pack(root: Path, path: Path, *, only: tuple[str, ...] = ("",), under: str = "") -> Path:
    """An archive of what below `root` begins with one of `only`, its names below `under`."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    names = {file: str(file.relative_to(root)) for file in files}
    chosen = [file for file in files if names[file].startswith(only)]
    assert chosen
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for file in chosen:
                zipped.write(file, under + names[file])
    else:
        with tarfile.open(path, "w:" if path.suffix == ".tar" else "w:gz") as tarred:
            for file in chosen:
                tarred.add(file, under + names[file])
    return path


# Data set -> its layouts; and the archives it comes in, each with what is in it.
LAYOUTS = {
    "fgvc_aircraft": fgvc_aircraft,
    "stanford_cars": stanford_cars,
    "stanford_dogs": stanford_dogs,
    "nabirds": nabirds,
    "oxford_iiit_pet": oxford_iiit_pet,
    "inat2021": inat2021,
    "inat2021_mini": inat2021_mini,
}
ARCHIVES = {
    "fgvc_aircraft": {"fgvc-aircraft-2013b.tar.gz": ("fgvc-aircraft-2013b/",)},
    "stanford_cars": {
        "cars_train.tgz": ("cars_train/",),
        "cars_test.tgz": ("cars_test/",),
        "car_devkit.tgz": ("devkit/",),
    },
    "stanford_dogs": {
        "images.tar": ("Images/",),
        "annotation.tar": ("Annotation/",),
        "lists.tar": ("train_list.mat", "test_list.mat"),
    },
    "nabirds": {"nabirds.tar.gz": ("nabirds/",)},
    "oxford_iiit_pet": {"images.tar.gz": ("images/",), "annotations.tar.gz": ("annotations/",)},
    "inat2021": {
        "train.tar.gz": ("train/",),
        "val.tar.gz": ("val/",),
        "train.json.tar.gz": ("train.json",),
        "val.json.tar.gz": ("val.json",),
    },
    "inat2021_mini": {
        "train_mini.tar.gz": ("train_mini/",),
        "val.tar.gz": ("val/",),
        "train_mini.json.tar.gz": ("train_mini.json",),
        "val.json.tar.gz": ("val.json",),
    },
}
