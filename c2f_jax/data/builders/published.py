"""The data sets that people publish figures on, by their names: found or fetched, prepared, opened."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from c2f_jax import storage
from c2f_jax.data.builders import (
    cub200_2011,
    fgvc_aircraft,
    inat2021,
    nabirds,
    oxford_iiit_pet,
    records,
    stanford_cars,
    stanford_dogs,
)
from c2f_jax.data.builders.fetch import Track, fetch, untracked
from c2f_jax.data.builders.files import Files, open_files
from c2f_jax.data.builders.layout import Dataset
from c2f_jax.data.builders.records import Records
from c2f_jax.errors import UserError

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *(cub200_2011.DATASET, fgvc_aircraft.DATASET, inat2021.FULL, inat2021.MINI, nabirds.DATASET),
        *(oxford_iiit_pet.DATASET, stanford_cars.DATASET, stanford_dogs.DATASET),
    )
}


class Loaded(NamedTuple):
    """The parts of a data set, its classes, and lines to tell the user once."""

    train: Records
    test: Records
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def load(
    name: str,
    path: str,
    *,
    cache_dir: str,
    level: str = "",
    min_side: int | None = None,
    track: Track = untracked,
) -> Loaded:
    """The data set called `name`; prepares it if that has not been done.

    Args:
        name: one of `DATASETS`.
        path: an official archive (or another tar or zip in its layout), the unpacked folder, or a folder of archives;
            empty: fetched.
        cache_dir: what is prepared or fetched lies below it.
        level: of its labels; empty: the finest.
        min_side: pixels that the shorter side of a photo will be reduced to; None if it will not.
        track: shows the progress.

    Raises:
        UserError: if the data cannot be had, or are not whole.
    """
    dataset = DATASETS[name]
    chosen = level_of(dataset, level)
    cache = storage.as_path("dataset.cache_dir", cache_dir, remote=False)
    try:
        with one_at_a_time(cache / f"{name}.lock"):
            place = storage.as_path("dataset.path", path, remote=False) if path else _fetched(dataset, cache, track)
            files = _opened(dataset, place)
            folder = _folder(cache / name, dataset, files)
            if not records.is_whole(folder):
                records.prepare(dataset, files, folder, track)
        train, test = (Records(folder, dataset, part, chosen, min_side) for part in ("train", "test"))
    except OSError as error:
        raise UserError(
            f"{error.filename or cache}: {error.strerror or error}; prepared data go to dataset.cache_dir, "
            "choose another with --config.dataset.cache_dir=DIR"
        ) from error
    class_names = records.class_names(folder, dataset.levels[chosen])
    return Loaded(train, test, class_names, _compared(dataset, train, test, len(class_names), chosen))


def _folder(cache: Path, dataset: Dataset, files: Files) -> Path:
    """Where they are prepared; tables whose photos are no more there, where these were prepared last."""
    of_tables, of_files = files.key(dataset.tables, dataset.folders)
    if not of_files and any(files.places(name) for name in dataset.tables):
        found = [place for place in cache.glob(f"{of_tables}-*/{records.VERSION}") if records.is_whole(place)]
        if found:
            return max(found, key=lambda place: place.stat().st_mtime)
    return cache / f"{of_tables}-{of_files}" / records.VERSION


def counts(name: str, level: str) -> Mapping[str, int]:
    """What is published of the images, and of the classes at that level, if anything is."""
    dataset = DATASETS[name]
    if level_of(dataset, level) == 0:
        return dataset.counts
    return {what: count for what, count in dataset.counts.items() if what != "classes"}


def level_of(dataset: Dataset, level: str) -> int:
    """Its position among the levels; empty: the first, which is called "label", too."""
    if level in ("", "label"):
        return 0
    if level not in dataset.levels:
        levels = ", ".join(dataset.levels)
        raise UserError(f"dataset.fields: the labels of {dataset.name} are {levels}; got label={level}")
    return dataset.levels.index(level)


def _compared(dataset: Dataset, train: Records, test: Records, classes: int, level: int) -> tuple[str, ...]:
    """A line if there are not as many images or classes as are published, and of each part that lacks boxes."""
    boxless = tuple(
        f"{part.boxless} of {len(part)} images of the {name} part have no box, or none within the photo: "
        "its boxes are not used"
        for name, part in (("train", train), ("test", test))
        if 0 < part.boxless < len(part)
    )
    found = {"train": len(train), "test": len(test)} | ({"classes": classes} if level == 0 else {})
    published = dataset.counts
    differing = [f"{found[name]} {name} of {published[name]}" for name in found if found[name] != published[name]]
    if not differing:
        return boxless
    return (f"not all of {dataset.title} as it is published, or more: {', '.join(differing)}", *boxless)


def _opened(dataset: Dataset, place: Path) -> Files:
    photos = [name for name, archive in zip(dataset.known, dataset.archives, strict=True) if archive.photos]
    return open_files(
        place,
        known=dataset.known,
        tables=dataset.members,
        names=dataset.tables,
        photos=photos,
        optional=dataset.optional,
        how=dataset.how,
    )


def _fetched(dataset: Dataset, cache: Path, track: Track) -> Path:
    """The official archives, from the cache or the network: the only one, or the folder that holds them."""
    unreachable = [archive.name for archive in dataset.needed if not archive.url]
    if unreachable:
        raise UserError(
            f"{dataset.title} is not to be fetched without being asked for, or no longer: see {dataset.homepage}; then "
            f"give {dataset.how}"
        )
    folder = cache / "downloads"
    if len(dataset.needed) == 1:
        return fetch(dataset.needed[0], folder, title=dataset.title, how=dataset.how, track=track)
    for archive in dataset.needed:
        fetch(archive, folder / dataset.name, title=dataset.title, how=dataset.how, track=track)
    return folder / dataset.name


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Lets the processes of one machine, or of one shared folder, prepare in turn."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
