"""Colours by their profiles, many bits, transparency, large text: the pixels that people see."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from c2f_jax.data.images import decode, decode_photo
from tests.data.test_images import PICTURE, chunk, encoded

D50 = np.array([0.9642, 1.0, 0.8249])


def s15(*values):
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def icc(kind, space, pcs, tags):
    """An ICC profile of version 2."""
    table, body, place = [], b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table.append(name + struct.pack(">II", place + len(body), len(data)))
        body += data
    head = struct.pack(">I4sI4s4s4s", 0, b"", 0x02400000, kind, space, pcs) + bytes(12) + b"acsp" + bytes(28)
    head += s15(*D50) + bytes(48)
    whole = head + struct.pack(">I", len(tags)) + b"".join(table) + body
    return struct.pack(">I", len(whole)) + whole[4:]


def described(text):
    return b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(79)


def wide_gamut(text=b"wide", more=b""):
    """ProPhoto's primaries with gamma 1.8, and linear RGB -> XYZ (D50) as a matrix."""
    matrix = np.array([[0.7977, 0.1352, 0.0313], [0.2880, 0.7119, 0.0001], [0.0, 0.0, 0.8249]])
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(1.8 * 256))
    tags = {b"desc": described(text), b"wtpt": b"XYZ " + bytes(4) + s15(*D50)}
    tags |= {name: b"XYZ " + bytes(4) + s15(*matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    return icc(b"mntr", b"RGB ", b"XYZ ", tags | ({b"cprt": b"text" + bytes(4) + more} if more else {})), matrix


def srgb(xyz):
    """XYZ (D50) [..., 3] -> sRGB levels, from the standard's definition with Bradford's adaptation."""
    inverse = np.linalg.inv([[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
                             [0.0139322, 0.0971045, 0.7141733]])  # fmt: skip
    linear = np.clip(xyz @ inverse.T, 0.0, 1.0)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def lab_to_xyz(lab):
    lightness, a, b = np.moveaxis(np.asarray(lab, float), -1, 0)
    f = np.stack([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200], -1)
    return D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))


INKS = {(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): (58, -25, -35), (0, 1, 0, 0): (50, 55, 5), (0, 0, 1, 0): (88, -5, 70),
        (0, 0, 0, 1): (20, 1, 2)}  # fmt: skip


def press():
    """A CMYK profile that knows the corners of `INKS`: nothing like the usual formulas."""
    corners = [INKS.get((c, m, y, k), (0, 0, 0)) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    grid = bytes(round(v) for lab in corners for v in (lab[0] * 2.55, lab[1] + 128, lab[2] + 128))
    identity = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += 4 * identity + grid + 3 * identity
    return icc(b"prtr", b"CMYK", b"Lab ", {b"desc": described(b"press"), b"A2B0": table})


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("ink", INKS)
def test_cmyk_by_its_profile(kind, ink):
    """Pillow writes JPEG's CMYK inverted, as Adobe does."""
    data = encoded(Image.new("CMYK", (16, 16), tuple(255 * part for part in ink)), kind, icc_profile=press())
    np.testing.assert_allclose(decode(data)[8, 8], srgb(lab_to_xyz(INKS[ink])), atol=4)


def test_ycck_by_its_profile():
    """Photoshop's kind of CMYK in a JPEG: the inks, inverted, stand as YCC; Adobe's marker says so by a 2."""
    # Magenta, inverted, is green: Y 150, Cb 44, Cr 21. Pillow inverts what it writes.
    inks = Image.new("CMYK", (16, 16), (255 - 150, 255 - 44, 255 - 21, 0))
    plain = encoded(inks, "JPEG", quality=100, subsampling=0, icc_profile=press())
    place = plain.index(b"Adobe\0") + 11
    assert plain[place] == 0
    data = plain[:place] + b"\2" + plain[place + 1 :]
    np.testing.assert_allclose(decode(data)[8, 8], srgb(lab_to_xyz(INKS[0, 1, 0, 0])), atol=4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_wide_gamut_photos_are_brought_to_srgb(kind):
    profile, matrix = wide_gamut()
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    stored = np.repeat(np.repeat(np.array([[(200, 120, 90), (120, 128, 140), (250, 250, 250)]], np.uint8), 8, 0), 8, 1)
    data = encoded(Image.fromarray(stored), kind, icc_profile=profile, **options.get(kind, {}))
    expected = srgb((stored / 255.0) ** 1.8 @ matrix.T)
    assert np.abs(expected - stored).max() > 20
    np.testing.assert_allclose(decode(data), expected, atol=4 if kind in ("JPEG", "AVIF") else 2)


def test_profiles_that_are_not_for_the_image_or_damaged():
    profile, _ = wide_gamut()
    for bad in (b"", b"rubbish", profile[:150], press()):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(PICTURE), "PNG", icc_profile=bad)), PICTURE)
    named, _ = wide_gamut(b"sRGB IEC61966-2.1")  # which nothing has to be done for
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PICTURE), "PNG", icc_profile=named)), PICTURE)


