"""The check of every photo before training: what is remembered, what the system says of the moment, and copies."""

import errno
import json
import os
import resource

import numpy as np
import pytest
from PIL import Image

from c2f_jax.data import checking, images
from c2f_jax.errors import UserError


def picture(seed, size=(96, 64)):
    """A photo-like picture: smooth random colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        picture(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def check(root, tmp_path):
    return lambda: checking.check(root, sorted(path.name for path in root.iterdir()), tmp_path / "cache")


def errors(verdicts):
    return {path: verdict.error for path, verdict in verdicts.items() if verdict.error}


@pytest.fixture
def failing(monkeypatch):
    """Lets the first so many readings of 2.png fail as the system would; returns what was decoded."""
    decoded = []

    def failing(error, times):
        def decode(path, real=images.decode):
            decoded.append(path.name)
            if path.name == "2.png" and decoded.count("2.png") <= times:
                raise images.UnreadableImage("as the system says") from error
            return real(path)

        monkeypatch.setattr(images, "decode", decode)
        monkeypatch.setattr(checking, "_WAITS", (0.0, 0.0, 0.0))
        return decoded

    return failing


PASSING = [OSError(errno.EMFILE, "Too many open files"), MemoryError(), OSError(errno.ESTALE, "Stale file handle")]


@pytest.mark.parametrize("error", PASSING)
def test_what_passes_is_tried_again_and_the_photo_used(check, failing, error):
    decoded = failing(error, times=2)
    assert errors(check()) == {} and decoded.count("2.png") == 3
    assert errors(check()) == {} and decoded.count("2.png") == 3


@pytest.mark.parametrize("error", PASSING[:2])
def test_what_does_not_pass_is_told_and_never_remembered(check, failing, error):
    failing(error, times=4)
    with pytest.raises(UserError, match="2.png cannot be read just now .* says nothing about the photo") as caught:
        check()
    assert "\n" not in str(caught.value)
    assert errors(check()) == {}


def test_a_disk_that_fails_leaves_the_photo_out_and_is_asked_again(check, failing):
    decoded = failing(OSError(errno.EIO, "Input/output error"), times=4)
    assert errors(check()) == {"2.png": "as the system says"}
    assert errors(check()) == {} and len(decoded) == 6 + 3 + 1  # only this one was looked at again


def test_a_permission_is_not_remembered(check, failing):
    decoded = failing(PermissionError(errno.EACCES, "Permission denied"), times=1)
    assert errors(check()) == {"2.png": "as the system says"} and len(decoded) == 6
    assert errors(check()) == {} and len(decoded) == 7


def test_too_many_open_files_for_real(root, tmp_path, monkeypatch):
    paths = sorted(path.name for path in root.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waited = []

    def wait(seconds):
        waited.append(seconds)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    monkeypatch.setattr(checking.time, "sleep", wait)
    Image.init()
    free = os.open(os.devnull, os.O_RDONLY)  # the lowest that is free: no file can be opened below it
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        found = checking.check(root, paths, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert waited == [checking._WAITS[0]] and len(found) == 6 and errors(found) == {}


def test_content_is_remembered_good_and_bad(check, root, failing):
    (root / "3.png").write_bytes(b"no image")
    decoded = failing(None, times=0)
    first = check()
    assert errors(first) == {"3.png": "not an image of a known format"} and len(decoded) == 6
    assert check() == first and len(decoded) == 6
    (root / "3.png").write_bytes((root / "4.png").read_bytes())
    again = check()
    assert errors(again) == {} and len(decoded) == 7 and again["3.png"] == first["4.png"]


def test_another_version_may_read_what_could_not_be_read(check, root, failing, monkeypatch):
    (root / "3.png").write_bytes(b"no image")
    decoded = failing(None, times=0)
    check()
    monkeypatch.setattr(checking, "_READERS", ["99", ""])
    check()
    assert len(decoded) == 12


class NotThisTime(images.UnreadableImage):
    """As a reader says that something else than the file is wanting."""


def test_what_is_no_verdict_on_the_content_is_not_remembered(check, monkeypatch):
    def decode(path):
        raise NotThisTime("needs another package")

    monkeypatch.setattr(checking, "_WAITS", (0.0,))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(images, "decode", decode)
        assert set(errors(check()).values()) == {"needs another package"}
    assert errors(check()) == {}


def test_missing_files_are_listed_once(check, root):
    verdicts = checking.check(root, ["0.png", *(f"gone{i:02}.png" for i in range(25))], root.parent / "cache")
    lines = checking.unreadable_lines(verdicts)
    assert lines[0] == "25 of 26 images are not there and are left out:"
    assert lines[1] == "  gone00.png" and lines[-1] == "  and 5 more" and len(lines) == 22


def test_sizes_are_those_of_the_upright_photo(check, root):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture(9).save(root / "turned.jpg", exif=exif)
    verdicts = check()
    assert verdicts["turned.jpg"][1:3] == (96, 64) and verdicts["0.png"][1:3] == (64, 96)


def test_copies_are_alike_and_others_are_not(check, root):
    picture(0).save(root / "copy.png", compress_level=1)
    picture(1).save(root / "recompressed.jpg", quality=70)
    picture(2).resize((48, 32)).save(root / "half.png")
    picture(7).save(root / "other.png")
    Image.new("RGB", (96, 64), "white").save(root / "white.png")
    Image.new("RGB", (96, 64), "white").save(root / "white too.png")
    verdicts = check()
    ones = ["copy.png", "half.png", "other.png", "recompressed.jpg", "white.png"]
    found = checking.alike(verdicts, ones, [f"{i}.png" for i in range(6)] + ["white too.png"])
    assert found == {"copy.png": "0.png", "recompressed.jpg": "1.png", "half.png": "2.png"}
    assert verdicts["copy.png"].pixels == verdicts["0.png"].pixels
    assert checking.alike(verdicts, ["0.png"], []) == checking.alike(verdicts, [], ["0.png"]) == {}


def test_the_search_finds_what_comparing_all_finds():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 1 << 16, (300, checking.LOOK)).astype(np.uint16)
    left = right[rng.integers(0, 300, 400)].copy()
    for row in left:
        for bit in rng.integers(0, 256, rng.integers(0, 30)):
            row[bit // 16] ^= np.uint16(1 << (bit % 16))
    steps = np.bitwise_count(left[:, None] ^ right).sum(axis=-1)
    wanted = np.where((steps <= checking.ALIKE).any(axis=1), np.argmax(steps <= checking.ALIKE, axis=1), 300)
    assert 100 < (wanted < 300).sum() < 300
    np.testing.assert_array_equal(checking._first_close(left, right), wanted)


def test_content_that_changes_behind_size_and_date(root, check):
    """As a program does that restores files with their dates."""
    path = root / "3.png"
    status, good = path.stat(), path.read_bytes()

    def put(data):
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    put(b"x" * len(good))
    assert list(errors(check())) == ["3.png"]
    put(good)
    assert not errors(check())
    put(b"x" * len(good))
    assert list(errors(check())) == ["3.png"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"key": KEY}', '{"key": KEY, "files": [1]}', "{half"])
def test_a_memory_that_is_none(root, check, tmp_path, text):
    check()
    (memory,) = (tmp_path / "cache" / "folder").iterdir()
    key = json.dumps(json.loads(memory.read_text())["key"])
    memory.write_text(text.replace("KEY", key))
    assert not errors(check()) and len(json.loads(memory.read_text())["files"]) == 6
