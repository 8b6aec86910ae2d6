"""Every kind of image file becomes what people see; every broken one the same kind of error."""

import io
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from c2f_jax.data import images, png
from c2f_jax.data.images import OutOfReach, UnreadableImage, decode, decode_photo, find_images
from c2f_jax.data.raw import Raw

ROOT = Path(__file__).resolve().parents[2]

# Smooth, so that JPEG keeps it; no two corners alike, so that every turn shows.
Y, X = np.mgrid[:24, :40]
PICTURE = np.stack([Y * 10, X * 6, 255 - Y * 5 - X * 3], axis=-1).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_files_are_exact(kind):
    image = decode(encoded(Image.fromarray(PICTURE), kind))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, PICTURE)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 98, "subsampling": 0}), ("WEBP", {"quality": 98})])
def test_lossy_files_are_close(kind, options):
    image = decode(encoded(Image.fromarray(PICTURE), kind, **options))
    assert np.abs(image.astype(int) - PICTURE).max() < 12


def test_a_path_will_do(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), PICTURE)
    np.testing.assert_array_equal(decode(str(tmp_path / "a.png")), PICTURE)


def test_grey_and_black_and_white():
    grey = PICTURE[..., 0]
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, -1))
    bits = Image.fromarray(grey).point(lambda level: 255 * (level > 100), mode="1")
    np.testing.assert_array_equal(decode(encoded(bits, "PNG"))[..., 1], np.where(grey > 100, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    levels = np.array([[0, 128, 129, 257], [300, 32768, 65000, 65535]], np.uint16)
    image = decode(encoded(Image.fromarray(levels), kind))
    np.testing.assert_array_equal(image[..., 0], [[0, 0, 1, 1], [1, 128, 253, 255]])
    assert np.ptp(image, axis=-1).max() == 0


def test_palette():
    colours = Image.fromarray((PICTURE // 64) * 64).quantize(256)
    assert colours.mode == "P"
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(decode(encoded(colours, kind)), np.asarray(colours.convert("RGB")))


def test_cmyk():
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind, options in (("JPEG", {"quality": 98}), ("TIFF", {})):
        np.testing.assert_allclose(decode(encoded(cyan, kind, **options))[4, 4], (0, 255, 255), atol=3)


def test_transparent_places_are_white():
    alpha = np.zeros((4, 4, 4), np.uint8)  # black and transparent
    alpha[0] = (200, 0, 0, 255)
    alpha[1] = (0, 0, 0, 51)  # a fifth of black on white
    image = decode(encoded(Image.fromarray(alpha), "PNG"))
    np.testing.assert_array_equal(image[:3, 0], [(200, 0, 0), (204, 204, 204), (255, 255, 255)])
    grey = decode(encoded(Image.fromarray(alpha[..., 2:]), "PNG"))  # LA
    np.testing.assert_array_equal(grey[:3, 0, 0], [0, 204, 255])
    # A palette entry or a colour may be declared transparent.
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG", transparency=0))[0], [(255,) * 3, (10, 20, 30)])
    keyed = Image.fromarray(np.array([[(1, 2, 3), (4, 5, 6)]], np.uint8))
    np.testing.assert_array_equal(decode(encoded(keyed, "PNG", transparency=(1, 2, 3)))[0], [(255,) * 3, (4, 5, 6)])


TURNED = {  # EXIF orientation -> what a camera held like that stores of the picture
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.transpose(1, 0, 2),
    6: np.rot90(PICTURE, 1),
    7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PICTURE, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation]))
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 99}}
    data = encoded(stored, kind, exif=exif.tobytes(), **options.get(kind, {}))
    image = decode(data)
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).max() < 12
    photo = decode_photo(data, min_side=4)
    assert (photo.height, photo.width) == PICTURE.shape[:2]
    assert photo.image.shape == ((12, 20, 3) if kind == "JPEG" else PICTURE.shape)


