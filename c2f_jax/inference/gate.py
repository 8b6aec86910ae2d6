"""One look at every image, and a second one only where that is wanted: the two halves of a prediction as programs."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from c2f_jax.data.pipeline import ImageFile
from c2f_jax.evaluation.fusion import Fusion, calibrated
from c2f_jax.kernels import compose, ordered
from c2f_jax.models.two_looks import attention_over_image, central_boxes, log_probabilities, look, two_looks
from c2f_jax.training.losses import Task

HEAT_SIZE = 64
AHEAD = 8  # batches of images that wait, in their order, for one that is looked at again with others

Batch = dict[str, np.ndarray]
Said = dict[str, np.ndarray]


def first_look(
    task: Task, fusion: Fusion | None, params: Any, batch_stats: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Pure: `image` uint8 [B, R, R, 3] and `window` [B, 4] -> what the first look alone says of each image.

    Probabilities [B, C] `coarse` and, with a fusion, `calibrated`; `attention` [B, HEAT_SIZE, HEAT_SIZE], where there
    is some; and where there is a second look `region` [B, 4], where it would look, in the raw image's coordinates.
    """
    image = batch["image"]
    looks = two_looks(
        task.network,
        params,
        batch_stats,
        image,
        central_boxes(jnp.full((image.shape[0], 2), task.test_side)),
        region=None,
        view_size=task.view_size,
        fine_size=task.fine_size,
        prepare=task.normalise,
        train=False,
    )
    seen = looks["coarse"]
    scores = log_probabilities(looks)
    if fusion is not None:
        scores["calibrated"] = calibrated(scores, fusion)
    said = {view: jnp.exp(values) for view, values in scores.items()}
    if "attention_maps" in seen.out:
        said["attention"] = attention_over_image(seen._replace(box=compose(batch["window"], seen.box)), HEAT_SIZE)
    if task.test_region is not None:
        said["region"] = task.test_region(seen.out, seen.box)
    return said


def second_look(
    task: Task, fusion: Fusion | None, params: Any, batch_stats: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Pure: `image`, `window` as above, `region` [B, 4] and `coarse` [B, C] of `first_look` -> what is said then.

    Probabilities [B, C] `fine`, `fused` and, with a fusion, `calibrated`; `box` [B, 4] in fractions of the photo.
    """
    fine = look(
        task.network,
        params,
        batch_stats["fine"],
        batch["image"],
        batch["region"],
        view_size=task.fine_size,
        prepare=task.normalise,
        train=False,
    )
    scores = {"coarse": jnp.log(batch["coarse"]), "fine": jax.nn.log_softmax(fine.logits, axis=-1)}
    scores["fused"] = jnp.logaddexp(scores["coarse"], scores["fine"]) - jnp.log(2.0)
    if fusion is not None:
        scores["calibrated"] = calibrated(scores, fusion)
    said = {view: jnp.exp(values) for view, values in scores.items() if view != "coarse"}
    return {**said, "box": jnp.clip(ordered(compose(batch["window"], fine.box)), 0.0, 1.0)}


class _Waiting(NamedTuple):
    """An image of which all is said, or that waits for its second look; `more` is what that says, put in later."""

    file: ImageFile
    said: Said
    more: list[Said]
    again: bool


def gated(
    batches: Iterator[tuple[list[ImageFile], Batch]],
    first: Callable[[Batch], Said],
    second: Callable[[Batch], Said],
    gate: float,
    size: int,
) -> Iterator[tuple[ImageFile, Said]]:
    """Each image, in order, by one look or, where that is less sure than `gate`, by two.

    Those to be looked at again are gathered until they fill a batch, or until `AHEAD` batches wait for them.

    Args:
        batches: (files, images and windows as of `Model.batches`).
        first, second: the programs above, from a batch of `size` on the host to what is said, on the host.
        gate: probability of the first answer's best class, calibrated where it can be.
        size: of the batches.
    """
    waiting: deque[_Waiting] = deque()
    unsure: list[tuple[_Waiting, Batch]] = []

    def look_again() -> None:
        chosen = unsure[:size]
        del unsure[:size]
        if chosen:
            filled = [one for _, one in chosen] + [chosen[0][1]] * (size - len(chosen))
            said = second({name: np.stack([one[name] for one in filled]) for name in filled[0]})
            for i, (image, _) in enumerate(chosen):
                image.more.append({name: value[i] for name, value in said.items()})

    for files, batch in batches:
        said = first(batch)
        sure = said.get("calibrated", said["coarse"]).max(axis=-1)
        for i, file in enumerate(files):
            again = file.error is None and bool(sure[i] < gate)
            image = _Waiting(file._replace(image=None), {name: value[i] for name, value in said.items()}, [], again)
            waiting.append(image)
            if again:
                # Copies, for a part of a batch would keep all of it.
                kept = {name: np.array(batch[name][i]) for name in ("image", "window")}
                unsure.append((image, kept | {name: image.said[name] for name in ("region", "coarse")}))
        while len(unsure) >= size or (unsure and len(waiting) > AHEAD * size):
            look_again()
        yield from _done(waiting)
    look_again()
    yield from _done(waiting)


def _done(waiting: deque[_Waiting]) -> Iterator[tuple[ImageFile, Said]]:
    while waiting and (waiting[0].more or not waiting[0].again):
        image = waiting.popleft()
        yield image.file, image.said | (image.more[0] if image.more else {})
