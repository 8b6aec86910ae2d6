"""Every kind of image file becomes what people see; every broken one the same kind of error."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from c2f_jax.data.images import UnreadableImage, decode, find_images

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
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation]))
    image = decode(encoded(stored, kind, exif=exif, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {})))
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).max() < 12


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
        (encoded(Image.fromarray(PICTURE[..., 0].astype(np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(PICTURE[..., 0].astype(np.int32) * 1000), "TIFF"), "32-bit"),
    ],
)
def test_broken_files(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(data)
    assert 0 < len(str(caught.value)) < 100 and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(UnreadableImage, match="no such file|is a directory"):
            decode(path)


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
