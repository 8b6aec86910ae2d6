"""PNG files whose text or colour profile is larger than Pillow reads: the picture is not to be lost by that."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE_BYTES = 16 << 20  # the largest printers' profiles have some 3 MiB
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"iTXtXML:com.adobe.xmp\0\0"  # as it is: it may say how the picture is turned


def without_text(data: bytes) -> tuple[bytes, bytes | None]:
    """(the file without its text, but for XMP that is not packed, and without its colour profile; that profile).

    A profile of more than `MAX_PROFILE_BYTES` is left out, and no more than that is ever inflated.
    """
    kept, profile, place = [SIGNATURE], None, len(SIGNATURE)
    while place + 12 <= len(data):
        (size,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        end = place + 12 + size
        if kind == b"iCCP":
            profile = _inflated(data[place + 8 : end - 4].partition(b"\0")[2][1:])
        elif kind not in _TEXT or data.startswith(_XMP, place + 4):
            kept.append(data[place:end])
        place = end
    return b"".join(kept), profile


def _inflated(packed: bytes) -> bytes | None:
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed, MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if unpacker.eof else None
