"""How long does the server take, and does it stay as it was? JSON lines: by kind of request, then of the server.

python -m benchmarks.serve --workdir runs/paper_birds [--requests 200] [--rounds 5]

Starts `--mode=serve` on a free port of this machine, and asks it `--requests` times at the same time, `--rounds` times
over: a third valid photos (PNG, JPEG, one of 12 megapixels), a third broken ones (cut, empty, text), a third hostile
(claims of 1.6 billion and of 36 million pixels with nothing behind them, thousands of scans, forms without an end).
`p50` and `p95` are milliseconds from the first byte sent to the last one read, connecting included; `alone` is of
valid photos one after the other before all that. `memory` is the resident size of the server and its readers, MiB,
before the first round and after each.
"""

import argparse
import http.client
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from c2f_jax.data.paper_birds import PaperBirds

ROOT = Path(__file__).resolve().parents[1]


def encoded(image: np.ndarray | Image.Image, kind: str) -> bytes:
    """As a file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind)
    return buffer.getvalue()


def claimed(side: int) -> bytes:
    """A PNG of some KB that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def bodies() -> dict[str, list[tuple[bytes, str]]]:
    """(bytes, content type) by kind."""
    birds = [bird["image"] for bird in map(PaperBirds("test", size=8).__getitem__, range(8))]
    photos = [encoded(bird, kind) for bird in birds for kind in ("png", "jpeg")]
    photos.append(encoded(Image.fromarray(birds[0]).resize((4000, 3000)), "jpeg"))
    png, jpeg = photos[:2]
    gray = encoded(Image.new("L", (8000, 8000)), "jpeg")
    unending = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + bytes(1000)
    plain = "application/octet-stream"
    return {
        "valid": [(data, plain) for data in photos],
        "broken": [(data, plain) for data in (png[: len(png) // 2], jpeg[:200], b"", b"hello", bytes(50_000))],
        "hostile": [
            *((data, plain) for data in (claimed(40_000), claimed(6_000), gray + b"\xff\xda" * 4000)),
            (unending, "multipart/form-data; boundary=x"),
        ],
    }


def ask(port: int, body: bytes, kind: str) -> tuple[int, float]:
    """(status, milliseconds)."""
    began = time.perf_counter()
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    line.request("POST", "/predict", body, {"Content-Type": kind})
    answer = line.getresponse()
    answer.read()
    line.close()
    return answer.status, 1000 * (time.perf_counter() - began)


def memory(process: int) -> float:
    """MiB of a process and all below it, resident."""
    total, waiting = 0, [process]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            children = [path.read_text().split() for path in Path(f"/proc/{one}/task").glob("*/children")]
        except OSError:
            continue
        total += int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
        waiting += [int(child) for found in children for child in found]
    return total / 1024


def line(case: str, told: list[tuple[int, float]], **more: object) -> None:
    """One JSON line."""
    times = [milliseconds for _, milliseconds in told]
    p50, p95 = (round(float(np.percentile(times, q)), 1) for q in (50, 95))
    statuses = {str(status): count for status, count in sorted(Counter(status for status, _ in told).items())}
    print(json.dumps({"case": case, "requests": len(told), "p50": p50, "p95": p95, "statuses": statuses, **more}))


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    command = [sys.executable, "launch.py", "--mode=serve", "--port=0", f"--workdir={Path(options.workdir).resolve()}"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = re.search(r":(\d+) shows", server.stdout.readline())
    assert found, "the server did not start"
    port, kinds = int(found[1]), bodies()
    try:
        valid = kinds["valid"][:-1]
        line("alone", [ask(port, *valid[i % len(valid)]) for i in range(50)])
        sizes = [round(memory(server.pid))]
        order = [
            (kind, entries[i // 3 % len(entries)])
            for i in range(options.requests)
            for kind, entries in [list(kinds.items())[i % 3]]
        ]
        for number in range(options.rounds):
            with ThreadPoolExecutor(options.requests) as pool:
                answers = list(pool.map(lambda entry: ask(port, *entry[1]), order))
            for kind in kinds:
                told = [answer for (name, _), answer in zip(order, answers, strict=True) if name == kind]
                line(kind, told, round=number)
            sizes.append(round(memory(server.pid)))
        print(json.dumps({"case": "server", "memory": sizes, "cores": os.cpu_count()}))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


if __name__ == "__main__":
    main()
