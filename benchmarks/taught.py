"""Does a second look that labels have taught pay? Rows of circuit boards and of birds, a JSON line each; their table.

    python -m benchmarks.taught run boards --data DIR --weights FILE --runs DIR [--only NAME ...] [--seeds 0]
    python -m benchmarks.taught run boards_twice --data DIR --weights FILE --runs DIR [--only NAME ...] [--seeds 0]
    python -m benchmarks.taught run birds --data DIR --weights FILE --runs DIR [--only NAME ...] [--seeds 0]
    python -m benchmarks.taught report

Boards: DeepPCB by `configs/deep_pcb.py`, and for twice its epochs; birds: CUB-50 by `configs/cub50_taught.py`; DIR and
FILE as for these. A run goes on where it stopped; rows that are in `benchmarks/results/taught.jsonl` are not run again.
`report` prints the tables in docs/findings.md from the lines alone, and what share of the oracle's gain is reached.

Accuracies are of the official test part, after training on the same images; differences are between the same test
images, resampled by whole boards. `loss`: of what the row answers by where it looks itself, its only look or both.
`inside`: the share of second looks that hold what is annotated, the middle of the defect or of the bird's head, and how
often both looks are right there and elsewhere; of boards also its share in the four groups that no training image is
of. At the annotated place the same network is asked again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import lines
from benchmarks.ablation_row import source_state
from benchmarks.lines import pack, unpack
from benchmarks.over_seeds import Difference, between, compare, mean_sd, table
from c2f_jax.cli import keep_compiled
from c2f_jax.data.deep_pcb import load
from c2f_jax.evaluation.classification import rank
from c2f_jax.kernels import compose, contains, invert
from c2f_jax.memory import restart_with_huge_pages
from c2f_jax.models.two_looks import central_boxes, log_probabilities, look, square_at
from c2f_jax.runs import loop
from c2f_jax.runs.build import Run, build
from c2f_jax.runs.checkpoint import read_latest
from c2f_jax.runs.input_values import with_input_values
from c2f_jax.training import losses
from c2f_jax.training.augment import REGION, stream
from c2f_jax.training.steps import predict
from configs import cub50_taught, deep_pcb

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "taught.jsonl"
HEAD = (1, 4, 5, 6, 9, 10, 14)  # beak, crown, forehead, left eye, nape, right eye, throat, of CUB's 15 parts
UNTAUGHT: dict[str, Any] = {"region.teach": 0.0, "region.box_gradient": "none"}
ORACLE = "oracle"  # second looks at the annotated places in training, and to be asked there
FIXED = "fixed"  # second looks at one place of every view, the one at which most annotated places are inside
CENTRE = "centre"  # second looks at the middle of every view
SHUFFLED = "shuffled"  # second looks where the network would look in other photos
# What two looks of 160 and 112 px cost in tests.
ONE_BOARD: dict[str, Any] = {**UNTAUGHT, "method": "attention", "model.view_size": 192}


class Subject(NamedTuple):
    """What is looked at.

    Attributes:
        config: of the row "taught".
        rows: name -> overrides.
        place: example or batch -> (y, x) [..., 2] in the photo that a second look should hold, and whether it is known.
        group: of an example's group, the one whose like training may have seen; None where there are no groups.
        base: the row above which the oracle's gain is counted, of which the taught one has a share.
    """

    config: Callable[[], Any]
    rows: Mapping[str, Mapping[str, Any]]
    place: Callable[[Any], tuple[Any, Any]]
    group: Callable[[str], str] | None
    base: str


def defect(example: Any) -> tuple[Any, Any]:
    """The middle of the annotated box, which every example has."""
    box = example["box"]
    return 0.5 * (box[..., :2] + box[..., 2:]), box[..., 2] >= box[..., 0]


def head(example: Any) -> tuple[Any, Any]:
    """The mean of the head's visible parts."""
    seen = example["part_visible"][..., HEAD]
    count = seen.sum(-1)
    return (example["parts"][..., HEAD, :] * seen[..., None]).sum(-2) / (count + (count == 0))[..., None], count > 0


def alike(group: str) -> str:
    """Boards that look alike: the first folder of the photo's path."""
    return group.split("/")[0]


