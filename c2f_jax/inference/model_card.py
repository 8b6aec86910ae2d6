"""The model card of an exported run: what it is, what it was trained on, how good it is, what it may be used for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2f_jax import storage

FIGURES = {
    "top_1_accuracy": "top-1 accuracy",
    "top_5_accuracy": "top-5 accuracy",
    "mean_per_class_accuracy": "mean per-class accuracy",
    "calibration_error": "calibration error",
    "loss": "loss",
}
VIEWS = {
    "calibrated": "both looks, calibrated: the answer",
    "fused": "both looks, averaged",
    "coarse": "first look",
    "fine": "second look",
}
# By data set: what it is, and what its terms make of a model of it.
DATA = {
    "paper_birds": (
        "Paper birds, drawn by c2f_jax itself: 16 classes of birds on leaves, for demonstrations.",
        "The pictures are made by the program and free of rights of others.",
    ),
    "cub200_2011": (
        "CUB-200-2011 (Wah et al., 2011), or its first classes: photos of North American birds.",
        "The data set is for non-commercial research and education; its photos belong to their authors. Some of its "
        "photos are in ImageNet, so that figures from ImageNet weights are a little flattered.",
    ),
    "fgvc_aircraft": (
        "FGVC-Aircraft (Maji et al., arXiv:1306.5151): photos of aircraft.",
        "The data set is for non-commercial research; its photos belong to their authors.",
    ),
    "inat2021": (
        "iNaturalist 2021 (Van Horn et al., 2021): photos of 10,000 species.",
        "The data set is for non-commercial research and education, and its photos are not to be passed on.",
    ),
    "nabirds": (
        "NABirds (Van Horn et al., 2015): photos of North American birds.",
        "The data set is given to those who accept its terms, at dl.allaboutbirds.org/nabirds.",
    ),
    "oxford_iiit_pet": (
        "Oxford-IIIT Pet (Parkhi et al., 2012): photos of cats and dogs.",
        "The data set is under CC BY-SA 4.0; its photos belong to their authors.",
    ),
    "stanford_cars": (
        "Stanford Cars (Krause et al., 2013): photos of cars.",
        "The terms of its photos, which are from the web, are not known here: see its homepage.",
    ),
    "stanford_dogs": (
        "Stanford Dogs (Khosla et al., 2011): photos of dogs, taken from ImageNet.",
        "Its photos are under ImageNet's terms, for non-commercial research and education. They are in ImageNet, test "
        "photos among them: figures from ImageNet weights are flattered.",
    ),
    "deep_pcb": (
        "DeepPCB (Tang et al., arXiv:1902.06197): bare circuit boards with one of six kinds of defect.",
        "The data set is under the MIT licence.",
    ),
    "folder": (
        "Photos of the owner's own.",
        "The terms under which these photos may be used are known to whoever trained the model: state them here before "
        "you pass it on.",
    ),
}


def model_card(workdir: Path, config: Any, class_names: Sequence[str], step: int) -> str:
    """Markdown, with the front matter that model hubs read; figures are those of the run's `results.json`."""
    results = _results(workdir, step)
    data, terms = _data(config.dataset.name)
    title = _one_line(Path(storage.resolved(workdir)).name)
    two = config.method != "baseline"
    size = f" ({config.region.view_size} px)" if config.region.view_size else ""
    lines = [
        *("---", "library_name: jax", "license: other", "tags:", "- image-classification", "- fine-grained", "---", ""),
        f"# {title}",
        "",
        f"A classifier of photos into {len(class_names)} classes by c2f_jax, method `{config.method}`, "
        f"backbone `{config.model.backbone}`, views of {config.model.view_size} px out of raw images of "
        f"{config.dataset.raw_size} px; step {step}, seed {config.seed}.",
        *([f"It looks twice: attention on the whole image finds where to look again, closer{size}."] if two else []),
        "",
        "## Data",
        "",
        data,
        "",
        "## Figures",
        "",
        *_figures(results),
        "",
        "## Limits",
        "",
        "- It knows its classes only, and says one of them of everything. Photos unlike those of training (another "
        "camera, place, time of the year) may be told less well than the figures say, and its probabilities are "
        "calibrated for photos like those of training.",
        "- The figures are of a test part of the same data, and of one seed; the intervals tell how much other test "
        "images would move them, not another training.",
        "- Where the second look looks is where the network found what helps it, not an annotation of the object.",
        "",
        "## Licence",
        "",
        f"- Weights before training: {_origin(config)}",
        f"- Data: {terms}",
        "- The program that made and reads these files, c2f_jax, is under the Apache License 2.0.",
        "",
        "## Files",
        "",
        "`model.stablehlo` (jax.export), `model.onnx`, `model.safetensors` (weights; the backbone under its published "
        "names) and `model.json` (class names, preprocessing, outputs); how to use them: docs/export.md of c2f_jax.",
        "",
        "## Classes",
        "",
        *(f"- {label}: `{_one_line(name)}`" for label, name in enumerate(class_names)),
    ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """Names may hold anything; a line stays a line, and what is quoted stays quoted."""
    return " ".join(text.split()).replace("`", "'")


def _origin(config: Any) -> str:
    if config.init_from:
        return (
            f"those of another run ({Path(config.init_from).name}); see what that one started from, whose licence goes "
            "on to hold."
        )
    if config.model.pretrained:
        source = config.model.pretrained
        name = source if "://" in source else Path(source).name
        return f"the backbone's are {name}: their licence, and that of what they were trained on, goes on to hold."
    return "none; it was trained from random numbers."


def _data(name: str) -> tuple[str, str]:
    if name.startswith("tfds:"):
        name = name.removeprefix("tfds:")
        return f"{name}, by TensorFlow Datasets.", "Its terms are told at tensorflow.org/datasets/catalog."
    return DATA[name.removesuffix("_mini")]


def _results(workdir: Path, step: int) -> Mapping[str, Any]:
    """The run's results, or nothing where there are none of this step."""
    try:
        results = json.loads(storage.read_text(workdir / "results.json"))
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) and results.get("step") == step else {}


def _figures(results: Mapping[str, Any]) -> list[str]:
    views = [view for view in VIEWS if f"{view}/loss" in results]
    if not views:
        return ["None: the run has not ended."]
    intervals = results.get("intervals", {}).get("of", {})
    titles = [VIEWS[view] if len(views) > 2 else view for view in views]
    lines = [f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(views)]
    for name, title in FIGURES.items():
        cells = [_cell(name, results[f"{view}/{name}"], intervals.get(f"{view}/{name}")) for view in views]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    place = [f"{name.removeprefix('box/').replace('_', ' ')} {results[name]:.3f}" for name in results if "box/" in name]
    return [
        "Of the test part, with 95 % bootstrap intervals over its images" + (":" if intervals else " (none stored):"),
        "",
        *lines,
        *(["", f"The second look's box: {', '.join(place)}."] if place else []),
    ]


def _cell(name: str, value: float, interval: Sequence[float] | None) -> str:
    def shown(number: float) -> str:
        return f"{number:.3f}" if name == "loss" else f"{100 * number:.1f} %"

    return shown(value) + (f" ({shown(interval[0])} to {shown(interval[1])})" if interval else "")
