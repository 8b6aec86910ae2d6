"""The program for accelerators, on the CPU: what it writes when it is killed, and that its comparisons can fail."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import lines
from benchmarks.accelerator import __main__ as program
from benchmarks.accelerator import correct, crop, report, train
from benchmarks.accelerator.common import ROOT, Setting, number, source_digest
from benchmarks.accelerator.worker import over, run_unit
from benchmarks.crop import Case, boxes_of


def start(out, *flags, **settings):
    """The program at tiny sizes, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--rehearse", "--out", str(out), *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)


# --- Lines. ---


def test_half_a_line_is_no_line(tmp_path):
    path = tmp_path / "deeper" / "lines.jsonl"
    assert lines.read(path) == []
    lines.append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"b": ')  # a kill
    assert lines.read(path) == [{"a": 1}]
    lines.append(path, {"c": [2.5, None]})
    assert lines.read(path) == [{"a": 1}, {"c": [2.5, None]}]
    with pytest.raises(ValueError):
        lines.append(path, {"d": float("nan")})
    assert len(path.read_text().splitlines()) == 3


def test_lines_of_a_killed_writer_are_whole(tmp_path):
    """Killed at eight moments, the last thing it said it had written is there."""
    path = tmp_path / "lines.jsonl"
    program = """
import sys
from pathlib import Path
from benchmarks import lines
path = Path(sys.argv[1])
i = len(lines.read(path))
while True:
    lines.append(path, {"i": i, "fill": "x" * 20000})
    print(i, flush=True)
    i += 1
"""
    for _ in range(8):
        command = [sys.executable, "-c", program, str(path)]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        told = int(writer.stdout.readline())
        time.sleep(0.02)
        writer.kill()
        told = int(([str(told), *writer.stdout.read().split()])[-1])
        writer.wait()
        found = [record["i"] for record in lines.read(path)]
        assert found == list(range(len(found))) and found[-1] >= told


def test_numbers_that_json_has():
    assert [number(value) for value in (1.23456789, float("nan"), float("inf"))] == [1.235, "nan", "inf"]


# --- The program. ---


def test_what_is_over(tmp_path):
    setting = Setting("crop", "now", str(tmp_path / "lines.jsonl"), time.time() + 60, True, only=("crop/a",))
    assert setting.wants("a1") and not setting.wants("b") and program.pending(setting) is None
    for command, unit, status in (("before", "a", "done"), ("before", "b", "failed"), ("now", "c", "died")):
        end = {"kind": "end", "section": "crop", "unit": unit, "command": command, "status": status}
        lines.append(setting.path, end)
    # What failed before is tried again, what failed now is not.
    assert over(lines.read(setting.path), "crop", "now") == {"a", "c"}
    plan = {"kind": "plan", "section": "crop", "command": "now", "units": ["a", "b", "c"]}
    lines.append(setting.path, plan)
    assert program.pending(setting) == ["b"]


def test_a_used_budget_is_told_in_one_line(tmp_path, capsys):
    setting = Setting("crop", "now", str(tmp_path / "lines.jsonl"), time.time() - 1, True)
    program.run_section(setting, tmp_path / "log.txt")
    (line,) = lines.read(setting.path)
    assert (line["kind"], line["units"]) == ("left out", "all")
    assert "budget" in line["why"] and "budget" in capsys.readouterr().out


def test_lines_of_another_machine_are_not_gone_on_with():
    first = {"rehearsal": False, "device": "H100", "source": "a"}
    assert program.refusal([first, dict(first)]) is None
    for name, value in (("rehearsal", True), ("device", "H200"), ("source", "b")):
        assert name in program.refusal([first, first | {name: value}])


def test_the_exit_code_tells_a_failure(capsys):
    end = {"kind": "end", "section": "crop", "unit": "a", "command": "now", "status": "done", "seconds": 1.0}
    figure = {"kind": "figure", "section": "correct", "unit": "b", "command": "now", "case": "c", "passed": True}
    assert program.tell([end, figure], "now", 1.0) == 0
    assert program.tell([end | {"status": "died"}, figure], "now", 1.0) == 1
    assert program.tell([end | {"status": "failed", "command": "before"}], "now", 1.0) == 0
    assert "FAILED" in capsys.readouterr().out


