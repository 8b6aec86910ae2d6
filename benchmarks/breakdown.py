"""Where the time of a training step goes, by kind of operation, beside PyTorch; JSON lines.

python -m benchmarks.breakdown                      # the training steps of benchmarks.step
python -m benchmarks.breakdown --case ResNet

`milliseconds` adds up, per kind, the time that operations of one step were seen to run, by `jax.profiler` and
`torch.profiler`; each after steps that are not looked at. XLA runs independent operations side by side, so
the sum can be more than the step's time, which is given as `span` (`self` time of PyTorch's operations has no such
overlap). A fused operation counts for the layer that its result belongs to: the normalisation and activation behind a
convolution, where XLA has fused them into it, count as the convolution's.
"""

from benchmarks import timing

timing.prepare()  # before JAX and PyTorch are imported

import argparse
import collections
import json
import re
import tempfile
from pathlib import Path

import jax

from benchmarks import step
from benchmarks.step import CASES, Case, torch

# The first pattern that an operation's path of layers matches says its kind; the names are the backbones' (timm's).
KINDS = [
    ("depthwise", r"/conv_dw/"),
    ("stem", r"/conv_stem/|backbone/conv1/"),
    ("3x3", r"/layer\d_\d+/conv2/|/inverse_mapping/score/"),
    ("1x1", r"/conv_(pw|pwl|head)/|/layer\d_\d+/(conv[13]|downsample_conv)/|/(attention|inverse_mapping)/"),
    ("batch norm", r"/(bn\w*|\w*_bn|norm\w*)/"),
    ("crop", r"_take|cond/branch_0_fun/(vmap|while)|gather|scatter"),
]


def kind_of(path: str) -> str:
    """The kind of an operation by its path, such as "jit(train_step)/jvp(Network)/backbone/layer1_0/conv2/dot"."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, path)), "other")


def layer_paths(program: str) -> dict[str, str]:
    """The path of layers of each operation of a compiled program, by its name; or its fusion's."""
    paths, inside, within = {}, "", {}
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%([\w.-]+) \(", line):
            inside = head[1]
        if not (operation := re.match(r" +(?:ROOT )?%([\w.-]+) = ", line)):
            continue
        if path := re.search(r'op_name="([^"]*)"', line):
            paths[operation[1]] = within[inside] = path[1]
        elif (called := re.search(r"calls=%([\w.-]+)", line)) and called[1] in within:
            paths[operation[1]] = within[called[1]]
        elif re.search(r" = \w+\[\d+,3,3,\d+\]", line):
            # XLA's own gradient by a 3x3 kernel, which it turns round, losing the path.
            paths[operation[1]] = "transpose(/layer1_0/conv2/"
    return paths


def of_jax(case: Case) -> dict[str, float]:
    """Milliseconds by kind and direction, and the `span` of the step."""
    program, arguments = step.compiled(case)
    paths = layer_paths(program.as_text())
    state, batch = arguments
    for _ in range(2):
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(program(state, batch))
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    total: collections.Counter[str] = collections.Counter()
    starts, ends = [], []
    for event in (event for plane in data.planes for line in plane.lines for event in line.events):
        # Loops are seen twice otherwise: as a whole, and by the operations in them.
        if "hlo_op" not in dict(event.stats) or event.name.startswith(("while", "conditional", "call")):
            continue
        path = paths.get(event.name, "")
        total[f"{kind_of(path)}, {'backward' if 'transpose(' in path else 'forward'}"] += event.duration_ns
        starts.append(event.start_ns)
        ends.append(event.start_ns + event.duration_ns)
    return {"span": (max(ends) - min(starts)) / 1e6, **{kind: ns / 1e6 for kind, ns in total.items()}}


def of_torch(case: Case) -> dict[str, float]:
    """The same of PyTorch's step."""
    call = step.in_torch(case)
    for _ in range(3):
        call()
    seen = []
    for _ in range(5):
        with torch.profiler.profile(record_shapes=True) as profile:
            call()
        seen.append(profile.key_averages(group_by_input_shape=True))
    # Profiled, a step of PyTorch's can take twice its time; the least disturbed one is shown.
    total: collections.Counter[str] = collections.Counter()
    for event in min(seen, key=lambda events: sum(event.self_cpu_time_total for event in events)):
        name, direction = event.key, "backward" if "backward" in event.key else "forward"
        if name in ("aten::mkldnn_convolution", "aten::convolution_backward"):
            # Arguments: input and weight, or gradient, input and weight.
            shape = event.input_shapes[1 if direction == "forward" else 2]
            kind = "1x1" if shape[2] == 1 else "depthwise" if shape[1] == 1 else "stem" if shape[1] == 3 else "3x3"
        elif "batch_norm" in name:
            kind = "batch norm"
        else:
            kind = "crop" if "grid" in name or "interpolate" in name else "other"
        total[f"{kind}, {direction}"] += event.self_cpu_time_total
    return {"span": sum(total.values()) / 1e3, **{kind: us / 1e3 for kind, us in total.items()}}


def main() -> None:
    """Prints one JSON line per case and implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    options = parser.parse_args()
    implementations = {"ours": of_jax}
    if torch is not None:
        torch.set_num_threads(timing.THREADS)
        implementations["torch"] = of_torch
    for case in CASES:
        if case.work == "forward" or options.case not in case.name:
            continue
        for name, measure in implementations.items():
            figures = {kind: round(value, 1) for kind, value in sorted(measure(case).items())}
            line = {"case": case.name, "implementation": name, "milliseconds": figures, **timing.environment()}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
