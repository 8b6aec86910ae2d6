"""Who may import whom: downward only, and the kernels need JAX alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "c2f_jax"

# Rooms from the ground up: each may import those before it, and its own.
LAYERS = [
    ["errors", "memory"],
    ["kernels"],
    ["layers"],
    ["models"],
    ["data"],
    ["training"],
    ["evaluation"],
    ["runs"],
    ["inference"],
    ["cli"],
]
ONLY_HERE = {
    "flax": ("layers", "models", "training.train_state", "training.losses"),
    "orbax": ("runs.checkpoint",),
    "grain": ("data.pipeline",),
    "huggingface_hub": ("models.pretrained",),
    "matplotlib": ("evaluation.pictures",),
    "ml_collections": ("cli", "runs.workdir"),
    "rich": ("runs.writers",),
    "safetensors": ("models.pretrained",),
    "scipy": ("evaluation.localization",),
    "tensorflow_datasets": ("data.builders",),
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
