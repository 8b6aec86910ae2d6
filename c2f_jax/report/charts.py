"""Charts as SVG that takes its colours and fonts from the page, so that it suits light and dark."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from c2f_jax.evaluation.outcomes import Bin

# Colours that stand for the page's: put in their place when the chart is done.
INK, MUTED, LINE, PANEL = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0a0a{number:02x}" for number in range(1, 9))
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PANEL: "--panel"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
COLOURS = {"coarse": SERIES[0], "fine": SERIES[1], "fused": SERIES[2], "calibrated": SERIES[3]}
ENOUGH = 10  # images in a bin
WIDTH, HEIGHT = 360, 250  # pixels of the page; as wide as a small phone shows

SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollars
    "font.size": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "path.simplify_threshold": 0.5,
}

Line = tuple[str, Sequence[float], Sequence[float], str, str]  # name, x, y, colour, style


def lines(
    drawn: Sequence[Line],
    *,
    xlabel: str,
    ylabel: str,
    salt: str,
    percent: bool = False,
    shares: bool = False,
    log: bool = False,
    stages: Sequence[tuple[str, float]] = (),
) -> str:
    """Curves.

    Args:
        drawn: what to draw.
        xlabel, ylabel: axes.
        salt: tells the ids of this chart from those of others on the page.
        percent: y from 0 to 1 as per cent.
        shares: x likewise.
        log: y logarithmic.
        stages: (name, where it begins) on the x axis.
    """
    with matplotlib.rc_context(_style(salt)):
        figure, axis = _axis(xlabel, ylabel)
        for name, x, y, colour, style in drawn:
            # A few points show better by their places.
            marker = "o" if len(x) < 25 else ""
            axis.plot(x, y, style, color=colour, label=name, marker=marker, markersize=2.5)
        for name, start in stages:
            axis.axvline(start, color=MUTED, linewidth=0.8, linestyle=":")
            axis.annotate(
                name,
                (start, 1),
                (3, -1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=MUTED,
                fontsize=7.5,
                va="top",
            )
        if log and all(np.min(y) > 0 for _, _, y, _, _ in drawn if len(y)):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        for side in (*([axis.xaxis] if shares else []), *([axis.yaxis] if percent else [])):
            side.set_major_formatter(_in_percent)
        if len(drawn) > 1:
            axis.legend(loc="best")
        return _svg(figure)


def reliability(drawn: Sequence[tuple[str, Sequence[Bin | None], str]], *, salt: str) -> str:
    """(name, bins, colour): accuracy over confidence; a dot is as large as its bin is full.

    A line joins the bins of `ENOUGH` images or more: the accuracy of a few says nothing.
    """
    with matplotlib.rc_context(_style(salt)):
        figure, axis = _axis("confidence", "accuracy")
        axis.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1)
        for name, bins, colour in drawn:
            full = [one for one in bins if one is not None]
            total = sum(one.images for one in full)
            x, y = [one.confidence for one in full], [one.accuracy for one in full]
            firm = [one for one in full if one.images >= ENOUGH]
            axis.plot([one.confidence for one in firm], [one.accuracy for one in firm], color=colour, label=name)
            axis.scatter(x, y, s=[8 + 160 * one.images / total for one in full], color=colour, alpha=0.55, linewidth=0)
        axis.set_xlim(0, 1.02)
        axis.set_ylim(0, 1.02)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(_in_percent)
        axis.legend(loc="best")
        return _svg(figure)


def histogram(values: np.ndarray, *, xlabel: str, ylabel: str, salt: str, marks: Sequence[tuple[str, float]]) -> str:
    """Of values from 0 to 1 in 20 bins. marks: (name, where) of lines across."""
    with matplotlib.rc_context(_style(salt)):
        figure, axis = _axis(xlabel, ylabel)
        axis.hist(values, bins=20, range=(0, 1), color=SERIES[1], edgecolor=PANEL, linewidth=1)
        for name, where in marks:
            axis.axvline(where, color=INK, linewidth=1, linestyle="--")
            axis.annotate(
                name,
                (where, 1),
                (3, -1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=7.5,
                va="top",
            )
        axis.set_xlim(0, 1)
        return _svg(figure)


def _style(salt: str) -> Any:
    return {**SETTINGS, "svg.hashsalt": salt}


def _in_percent(value: float, _: int) -> str:
    return f"{100 * value:g} %"


def _axis(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
    figure.patch.set_alpha(0)
    axis = figure.add_subplot()
    axis.patch.set_alpha(0)
    axis.grid(axis="x", visible=False)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    return figure, axis


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's fonts may have what matplotlib's lack
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # In a page SVG needs no namespaces, and its size is the page's.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    # Every chart calls its axes "axes_1": of ids only those stay that something refers to, and those have the salt.
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text)