def test_a_comparison_that_fails_fails_its_unit(tmp_path, capsys):
    setting = Setting("correct", "now", str(tmp_path / "lines.jsonl"), 0.0, True)
    for passed, status in ((True, "done"), (False, "failed")):
        run_unit(setting, "a", lambda passed=passed: iter([{"case": "b", "passed": passed}]))
        end = lines.read(setting.path)[-1]
        assert end["status"] == status and passed != ("b" in end.get("error", ""))
    # An exception is told with what came before it.
    run_unit(setting, "a", lambda: ({"case": "c"} if i else 1 / 0 for i in (1, 0)))
    *_, figure, end = lines.read(setting.path)
    assert figure["case"] == "c" and end["error"] == "ZeroDivisionError: division by zero"


def test_the_digest_is_of_the_programs(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.py").write_text("1")
    before = source_digest(tmp_path)
    (tmp_path / "notes.py").write_text("")
    assert source_digest(tmp_path) == before
    (tmp_path / "configs" / "a.py").write_text("2")
    assert source_digest(tmp_path) != before


@pytest.mark.parametrize("flags", [["--only", "crops"], ["--minutes", "long"], []])
def test_a_wrong_command_is_one_line(tmp_path, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main([*(["--out", str(tmp_path)] if flags else []), *flags])
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "figures", "seconds"),
    [("correct/crop", 2, 0.0), ("crop", 3, 0.0), ("step", 0, 8.0), ("train", 0, 20.0)],
)
def test_a_kill_leaves_whole_lines_and_no_process(section, figures, seconds, tmp_path):
    """SIGKILL in the middle of each section; the next command adds to what is there."""
    if section == "train" and not {"C2F_CUB_DIR", "C2F_WEIGHTS_DIR"} <= os.environ.keys():
        pytest.skip("C2F_CUB_DIR and C2F_WEIGHTS_DIR do not say where photos and weights are")
    path = tmp_path / "out" / "accelerator.jsonl"
    running = start(tmp_path / "out", "--only", section)
    try:
        deadline = time.time() + 240
        while True:
            records = lines.read(path)
            begun = any(record["kind"] == "plan" for record in records)
            if begun and sum(record["kind"] == "figure" for record in records) >= figures:
                break
            assert time.time() < deadline and running.poll() is None, running.stdout.read()
            time.sleep(0.1)
        time.sleep(seconds)
        assert running.poll() is None, "it was over before it was killed"
    finally:
        running.send_signal(signal.SIGKILL)
        # Its workers hold the pipe: it ends when the last of them is gone.
        running.communicate(timeout=30)
    written = path.read_bytes()
    assert written.endswith(b"\n") and all(json.loads(line) for line in written.splitlines())
    records = lines.read(path)
    assert records[0]["kind"] == "machine" and records[0]["rehearsal"] is True
    if section == "correct/crop":
        again = start(tmp_path / "out", "--only", section)
        out, _ = again.communicate(timeout=240)
        assert again.returncode == 0, out
        assert path.read_bytes().startswith(written)
        ends = [record for record in lines.read(path) if record["kind"] == "end"]
        assert [(end["unit"], end["status"]) for end in ends] == [("crop", "done")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker by /proc")
def test_a_worker_that_dies_takes_one_unit_along(tmp_path):
    """Killed at its first unit, it is told and the second is run by another."""
    path = tmp_path / "out" / "accelerator.jsonl"
    running = start(tmp_path / "out", "--only", "correct/crop", "correct/pooling")
    deadline = time.time() + 240
    while not any(record["kind"] == "figure" for record in lines.read(path)):
        assert time.time() < deadline and running.poll() is None
        time.sleep(0.05)
    with open(f"/proc/{running.pid}/task/{running.pid}/children") as children:
        (worker,) = map(int, children.read().split())
    os.kill(worker, signal.SIGKILL)
    out, _ = running.communicate(timeout=240)
    assert running.returncode == 1, out
    ends = [record for record in lines.read(path) if record["kind"] == "end"]
    assert [(end["unit"], end["status"]) for end in ends] == [("crop", "died"), ("pooling", "done")]
    assert "exit code -9" in ends[0]["error"] and "FAILED correct/crop" in out


def test_a_worker_that_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "GRACE", 0.1)
    setting = Setting("correct", "now", str(tmp_path / "lines.jsonl"), time.time() + 0.5, True)
    began = time.time()
    program.run_section(setting, tmp_path / "log.txt")
    # Stopped before it had told what it would do, or, where a process starts quickly, at its first unit.
    (end,) = (line for line in lines.read(setting.path) if line["kind"] == "end")
    assert time.time() - began < 5.0 and end["status"] == "stopped" and end["unit"] in ("(all)", "imports")


# --- Comparisons. ---


