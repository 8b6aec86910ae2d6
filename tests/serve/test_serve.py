"""The server as programs see it: right answers, refusals, limits, and its end."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2f_jax.data.paper_birds import PaperBirds
from c2f_jax.inference import load_model

for package in ("pebble", "python_multipart", "starlette", "uvicorn"):
    pytest.importorskip(package, reason=f"{package}, of the extra `serve`, is not installed")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def start(workdir, *arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "launch.py", "--mode=serve", f"--workdir={workdir}", "--port=0", *arguments]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = server.stdout.readline()
    found = re.match(r"http://127.0.0.1:(\d+) shows .*, step 20; Ctrl-C stops it", line)
    if found is None:
        server.kill()
        raise AssertionError(line + server.stderr.read())
    return server, f"http://127.0.0.1:{found[1]}"


@pytest.fixture(scope="module")
def address(finished):
    server, address = start(finished[0], "--unknown")
    yield address
    server.terminate()
    assert server.wait(30) == 0
    said = server.stderr.read()
    assert re.fullmatch(r"launch\.py: answering what was asked[^\n]*\n", said), said  # and nothing else


def png(image, kind="png", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def ask(address, path, data=None, **headers):
    """(status, body as JSON, headers)."""
    request = urllib.request.Request(address + path, data, {name.replace("_", "-"): v for name, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, body, found = answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        status, body, found = error.code, error.read(), error.headers
    return status, json.loads(body) if "json" in found.get("Content-Type", "") else body, found


def form(files, boundary="xxBOUNDARYxx"):
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode() + data
        for name, data in files
    ]
    body = b"\r\n".join(parts) + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content_Type": f"multipart/form-data; boundary={boundary}"}


BIRDS = [PaperBirds("test", size=9)[i]["image"] for i in range(9)]


def test_answers_are_those_of_predict(address, finished):
    """Also when they come together, and in one form."""
    expected = list(load_model(finished[0]).predict(BIRDS, mark_unknown=True))
    with ThreadPoolExecutor(9) as pool:
        alone = list(pool.map(lambda image: ask(address, "/predict", png(image))[1], BIRDS))
    body, kind = form([(f"{i}.png", png(image)) for i, image in enumerate(BIRDS)])
    status, together, _ = ask(address, "/predict/batch", body, **kind)
    assert status == 200 and [one["file"] for one in together["results"]] == [f"{i}.png" for i in range(9)]
    assert ask(address, "/predict/batch", body + b"more after the end", **kind)[0] == 200  # its parser would warn
    for one, other, prediction in zip(alone, together["results"], expected, strict=True):
        assert one["class"] == other["class"] and one["box"] == pytest.approx(other["box"], abs=0.02)
        assert one["class"] == prediction.best[0] and one["unknown"] == prediction.unknown
        assert one["probability"] == pytest.approx(prediction.best[1], abs=2e-6)
        for view, top in prediction.top.items():
            assert [row["class"] for row in one["views"][view]] == [name for name, _ in top]
        assert list(one["box"].values()) == pytest.approx(prediction.box, abs=0.02)
        assert (one["width"], one["height"]) == (192, 192) and "pictures" not in one


def test_pictures_and_a_turned_photo(address):
    photo = Image.fromarray(BIRDS[0]).resize((900, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn to the right
    status, said, _ = ask(address, "/predict?pictures=1", png(photo, "jpeg", exif=exif))
    assert status == 200 and (said["width"], said["height"]) == (300, 900)
    assert said["pictures"]["photo"].startswith("data:image/jpeg;base64,")
    assert said["pictures"]["attention"].startswith("data:image/png;base64,")


def bomb(side):
    """A PNG of a few KB that says it has side x side pixels."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


