"""Starts, listens, and stops when it is told to."""

import ipaddress
import logging
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np

from c2f_jax import console
from c2f_jax.errors import UserError
from c2f_jax.inference.predict import model_of_run
from c2f_jax.program import needing
from c2f_jax.runs import parallel
from c2f_jax.runs.build import raw_images
from c2f_jax.runs.interruption import Interruption
from c2f_jax.serve import limits
from c2f_jax.serve.app import make_app
from c2f_jax.serve.batching import Batcher
from c2f_jax.serve.reading import Reader

with needing("serve"):
    import uvicorn

SIZES = (1, 4, 16)  # images in a batch: few enough to be compiled at the start, close enough that little is filled up
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
GRACE_SECONDS = 10


def serve(workdir: Path, config: Any, *, host: str, port: int, unknown: bool, interruption: Interruption) -> None:
    """Serves the run in `workdir` until a signal comes; then what has been asked is answered.

    Args:
        workdir: the run's folder.
        config: its own.
        host, port: where to listen; port 0 takes a free one.
        unknown: mark images that are none of the classes.
        interruption: what notes signals.

    Raises:
        UserError: if there is no run, or nothing can listen there.
    """
    with open_socket(host, port) as listener:  # before a minute's work; nobody is answered until it listens
        model = model_of_run(workdir, config)
        threshold = model.threshold() if unknown else None  # a run that has none says so now
        sizes = sorted({parallel.fitting(size) for size in SIZES})
        side = config.dataset.raw_size
        for size in sizes:
            window = np.tile(np.array([0, 0, 1, 1], np.float32), (size, 1))
            model.look({"image": np.zeros((size, side, side, 3), np.uint8), "window": window})
        with Reader(raw_images(config)) as reader:
            own = (*LOOPBACK, host.lower()) if is_loopback(host) else ()
            app = make_app(model, reader, Batcher(model.look, sizes), hosts=own, threshold=threshold)
            _listen(listener, port)
            shown = f"[{host}]" if ":" in host else host
            console.tell(
                f"http://{shown}:{listener.getsockname()[1]} shows {workdir}, step {model.step}; Ctrl-C stops it"
            )
            if not is_loopback(host):
                console.tell(
                    f"{host} can be reached from other machines: whoever reaches it can send images and read the class "
                    "names; there is no password and no encryption, so put a proxy that has both before it"
                )
            console.flush()
            _run(app, listener, interruption)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port`, which does not listen yet.

    Raises:
        UserError: if it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host: there is no address {host!r}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot(host, port, error) from error
    return listener


def _listen(listener: socket.socket, port: int) -> None:
    try:
        listener.listen(limits.WAITING)
    except OSError as error:
        raise _cannot(listener.getsockname()[0], port, error) from error


def _cannot(host: str, port: int, error: OSError) -> UserError:
    reason = (error.strerror or str(error)).lower()
    return UserError(f"nothing can listen at {host}:{port} ({reason}); choose another --port, or 0 for a free one")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _run(app: Any, listener: socket.socket, interruption: Interruption) -> None:
    """In a thread of its own, where uvicorn leaves signals alone: they are `interruption`'s."""
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Invalid HTTP request" not in record.getMessage())
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # of every odd form, which its sender is told of
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.WAITING,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
    interruption.defer()
    thread.start()
    while thread.is_alive():
        if interruption.signal:
            server.should_exit = True
        thread.join(0.1)
    interruption.defer(False)
