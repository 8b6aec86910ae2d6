"""Runs the cells of `docs/kernels.ipynb` as Jupyter does, and writes what they print into it.

python -m tests.kernels.make_notebook        # after a change of its cells; needs matplotlib
"""

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[2] / "docs" / "kernels.ipynb"


def run(cells: list[dict[str, Any]]) -> list[str]:
    """What each cell prints, and the value of its last line where that is an expression."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    told = []
    for cell in cells:
        body = ast.parse("".join(cell["source"]))
        last = ast.Expression(body.body.pop().value) if isinstance(body.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(body, str(PATH), "exec"), scope)
            value = None if last is None else eval(compile(last, str(PATH), "eval"), scope)
        told.append(printed.getvalue() + ("" if value is None else f"{value!r}\n"))
    return told


def code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Its cells of code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures = []

    def keep() -> None:
        picture = io.BytesIO()
        pyplot.savefig(picture, dpi=60, bbox_inches="tight")
        pictures.append(base64.b64encode(picture.getvalue()).decode())
        pyplot.close("all")

    pyplot.show = keep
    notebook = json.loads(PATH.read_text("utf-8"))
    for number, (cell, text) in enumerate(zip(code(notebook), run(code(notebook)), strict=True), 1):
        cell["execution_count"] = number
        cell["outputs"] = []
        if text:
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": text.splitlines(True)})
        if "pyplot.show()" in "".join(cell["source"]):
            data = {"image/png": pictures.pop(0)}
            cell["outputs"].append({"data": data, "metadata": {}, "output_type": "display_data"})
    PATH.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