def test_lab():
    colours = [(60, 30, -20), (80, -40, 40), (20, 0, 0)]
    stored = np.array([[(round(c[0] * 2.55), c[1] % 256, c[2] % 256) for c in colours]], np.uint8)
    image = Image.frombytes("LAB", (3, 1), stored.tobytes())
    np.testing.assert_allclose(decode(encoded(image, "TIFF"))[0], srgb(lab_to_xyz(colours)), atol=3)


def test_strips_are_the_whole(monkeypatch):
    """Large images are converted some rows at a time."""
    profile, _ = wide_gamut()
    data = [encoded(Image.fromarray(PICTURE), "PNG", icc_profile=profile), encoded(Image.fromarray(PICTURE), "PNG")]
    data.append(encoded(Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])), "PNG"))
    data.append(encoded(Image.fromarray(PICTURE[..., 0].astype(np.float32) * 7 - 50), "TIFF"))
    whole = [decode(one) for one in data]
    monkeypatch.setattr("c2f_jax.data.pixels.STRIP_PIXELS", 7 * PICTURE.shape[1])
    for one, expected in zip(data, whole, strict=True):
        np.testing.assert_array_equal(decode(one), expected)


def tiff(levels, *, big=False, **tags):
    """Uncompressed grey of any sample format; tags beyond the usual by number, several values as a tuple."""
    order, kinds = (">" if big else "<"), {"u": 1, "i": 2, "f": 3}
    height, width = levels.shape
    body = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    entries = {256: width, 257: height, 258: 8 * levels.dtype.itemsize, 259: 1, 262: 1, 277: 1, 278: height}
    entries |= {279: len(body), 339: kinds[levels.dtype.kind]} | {int(name[1:]): value for name, value in tags.items()}
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    strips = entries[279] if isinstance(entries[279], tuple) else (entries[279],)
    offsets = tuple(start + sum(strips[:i]) for i in range(len(strips)))
    entries[273], behind = offsets if len(offsets) > 1 else start, b""
    table = (b"MM" if big else b"II") + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, value in sorted(entries.items()):
        if isinstance(value, tuple):
            table += struct.pack(order + "HHII", tag, 4, len(value), start + len(body) + len(behind))
            behind += struct.pack(f"{order}{len(value)}I", *value)
        else:
            table += struct.pack(order + "HHII", tag, 4, 1, value)
    return table + struct.pack(order + "I", 0) + body + behind


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [3, 4])
def test_planes_of_a_tiff(big, kind, count):
    """One after the other, not packed."""
    height, width = PICTURE.shape[:2]
    planes = np.concatenate([PICTURE, np.full((height, width, 1), 255, np.uint8)], -1)[..., :count].transpose(2, 0, 1)
    levels = planes.astype(kind) * (257 if kind == np.uint16 else 1)
    of_each = {"_258": (8 * levels.itemsize,) * count, "_279": (levels[0].nbytes,) * count, "_339": (1,) * count}
    more = {"_338": 2} if count == 4 else {}
    rows = levels.reshape(count * height, width)
    data = tiff(rows, big=big, _257=height, _262=2, _277=count, _278=height, _284=2, **of_each, **more)
    np.testing.assert_array_equal(decode(data), PICTURE)


