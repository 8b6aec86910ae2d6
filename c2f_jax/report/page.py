"""The page: templates filled in, and put beside the run."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from c2f_jax import storage
from c2f_jax.errors import UserError
from c2f_jax.program import needing
from c2f_jax.report.compare import side_by_side
from c2f_jax.report.gather import Gathered, gather, read_results
from c2f_jax.report.story import tell
from c2f_jax.runs.checkpoint import latest_step
from c2f_jax.runs.workdir import read_class_names, read_config

FILE = "report.html"
SUFFIXES = (".html", ".htm")
TEMPLATES = Path(__file__).parent / "templates"

with needing("report"):
    import jinja2


def write(workdir: Path, config: object, *, others: Sequence[Path] = (), output: Path | None = None) -> Path:
    """Writes the report of the run in `workdir`; an earlier one goes, another file does not.

    Args:
        workdir: the run's folder.
        config: its own, perhaps with other paths or batch size.
        others: folders of runs to set beside it.
        output: the file; default `report.html` in `workdir`.

    Returns:
        The file's path.

    Raises:
        UserError: if there is no run, one is named twice, the file cannot be written, or what is there is no page.
    """
    path = workdir / FILE if output is None else output
    places = [storage.resolved(place) for place in (workdir, *others)]
    for place, other in zip(places[1:], others, strict=True):
        if places.count(place) > 1:
            raise UserError(f"--compare: {other} is in this report twice; name each other run once")
    configs = [read_config(other) for other in others]  # all that can be said at once, before minutes of work
    for other in others:
        latest_step(other)
        read_class_names(other)
        read_results(other)
    storage.check_name("--output", path)
    storage.check_writable("--output" if output is not None else "--workdir", path.parent)
    if storage.is_dir(path):
        raise UserError(f"--output: {path} is a folder; give the name of a file")
    # An earlier report goes; results.json, a photo or a device does not.
    if storage.exists(path) and not (path.suffix.lower() in SUFFIXES and storage.is_file(path)):
        raise UserError(f"--output: {path} exists and is no report; give another name, such as {FILE}")
    run = gather(workdir, config)
    beside = [gather(other, own) for other, own in zip(others, configs, strict=True)]
    text = render(run, beside)
    storage.write_text(path, text)
    return path


def render(run: Gathered, others: Sequence[Gathered] = ()) -> str:
    """The page's text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        run=tell(run),
        compare=side_by_side([run, *others]) if others else None,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
