"""The example notebook prints what is stored in it."""

import json

import pytest

from tests.kernels.make_notebook import PATH, code, run


def test_cells_print_what_is_stored(monkeypatch):
    pytest.importorskip("matplotlib", reason="the notebook draws with matplotlib")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = code(json.loads(PATH.read_text("utf-8")))
    stored = [
        "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        for cell in cells
    ]
    assert run(cells) == stored
    assert sum(map(bool, stored)) >= 5 and [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
