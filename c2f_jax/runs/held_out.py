"""`test_part.json`: which photos a run set aside for its test, so that an evaluation cannot take others for them.

And which it learns from: a run that goes on may have been taught by a table of those.
"""

import json
from pathlib import Path
from typing import Any

from c2f_jax import program, storage
from c2f_jax.data.photos import Photos
from c2f_jax.data.sources import Splits
from c2f_jax.errors import UserError
from c2f_jax.runs.workdir import check_class_names, read_class_names, read_config, resolved, write_json

FILE = "test_part.json"


def remember_parts(workdir: Path, splits: Splits, training: str | None) -> None:
    """Writes the file, where the test part is photos of the user's. training: digest of what is trained on."""
    if (of := _told(splits)) is not None:
        write_json(workdir / FILE, {**of, "training": training})


def other_training_part(workdir: Path, training: str | None) -> bool:
    """Whether a run that goes on began with other training photos; False where nobody knows."""
    before = _stored(workdir).get("training")
    return None not in (before, training) and before != training


def changed_parts(workdir: Path, splits: Splits, training: str | None) -> str:
    """A line if a run that goes on would be tested or trained on other photos than it began with, or "" if nobody
    knows."""
    of, stored = _told(splits), _stored(workdir)
    if of is None or not stored:
        return ""
    if _differ(stored, of):
        return (
            f"the photos have changed since this run began: its test part is of {of['images']} images now, of "
            f"{stored.get('images')} then, and some may have been trained on, so that figures may flatter; give a new "
            "--workdir, or the photos as they were"
        )
    if other_training_part(workdir, training):
        return "the training photos have changed since this run began: it goes on with those that are there now"
    return ""


def check_test_part(workdir: Path, config: Any, splits: Splits) -> str:
    """Refuses `splits` unless they are those of the run in `workdir`, at their old place or another.

    Returns:
        A line to tell, or "": a run of an earlier version has not written which its photos were.

    Raises:
        UserError: if they are others.
    """
    there, here = read_config(workdir).dataset, config.dataset
    moved = here.name != there.name or resolved(here.path) != resolved(there.path)
    images = program.flag("images", here.path) if moved and here.path else "--images=DIR"
    remedy = (
        f"to measure all labelled photos of a folder or table: --mode=eval {program.flag('workdir', workdir)} {images}"
    )
    if moved and read_class_names(workdir) != splits.class_names:
        raise UserError(f"dataset.path: {here.path} holds other classes than {workdir} was trained on; {remedy}")
    check_class_names(workdir, splits.class_names)
    of = _told(splits)
    if of is None:
        return ""
    if not storage.exists(workdir / FILE):
        return (
            f"{workdir} does not say which photos it was trained on (an earlier version's does not): if {here.path} "
            f"holds others, its {of['images']} test images are some of them; {remedy}"
            if moved
            else ""
        )
    try:
        stored = json.loads(storage.read_text(workdir / FILE))
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir / FILE} cannot be read ({error}); restore it; or, {remedy}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{workdir / FILE} holds no object; restore it; or, {remedy}")
    if _differ(stored, of):
        what = f"{here.path} holds other photos" if moved else f"the photos in {here.path} are no longer those"
        raise UserError(
            f"dataset.path: {what} than {workdir} was tested on ({stored.get('images')} images then, {of['images']} "
            f"here): split anew, trained ones would be among them; {remedy}"
        )
    return ""


def _stored(workdir: Path) -> dict[str, Any]:
    """What the file holds; {} where it holds nothing that can be read."""
    try:
        stored = json.loads(storage.read_text(workdir / FILE))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _differ(stored: dict[str, Any], of: dict[str, Any]) -> bool:
    """Whether they tell of other photos; `content` came later than the others."""
    return any(stored.get(key, of[key] if key == "content" else None) != of[key] for key in of)


def _told(splits: Splits) -> dict[str, Any] | None:
    test = splits.test
    if not isinstance(test, Photos):
        return None
    return {"images": len(test), "digest": test.digest, "content": test.content}