RAMP = np.linspace(0.0, 1.0, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (RAMP.astype(np.float32), RAMP * 255),
        (RAMP.astype(np.float32) / 4, RAMP * 255 / 4),  # a dark one stays dark
        ((RAMP * 9000 - 300).astype(np.float32), RAMP * 255),
        ((RAMP * 1e-6 - 1e-7).astype(np.float32), RAMP * 255),
        ((RAMP * 65535).astype(np.int32), RAMP * 255),
        ((RAMP * 6553).astype(np.int32), RAMP * 25.5),
        ((RAMP * 4e9).astype(np.uint32), RAMP * 255),
        ((RAMP * 60000 - 30000).astype(np.int16), RAMP * 255),
        ((RAMP * 65535).astype(np.uint16), RAMP * 255),
    ],
)
def test_levels_of_many_bits(levels, expected):
    image = decode(tiff(levels))
    assert np.ptp(image, axis=-1).max() == 0
    np.testing.assert_allclose(image[..., 0], expected, atol=1.01)


def test_levels_that_are_no_numbers():
    levels = (RAMP * 9000 - 300).astype(np.float32)
    levels[0, 0], levels[1, 1], levels[2, 2] = np.nan, np.inf, -np.inf
    image = decode(tiff(levels))[..., 0]
    assert (image[0, 0], image[1, 1], image[2, 2]) == (0, 255, 0)
    np.testing.assert_allclose(image[4:], RAMP[4:] * 255, atol=5)
    for none in (np.nan, np.inf, 7.5, -3.0):
        assert decode(tiff(np.full((4, 4), none, np.float32))).shape == (4, 4, 3)
    assert decode(tiff(np.full((4, 4), 0.5, np.float32)))[0, 0, 0] == 128


def test_one_hot_pixel_does_not_darken_the_rest():
    levels = np.tile(np.linspace(100.0, 300.0, 64, dtype=np.float32), (64, 1))
    levels[5, 5] = 1e9
    image = decode(tiff(levels))[..., 0]
    assert image[5, 5] == 255
    np.testing.assert_allclose(image[6], np.linspace(0, 255, 64), atol=2)


def test_what_a_tiff_says_of_its_levels():
    twelve = np.array([[0, 1000, 2047, 4095]], np.uint16)
    np.testing.assert_allclose(decode(tiff(twelve, t281=4095))[0, :, 0], [0, 62, 127, 255], atol=1)
    # Packed, two samples in three bytes.
    packed = np.array([[0x00, 0x03, 0xE8], [0x7F, 0xFF, 0xFF]], np.uint8).reshape(1, 6)
    data = tiff(packed, t256=4, t258=12, t279=6)
    np.testing.assert_allclose(decode(data)[0, :, 0], [0, 62, 127, 255], atol=1)
    white_is_zero = decode(tiff((RAMP * 65535).astype(np.uint16), t262=0))
    np.testing.assert_allclose(white_is_zero[..., 0], 255 - RAMP * 255, atol=1)
    big_endian = decode(tiff((RAMP * 65535).astype(np.uint16), big=True))
    np.testing.assert_allclose(big_endian[..., 0], RAMP * 255, atol=1)


