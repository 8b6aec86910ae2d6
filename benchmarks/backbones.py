"""Compares every backbone at full size with timm's, and writes the tables of docs/backbones.md.

python -m benchmarks.backbones --measure > LINES   # a JSON line each; needs: pip install torch torchvision timm
python -m benchmarks.backbones --measure --only vit_small_patch16
python -m benchmarks.backbones --write             # the tables, from the lines in benchmarks/results

Weights are drawn by name (`tests.models.make_resnet50_golden`), float32; two images, one of an odd size, or of other
patches than the network was made for. `difference` is the largest one between feature maps, as a part of the largest
value.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from c2f_jax.models.backbones import BACKBONES, output_strides, patch_of
from c2f_jax.models.pretrained import load_pretrained
from c2f_jax.models.published import PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
LINES, STEPS, MEMORY = (ROOT / "benchmarks" / "results" / f"{name}.jsonl" for name in ("backbones", "step", "memory"))
DOCS = ROOT / "docs" / "backbones.md"
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def sizes_of(name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of two images; the first is what position embeddings are made for."""
    patch = patch_of(name)
    if patch > 1:
        return (8 * patch, 8 * patch), (6 * patch, 12 * patch)
    return ((139, 139), (107, 171)) if name == "inception_v3" else ((128, 128), (97, 161))


def abstract_variables(backbone: Any, size: tuple[int, int]) -> Any:
    """Shapes of its variables, made for images of that size."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), image)


def parameters_of(name: str) -> int:
    """As many as it has for images of the size that its weights were trained with."""
    rows, patch = PUBLISHED.get(name, ()), patch_of(name)
    size = rows[0].size if rows and patch > 1 else 128
    backbone = BACKBONES[name](dtype=jnp.float32, axis_name=None)
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_variables(backbone, (size, size))["params"]))


def timms_name(name: str) -> str:
    """What timm calls the architecture."""
    published = PUBLISHED[name][0].source.rpartition("/")[2].partition(".")[0]
    return published.replace("clip_224", "clip_quickgelu_224") if name.endswith("quickgelu") else published


def measured(name: str) -> dict[str, Any]:
    """Ours beside timm's."""
    from tests.models.make_backbone_goldens import Case, draw_image, evaluate, timm_model
    from tests.models.make_resnet50_golden import draw_weights

    backbone, sizes = BACKBONES[name](dtype=jnp.float32, axis_name=None), sizes_of(name)
    settings = {"img_size": sizes[0][0], "dynamic_img_size": True, "global_pool": "token"} if patch_of(name) > 1 else {}
    case = Case(backbone, timms_name(name), settings, sizes, "")
    model, shapes = timm_model(case)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file(draw_weights(shapes), file)
        variables = load_pretrained(str(file), name, abstract_variables(backbone, sizes[0]))
    forward = jax.jit(lambda variables, image: backbone.apply(variables, image, train=False))
    differences = []
    for size in sizes:
        image = draw_image(size)
        theirs, _ = evaluate(model, case, image)
        ours = np.asarray(forward.lower(variables, image).compile(QUICKLY)(variables, image))
        differences.append(float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    return {"backbone": name, "timm": case.theirs, "sizes": sizes, "difference": max(differences)}


def _triple(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)


def against_pytorch() -> dict[str, str]:
    """Backbone -> how many times as fast as PyTorch its forward pass and its training step are, by benchmarks.step."""
    found: dict[str, dict[str, float]] = {}
    for line in map(json.loads, STEPS.read_text().splitlines()):
        if line["implementation"] == "ours" and line["work"] in ("forward", "train"):
            found.setdefault(line["backbone"], {})[line["work"]] = line["speed"]
    return {name: f"{speed['forward']:.2f}, {speed['train']:.2f}" for name, speed in found.items()}


MEMORY_SAYS = """
## Memory

MiB that the gradient of one look needs of the backbone, for each photo of a batch: what automatic differentiation
keeps, the same on all devices before their compilers ([lines](../benchmarks/results/memory.jsonl); any other case:
`python -m benchmarks.memory --backbone NAME --view 448 --batch 8`). A step keeps it for each look: 32 photos, three
looks, ViT-B/14 at 448 px in bfloat16 are 64 GiB, and with `model.remat` 6.5. The last column: a whole step in float32
with three looks of 8 photos, parameters and optimiser included, as compiled for a CPU, whose compiler keeps what was to
be computed again (attention's weights, say). None of it was measured on a GPU.
"""


def memory() -> list[str]:
    """The rows of what a look keeps, by benchmarks.memory."""
    rows = [
        "| backbone | view | float32 | with remat | bfloat16 | with remat | compiled step |",
        "|---|---|---|---|---|---|---|",
    ]
    cases: dict[tuple[str, int, int], dict[str, int]] = {}
    for line in map(json.loads, MEMORY.read_text().splitlines()):
        case = cases.setdefault((line["backbone"], line["view"], line["batch"]), {})
        case[f"{line['dtype']} {line['remat']}"] = line["kept_mib"]
        if "step_mib" in line:
            case["step"] = line["state_mib"] + line["step_mib"]
    for (name, view, batch), case in cases.items():
        kept = " | ".join(
            str(round(case[f"{dtype} {remat}"] / batch)) for dtype in ("float32", "bfloat16") for remat in (False, True)
        )
        step = f"{case['step'] / 1024:.1f} GiB" if "step" in case else "not compiled"
        rows.append(f"| `{name}` | {view} px | {kept} | {step} |")
    return rows


def tables() -> str:
    """What stands between the marks in docs/backbones.md."""
    lines = [json.loads(line) for line in LINES.read_text().splitlines()]
    exact = {line["backbone"]: line["difference"] for line in lines}
    speeds = against_pytorch()
    rows = [
        "| backbone | parameters | pixels per feature | differs from timm's by | forward, step | weights |",
        "|---|---|---|---|---|---|",
    ]
    for name in BACKBONES:
        difference = "small form only" if name in PUBLISHED else "ours alone"
        if name in exact:
            difference = f"{exact[name]:.0e}"
        strides = ", ".join(str(stride) for stride in output_strides(name))
        weights, speed = len(PUBLISHED.get(name, ())) or "none", speeds.get(name, "not timed")
        rows.append(f"| `{name}` | {parameters_of(name):,} | {strides} | {difference} | {speed} | {weights} |")
    rows += ["", "| `model.pretrained` | for | licence | images of | mean | std |", "|---|---|---|---|---|---|"]
    for name, published in PUBLISHED.items():
        for row in published:
            values = f"{_triple(row.values.mean)} | {_triple(row.values.std)}"
            rows.append(f"| `{row.source}` | `{name}` | {row.licence} | {row.size} px | {values} |")
    return "\n".join([*rows, MEMORY_SAYS, *memory()]) + "\n"


BEGIN, END = "<!-- tables: python -m benchmarks.backbones --write -->\n", "<!-- end of tables -->\n"


def page(text: str) -> str:
    """The page with its tables written anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="print a JSON line for each backbone")
    parser.add_argument("--only", nargs="*", choices=tuple(PUBLISHED), default=tuple(PUBLISHED), metavar="BACKBONE")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/backbones.md")
    options = parser.parse_args()
    for name in options.only if options.measure else ():
        print(json.dumps(measured(name)), flush=True)
    if options.write:
        DOCS.write_text(page(DOCS.read_text()))


if __name__ == "__main__":
    main()