SUBJECTS = {
    "boards": Subject(
        deep_pcb.get_config,
        {
            "taught": {},
            # Trained for nearly as long as the taught row and its table take.
            "one_look": {**ONE_BOARD, "stages.coarse_epochs": 5.5},
            ORACLE: UNTAUGHT,
        },
        defect,
        alike,
        "one_look",
    ),
    "boards_twice": Subject(
        deep_pcb.get_config,
        {
            "taught": {"stages.coarse_epochs": 6.0, "stages.fine_epochs": 4.0},
            "one_look": {**ONE_BOARD, "stages.coarse_epochs": 11.0},
        },
        defect,
        alike,
        "one_look",
    ),
    "birds": Subject(
        cub50_taught.get_config,
        {
            "taught": {},
            # The same work divided otherwise between the two looks.
            "larger_first": {"model.view_size": 144, "region.view_size": 104},
            "untaught": UNTAUGHT,
            # For nearly as long as the taught row and its table take.
            "untaught_longer": {**UNTAUGHT, "stages.coarse_epochs": 3.0, "stages.fine_epochs": 19.0},
            "one_look": {
                **UNTAUGHT,
                **{"method": "attention", "model.view_size": 176, "stages.coarse_epochs": 18.0, "region.side": 0.0},
            },
            ORACLE: UNTAUGHT,
            FIXED: UNTAUGHT,
            CENTRE: UNTAUGHT,
            SHUFFLED: UNTAUGHT,
            "channel_drop": {"model.channel_drop": 0.05},  # the share that its authors' program has for this measure
        },
        head,
        None,
        FIXED,
    ),
}


def annotated_squares(
    batch: dict[str, jax.Array],
    out: dict[str, jax.Array],
    view: jax.Array,
    *,
    place: Callable[[Any], tuple[Any, Any]],
    side: float,
    shift: jax.Array | float = 0.0,
) -> jax.Array:
    """Squares [B, 4] in raw coordinates around the annotated places; where there is none, at the network's own.

    Args:
        batch: with its annotations.
        out: of the first look at the views [B, 4].
        view: these, in raw coordinates.
        place: see `Subject`.
        side: of the squares, a fraction of the raw image.
        shift: [B, 2], of the places, in sides.
    """
    middle, known = place(batch)
    in_view = compose(invert(compose(batch["window"], view)), jnp.concatenate([middle, middle], axis=-1))[:, :2]
    return square_at(jnp.where(known[:, None], in_view + side * shift, out["place"]), view, side=side)


def shifts(keys: jax.Array) -> jax.Array:
    """How far second looks of training lie from where they are to be, [B, 2] in sides: up to 0.3."""
    return jax.vmap(lambda key: jax.random.uniform(key, (2,), minval=-0.3, maxval=0.3))(stream(keys, REGION))


def oracle_loss(
    *args: Any, place: Callable[[Any], tuple[Any, Any]], side: float, drop_view: bool
) -> tuple[jax.Array, losses.Aux]:
    """`losses.fine_loss`, its second looks at the annotated places, but for `shifts`."""
    *_, batch, _ = args

    def region(keys: jax.Array, out: dict[str, jax.Array], view: jax.Array) -> jax.Array:
        return annotated_squares(batch, out, view, place=place, side=side, shift=shifts(keys))

    loss: tuple[jax.Array, losses.Aux] = losses.fine_loss(*args, region=region, drop_view=drop_view)
    return loss


def _with_fine_loss(run: Run, loss: Any) -> Run:
    return replace(run, stages=tuple(replace(one, loss=loss) if one.name == "fine" else one for one in run.stages))


def build_oracle(config: Any, *, place: Callable[[Any], tuple[Any, Any]]) -> Run:
    """`build`, with second looks at the annotated places in training."""
    loss = partial(oracle_loss, place=place, side=config.region.side, drop_view=config.loss.drop_view)
    return _with_fine_loss(build(config), loss)


def build_fixed(config: Any, *, place: Callable[[Any], tuple[Any, Any]]) -> Run:
    """`build`, with second looks at `fixed_place`, in training but for `shifts`."""
    run = build(config)
    at = fixed_place(_in_views(run, place), side=config.region.side / config.augment.test_side)
    return _looking_at(run, lambda places: jnp.broadcast_to(jnp.asarray(at, jnp.float32), places.shape))


