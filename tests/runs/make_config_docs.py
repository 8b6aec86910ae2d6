"""Writes docs/config.md from the table of fields and the comments of configs/default.py.

python -m tests.runs.make_config_docs
"""

import ast
import io
import tokenize
from pathlib import Path

from c2f_jax.runs import fields
from configs import default

DOCS = Path(__file__).resolve().parents[2] / "docs" / "config.md"
HEAD = """# Fields of a config

Every field that `configs/*.py` and `--config.GROUP.FIELD=VALUE` can set. Ranges include both ends; a value outside is
refused before anything is written. Where fields do not fit each other, the backbone or the devices, a line says so.
This page is written from `c2f_jax/runs/fields.py` and the comments of `configs/default.py`:
`python -m tests.runs.make_config_docs`.

| field | takes | default | meaning |
|---|---|---|---|
"""


def comments() -> dict[str, str]:
    """Field -> what configs/default.py says of it: the comment lines above its line, and the one behind it."""
    source = Path(default.__file__).read_text()
    said = {
        token.start[0]: (token.line.lstrip().startswith("#"), token.string.lstrip("# "))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[-1], ast.Attribute):
            continue
        name = ast.unparse(node.targets[-1]).removeprefix("config.")
        above, line = [], node.lineno - 1
        while said.get(line, (False, ""))[0]:
            above.insert(0, said[line][1])
            line -= 1
        behind = [said[node.lineno][1]] if node.lineno in said else []
        found[name] = " ".join([*above, *behind])
    return {name: found[name] for name in fields.TABLE}


def page() -> str:
    """The whole page."""
    said, values = comments(), fields.values(default.get_config())
    cells = [
        (f"`{name}`", field.takes(most=99), f"`{values[name]!r}`", said[name]) for name, field in fields.TABLE.items()
    ]
    return HEAD + "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in cells)


if __name__ == "__main__":
    DOCS.write_text(page())
