"""What TensorBoard is given: the events of metrics.jsonl, also after a run was stopped and gone on with."""

import json
import struct
import sys

import pytest

from c2f_jax.errors import Interrupted, UserError
from c2f_jax.runs import checks
from c2f_jax.runs.event_files import EventFiles
from c2f_jax.runs.interruption import Interruption
from c2f_jax.runs.loop import train_and_evaluate
from tests.tiny import tiny_config

tensorboardX = pytest.importorskip("tensorboardX", reason="tensorboardX, of the extra `tensorboard`, is not installed")


def events(path):
    """Of a file: length, its checksum, an event, its checksum, again and again (TFRecord)."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def scalars(workdir):
    """{(split, step, name): value}, as TensorBoard shows them: a start takes away what stands at its step or later."""
    shown = {}
    for folder in (workdir / "tensorboard").iterdir():
        for path in sorted(folder.iterdir(), key=lambda path: events(path)[0].wall_time):
            for event in events(path):
                if event.HasField("session_log"):
                    shown = {key: value for key, value in shown.items() if key[0] != folder.name or key[1] < event.step}
                for value in event.summary.value:
                    assert (folder.name, event.step, value.tag) not in shown
                    shown[folder.name, event.step, value.tag] = value.simple_value
    return shown


def logged(workdir):
    found = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        split, step, _ = (event.pop(name) for name in ("split", "step", "stage"))
        found |= {(split, step, name): value for name, value in event.items()}
    return found


class Stop(Interruption):
    """A signal that comes when it was asked for `calls` times."""

    def __init__(self, calls):
        self.calls = calls
        super().__init__()

    @property
    def signal(self):
        self.calls -= 1
        return 15 if self.calls <= 0 else 0

    @signal.setter
    def signal(self, value):
        pass


@pytest.mark.slow
def test_a_run_that_was_stopped_shows_each_point_once(tmp_path):
    config = tiny_config(train__tensorboard=True, method="baseline")
    with pytest.raises(Interrupted):
        train_and_evaluate(config, tmp_path, interruption=Stop(8))
    assert len(logged(tmp_path)) > 0
    train_and_evaluate(config, tmp_path)
    expected, found = logged(tmp_path), scalars(tmp_path)
    assert {key[0] for key in found} == {"train", "validation", "test"} and len(expected) > 20
    assert found == pytest.approx(expected, rel=1e-6)


def test_what_is_told_again_is_shown_once(tmp_path):
    """A run killed at step 8, its last checkpoint of step 4: training metrics of 4 stay, its evaluation does not."""
    for start in (0, 4):
        with EventFiles(tmp_path, resume_step=start) as log:
            for step in range(start, 9, 2):
                log.write(step=step, stage="coarse", split="validation", metrics={"fused/loss": 10.0 + start + step})
                if step > start:
                    log.write(step=step, stage="coarse", split="train", metrics={"loss": float(start + step)})
    assert scalars(tmp_path) == {
        **{("validation", step, "fused/loss"): 10.0 + step for step in (0, 2)},
        **{("validation", step, "fused/loss"): 14.0 + step for step in (4, 6, 8)},
        **{("train", step, "loss"): float(step) for step in (2, 4)},
        **{("train", step, "loss"): 4.0 + step for step in (6, 8)},
    }


def test_its_package_is_asked_for_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"tensorboardX is missing; pip install tensorboardX"):
        checks.check_training(tiny_config(train__tensorboard=True))