def build_centre(config: Any) -> Run:
    """`build`, with second looks at the middle of the view, in training but for `shifts`."""
    return _looking_at(build(config), lambda places: jnp.full_like(places, 0.5))


def build_shuffled(config: Any) -> Run:
    """`build`, with second looks at other photos' places, in training but for `shifts`."""
    # Tests go through the classes one after the other: half a batch away is none of its own.
    return _looking_at(build(config), lambda places: jnp.roll(places, len(places) // 2, axis=0))


def _looking_at(run: Run, places_of: Callable[[jax.Array], jax.Array]) -> Run:
    """With second looks at `places_of` the network's own, (y, x) [B, 2] in the views."""
    side, view_side = run.config.region.side, run.config.augment.test_side

    def region(keys: jax.Array, out: dict[str, jax.Array], view: jax.Array) -> jax.Array:
        return square_at(places_of(out["place"]) + side / view_side * shifts(keys), view, side=side)

    def test_region(out: dict[str, jax.Array], view: jax.Array) -> jax.Array:
        return square_at(places_of(out["place"]), view, side=side)

    loss = partial(losses.fine_loss, region=region, drop_view=run.config.loss.drop_view)
    return _with_fine_loss(replace(run, task=replace(run.task, test_region=test_region)), loss)


def _in_views(run: Run, place: Callable[[Any], tuple[Any, Any]]) -> np.ndarray:
    """The training photos' annotated places (y, x) [N, 2] in the views that tests would have of them."""
    found = []
    for batch in run.evaluation_batches(run.splits.train):
        middle, known = place(batch)
        view = compose(batch["window"], central_boxes(jnp.full((len(middle), 2), run.task.test_side)))
        in_view = compose(invert(view), jnp.concatenate([middle, middle], axis=-1))[:, :2]
        found.append(np.asarray(in_view)[np.asarray(known & (batch["mask"] > 0))])
    return np.concatenate(found)


def fixed_place(places: np.ndarray, *, side: float, grid: int = 41) -> np.ndarray:
    """The middle (y, x) of the square of `side` that holds most of `places` [N, 2]; of several, the mean."""
    ticks = np.linspace(0.5 * side, 1.0 - 0.5 * side, grid)
    middles = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    held = (np.abs(places - middles) <= 0.5 * side).all(-1).sum(-1)
    return np.asarray(middles[held == held.max(), 0].mean(0))


def measure(run: Run, model: dict[str, Any], place: Callable[[Any], tuple[Any, Any]]) -> dict[str, Any]:
    """Of the test part: what was right by each view under "own" and "annotated" regions, and what held the place."""
    task, side = run.task, run.config.region.side

    @jax.jit
    def looked(batch: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        middle, known = place(batch)
        coarse = predict(replace(task, test_region=None), model["params"], model["batch_stats"], batch)["coarse"]
        view = compose(invert(batch["window"]), coarse.box)
        boxes = {"own": task.test_region(coarse.out, view)}
        if side:
            boxes["annotated"] = annotated_squares(batch, coarse.out, view, place=place, side=side)
        found = {}
        for name, box in boxes.items():
            shown: dict[str, Any] = {"view_size": task.fine_size, "prepare": task.normalise, "train": False}
            fine = look(task.network, model["params"], model["batch_stats"]["fine"], batch["image"], box, **shown)
            views = log_probabilities({"coarse": coarse, "fine": fine})
            inside = contains(compose(batch["window"], box), middle[:, None])[:, 0] & known
            found[name] = {view: rank(values, batch["label"]) < 1 for view, values in views.items()}
            found[name] |= {"inside": inside, "known": known}
        return found

    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for batch in run.evaluation_batches(run.splits.test):
        counted = np.asarray(batch["mask"]) > 0
        for name, views in looked(batch).items():
            for view, right in views.items():
                found.setdefault(name, {}).setdefault(view, []).append(np.asarray(right)[counted])
    return {name: {view: pack(np.concatenate(right)) for view, right in views.items()} for name, views in found.items()}


def train_and_measure(subject: str, name: str, seed: int, *, data: str, weights: str, runs: Path) -> dict[str, Any]:
    """Trains the row in `runs`, or goes on; its line."""
    config_of, rows, place, group, _ = SUBJECTS[subject]
    config = config_of()
    config.update_from_flattened_dict({**rows[name], "seed": seed})
    config.update_from_flattened_dict({"dataset.path": data, "model.pretrained": weights})
    keep_compiled(config.compilation_cache)
    source, config = source_state(ROOT), with_input_values(config)
    # The loop builds runs from configs, and no config tells what is annotated.
    building: dict[str, Callable[[Any], Run]] = {
        ORACLE: partial(build_oracle, place=place),
        FIXED: partial(build_fixed, place=place),
        CENTRE: build_centre,
        SHUFFLED: build_shuffled,
    }
    loop.build = building.get(name, build)
    run: Any = loop.build(config)  # whose sources may have groups
    workdir = runs / f"{subject}-{name}-seed{seed}"
    results = loop.train_and_evaluate(config, workdir)
    _, model = read_latest(workdir, run.abstract_model)
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in log if line["split"] == "train"][-10:]
    accuracies = {key for key in last[0] if key.endswith("top_1_accuracy")}
    test = run.splits.test
    groups = getattr(test, "groups", None) or [str(number) for number in range(len(test))]
    known = {group(one) for one in load(data, cache_dir=config.dataset.cache_dir)[0].groups} if group else set()
    return {
        **{"subject": subject, "name": name, "seed": seed, "overrides": rows[name], **source, **loop.environment()},
        **{key: results[key] for key in ("train_seconds", "seconds", "step")},
        "view_sizes": [run.task.view_size, run.task.fine_size],
        "training": {key: float(np.mean([line[key] for line in last])) for key in sorted(accuracies)},
        "metrics": {key: value for key, value in results.items() if "/" in key},
        "regions": measure(run, model, place),
        "groups": np.unique(groups, return_inverse=True)[1].tolist(),
        "new": pack(np.array([group(one) not in known for one in groups])) if group else None,
    }


def report(records: Sequence[dict[str, Any]]) -> None:
    """Prints each subject's table of rows, differences of the taught one from the others on the seeds of both, and its
    share of the oracle's gain on the seeds of all three."""
    for subject, (_, names, _, group, base) in SUBJECTS.items():
        rows: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
        for one in sorted((one for one in records if one["subject"] == subject), key=lambda one: one["seed"]):
            rows[one["name"]][one["seed"]] = one
        columns = ["row", "seeds", "training", "first look", "second", "both", "at the place", "inside"]
        columns += ["both there / elsewhere", *(["new boards"] if group else []), "loss", "minutes"]
        lines_of = [
            [name, _listed(by_seed), *_cells(list(by_seed.values()))] for name, by_seed in rows.items() if by_seed
        ]
        print("\n".join([f"\n{subject}\n", *table(columns, lines_of)]), end="")
        for name, by_seed in rows.items():
            seeds = sorted(rows["taught"].keys() & by_seed.keys()) if name != "taught" else []
            if not seeds:
                continue
            gains, sizes = _gains_at(seeds, rows["taught"], by_seed)
            _tell(f"{subject}: taught, less {name}", compare(gains, sizes), seeds)
        seeds = sorted(rows["taught"].keys() & rows.get(ORACLE, {}).keys() & rows[base].keys())
        if not seeds:
            continue
        (above, sizes), (room, _) = (_gains_at(seeds, rows[name], rows[base]) for name in ("taught", ORACLE))
        share = np.average(above.mean(0), weights=sizes) / np.average(room.mean(0), weights=sizes)
        what = f"{subject}: taught has {100 * share:.0f} % of what {ORACLE} has above {base}; less half of that"
        _tell(what, compare(above - 0.5 * room, sizes), seeds)


def _tell(what: str, found: Difference, seeds: Sequence[int]) -> None:
    """Prints a difference with its intervals."""
    by = f"{between(found.by_image)}; by seeds {between(found.by_seed)}" if found.by_seed else between(found.by_image)
    print(f"\n{what}: {100 * found.mean:+.1f} ({by}), seeds {_listed(seeds)}")


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _cells(records: Sequence[dict[str, Any]]) -> list[str]:
    """What a table's line says of a row's runs behind its name and seeds: means and standard deviations over seeds."""
    each = zip(*map(_figures, records), strict=True)
    cells = [" / ".join(mean_sd(values, 1, 100.0) for values in zip(*figures, strict=True)) for figures in each]
    loss = mean_sd([record["metrics"][f"{_answer(record)}/loss"] for record in records], 3)
    return [*cells, loss, mean_sd([record["seconds"] / 60 for record in records], 0)]


def _figures(record: dict[str, Any]) -> list[Sequence[float | None]]:
    """Of a run: a column each but for the minutes, of one figure or two; None for what there is none of."""
    count, regions = len(record["groups"]), record["regions"]
    own = {view: unpack(text, count) for view, text in regions["own"].items()}
    there = {view: unpack(text, count) for view, text in regions.get("annotated", {}).items()}
    once = _once(record)

    def of_two_looks(*rights: np.ndarray | None) -> list[float | None]:
        return [None if once or right is None or not right.size else float(right.mean()) for right in rights]

    figures: list[Sequence[float | None]] = [list(record["training"].values()), [float(own["coarse"].mean())]]
    known, inside = own["known"], own["inside"]
    figures += map(of_two_looks, (own["fine"], own["fused"], there.get("fused"), inside[known]))
    figures.append(of_two_looks(own["fused"][known & inside], own["fused"][known & ~inside]))
    if record["new"] is not None:
        figures.append(of_two_looks(inside[unpack(record["new"], count)]))
    return figures


def _once(record: dict[str, Any]) -> bool:
    """Whether it is a row of one look: the second one that it can be shown is none it was trained for."""
    return record["overrides"].get("method") == "attention"


def _answer(record: dict[str, Any]) -> str:
    """The view by which a row answers."""
    return "coarse" if _once(record) else "fused"


def _right(record: dict[str, Any]) -> np.ndarray:
    """Of each image, bool [N]; an oracle is told where to look."""
    region = "annotated" if record["name"] == ORACLE else "own"
    return unpack(record["regions"][region][_answer(record)], len(record["groups"]))


def _gains_at(
    seeds: Sequence[int], ours: Mapping[int, dict[str, Any]], other: Mapping[int, dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """`_gains` at each of the seeds [S, G], and the numbers of the groups' images [G]."""
    gains, sizes = zip(*(_gains(ours[seed], other[seed]) for seed in seeds), strict=True)
    return np.stack(gains), sizes[0]


def _gains(ours: dict[str, Any], other: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """How much more of its images we have right, of each group [G], and the numbers of its images."""
    sizes = np.bincount(ours["groups"])
    return np.bincount(ours["groups"], _right(ours).astype(float) - _right(other)) / sizes, sizes


def main(argv: Sequence[str]) -> None:
    """Runs the command line `argv` (without the program's name)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report", help="print the tables")
    several = commands.add_parser("run", help="train what is missing")
    several.add_argument("subject", choices=SUBJECTS)
    several.add_argument("--data", required=True, help="DeepPCB's or CUB's folder or archive")
    several.add_argument("--weights", required=True, help="ImageNet weights of EfficientNet-Lite0, safetensors")
    several.add_argument("--runs", required=True, type=Path, help="folder for the runs' workdirs")
    several.add_argument("--only", nargs="+", metavar="NAME", help="only these rows")
    several.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args(argv)
    if options.command == "report":
        report(lines.read(RESULTS))
        return
    rows = SUBJECTS[options.subject].rows
    if unknown := set(options.only or ()) - set(rows):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    for seed in options.seeds:
        for name in options.only or rows:
            key = (options.subject, name, seed)
            if key in {(line["subject"], line["name"], line["seed"]) for line in lines.read(RESULTS)}:
                continue
            places = {"data": options.data, "weights": options.weights, "runs": options.runs}
            lines.append(RESULTS, train_and_measure(*key, **places))


if __name__ == "__main__":
    restart_with_huge_pages()
    main(sys.argv[1:])
