"""No text from outside becomes a formula."""

import csv

import pytest

from c2f_jax.runs import spreadsheets


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "  =1",
        "=cmd|' /C calc'!A0",
        "\uff1d1",
        '=HYPERLINK("x")',
    ],
)
def test_formulas_are_defused(tmp_path, text):
    assert spreadsheets.text(text) == f"'{text}"
    spreadsheets.write(tmp_path / "a.csv", [[text, "b"], [text, "plain"]])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [[f"'{text}", "b"], [f"'{text}", "plain"]]


@pytest.mark.parametrize("text", ["", "a=b", "birds/-1.png", "'Elepaio", "0.5", "Ærø, 3\n4", "a\U0001f426"])
def test_other_text_is_as_it_was(text):
    assert spreadsheets.text(text) == text


def test_names_of_any_bytes_can_be_written(tmp_path):
    name = b"bird-\xff.png".decode("utf-8", "surrogateescape")
    spreadsheets.write(tmp_path / "a.csv", [["file"], [name]])
    assert "bird-\\xff.png" in (tmp_path / "a.csv").read_text()
