"""Several processes that train one model: how they meet, agree and part. The only file that asks which one this is.

With a single process everything here is as good as not there.
"""

import hashlib
import json
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from c2f_jax import storage
from c2f_jax.errors import UserError

Value = TypeVar("Value")

# Without a sign of life for so long a process counts as lost, and the others are ended.
HEARTBEAT_SECONDS = 30
JOIN_SECONDS = 300
MESSAGE_BYTES = 2048


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Meets the other processes; call it before anything asks for devices.

    Args:
        coordinator: HOST:PORT of process 0, as all reach it; with `processes`, how many there are, and `process`, which
            one this is. All None: as jax finds them out from TPU metadata, SLURM, Open MPI or Kubernetes.

    Raises:
        UserError: if there is no such cluster, or these values cannot be used. Processes that do not come within
            `JOIN_SECONDS` make jax abort this one.
    """
    # Its own handler for SIGTERM would take the place of `interruption`'s.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPU two programs in flight may reach their collectives in another order in each process, and wait for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    timeouts: dict[str, Any] = {
        "initialization_timeout": JOIN_SECONDS,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": JOIN_SECONDS,
    }
    if coordinator is not None and process == 0:
        _check_free(coordinator)
    try:
        if coordinator is None:
            jax.distributed.initialize(**timeouts)
        else:
            jax.distributed.initialize(
                coordinator, processes, process, cluster_detection_method="deactivate", **timeouts
            )
    except (ValueError, TypeError, RuntimeError) as error:
        remedy = "give each process --coordinator HOST:PORT --processes N --process I"
        if coordinator is None:
            raise UserError(
                "--multiprocess: no TPU pod, SLURM step, Open MPI or Kubernetes job that jax knows is here "
                f"({_one_line(error)}); {remedy}"
            ) from error
        raise UserError(f"--coordinator {coordinator}: {_one_line(error)}; {remedy}") from error


def _check_free(coordinator: str) -> None:
    """Raises UserError if the port that this process is to listen at is taken: jax's own attempt can crash."""
    host, _, port = coordinator.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", int(port)))
        except OSError as error:
            raise UserError(f"--coordinator {coordinator}: {error.strerror}; choose another port") from error


def leave() -> None:
    """Parts in good order: waits until all are here."""
    jax.distributed.shutdown()


def is_lost(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is the coordination service's word that another process is gone."""
    while error is not None:
        if isinstance(error, RuntimeError) and "CoordinationService" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def index() -> int:
    """Which process this is; 0 is the one that prints and writes."""
    return jax.process_index()


def count() -> int:
    """How many there are."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def together(do: Callable[[], Value]) -> Value:
    """What `do` returns in this process, once it has succeeded in all of them.

    Raises:
        UserError: if it did not, by a UserError or OSError, in any process: in all, with the message of the lowest.
    """
    result, message = None, ""
    try:
        result = do()
    except (UserError, OSError) as error:
        if count() == 1 or (isinstance(error, UserError) and error.shared):
            raise
        message = str(storage.failed(error) if isinstance(error, OSError) else error)
    for number, text in enumerate(_texts(message)):
        if text:
            raise _shared(text if number == 0 else f"process {number} of {count()}: {text}")
    return result  # type: ignore[return-value]


def gathered(make: Callable[[], bytes]) -> list[bytes]:
    """What `make` returns in each process, by process; all call it. Within `together`, too.

    Raises:
        UserError: as of `together`; also if another process has failed before it came here.
    """
    data = together(make)
    if count() == 1:
        return [data]
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(data), np.int32))).reshape(-1)
    row = np.zeros(max(1, int(sizes.max())), np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(count(), -1)
    return [bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def by_first(do: Callable[[], Value]) -> Value | None:
    """What `do` returns in process 0, which alone does it; None in the others. Nobody goes on before it is done.

    Raises:
        UserError: if it did in process 0: in all processes.
    """
    return together(lambda: do() if is_first() else None)


def told_by_first(do: Callable[[], str]) -> str:
    """The short text that `do` returns in process 0, in all processes; and its UserError likewise."""
    return _texts(by_first(do) or "")[0]


def check_same(what: str, value: object) -> None:
    """Raises UserError unless the JSON of `value` is the same in all processes; `what` names it."""
    digests = _texts(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest())
    different = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise _shared(
            f"process {different[0]} of {count()} was started with another {what} than process 0: "
            "give all of them the same command"
        )


def _shared(message: str) -> UserError:
    error = UserError(message)
    error.shared = True
    return error


def _texts(text: str) -> list[str]:
    """This process's text -> those of all, by process; cut after `MESSAGE_BYTES`."""
    if count() == 1:
        return [text]
    row = np.zeros(MESSAGE_BYTES, np.uint8)
    encoded = text.encode()[:MESSAGE_BYTES]
    row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = multihost_utils.process_allgather(row)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in np.asarray(rows).reshape(count(), -1)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
