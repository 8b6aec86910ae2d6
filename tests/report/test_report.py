"""The report of a run: what a reader relies on, whatever the run was; in a browser: test_in_browser.py."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="jinja2, of the extra `report`, is not installed")

from c2f_jax import cli
from c2f_jax.errors import UserError
from c2f_jax.evaluation.intervals import Judged, bootstrap
from c2f_jax.evaluation.outcomes import Outcomes, difference, right
from c2f_jax.report import story
from c2f_jax.report.gather import gather
from c2f_jax.report.page import render, write
from c2f_jax.report.story import ROWS
from c2f_jax.runs.loop import train_and_evaluate
from c2f_jax.runs.workdir import read_config
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow

VOID = {"meta", "input", "img", "br", "link", "use", "path", "rect"}
HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$a_1$ & <b>",
    "{{ 7 * 7 }}",
    "鳥'\"`",
]


class Page(HTMLParser):
    """Elements with their attributes; a tag that is not closed, or closed twice, is an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def check(text):
    """What holds of every report."""
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value.startswith(("data:image/", "#")), value
                assert not value.startswith("#") or value[1:] in ids
            assert not name.startswith("on") or name == "open"
            assert all(url.startswith(("data:image/", "#")) for url in re.findall(r"url\(([^)]*)\)", value or ""))
    assert "//" not in re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text).replace("// ", "")
    labels = {attributes.get("for") for attributes in page.all("label")}
    for attributes in page.all("input", "select"):
        named = attributes["id"] in labels or re.search(
            rf"<label>[^/]*<(input|select)[^>]* id=\"{attributes['id']}\"", text
        )
        assert named or f'<input type="checkbox" id="{attributes["id"]}" checked>' in text
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("aria-label") for _, attributes in page.elements if attributes.get("role") == "img")
    assert len(page.all("h1")) == 1 and page.all("html")[0]["lang"] == "en"
    return page


@pytest.fixture(scope="module")
def seen(finished):
    workdir, _ = finished
    return gather(workdir, read_config(workdir))


def test_command_line(finished, tmp_path, capsys):
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert cli.main(["--mode=report", f"--workdir={tmp_path / 'run'}", "--compare", str(workdir)]) == 0
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "run" / "report.html").read_text()
    page = check(text)
    said = "".join(page.text)
    for view in ("coarse", "fine", "fused"):
        assert f"{100 * results[f'{view}/top_1_accuracy']:.1f} %" in said
    assert "21 images" in said and "Settings that differ" not in said and "Their settings are the same." in said
    assert "+0.0 points" in said  # of the same run, paired
    assert len(text) < 2e6 and text.count("data:image/jpeg") > 20
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert set(after) - set(before) == {tmp_path / "run" / "report.html"} and before.items() <= after.items()


def test_intervals_are_drawn_by_groups_where_there_are_any(seen):
    """In the table, for the second look, and beside another run; a run of an earlier version has none stored."""
    run = replace(seen, results={name: value for name, value in seen.results.items() if name != "intervals"})

    class Boards(Repeated):
        groups = [f"board {i % 3}" for i in range(21)]

    made = outcomes(21, 16)
    views = made.views
    boards = replace(run, outcomes=made, splits=replace(seen.splits, test=Boards(seen.splits.test, 21)))
    expected = bootstrap(views, Boards.groups)["of"]
    assert story.intervals(boards) == {name: tuple(ends) for name, ends in expected.items()}
    beside = replace(boards, outcomes=made._replace(views={"coarse": views["coarse"]}))
    page = render(boards, [beside])
    for first, other, words in (
        (views["fused"], views["coarse"], "{:+.1f} points<br><small>{:+.1f} to {:+.1f}"),
        (views["coarse"], views["fused"], "gains {:+.1f} points ({:+.1f} to {:+.1f})"),
    ):
        known, plain = difference(first, other, Boards.groups), difference(first, other)
        assert words.format(*(100 * value for value in known)) in page
        assert known[1:] != plain[1:]
    assert "a bootstrap over whole groups of images" in page
    assert "a bootstrap over images</small>" in render(run)


def test_outcomes_are_those_of_the_run(seen, finished):
    _, results = finished
    for view, said in seen.outcomes.views.items():
        assert right(said).mean() == pytest.approx(results[f"{view}/top_1_accuracy"])
    assert seen.metrics == pytest.approx({name: results[name] for name in seen.metrics}, abs=1e-4)
    assert seen.outcomes.overlap.mean() == pytest.approx(results["box/mean_iou"], abs=1e-4)


def test_names_are_text(seen):
    names = tuple(HOSTILE[i % len(HOSTILE)] + str(i) for i in range(16))
    config = read_config(seen.workdir)
    config.dataset.cache_dir = HOSTILE[0]
    page = check(render(replace(seen, class_names=names, config=config, notes=(HOSTILE[1],))))
    assert len(page.all("script")) == 1 and not any("onerror" in attributes for attributes in page.all("img"))
    said = "".join(page.text)
    assert all(name in said for name in names if name.startswith(("{{", "$")))


class Repeated:
    """A source of `size` examples, few of them different."""

    def __init__(self, source, size):
        self.source, self.size = source, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.source[index % len(self.source)]