def test_a_comparison_can_fail():
    there = {"a": np.array([3.0, 4.0]), "b": np.float64(2.0)}
    assert correct.relative_error(np.float32([3.0, 4.5]), there["a"]) == pytest.approx(0.1)
    close = correct.compare({"a": np.float32([3.0, 4.1]), "b": 2.0}, there, {"a": 0.03, "b": 0.0})
    assert close["passed"] and close["errors"]["b"] == 0.0
    assert not correct.compare({"a": np.float32([3.0, 4.1]), "b": 2.0}, there, {"a": 0.01, "b": 0.0})["passed"]
    assert not correct.compare({"a": np.float32([3.0, np.nan])}, there, {"a": 0.5})["passed"]
    # Integers are no results, and trees of another form are no comparison.
    assert correct.relative_error({"a": np.int32(1), "b": 1.0}, {"a": np.int32(7), "b": np.float64(1.0)}) == 0.0
    with pytest.raises(ValueError):
        correct.relative_error({"a": 1.0}, {"a": np.float64(1.0), "b": np.float64(1.0)})


def test_a_crop_that_is_off_by_a_pixel_does_not_pass(monkeypatch):
    from c2f_jax.kernels import crop_and_resize

    # Of twelve comparisons two, for the sake of compilation.
    assert [line["passed"] for line in itertools.islice(correct.crop(True), 2)] == [True, True]

    def ours(case, way, **settings):
        def off(images, boxes):
            moved = boxes + (1e-2 if boxes.dtype == jnp.float32 else 0.0)
            return crop_and_resize(images, moved, case.outputs)

        return off

    monkeypatch.setattr(correct.crop_cases, "ours", ours)
    assert [line["passed"] for line in itertools.islice(correct.crop(True), 2)] == [False, False]


def test_draws_in_float64_are_those_of_float32():
    keys = jax.random.split(jax.random.key(3), 8)
    logits = jnp.linspace(0.0, 2.0, 40).reshape(8, 5)

    def drawn(dtype):
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=0.2, maxval=0.9))(keys)
        flips = jax.vmap(lambda key: jax.random.bernoulli(key))(keys)
        chosen = jax.vmap(jax.random.categorical)(keys, logits.astype(dtype))
        return [np.asarray(value) for value in (uniform, flips, chosen)]

    narrow = drawn(jnp.float32)
    with correct.on_cpu_in_float64():
        wide = drawn(jnp.float64)
    assert wide[0].dtype == np.float64
    for one, other in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(one.astype(np.float64), other.astype(np.float64))
    with jax.enable_x64(True):
        assert np.max(np.abs(drawn(jnp.float64)[0] - narrow[0])) > 1e-3  # left to itself it draws others


def test_no_sample_lies_on_a_kink():
    boxes = correct.boxes_between_kinks(6, 20, 16, antialias=False, rng=np.random.default_rng(0)).astype(np.float64)
    steps = np.arange(16) + 0.5
    for low, high in zip(boxes[:, [0, 1]].ravel(), boxes[:, [2, 3]].ravel(), strict=True):
        samples = (low + (high - low) * steps / 16) * 20 - 0.5
        assert np.min(np.abs(samples - np.round(samples))) > 0.5 * correct.MARGIN
    assert np.any(boxes[:, 1] > boxes[:, 3]) and np.any(boxes < 0)  # mirrored, and reaching beyond


# --- Floors. ---


def test_bytes_moved_by_hand():
    case = Case("", 10, 4, 3, 2, "U(0.4, 1)", antialias=True)
    sides = boxes_of(case)[:, 2:] - boxes_of(case)[:, :2]
    under = 10 * 10 * 3 * 4 * float(np.sum(np.prod(sides, axis=1)))
    views = 2 * 4 * 4 * 3 * 4
    assert crop.bytes_moved(case, "forward") == pytest.approx(under + views)
    assert crop.bytes_moved(case, "box gradient") == pytest.approx(under + views)
    both = crop.bytes_moved(case, "image and box gradient")
    assert both == pytest.approx(under + views + 2 * 10 * 10 * 3 * 4)
    assert crop.bytes_moved(case._replace(uint8=True), "forward") == pytest.approx(under / 4 + views)
    # Two taps a row of four rows are at most 8 of 100 rows.
    few = Case("", 100, 4, 3, 2, "U(0.4, 1)")
    assert crop.bytes_moved(few, "forward") == pytest.approx(2 * 100 * 100 * 3 * 4 * 0.08**2 + views)


# --- The report. ---


def figure(section, case, **values):
    return {
        "kind": "figure",
        "section": section,
        "unit": case,
        "command": "now",
        "rehearsal": False,
        "case": case,
    } | values


