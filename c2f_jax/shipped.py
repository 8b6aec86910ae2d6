"""The configs that ship: in configs/ of a checkout, in c2f_jax/configs once installed (by pyproject.toml)."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def folder() -> Path:
    """Where they are."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Of those that can be run, without .py."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem not in ("__init__", "default"))


def find(path: Path) -> Path:
    """A config's file: the one at this path; else the one that ships by this name, `cub` or `configs/cub.py`.

    If there is neither, the path as it is.
    """
    if path.is_file() or path.parent not in (Path(), Path("configs")) or path.suffix not in ("", ".py"):
        return path
    shipped = folder() / f"{path.stem}.py"
    return shipped if shipped.is_file() else path


def make_importable(path: Path) -> None:
    """Lets the config at `path` say `from configs import default`, wherever the program was started.

    That is the folder `configs` that it lies in, if it has a default.py; else the one that ships.
    """
    if "configs" in sys.modules:
        return
    beside = path.resolve().parent
    where = beside if beside.name == "configs" and (beside / "default.py").is_file() else folder()
    spec = spec_from_file_location("configs", where / "__init__.py", submodule_search_locations=[str(where)])
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["configs"] = module
    if (where / "__init__.py").is_file():
        spec.loader.exec_module(module)