def png_of(colour_type, samples, *chunks):
    """16 bits a sample; samples [H, W, n]."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_colour_and_transparency():
    levels = (np.stack([RAMP, 1 - RAMP, RAMP**2], -1) * 65535).astype(np.uint16)
    np.testing.assert_allclose(decode(png_of(2, levels)), levels / 257, atol=1)
    half = np.full((8, 8, 1), 32768, np.uint16)
    np.testing.assert_allclose(decode(png_of(6, np.dstack([levels, half]))), levels / 514 + 127.5, atol=2)
    grey = np.dstack([levels[..., :1], half])
    np.testing.assert_allclose(decode(png_of(4, grey))[..., 1], levels[..., 0] / 514 + 127.5, atol=2)
    # One level is declared transparent, and so white.
    keyed = decode(png_of(0, levels[..., :1], chunk(b"tRNS", struct.pack(">H", int(levels[0, 3, 0])))))
    assert keyed[0, 3, 0] == 255 and keyed[0, 2, 0] == levels[0, 2, 0] // 257


def test_premultiplied_colours():
    """A TIFF may say that its colours are multiplied by alpha (ExtraSamples 1)."""
    half = (PICTURE * 128.0 / 255).round().astype(np.uint8)
    levels = np.dstack([half, np.full(PICTURE.shape[:2], 128, np.uint8)])
    # The bits of four samples stand behind the pixels.
    data = tiff(levels.reshape(24, 160), t256=40, t258=(8, 8, 8, 8), t262=2, t277=4, t338=1)
    np.testing.assert_allclose(decode(data), PICTURE * 128.0 / 255 + 127, atol=2)


def test_palette_with_alpha_on_white():
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 10, 20, 30, 200, 0, 0])
    image.putdata([0, 1, 2])
    for kind in ("PNG", "WEBP"):
        options = {"transparency": bytes([0, 255, 51])} if kind == "PNG" else {}
        if kind == "WEBP":
            image = Image.open(io.BytesIO(encoded(image, "PNG", transparency=bytes([0, 255, 51]))))
            options = {"lossless": True, "exact": True}
        expected = [(255,) * 3, (10, 20, 30), (244, 204, 204)]
        np.testing.assert_allclose(decode(encoded(image, kind, **options))[0], expected)


def test_the_first_of_several_pictures():
    frames = [Image.fromarray(PICTURE), Image.new("RGB", (40, 24), "lime")]
    for kind in ("TIFF", "MPO"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(decode(data).astype(int) - PICTURE).max() < 20
        assert Image.open(io.BytesIO(data)).n_frames == 2
    large = Image.fromarray(PICTURE).resize((400, 240))
    data = encoded(large, "MPO", save_all=True, append_images=[Image.new("RGB", (400, 240), "lime")])
    photo = decode_photo(data, min_side=30)
    assert photo.image.shape == (60, 100, 3) and (photo.height, photo.width) == (240, 400)
    assert np.abs(photo.image.astype(int) - np.asarray(large.resize((100, 60)))).mean() < 8


@pytest.mark.parametrize("packed", [True, False])
def test_png_with_megabytes_of_text(packed):
    text = b"Comment\0" + (b"\0" + zlib.compress(bytes(3 << 20)) if packed else b"x" * (70 << 20))
    data = encoded(Image.fromarray(PICTURE), "PNG")
    for place in (33, len(data) - 12):  # before the picture, and behind it
        full = data[:place] + chunk(b"zTXt" if packed else b"tEXt", text) + data[place:]
        np.testing.assert_array_equal(decode(full), PICTURE)


def test_png_with_a_bomb_of_text(tmp_path):
    """A gigabyte, packed: neither the picture nor the memory is lost."""
    packer = zlib.compressobj()
    packed = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(1024)), packer.flush()])
    data = encoded(Image.fromarray(PICTURE), "PNG")
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        full = data[:33] + chunk(kind, head + packed) + data[33:]
        np.testing.assert_array_equal(decode(full), PICTURE)


def test_png_with_a_profile_of_megabytes():
    profile, _ = wide_gamut(more=np.random.default_rng(0).bytes(2 << 20))
    small, _ = wide_gamut()
    expected = decode(encoded(Image.fromarray(PICTURE), "PNG", icc_profile=small))
    data = encoded(Image.fromarray(PICTURE), "PNG", icc_profile=profile)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode(data), expected)
    # XMP stays: it may be what says how the picture is turned.
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"></x:xmpmeta>'
    turned = data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[33:]
    np.testing.assert_array_equal(decode(turned), expected[::-1, ::-1])


def test_jpegs_are_reduced_by_powers_of_two_and_no_further_than_asked():
    smooth = Image.fromarray(PICTURE).resize((1600, 1000), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=95)
    for min_side, expected in ((1000, 1000), (500, 1000), (250, 500), (126, 500), (125, 250), (62, 125), (1, 125)):
        photo = decode_photo(data, min_side=min_side)
        assert photo.image.shape[0] == expected and (photo.height, photo.width) == (1000, 1600)
        assert decode(data, min_side=min_side).shape == photo.image.shape
        exact = np.asarray(smooth.resize((photo.image.shape[1], expected), Image.Resampling.BOX)).astype(int)
        assert np.abs(exact - photo.image).mean() < 1.5


def test_srgb_is_what_pillow_says_it_is():
    """The oracle above agrees with lcms' own sRGB at a few colours."""
    lab = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    pixel = Image.frombytes("LAB", (1, 1), bytes([153, 30, 256 - 20]))
    np.testing.assert_allclose(
        np.asarray(ImageCms.applyTransform(pixel, lab))[0, 0], srgb(lab_to_xyz((60, 30, -20))), atol=2
    )