HOSTILE = {
    "nothing": b"",
    "text": b"hello",
    "half": png(BIRDS[0])[:3000],
    "zeros": bytes(100_000),
    "bomb": bomb(40_000),
    "less than it says": bomb(6_000),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "gzip": b"\x1f\x8b" + bytes(1000),
    "jpeg of scans": png(Image.new("L", (8000, 8000)), "jpeg", progressive=True) + b"\xff\xda" * 4000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_image_is_refused(address, name):
    status, said, _ = ask(address, "/predict", HOSTILE[name])
    assert status == 422 and said["error"].startswith("the image cannot be read: "), said
    assert "\n" not in said["error"] and "Traceback" not in said["error"] and "/" not in said["error"]


def test_a_batch_tells_which_are_none(address):
    body, kind = form([("a.png", png(BIRDS[0])), ("<b>.png", b"hello")])
    status, said, _ = ask(address, "/predict/batch", body, **kind)
    assert status == 200 and "class" in said["results"][0]
    assert said["results"][1] == {
        "file": "<b>.png",
        "error": "the image cannot be read: not an image of a known format",
    }
    assert ask(address, "/predict/batch", *form([("x", b"y")])[:1], **kind)[0] == 422


@pytest.mark.parametrize(
    ("path", "data", "headers", "status"),
    [
        ("/predict", b"x" * (33 << 20), {}, 413),
        ("/predict", None, {}, 405),
        ("/nothing", None, {}, 404),
        ("/../../etc/passwd", None, {}, 404),
        ("/predict", form([("a", b"1"), ("b", b"2")])[0], form([])[1], 400),
        ("/predict/batch", form([(str(i), b"1") for i in range(17)])[0], form([])[1], 400),
        ("/predict/batch", b"--xx\r\nbroken", {"Content_Type": "multipart/form-data; boundary=xx"}, 400),
        ("/predict/batch", b"--xx\r\nbroken", {"Content_Type": "multipart/form-data"}, 400),
        ("/predict", b'{"image": "x"}', {"Content_Type": "application/json"}, 415),
        ("/predict/batch", b"image", {"Content_Type": "text/plain; charset=utf-8"}, 415),
        ("/healthz", None, {"Host": "evil.example"}, 403),
        ("/predict", png(BIRDS[0]), {"Origin": "http://evil.example"}, 403),
    ],
)
def test_refusals(address, path, data, headers, status):
    try:
        found, said, _ = ask(address, path, data, **headers)
    except (ConnectionError, urllib.error.URLError):  # refused while it was still being sent
        assert status == 413
        return
    assert found == status
    assert not isinstance(said, dict) or "\n" not in said["error"]


def test_without_a_host(address):
    """HTTP/1.0 has none, as old health checks ask; 1.1 must."""
    host, port = address.removeprefix("http://").split(":")
    for version, status in (("1.0", b"200"), ("1.1", b"400")):
        with socket.create_connection((host, int(port)), timeout=60) as line:
            line.sendall(f"GET /healthz HTTP/{version}\r\n\r\n".encode())
            assert line.recv(100).split()[1] == status


def test_an_upload_without_an_end_is_cut(address):
    """Chunked: nothing says how much will come."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent, chunk = 0, b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        try:
            while sent < 64 << 20:
                line.sendall(chunk)
                sent += 1 << 20
        except ConnectionError:
            pass
        assert 30 << 20 < sent < 64 << 20


def test_who_leaves_during_an_upload_is_no_fault(finished):
    server, address = start(finished[0])
    host, port = address.removeprefix("http://").split(":")
    for kind in ("image/png", "multipart/form-data; boundary=x"):
        with socket.create_connection((host, int(port)), timeout=60) as line:
            head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: 99\r\n\r\n--x"
            line.sendall(head.encode())
            line.shutdown(socket.SHUT_WR)
            line.recv(100)  # until the server has noticed
    assert ask(address, "/healthz")[0] == 200
    server.terminate()
    assert server.wait(30) == 0
    said = server.stderr.read()
    assert "Traceback" not in said and "Exception" not in said, said


def test_the_description_names_what_there_is(address):
    status, said, headers = ask(address, "/openapi.json")
    assert status == 200 and said["openapi"].startswith("3.1")
    for path, methods in said["paths"].items():
        for method in methods:
            assert ask(address, path, None if method == "get" else png(BIRDS[0]))[0] in (200, 400)
    _, one, _ = ask(address, "/predict?pictures=1", png(BIRDS[0]))
    schema = said["components"]["schemas"]["Prediction"]
    assert set(schema["required"]) | {"pictures"} == set(one) == set(schema["properties"])
    assert set(one["views"]) == set(schema["properties"]["views"]["properties"])
    assert ask(address, "/healthz")[1] == {"status": "ok", "step": 20}
    assert len(ask(address, "/model")[1]["classes"]) == 16
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_needs_nothing_from_elsewhere(address):
    page = ask(address, "/")[1].decode()
    for word in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert word in ("page.css", "page.js", "openapi.json", "data:,") or word.startswith("#")
    assert 'for="choose"' in page and 'role="status"' in page and 'lang="en"' in page
    assert "innerHTML" not in ask(address, "/page.js")[1].decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_asked_is_answered_before_the_end(finished, number):
    server, address = start(finished[0])
    host, port = address.removeprefix("http://").split(":")
    with pytest.raises(subprocess.CalledProcessError) as taken:
        command = [sys.executable, "launch.py", "--mode=serve", f"--workdir={finished[0]}", f"--port={port}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert taken.value.returncode == 2 and taken.value.stderr.count("\n") == 1
    assert f"nothing can listen at 127.0.0.1:{port} (address already in use)" in taken.value.stderr
    data = png(BIRDS[0])
    with socket.create_connection((host, int(port)), timeout=60) as line:
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        line.sendall(head.encode() + data[:1000])
        time.sleep(0.5)
        server.send_signal(number)
        threading.Timer(1.0, lambda: line.sendall(data[1000:])).start()
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK") and b'"class"' in answer
    assert server.wait(30) == 0
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=5)