MACHINE = {
    **{"kind": "machine", "section": "machine", "unit": "machine", "command": "now", "rehearsal": False},
    **{"device": "Chip 9", "device_count": 1, "driver": "5.1", "versions": {"jax": "1.2", "torch": None}},
    **{"copy_bytes_per_second": 3.0e12, "bf16_operations_per_second": 8.0e14},
}


def test_the_report():
    errors = {"errors": {"loss": 1e-6}, "tolerances": {"loss": 1e-4}, "passed": True}
    times = {"mode": "forward", "batch": 64, "implementation": "ours, auto", "floor_ms": 0.1, "over_floor": 2.0}
    records = [
        MACHINE,
        figure("correct", "crop", **errors),
        figure("crop", "448 to 448", **times, milliseconds=9.9),
        figure("crop", "448 to 448", **times, milliseconds=0.2),
        figure(
            "crop", "448 to 448", **{"mode": "forward", "batch": 64, "implementation": "jax.image"}, error="Too large"
        ),
        figure("step", "cub", implementation="torch.compile", batch=12, error="Out of memory"),
        figure("step", "host input, decoded", images_per_second=700.0, raw_size=512, host_cores=16),
    ]
    page = "\n".join(report.section_lines(records))
    assert "1 x Chip 9, driver 5.1; jax 1.2. A large copy moves 3 TB/s" in page and "800 TFLOP/s" in page
    assert "1 of 1 comparisons" in page and "| crop | loss 1e-06 (0.0001) | yes |" in page
    assert "| case | mode | floor | ours, auto | jax.image |" in page
    assert "| 448 to 448 | forward | 0.1 | 0.2 (2) | Too large |" in page and "9.9" not in page
    assert "| cub | 12 | torch.compile | Out of memory | – |" in page
    assert "host input, decoded: 700.0 images/s of 512 px on 16 cores." in page
    assert page.endswith("### Training\n\nNot measured yet.\n")
    assert page.count("Not measured yet.") == 1


def test_a_rehearsal_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="rehearsal"):
        report.section_lines([MACHINE | {"rehearsal": True}])
    with pytest.raises(ValueError, match="several devices"):
        report.section_lines([MACHINE, MACHINE | {"device": "Chip 8"}])
    with pytest.raises(SystemExit, match="no file"):
        report.main([str(tmp_path / "none.jsonl")])


def test_the_page_is_what_the_lines_say():
    page = report.PAGE.read_text()
    assert report.replaced(page, report.section_lines(lines.read(report.LINES))) == page


# --- Training. ---


def test_few_photos_are_a_data_set(tmp_path):
    """Of each class and part the first ones, with all that is known of them."""
    data = tmp_path / "data"
    (data / "parts").mkdir(parents=True)
    (data / "images").mkdir()
    ids = range(1, 61)
    texts = {
        "images": "{i} {c}/{i}.jpg",
        "image_class_labels": "{i} {c}",
        "train_test_split": "{i} {t}",
        "bounding_boxes": "{i} 1.0 2.0 3.0 4.0",
        "parts/part_locs": "{i} 1 5.0 6.0 1",
    }
    for name, text in texts.items():
        rows = [text.format(i=i, c=1 + i % 2, t=int(i <= 30)) for i in ids]
        (data / f"{name}.txt").write_text("\n".join(rows) + "\n")
    (data / "classes.txt").write_text("1 a\n2 b\n11 c\n")
    (data / "parts" / "parts.txt").write_text("1 beak\n")
    folder = train.few_photos(data, tmp_path / "few")
    count = 2 * 2 * train.IMAGES_OF_A_CLASS
    for name in texts:
        assert len((folder / f"{name}.txt").read_text().splitlines()) == count
    assert (folder / "classes.txt").read_text() == "1 a\n2 b\n"
    assert (folder / "images").resolve() == data / "images" and (folder / "parts" / "parts.txt").exists()


def test_rows_at_small_sizes():
    for row in train.GRID.rows:
        small, whole = train.shortened(row).overrides, row.overrides
        assert small["model.view_size"] == whole["model.view_size"] // 4 >= 56
        assert small["stages.coarse_epochs"] == pytest.approx(whole["stages.coarse_epochs"] / 12)


def test_without_photos_it_says_so(tmp_path):
    setting = Setting("train", "now", str(tmp_path / "lines.jsonl"), 0.0, True, weights=str(tmp_path / "none"))
    ((name, unit),) = train.units(setting).items()
    (line,) = unit()
    assert name == "data" and "C2F_CUB_DIR" in line["error"] and str(tmp_path / "none") in line["error"]
