"""Two processes with two devices each, over loopback: one run, which one process of any devices can go on with."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.chaos import BOUNDARY, TOTAL, Started, events, saved
from c2f_jax import cli
from c2f_jax.errors import UserError
from c2f_jax.runs import checkpoint, processes

ROOT = Path(__file__).resolve().parents[2]
# With larger steps the tiny network is chaotic: a difference in the last bit grows tenfold a step.
SETTINGS = ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e-4")
# In the coarse stage a table teaches where to look, which those who begin make and others read; then second looks do.
SETTINGS += ("--config.region.side=0.42", "--config.region.teach=1.0", "--config.region.box_gradient=mapping")


def losses(workdir):
    """{(split, step): loss}, of training and evaluations."""
    return {(event["split"], event["step"]): event.get("fused/loss", event.get("loss")) for event in events(workdir)}


def until(run, came, timeout=200):
    deadline = time.monotonic() + timeout
    while not came():
        assert run.running() and time.monotonic() < deadline, run.finish(timeout=60)
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_stopped_and_gone_on_with_elsewhere(tmp_path, compiled, finished):
    """Through both stages: killed in two processes, stopped in two by pmap, gone on with in one of one device, stopped,
    ended in two; the losses are those of one process with one device, uninterrupted."""
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    settings = (*SETTINGS, f"--config.init_from={finished[0]}")  # new weights would make no table
    run = Started(workdir, compiled, processes=2, devices=2, settings=settings)
    until(run, lambda: saved(workdir) >= 3)
    run.processes[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    (code, said), (killed, _) = run.finish()
    assert killed == -signal.SIGKILL and code == 1
    assert time.monotonic() - began < processes.HEARTBEAT_SECONDS + 20
    last = said.strip().splitlines()[-1]
    assert "another process of this run was lost" in last and "go on from the last checkpoint" in last
    assert "Traceback" not in said and "Check failure" not in said

    pmap = (*settings, "--config.parallel.backend=pmap", "--config.train.eval_batch_size=12")
    before = saved(workdir)
    run = Started(workdir, compiled, processes=2, devices=2, settings=pmap)
    until(run, lambda: len(events(workdir)) > run.known + 1)
    run.processes[1].send_signal(signal.SIGTERM)  # one of them is told, both stop
    (code, said), (other_code, other_said) = run.finish()
    assert (code, other_code) == (143, 143), said + other_said
    step = saved(workdir)
    assert before < step < TOTAL and f"stopped, saved at step {step} of {TOTAL}" in said.splitlines()[-1]
    assert f"going on from step {before} of {TOTAL}" in said and "4 x cpu in 2 processes" in said
    assert "parallel.backend: jit there, pmap now" in said and "train.eval_batch_size: 8 there, 12 now" in said
    # The second process says nothing but that it has heard.
    assert other_said.splitlines() == ["launch.py: finishing this step and saving"]
    assert json.loads((workdir / "config.json").read_text())["train"]["eval_batch_size"] == 12

    run = Started(workdir, compiled, settings=settings)
    until(run, lambda: saved(workdir) > max(step, BOUNDARY))
    run.processes[0].send_signal(signal.SIGINT)
    ((code, said),) = run.finish()
    assert code == 130 and f"going on from step {step} of {TOTAL}" in said and "1 x cpu" in said
    assert BOUNDARY < saved(workdir) < TOTAL

    run = Started(workdir, compiled, processes=2, devices=2, settings=settings)
    (code, said), (other_code, other_said) = run.finish()
    assert code == other_code == 0, said + other_said
    assert other_said == "" and (workdir / "samples.png").exists()

    ((code, said),) = Started(whole, compiled, settings=settings).finish()  # by programs that are compiled by now
    assert code == 0, said
    found, expected = losses(workdir), losses(whole)
    assert found.keys() == expected.keys() and len(found) == TOTAL + 4 + 1
    assert found == pytest.approx(expected, abs=1e-4)
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (workdir, whole))
    assert results.keys() == expected.keys() and (results["device_count"], expected["device_count"]) == (4, 1)


def slurm(number):
    """What `srun` would tell process `number` of two."""
    told = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    return {**told, "SLURM_PROCID": str(number), "SLURM_LOCALID": "0"}


def open_mpi(number):
    """What `mpirun` would. Either makes a port of the number of its job."""
    told = {"OMPI_MCA_orte_hnp_uri": f"{os.getpid() * 2**12}.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
    return {**told, "OMPI_COMM_WORLD_RANK": str(number), "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


def run_two(cluster, command, second):
    """`command` in two processes that meet as `cluster` tells them, the second with a word more."""
    started = [
        subprocess.Popen(
            [*command, second] if number and second else command,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", **cluster(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    said = [process.communicate(timeout=200) for process in started]
    return [process.returncode for process in started], *said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cluster", "second", "line"),
    [
        (slurm, "--workdir={tmp}/other", "process 1 of 2: --workdir {tmp}/other is not the folder of process 0"),
        (open_mpi, "--config.seed=1", "process 1 of 2 was started with another config than process 0"),
    ],
)
def test_processes_that_do_not_belong_together(tmp_path, cluster, second, line):
    """Told once, by process 0; both end alike, and leave nothing. They meet as a cluster tells them."""
    command = [sys.executable, "launch.py", "--multiprocess", f"--workdir={tmp_path / 'run'}"]
    command += ["--config.method=baseline", "--config.model.view_size=32", "--config.dataset.train_size=89"]
    codes, (out, err), (other_out, other_err) = run_two(cluster, command, second.format(tmp=tmp_path))
    assert codes == [2, 2], err + other_err
    assert line.format(tmp=tmp_path) in err and len(err.splitlines()) == 1
    assert out == other_out == other_err == ""
    assert not (tmp_path / "run").exists() and not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("second", [None, "--config.dataset.test_size=20", "--workdir={tmp}/other"])
def test_an_evaluation_by_two(tmp_path, second):
    """The figures of one, told once; or why the two do not belong together."""
    earlier = Path(__file__).parent / "earlier"
    layout = json.loads((earlier / "layouts.json").read_text())["10_background"]
    for name in ("run", "other"):
        shutil.copytree(earlier / "run", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(layout["config"]))
    (tmp_path / "other" / "checkpoints" / "10").rename(tmp_path / "other" / "checkpoints" / "9")
    command = [sys.executable, "launch.py", "--mode=eval", "--multiprocess", f"--workdir={tmp_path / 'run'}"]
    codes, (out, err), (other_out, other_err) = run_two(slurm, command, second and second.format(tmp=tmp_path))
    assert other_out == other_err == ""
    assert codes == ([2, 2] if second else [0, 0]), err
    if second is None:
        assert f"{layout['figures']['coarse/loss']:.4f}" in out and "step 10" in out
    else:
        (line,) = err.splitlines()
        assert ("another config than process 0" if "size" in second else "it has no checkpoint 10") in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--coordinator=here:1"], "--coordinator, --processes, --process belong together; --processes and --process"),
        (["--processes=2", "--process=0"], "--coordinator is missing"),
        (["--coordinator=here", "--processes=2", "--process=0"], "HOST:PORT"),
        (["--coordinator=:90", "--processes=2", "--process=0"], "HOST:PORT"),
        (["--coordinator=here:99999", "--processes=2", "--process=0"], "HOST:PORT"),
        (["--coordinator=here:90", "--processes=2", "--process=2"], "--process counts from 0"),
        (["--coordinator=here:90", "--processes=0", "--process=0"], "--process counts from 0"),
        (["--coordinator=here:90", "--processes=two", "--process=0"], "invalid int value: 'two'"),
        (["--coordinators=here:90"], "--coordinator?"),
        (["--mode=predict", "--images=x", "--multiprocess"], "--multiprocess belongs to --mode train and eval"),
    ],
)
def test_flags(capsys, flags, words):
    assert cli.main(flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def run_alone(*flags, **environment):
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI", "KUBERNETES"))}
    return subprocess.run(
        [sys.executable, "launch.py", *flags],
        cwd=ROOT,
        env={**keep, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_off_a_known_cluster(tmp_path):
    told = run_alone("--multiprocess", f"--workdir={tmp_path / 'run'}")
    (line,) = told.stderr.splitlines()
    assert told.returncode == 2 and "no TPU pod, SLURM step" in line and "--coordinator HOST:PORT" in line


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = run_alone(f"--coordinator={address}", "--processes=2", "--process=0", f"--workdir={tmp_path / 'run'}")
    assert told.returncode == 2 and f"--coordinator {address}" in told.stderr.splitlines()[-1]
    assert "choose another port" in told.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("raised", "lost"),
    [
        (RuntimeError("ABORTED: ... [type.googleapis.com/tensorflow.CoordinationServiceError='']"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (OSError(5, "[Errno 5] Input/output error: 'CoordinationService'"), False),
    ],
)
def test_a_partner_that_is_lost_while_all_save_is_no_failing_disk(tmp_path, raised, lost):
    """Orbax waits for the others, and hears it first."""

    def fails(_):
        try:
            raise raised
        except Exception as error:
            raise ValueError("of orbax") from error

    checkpoints = object.__new__(checkpoint.Checkpoints)
    checkpoints._workdir = tmp_path
    for do in (lambda: checkpoint._told(tmp_path, 3, fails), lambda: _while_saving(checkpoints, fails)):
        with pytest.raises((ValueError, OSError, UserError)) as error:
            do()
        assert processes.is_lost(error.value) == lost
        assert (str(error.value) == "of orbax") == lost


def _while_saving(checkpoints, fails):
    with checkpoints._told("saved"):
        fails(3)


SUPERVISED = """
import os, signal, sys, time
from c2f_jax.runs import supervisor
if not supervisor.is_supervised():
    sys.exit(supervisor.supervise())
