"""The cases of `benchmarks/crop.py` at sizes that fill a chip, each over the floor that the bytes it moves give.

The floor: what lies under the boxes is read once and the views are written once; with gradients the views' cotangent
is read, and where an image gradient is wanted it is written, all of it. At the rate of the machine's own large copy.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks import crop as crops
from benchmarks import timing
from benchmarks.accelerator.common import Line, Setting, Unit, in_turn, number, one_line
from benchmarks.crop import Case

SIDES = "U(0.4, 1)"
BATCH = 64
# Of worth first; uint8 is what training crops.
CASES = {
    "448_to_448": Case("448 to 448", 448, 448, 3, BATCH, SIDES),
    "1024_to_448": Case("1024 to 448, antialias", 1024, 448, 3, BATCH, SIDES, antialias=True),
    "256_to_128": Case("256 to 128", 256, 128, 3, BATCH, SIDES),
    "56_to_14": Case("56 to 14, 256 channels", 56, 14, 256, BATCH, SIDES),
    "448_to_448_uint8": Case("448 to 448, uint8", 448, 448, 3, BATCH, SIDES, uint8=True),
    "1024_to_448_uint8": Case("1024 to 448, antialias, uint8", 1024, 448, 3, BATCH, SIDES, antialias=True, uint8=True),
}
REHEARSAL = {"pixels": 8, "batch": 32}  # divided by these


def units(setting: Setting) -> dict[str, Unit]:
    """Every case, forward, with the box's gradient and with both."""
    cases = CASES
    if setting.rehearse:
        divided = {
            name: case._replace(
                pixels=case.pixels // REHEARSAL["pixels"],
                outputs=max(case.outputs // REHEARSAL["pixels"], 4),
                channels=min(case.channels, 16),
                batch=case.batch // REHEARSAL["batch"],
            )
            for name, case in cases.items()
        }
        cases = {name: divided[name] for name in ("448_to_448", "1024_to_448", "56_to_14", "448_to_448_uint8")}
    return {
        f"{name}/{mode.replace(' ', '_')}": partial(measure, setting, case, mode)
        for name, case in cases.items()
        for mode in crops.MODES
        if not (case.uint8 and mode.startswith("image"))
    }


def implementations(case: Case, mode: str) -> Iterator[tuple[str, crops.Build]]:
    """Each by name, not built yet. PyTorch's has no antialiased crop, and float images."""
    yield from crops.implementations(case, mode)
    if case.antialias or case.uint8:
        return
    if crops.torch is None:
        raise ModuleNotFoundError("PyTorch is not installed: the crops of jax are not compared with it")
    device = "cuda" if crops.torch.cuda.is_available() else "cpu"
    eager = partial(crops.in_torch, case, mode, device=device)
    for last in (False, True):
        yield f"torch grid_sample, channels {'last' if last else 'first'}", partial(eager, channels_last=last)
    # The layout that suits the case; compiling takes longer than all the rest.
    last = case.channels > 3
    name = f"torch.compile grid_sample, channels {'last' if last else 'first'}"
    yield name, partial(eager, channels_last=last, compiled=True)


def measure(setting: Setting, case: Case, mode: str) -> Iterator[Line]:
    """Milliseconds of every implementation, timed in turn; one that fails has a line that says how."""
    works: dict[str, timing.Work] = {}
    told = {"case": case.name, "mode": mode, "batch": case.batch, "pixels": case.pixels, "outputs": case.outputs}
    found = implementations(case, mode)
    while True:
        name = "torch"
        try:
            name, build = next(found)
            work = build()
            work()
            works[name] = work
        except StopIteration:
            break
        except Exception as error:
            yield {**told, "implementation": name, "error": one_line(error)}
    floor = bytes_moved(case, mode) / setting.copy_rate * 1000.0 if setting.copy_rate else None
    repeats = 3 if setting.rehearse else 15
    for name, figures in timing.summary(in_turn(works, repeats), "ours, auto").items():
        yield {
            **told,
            "implementation": name,
            **{key: number(value) for key, value in figures.items()},
            "floor_ms": floor and number(floor),
            "over_floor": floor and number(figures["milliseconds"] / floor, 3),
            "temp_mib": works[name].temp_mib and round(works[name].temp_mib, 1),
        }


def bytes_moved(case: Case, mode: str) -> float:
    """The fewest that the case can do with."""
    boxes = crops.boxes_of(case)
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    # Two taps for each output are not all of a box that is more than twice as large.
    rows = sides if case.antialias else np.minimum(sides, 2.0 * case.outputs / case.pixels)
    image = case.pixels**2 * case.channels * (1 if case.uint8 else 4)
    views = case.batch * case.outputs**2 * case.channels * 4
    moved = image * float(np.sum(np.prod(rows, axis=-1))) + views
    return moved + case.batch * image if mode.startswith("image") else moved
