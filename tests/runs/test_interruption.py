"""Signals: obeyed at once where nothing could be lost, noted where something is under way, never raised."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.chaos import Started, events, saved
from c2f_jax.runs.interruption import Interruption

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import gc, os, sys, time
from c2f_jax.runs.interruption import Interruption
with Interruption("the parting words") as interruption:
    {body}
print("went on", interruption.signal, flush=True)
"""


def start(body):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def ends(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


WAIT = "print('ready', flush=True); end = time.time() + 20\n    while time.time() < end and not ({until}): {doing}"
# A callback of the garbage collector in which an exception would be swallowed.
IN_COLLECTOR = (
    "gc.callbacks.append(lambda phase, info: [None for _ in range(20000)])\n"
    "    print('ready', flush=True); end = time.time() + 20\n"
    "    while time.time() < end: gc.collect()"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("body", [WAIT.format(until="False", doing="time.sleep(0.01)"), IN_COLLECTOR])
def test_at_once_where_nothing_is_lost(number, body):
    process = start(body)
    process.send_signal(number)
    began = time.monotonic()
    assert ends(process) == (128 + number, "", "launch.py: the parting words\n")
    assert time.monotonic() - began < 5


DEFERRED = "interruption.defer()\n    " + WAIT.format(until="{until}", doing="time.sleep(0.01)")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_noted_where_something_is_under_way(number):
    process = start(DEFERRED.format(until="interruption.signal"))
    process.send_signal(number)
    code, out, err = ends(process)
    assert (code, out) == (0, f"went on {int(number)}\n")
    assert err.startswith("launch.py: finishing this step and saving")
    assert ("Ctrl-C again ends at once" in err) == (number == signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once(first):
    """Even while the program is in a call that takes long and lets others run, as a compilation is."""
    body = "interruption.defer()\n    print('ready', flush=True); time.sleep(20)"
    process = start(body)
    process.send_signal(first)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # a second one of these changes nothing
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, out, err = ends(process)
    assert (code, out, err.splitlines()[-1]) == (130, "", "launch.py: the parting words")


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption() as interruption:
        interruption.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not interruption.signal and time.monotonic() < deadline:
            time.sleep(0.01)
    assert interruption.signal == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.slow
def test_ctrl_c_at_any_time_of_a_start(tmp_path):
    """From the interpreter's first moments to the first step: never a traceback, and all can be gone on with."""
    cache, workdir = tmp_path / "compiled", tmp_path / "run"
    for delay in (0.08, 0.15, 0.4, 0.8, 1.5, 3.0, 5.0):
        run = Started(workdir, cache)
        time.sleep(delay)
        run.processes[0].send_signal(signal.SIGINT)
        ((code, said),) = run.finish()
        # By the signal itself while Python still starts.
        assert code in (130, -signal.SIGINT), said
        assert "Traceback" not in said and len([line for line in said.splitlines() if "launch.py" in line]) <= 2
    before = saved(workdir)  # on a fast machine the last of these starts came to a step
    run = Started(workdir, cache)
    while not any(event["step"] > before for event in events(workdir)):
        assert run.running(), run.finish()
        time.sleep(0.01)
    run.processes[0].send_signal(signal.SIGTERM)
    ((code, said),) = run.finish()
    assert code == 143 and saved(workdir) > before and f"saved at step {saved(workdir)} of 20" in said.splitlines()[-1]