def outcomes(count, classes, views=("coarse", "fine", "fused")):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes

    def said():
        known, confidence = rng.random(count) < 0.6, 0.01 + 0.99 * rng.random(count)
        told = np.where(known, labels, (labels + 1 + rng.integers(max(1, classes - 1), size=count)) % classes)
        loss = -np.log(np.where(known, confidence, confidence / 9))
        return Judged(labels, told, confidence, (~known).astype(int), loss)

    return Outcomes(labels, {view: said() for view in views}, rng.random(count))


@pytest.mark.parametrize(("count", "classes"), [(20_000, 8_000), (9, 2), (1, 2)])
def test_any_number_of_classes_and_images(seen, count, classes):
    names = tuple(f"class number {i:05}" for i in range(classes))
    splits = replace(seen.splits, test=Repeated(seen.splits.test, count), class_names=names)
    text = render(replace(seen, class_names=names, outcomes=outcomes(count, classes), splits=splits))
    page = check(text)
    assert len(text) < 3e6 and page.open == []
    rows = len(re.findall(r'<tr><th scope="row">class number', text))
    assert rows == min(ROWS, classes, count)
    assert ("7700 more are left out" in text) == (classes == 8000)


def test_without_photos_and_before_the_end(seen, finished, tmp_path, capsys):
    """The data set is gone, and the run has not ended: figures of the log, and why there are no pictures."""
    shutil.copytree(finished[0], tmp_path / "run")
    config = read_config(finished[0])
    with config.ignore_type():
        config.dataset.update({"name": "folder", "path": "/nowhere", "train_size": None, "test_size": None})
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    found = gather(tmp_path / "run", config)
    assert "so this report has no pictures: " in " ".join("".join(capsys.readouterr()).split())
    assert found.outcomes is None and found.metrics["fused/loss"] > 0
    said = "".join(check(render(found, [seen])).text)
    assert "so this report has no pictures: " in said and "/nowhere" in said and "Worst" not in said
    said = "".join(check(render(replace(found, metrics={}, results={}, log=[]))).text)
    assert "Nothing has been measured yet." in said


@pytest.mark.parametrize("method", ["baseline", "attention"])
def test_of_other_methods(tmp_path, method):
    """One look without attention; attention of which nothing is learned. Without a validation part, cut log."""
    config = tiny_config(method=method, dataset__validation_fraction=0.0, optimizer__warmup_epochs=0.0)
    config.stages.coarse_epochs = 0.3
    train_and_evaluate(config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "spl')
    found = gather(tmp_path, read_config(tmp_path))
    text = render(found)
    page = check(text)
    said = "".join(page.text)
    assert ("Attention maps" in said) == (method == "attention") == ("second look fixed" in said)
    assert ("the only look" in said) == (method == "baseline") and "The run" in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--mode=report", "--workdir=nowhere"], "nowhere holds no run"),
        (["--mode=report", "--workdir={run}", "--compare", "nowhere"], "nowhere holds no run"),
        (["--mode=report", "--workdir={run}", "--compare", "{run}/."], "is in this report twice"),
        (["--mode=report", "--workdir={run}", "--config.dataset.path=typo"], "dataset.path is for photos"),
        (["--mode=report", "--workdir={run}", f"--output={'x' * 250}.html"], "name too long, 255 bytes"),
        (["--mode=report", "--workdir={run}", "--output={run}/results.json"], "exists and is no report"),
        (["--mode=report", "--workdir={run}", "--output=/dev/null"], "exists and is no report"),
        (["--mode=report", "--workdir={run}", "--images=x"], "--images belongs to --mode predict and eval"),
        (["--mode=eval", "--workdir={run}", "--compare", "x"], "--compare belongs to --mode report"),
    ],
)
def test_mistakes(finished, capsys, arguments, line):
    assert cli.main([word.format(run=finished[0]) for word in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert line in error and "\n" not in error


def test_without_its_package(installed_without, finished):
    told = installed_without("jinja2", "--mode=report", f"--workdir={finished[0]}")
    assert told.returncode == 2 and "jinja2 is missing; pip install jinja2" in told.stderr
    assert told.stderr.count("\n") == 1


def test_settings_are_those_of_the_run(seen):
    text = render(seen)
    for name, value in json.loads(read_config(seen.workdir).to_json())["optimizer"].items():
        assert f"<dt>{name}</dt><dd><code>{json.dumps(value)}</code></dd>".replace('"', "&#34;") in text


def test_another_run_that_cannot_be_set_beside_is_told_before_the_first_is_measured(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    monkeypatch.setattr("c2f_jax.report.page.gather", lambda *_: pytest.fail("a run was measured"))
    with pytest.raises(UserError, match="no checkpoint"):
        write(finished[0], read_config(finished[0]), others=[tmp_path / "run"], output=tmp_path / "report.html")


@pytest.mark.parametrize("broken", ["[1]", "{", '{"seconds": null}', '{"intervals": 3}', '{"gate": {"test": [{}]}}'])
def test_results_that_are_none_are_a_line(finished, tmp_path, broken):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text(broken)
    with pytest.raises(UserError, match=r"results.json .* the training command once more writes it anew"):
        gather(tmp_path / "run", read_config(tmp_path / "run"))