@pytest.mark.parametrize("orientation", TURNED)
def test_heic(orientation):
    """Its plugin turns it: once is enough."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation]))
    image = decode(encoded(stored, "HEIF", exif=exif.tobytes(), quality=100, chroma=444))
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).max() < 12


def test_heic_without_its_package(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    data = encoded(Image.fromarray(PICTURE), "HEIF")
    monkeypatch.setattr(images, "_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(OutOfReach, match="pip install pillow-heif"):
        decode(data)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0no such thing"])
def test_damaged_exif_data_do_not_matter(exif):
    image = decode(encoded(Image.fromarray(PICTURE), "PNG", exif=exif))
    np.testing.assert_array_equal(image, PICTURE)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    np.testing.assert_allclose(decode(data)[8, 8], (255, 0, 0), atol=3)


JPEG, PNG = (encoded(Image.fromarray(PICTURE), kind) for kind in ("JPEG", "PNG"))


def bomb():
    """A PNG of 30000 x 30000 pixels, so it says."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return PNG[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + PNG[33:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image"),
        (bytes(range(64)), "not an image"),
        (JPEG[:-60], "truncated"),
        (JPEG[:20], "."),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:60] + b"\0\0\0\0" + PNG[64:], "."),
        (bomb(), "too many pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not an image"),
    ],
)
def test_broken_files(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(data)
    assert 0 < len(str(caught.value)) < 100 and "\n" not in str(caught.value)


def test_what_is_out_of_reach_is_no_verdict_on_the_content(tmp_path):
    """Missing files, folders, and a process that has too many files open."""
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(OutOfReach, match="no such file|is a directory"):
            decode(path)
    (tmp_path / "a.png").write_bytes(PNG)
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest_free:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free.fileno() + 1, hard))
        try:
            with pytest.raises(OutOfReach, match="too many open files"):
                decode(tmp_path / "a.png")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), PICTURE)
    for data in (b"", JPEG[:-60]):
        with pytest.raises(UnreadableImage) as caught:
            decode(data)
        assert not isinstance(caught.value, OutOfReach)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImage, match="not a file"):
        decode(tmp_path / "a.jpg")


def test_memory_that_is_short_is_no_verdict_on_the_content():
    code = """
import io, os, resource, sys
from PIL import Image, ImageCms
from c2f_jax.data.images import OutOfReach, decode
from c2f_jax.data.raw import Raw
buffer = io.BytesIO()
Image.new("RGB", (9000, 9000)).save(buffer, "PNG")
decode(open(sys.argv[1], "rb").read())
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    decode(buffer.getvalue())
except OutOfReach as error:
    print(error)
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs Linux's /proc")
    with tempfile.NamedTemporaryFile() as file:
        file.write(PNG)
        file.flush()
        done = subprocess.run([sys.executable, "-c", code, file.name], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "not enough memory\n", done.stderr


def peak_mib(data, tmp_path):
    """What decoding takes at most in a process of its own, beyond what it had before; and what came of it."""
    (tmp_path / "file").write_bytes(data)
    code = """
import sys
from c2f_jax.data.images import UnreadableImage, decode, _formats
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
_formats()
before = peak()
try:
    said = decode(sys.argv[1]).shape
except UnreadableImage as error:
    said = error