channel = supervisor.Channel()
print("ordinary", file=sys.stderr, flush=True)
{child}
"""
FATAL = "F1126 13:41:48.186765 6675 client.h:80] Terminating process because the JAX distributed service detected fatal"


@pytest.mark.parametrize(
    ("child", "code", "last"),
    [
        (f"channel.joined(); os.write(2, b'{FATAL} errors\\n  @ 0x7f\\n'); os.abort()", 1, "was lost"),
        (f"os.write(2, b'{FATAL} errors\\n  @ 0x7f\\n'); os.abort()", 1, "did not find each other"),
        ("os.write(2, b'F1126 13:41:48.1 6675 x.cc:80] Check failed: other\\n'); os.abort()", 134, "by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "by SIGKILL"),
        ("sys.exit(5)", 5, "ordinary"),
    ],
)
def test_a_parent_tells_how_its_child_ended(child, code, last):
    told = subprocess.run(
        [sys.executable, "-c", SUPERVISED.format(child=child)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == code
    lines = told.stderr.splitlines()
    assert lines[0] == "ordinary" and last in lines[-1]
    assert ("Check failed: other" in told.stderr) == ("other" in child) and "0x7f" not in told.stderr


def test_a_child_hears_signals_once_and_does_not_outlive_its_parent():
    child = (
        # By os.write: a signal can come while `print` is still at the number, and a second `print` inside it raises.
        "signal.signal(signal.SIGTERM, lambda *_: os.write(sys.stdout.fileno(), b'heard\\n'))\n"
        "print(os.getpid(), flush=True)\n"
        "while True: time.sleep(0.1)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED.format(child=child)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGTERM)
    assert parent.stdout.readline() == "heard\n"
    parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() and parent.stdout.read() == ""


def test_a_single_process_needs_nobody():
    assert (processes.index(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.together(lambda: 3) == processes.by_first(lambda: 3) == 3
    assert processes.told_by_first(lambda: "x") == "x"
    processes.check_same("config", {"a": 1})
