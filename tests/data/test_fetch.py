"""Archives from a server of this machine: whole or not at all, and gone on with after a stop."""

import hashlib
import http.server
import threading
from dataclasses import replace

import pytest

from c2f_jax.data.builders import fetch, published
from c2f_jax.data.builders.fetch import Archive
from c2f_jax.errors import UserError
from tests.data import layouts

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Server(http.server.BaseHTTPRequestHandler):
    """Gives files by their names; `settings` say what goes wrong."""

    files: dict[str, bytes] = {}
    asked: list[str | None] = []
    ranges, stops_at = True, None

    def do_GET(self):
        content = self.files.get(self.path.lstrip("/"))
        self.asked.append(self.headers.get("Range"))
        if content is None:
            return self.send_error(404)
        start = 0
        if self.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.stops_at])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"files": {"a.tgz": CONTENT}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        handler.url = f"http://127.0.0.1:{served.server_port}"
        yield handler
        served.shutdown()


@pytest.fixture
def get(server, tmp_path):
    def get(**facts):
        archive = Archive("a.tgz", f"{server.url}/a.tgz", **facts)
        return fetch.fetch(
            archive, tmp_path / "downloads", title="Toys", how="the file with --config.dataset.path=a.tgz"
        )

    return get


def test_once(get, server, capsys):
    told = f"fetching {server.url}/a.tgz (0.01 GB)"
    assert get(size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()).read_bytes() == CONTENT
    assert told in capsys.readouterr().err
    get()
    assert server.asked == [None] and capsys.readouterr().err == ""


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_cut_off_is_gone_on_with(get, server, tmp_path, ranges):
    server.stops_at, server.ranges = 3_000_000, ranges
    with pytest.raises(UserError, match="3000000 of 5120000 bytes came; the same command goes on"):
        get(md5=hashlib.md5(CONTENT).hexdigest())
    assert not (tmp_path / "downloads" / "a.tgz").exists()
    server.stops_at = None
    assert get(md5=hashlib.md5(CONTENT).hexdigest()).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000000-"]


def test_all_of_it_had_come_before_the_stop(get, server, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "a.tgz.part").write_bytes(CONTENT)
    assert get(md5=hashlib.md5(CONTENT).hexdigest()).read_bytes() == CONTENT
    assert not (tmp_path / "downloads" / "a.tgz.part").exists()


@pytest.mark.parametrize("facts", [{"size": 5}, {"sha256": "0" * 64}, {"md5": "0" * 32}])
def test_something_else_came(get, tmp_path, facts):
    message = (
        r"Toys cannot be fetched \(5120000 bytes with another checksum came\).*some other way and give the file with"
    )
    with pytest.raises(UserError, match=message):
        get(**facts)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_nobody_answers(server, tmp_path):
    for url, problem in ((f"{server.url}/b.tgz", "Not Found"), ("http://127.0.0.1:1/a.tgz", "refused")):
        with pytest.raises(UserError, match=f"cannot be fetched.*{problem}.*get {url}") as caught:
            fetch.fetch(Archive("a.tgz", url), tmp_path, title="Toys", how="it")
        assert "\n" not in str(caught.value)


def test_a_data_set_from_the_network(server, tmp_path, monkeypatch):
    """Several archives; what is published of them is held against what comes."""
    layouts.oxford_iiit_pet(tmp_path / "data")
    dataset = published.DATASETS["oxford_iiit_pet"]
    archives = []
    for archive in dataset.archives:
        only = layouts.ARCHIVES[dataset.name][archive.name]
        server.files[archive.name] = layouts.pack(tmp_path / "data", tmp_path / archive.name, only=only).read_bytes()
        checksum = hashlib.sha256(server.files[archive.name]).hexdigest()
        archives.append(replace(archive, url=f"{server.url}/{archive.name}", size=0, sha256=checksum))
    monkeypatch.setitem(published.DATASETS, dataset.name, replace(dataset, archives=tuple(archives)))
    loaded = published.load("oxford_iiit_pet", "", cache_dir=str(tmp_path / "cache"))
    assert (len(loaded.train), len(loaded.test)) == (2, 1) and len(server.asked) == 2
    published.load("oxford_iiit_pet", "", cache_dir=str(tmp_path / "cache"))
    assert len(server.asked) == 2
    archives[1] = replace(archives[1], sha256="0" * 64)
    monkeypatch.setitem(published.DATASETS, dataset.name, replace(dataset, archives=tuple(archives)))
    with pytest.raises(UserError, match="holds images.tar.gz, annotations.tar.gz with --config.dataset.path=DIR"):
        published.load("oxford_iiit_pet", "", cache_dir=str(tmp_path / "other"))
