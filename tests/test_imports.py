"""Who may import whom: downward only, and the kernels need JAX alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "c2f_jax"

# Rooms from the ground up: each may import those before it, and its own.
LAYERS = [
    ["errors", "flags", "memory", "program", "shipped", "console", "storage"],
    ["kernels"],
    ["layers"],
    ["models"],
    ["data"],
    ["training"],
    ["evaluation"],
    ["runs"],
    ["inference"],
    ["report", "serve"],
    ["cli"],
    ["__main__"],
]
ONLY_HERE = {
    "chardet": ("data.tables",),
    "filelock": ("runs.workdir", "inference.resumable"),
    "flax": ("layers", "models", "training.train_state", "training.losses"),
    "onnx": ("inference.onnx_graph",),
    "orbax": ("runs.checkpoint",),
    "grain": ("data.pipeline",),
    "huggingface_hub": ("models.pretrained",),
    "jinja2": ("report.page",),
    "matplotlib": ("evaluation.pictures", "report.charts"),
    "ml_collections": ("cli", "runs.config_file", "runs.workdir"),
    "pebble": ("serve.reading",),
    "rich": ("runs.writers",),
    "safetensors": ("models.pretrained",),
    "scipy": ("data.builders", "evaluation"),
    "starlette": ("serve.app",),
    "tensorboardX": ("runs.event_files",),
    "tensorflow_datasets": ("data.builders",),
    "uvicorn": ("serve.server",),
}


def modules():
    """Dotted name below the package -> modules it imports, anywhere in the file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[name] = imported
    return found


def layer(name):
    for height, members in enumerate(LAYERS):
        if any(name == member or name.startswith(f"{member}.") for member in members):
            return height
    return None


def test_imports_go_downward_only():
    for name, imported in modules().items():
        if name == "__init__":
            assert not imported
            continue
        assert layer(name) is not None, f"{name} is in no layer"
        for other in imported:
            if other.startswith("c2f_jax."):
                target = other.removeprefix("c2f_jax.")
                assert layer(target) is not None, f"{name} imports {target}, which is in no layer"
                assert layer(target) <= layer(name), f"{name} imports {target}, which is above it"


def test_data_stay_on_the_host():
    """No program is compiled and no device is asked for where examples are read."""
    for name, imported in modules().items():
        if name.split(".")[0] == "data":
            jax = [other for other in imported if other.split(".")[0] == "jax" or other.startswith("c2f_jax.kernels")]
            assert not jax, f"{name} imports {jax}"


@pytest.mark.parametrize("package", ONLY_HERE)
def test_a_package_is_known_in_one_place(package):
    for name, imported in modules().items():
        if any(other.split(".")[0] == package for other in imported):
            assert name.startswith(ONLY_HERE[package]), f"{name} imports {package}"


# Attribute -> the files that may ask for it. What runs on which devices, and in which process, is decided in one place.
ASKED_HERE = {
    r"jax\.(local_)?devices\(|jax\.(local_)?device_count|jax\.make_mesh": ("runs/parallel.py",),
    r"jax\.process_(index|count)|jax\.distributed|multihost_utils": ("runs/processes.py",),
    r"os\.environ|os\.getenv|sys\.argv": ("memory.py", "cli.py", "runs/supervisor.py", "program.py", "__main__.py"),
    # One door for what is told: it escapes, encodes, and stands that nobody reads.
    r"\bprint\(|sys\.__?std|sys\.stdout|sys\.stderr|\bConsole\(|traceback\.print": (
        *("console.py", "memory.py", "runs/writers.py", "runs/interruption.py", "runs/supervisor.py"),
    ),
    # What belongs to a run, to photos and to predictions may lie in a bucket.
    r"(?<!storage)\.(read|write)_(text|bytes)\(|\.expanduser\(": (
        *("storage.py", "runs/config_file.py", "runs/fields.py", "data/deep_pcb.py"),
    ),
    r"jax\._src|jax\.interpreters|jax\.core": (),
}


@pytest.mark.parametrize("words", ASKED_HERE)
def test_devices_processes_and_environment_are_asked_for_in_one_place(words):
    asking = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if re.search(words, code_of(path.read_text()))
    }
    assert asking <= set(ASKED_HERE[words])
    assert asking or not ASKED_HERE[words]


def code_of(text):
    """Without comments and docstrings, which may name what they like."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(tree)


BLOCKED = '''
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class JaxAlone:
    """Finds the standard library, jax, what jax requires, and c2f_jax; nothing else is installed, so to speak."""

    found = {"c2f_jax", "jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum"} | set(sys.stdlib_module_names)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.split(".")[0]
        return PathFinder.find_spec(name, path, target) if top in cls.found or top.startswith("_sysconfig") else None

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, JaxAlone]
import c2f_jax.kernels
import jax, jax.numpy as jnp
view = c2f_jax.kernels.crop_and_resize(jnp.ones((8, 8, 3)), jnp.array([0.0, 0.0, 0.5, 0.5]), 4)
assert view.shape == (4, 4, 3)
print(sorted({name.split(".")[0] for name in sys.modules} & {"flax", "optax", "orbax", "grain", "absl"}))
'''


def test_kernels_need_jax_alone():
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