print((peak() - before) // 1024, said)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    mib, _, said = done.stdout.strip().partition(" ")
    return int(mib), said


def packed_png(width, height):
    """Black, of few bytes, row by row, so that making it takes no memory either."""
    packer = zlib.compressobj(1)
    rows = b"".join([*(packer.compress(bytes(1 + 3 * width)) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return png.SIGNATURE + b"".join(chunk(*one) for one in chunks)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_one_file_takes_what_is_bounded(tmp_path):
    side = 10100  # a 100-megapixel camera's
    mib, said = peak_mib(packed_png(side, side), tmp_path)
    assert said == f"({side}, {side}, 3)" and mib < 8.5 * side**2 / 2**20
    # Refused by its header, whatever stands behind it.
    huge = png.SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    mib, said = peak_mib(huge + packed_png(60, 60)[33:], tmp_path)
    assert "too many pixels; at most 134 million" in said and mib < 50
    tiff = bytearray(encoded(Image.new("L", (64, 64)), "TIFF"))
    place = tiff.index(struct.pack("<HHI", 256, 4, 1))  # ImageWidth
    tiff[place + 8 : place + 12] = struct.pack("<I", 1 << 30)
    mib, said = peak_mib(bytes(tiff), tmp_path)
    assert "too many pixels" in said and mib < 50


def test_an_animation_is_not_read_to_its_end():
    few, many = ([Image.new("L", (300, 300), 10 * (i % 20)) for i in range(count)] for count in (2, 2000))
    few, many = (encoded(one[0], "GIF", save_all=True, append_images=one[1:]) for one in (few, many))
    began = time.perf_counter()
    np.testing.assert_array_equal(decode(many), decode(few))
    assert time.perf_counter() - began < 0.5


def test_a_jpeg_of_endless_scans():
    """A scan of white is a few bytes, and libjpeg goes through the whole picture for each."""
    data = encoded(Image.new("L", (2000, 2000), 255), "JPEG", progressive=True)
    assert decode(data).min() == 255
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(UnreadableImage, match="too many scans"):
        decode(data[:-2] + 2000 * last + data[-2:])


def test_find_images(tmp_path):
    for name in ("b.JPG", "a/c.png", "a/B.tiff", "a/deep/er/x.webp", ".hidden.jpg", "a/._c.png", "__MACOSX/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("notes.txt", "a/jpg", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wanted = ["a/B.tiff", "a/c.png", "a/deep/er/x.webp", "b.JPG"]
    assert find_images(tmp_path) == find_images(str(tmp_path)) == wanted
    (tmp_path / "a" / "round").symlink_to(tmp_path, target_is_directory=True)
    assert find_images(tmp_path) == wanted
    (tmp_path / "z").symlink_to(tmp_path / "a" / "deep", target_is_directory=True)
    assert find_images(tmp_path) == wanted
    with pytest.raises(OSError):
        find_images(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".MPO", "MPO"), (".apng", "PNG"), (".j2k", "JPEG2000"), (".avifs", "AVIF")]
)
def test_less_usual_suffixes(tmp_path, suffix, kind):
    path = tmp_path / f"a{suffix}"
    frames = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]} if kind != "JPEG2000" else {}
    Image.new("RGB", (8, 8), "blue").save(path, kind, **frames)
    assert images.find_images(tmp_path) == [path.name]
    np.testing.assert_allclose(images.decode(path)[4, 4], [0, 0, 255], atol=6)


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "P", "RGBA", "EXIF", "progressive", "large", "sRGB", "profile"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_scaling_while_decoding_gives_what_scaling_afterwards_does(kind, keep_aspect):
    """To the bit, whatever the file is like: it is a shorter way to the same picture."""
    width, height = (1300, 900) if kind == "large" else (75, 50)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image, options = Image.fromarray(noise), {}
    if kind in ("L", "CMYK", "P", "RGBA"):
        image = image.convert(kind)
    if kind == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    if kind in ("sRGB", "profile"):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        # Of other primaries: as a photo for a wide gamut, it is brought to sRGB before it is scaled.
        options = {"icc_profile": profile if kind == "sRGB" else profile.replace(b"sRGB", b"wide")}
    file = io.BytesIO()
    image.save(file, "PNG" if kind in ("P", "RGBA") else "JPEG", progressive=kind == "progressive", **options)
    raw = Raw(32, keep_aspect)
    whole = images.decode_photo(file.getvalue(), min_side=32)
    small = images.decode_photo(file.getvalue(), min_side=32, shape=raw.shape)
    np.testing.assert_array_equal(small.image, raw.scale(whole.image))
    assert (small.height, small.width) == (whole.height, whole.width)
    assert small.image.shape[:2] == raw.shape(*whole.image.shape[:2])


def test_a_sequential_jpeg_is_not_searched_for_scans():
    """That takes as long as a tenth of decoding it; one of several scans is, whatever it pretends in a thumbnail."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    for progressive, several in ((False, False), (True, True)):
        file = io.BytesIO()
        noise.save(file, "JPEG", progressive=progressive)
        with Image.open(io.BytesIO(file.getvalue())) as image:
            assert images._may_have_scans(image, file.getvalue()) == several
