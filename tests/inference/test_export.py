"""What is taken away says what the run says, in processes that have nothing of the program."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from c2f_jax import cli
from c2f_jax.data.paper_birds import PaperBirds
from c2f_jax.inference import load_model
from c2f_jax.inference.export import answer, description
from c2f_jax.inference.model_card import model_card
from c2f_jax.models.pretrained import load_pretrained
from c2f_jax.runs.methods import make_task
from c2f_jax.training.train_state import init_variables
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow
pytest.importorskip("onnx", reason="--mode=export needs onnx: pip install onnx")
pytest.importorskip("onnxruntime", reason="what --mode=export writes is run by onnxruntime: pip install onnxruntime")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"
COUNT = 5
# Not there, so to speak: nothing of the run's program is to be needed.
WITHOUT = "import sys\nfor name in {names}: sys.modules[name] = None\n"
PROGRAM = ["c2f_jax", "flax", "optax", "orbax", "grain", "ml_collections", "tensorflow_datasets"]


@pytest.fixture(scope="module")
def images():
    birds = PaperBirds("test", size=COUNT)
    return np.stack([birds[i]["image"] for i in range(COUNT)])


@pytest.fixture(scope="module")
def exported(finished, images, tmp_path_factory):
    """A folder with mine/, exported from the finished run, and a photo."""
    root = tmp_path_factory.mktemp("exported")
    assert cli.main(["--mode=export", f"--workdir={finished[0]}", f"--output={root / 'mine'}"]) == 0
    Image.fromarray(images[0]).save(root / "photo.jpg", format="PNG")  # exact, by whatever name
    np.save(root / "images.npy", images)
    return root


@pytest.fixture(scope="module")
def expected(finished, images):
    """By the run itself."""
    model = load_model(finished[0])
    said = list(model.predict(images))
    values = jax.device_get(
        model._step(*model.variables, {"image": images, "window": np.tile(np.float32([0, 0, 1, 1]), (COUNT, 1))})
    )
    return said, {name: values[name] for name in (*model.views, "box")}


def ran(code, folder, *, without):
    code = WITHOUT.format(names=without) + code
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def example(name):
    (code,) = re.findall(rf"```python\n# {name}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return code


RUN_ONNX = """
import numpy as np
images = np.load("images.npy")
for count in (1, len(images)):
    np.savez(f"onnx_{count}.npz", **dict(zip(names, session.run(names, {"image": images[:count]}))))
"""
RUN_STABLEHLO = """
assert model.platforms == ("cpu", "cuda", "tpu"), model.platforms
images = np.load("images.npy")
for count in (1, len(images)):
    np.savez(f"stablehlo_{count}.npz", **jax.jit(model.call)(images[:count]))
"""


@pytest.mark.parametrize(
    ("what", "more", "without"),
    [("onnx", RUN_ONNX, [*PROGRAM, "jax", "jaxlib"]), ("stablehlo", RUN_STABLEHLO, PROGRAM)],
)
def test_the_examples_of_the_docs_say_what_the_run_says(exported, expected, what, more, without):
    """And after the example, in the same process, batches of any size."""
    said, values_by_name = expected
    name, probability = ran(example(what) + more, exported, without=without).split(": ")
    assert (name, float(probability)) == (said[0].best[0], pytest.approx(said[0].best[1], abs=1e-4))
    for count in (1, COUNT):
        with np.load(exported / f"{what}_{count}.npz") as found:
            assert set(found) == set(values_by_name) == {"coarse", "fine", "fused", "calibrated", "box"}
            for view, values in values_by_name.items():
                assert found[view].dtype == np.float32
                np.testing.assert_allclose(found[view], values[:count], atol=1e-4, err_msg=view)
    fine = values_by_name["fine"]
    assert np.abs(fine[0] - fine[1]).max() > 1e-3  # images are told apart


def test_what_lies_beside(finished, exported, images):
    about = json.loads((exported / "mine" / "model.json").read_text())
    assert about["class_names"] == json.loads((finished[0] / "class_names.json").read_text())
    assert about["input"]["shape"] == ["batch", 192, 192, 3] and about["preprocessing"]["keep_aspect"] is False
    assert about["outputs"]["answer"] == "calibrated" and set(about["outputs"]) == {"probabilities", "answer", "box"}
    card = (exported / "mine" / "README.md").read_text()
    for words in ("paper birds", "## Limits", "## Licence", "trained from random numbers", about["class_names"][3]):
        assert words.lower() in card.lower()
    assert f"{100 * finished[1]['calibrated/top_1_accuracy']:.1f} %" in card
    assert {path.name for path in (exported / "mine").iterdir()} == {
        *("model.stablehlo", "model.onnx", "model.safetensors", "model.json", "README.md")
    }


def test_weights_come_back(finished, exported):
    model = load_model(finished[0])
    params, batch_stats = jax.device_get(model.variables)
    path = exported / "mine" / "model.safetensors"
    backbone = {"params": params["backbone"], "batch_stats": batch_stats["coarse"]["backbone"]}
    again = load_pretrained(str(path), "resnet10_small", backbone)
    jax.tree.map(np.testing.assert_array_equal, again, backbone)
    weights = load_file(path)
    assert weights["layer1.0.conv1.weight"].shape == (32, 16, 3, 3)  # PyTorch's layout
    assert np.array_equal(weights["c2f.params.head.kernel"], params["head"]["kernel"])
    numbers = sum(np.size(leaf) for leaf in jax.tree.leaves((params, batch_stats)))
    assert sum(array.size for array in weights.values()) == numbers


@pytest.mark.parametrize(
    ("method", "backbone", "side", "fine_size"),
    [
        *(("baseline", "resnet18", 0.0, 0), ("wsdan", "resnet10_small", 0.0, 48)),
        *(("coarse2fine", "efficientnet_lite0", 0.0, 0), ("coarse2fine", "resnet10_small", 0.4, 24)),
    ],
)
def test_other_networks_as_onnx(images, method, backbone, side, fine_size):
    import onnxruntime

    from c2f_jax.inference.onnx_graph import convert

    config = tiny_config(method=method, model__backbone=backbone, model__view_size=32, model__num_maps=3)
    config.region.side, config.region.view_size = side, fine_size
    task = make_task(config, num_classes=7, axis_name=None)
    rng = np.random.default_rng(0)
    variables = jax.device_get(jax.jit(lambda: init_variables(jax.random.key(0), task))())
    params = jax.tree.map(
        lambda leaf: leaf + 0.02 * rng.normal(size=leaf.shape).astype(np.float32), variables["params"]
    )
    function = partial(answer, task, None, params, variables["batch_stats"])
    images = images[:2, ::3, ::3]
    model = convert(function, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8), input_name="image")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = jax.device_get(jax.jit(function)(images))
    assert set(names) == set(wanted)
    for name, values in zip(names, session.run(names, {"image": images}), strict=True):
        np.testing.assert_allclose(values, wanted[name], atol=1e-4, err_msg=name)


def test_an_unknown_operation_is_named():
    from c2f_jax.inference.onnx_graph import UnknownOperation, convert

    with pytest.raises(UnknownOperation, match="sort"):
        convert(lambda x: {"out": jnp.sort(x, axis=-1)}, jax.ShapeDtypeStruct((1, 4), jnp.float32), input_name="x")


def test_mistakes(finished, exported, tmp_path, capsys, monkeypatch):
    command = ["--mode=export", f"--workdir={finished[0]}"]

    def refused(*more):
        assert cli.main([*command, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    before = (exported / "mine" / "model.onnx").stat().st_mtime_ns
    assert "is not an empty folder" in refused(f"--output={exported / 'mine'}")
    assert (exported / "mine" / "model.onnx").stat().st_mtime_ns == before
    (tmp_path / "file").touch()
    assert "is not an empty folder" in refused(f"--output={tmp_path / 'file'}")
    assert "nothing can be written" in refused(f"--output={tmp_path / 'file' / 'in'}")
    assert "belongs to --mode" in refused(f"--images={tmp_path}")
    assert "made with" in refused("--config.model.num_maps=7", f"--output={tmp_path / 'out'}")
    assert "holds no run" in refused(f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}")
    assert "name too long, 241 bytes" in refused(f"--output={tmp_path / ('y' * 241)}")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "onnx is missing; pip install flatbuffers onnx" in refused(f"--output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_a_run_without_a_fit_is_averaged(finished, tmp_path):
    """Of an earlier version: its answer is the plain average, and the description says so."""
    old = tmp_path / "old"
    shutil.copytree(finished[0], old)
    (old / "fusion.json").unlink()
    (old / "results.json").unlink()
    model = load_model(old)
    about = description(model)
    assert about["outputs"]["answer"] == "fused" and about["fusion"] is None
    assert "the run has not ended" in model_card(old, model.config, model.class_names, model.step)
