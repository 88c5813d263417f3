"""Image files for tests: the catalogue's photographs in every form that people send, and files that do harm."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mlos.catalogue import catalogue

_ORIENTATION = 0x0112
_ADOBE = b"\xff\xee"
PNG = b"\x89PNG\r\n\x1a\n"


def photograph(name: str = "cat.jpg") -> bytes:
    return (catalogue().folder / "images" / name).read_bytes()


def picture(name: str = "cat.jpg") -> Image.Image:
    """A photograph in RGB."""
    return Image.open(io.BytesIO(photograph(name))).convert("RGB")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return saved(picture("coffee.jpg"), kind, exif=exif)


def without_adobe(content: bytes) -> bytes:
    """A JPEG without its APP14 segment, which tells that CMYK is stored inverted."""
    start = content.index(_ADOBE)
    return content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4], "big") :]


def translucent() -> Image.Image:
    image = picture()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def palette(**options: Any) -> bytes:
    return saved(picture().quantize(64), "PNG", **options)


def sixteen_bits() -> bytes:
    values = np.linspace(0, 700, 90 * 120, dtype=np.uint16).reshape(90, 120)
    return saved(Image.fromarray(values), "PNG")


def animated(kind: str, **options: Any) -> bytes:
    frames = [picture(name).resize((120, 80)) for name in ("cat.jpg", "coffee.jpg", "rocket.jpg")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


def readable() -> Mapping[str, bytes]:
    """Every form that is read, by what it is."""
    cat, cmyk = picture(), saved(picture().convert("CMYK"), "JPEG")
    return {
        "photograph": photograph("astronaut.jpg"),
        "progressive": saved(cat, "JPEG", progressive=True),
        "grey": photograph("camera.png"),
        "grey JPEG": saved(cat.convert("L"), "JPEG"),
        "grey with alpha": saved(translucent().convert("LA"), "PNG"),
        "sixteen bits": sixteen_bits(),
        "one bit": saved(cat.convert("1"), "PNG"),
        "CMYK": cmyk,
        "CMYK not of Adobe": without_adobe(cmyk),
        "palette": palette(),
        "palette with a transparent colour": palette(transparency=3),
        "palette with alpha": palette(transparency=bytes(range(0, 256, 4))),
        "alpha": saved(translucent(), "PNG"),
        "a transparent colour": saved(cat, "PNG", transparency=(0, 0, 0)),
        "WebP": saved(cat, "WEBP"),
        "lossless WebP with alpha": saved(translucent(), "WEBP", lossless=True),
        "lossless WebP": saved(cat, "WEBP", lossless=True),
        "BMP": saved(cat, "BMP"),
        "GIF": saved(cat, "GIF"),
        "animated GIF": animated("GIF"),
        "animated WebP": animated("WEBP"),
        "animated PNG": animated("PNG"),
        "two JPEGs in one": animated("MPO"),
        **{f"turned {orientation}": turned(orientation) for orientation in range(1, 9)},
        "turned PNG": turned(6, "PNG"),
        "turned WebP": turned(8, "WEBP"),
        "turned beyond all sense": turned(42),
        "one pixel": saved(Image.new("RGB", (1, 1), (255, 0, 128)), "PNG"),
        "very wide": saved(cat.resize((900, 5)), "PNG"),
        "very tall": saved(cat.resize((3, 300)), "PNG"),
        "smaller than the crop": saved(cat.resize((61, 40)), "PNG"),
        "odd lengths": saved(cat.resize((257, 223)), "PNG"),
        "as large as the crop": saved(cat.resize((224, 224)), "PNG"),
    }


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, *chunks: bytes, bits: int = 1) -> bytes:
    """A PNG of one colour, with further chunks after its header."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width * bits + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(min(height, 20_000))) + packer.flush()
    return PNG + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@functools.cache
def packed(size: int) -> bytes:
    """So many zeros, a thousandth as long."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


def webp_header(kind: bytes, head: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(head)) + head
    return b"RIFF" + struct.pack("<I", len(body)) + body


def poison() -> Mapping[str, tuple[bytes, str]]:
    """Files that do harm or are none, each with the code of the error that answers them."""
    cat = photograph()
    frame = cat.index(b"\xff\xc0")  # its start-of-frame segment: length, precision, height, width
    giant = cat[: frame + 5] + b"\xff\xff\xff\xff" + cat[frame + 9 :]
    text = b"Comment\0\x01\0\0\0"  # compressed, in no language
    return {
        "100 megapixels in a few kilobytes": (png(10_000, 10_000), "too_large"),
        "a PNG as large as can be said": (png(2**31 - 1, 1, bits=8), "too_large"),
        "a giant JPEG": (giant, "too_large"),
        "a giant GIF": (b"GIF89a" + struct.pack("<HHBBB", 0xFFFF, 0xFFFF, 0, 0, 0) + b";", "invalid_input"),
        "a giant frame in a small GIF": (
            b"GIF89a"
            + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
            + b","
            + struct.pack("<HHHHB", 0, 0, 0xFFFF, 0xFFFF, 0)
            + b"\x08\x01\0\0;",
            "too_large",
        ),
        "a giant BMP": (
            b"BM"
            + struct.pack("<IHHI", 54, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
            "too_large",
        ),
        "a giant WebP": (webp_header(b"VP8X", bytes(4) + b"\xff\x3f\0\xff\x3f\0"), "too_large"),
        "a giant lossless WebP": (webp_header(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(9)), "too_large"),
        "a giant lossy WebP": (
            webp_header(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(9)),
            "too_large",
        ),
        "a line of pixels": (png(1, 20_000), "too_large"),
        "256 MiB of text": (png(8, 8, chunk(b"iTXt", text + packed(1 << 28))), "invalid_input"),
        "256 MiB of text in pieces": (
            png(8, 8, *[chunk(b"zTXt", b"Comment\0\0" + packed(1 << 20))] * 256),
            "invalid_input",
        ),
        "256 MiB of text at the end": (
            png(8, 8).removesuffix(chunk(b"IEND", b""))
            + chunk(b"zTXt", b"Comment\0\0" + packed(1 << 28))
            + chunk(b"IEND", b""),
            "invalid_input",
        ),
        "256 MiB of profile": (png(8, 8, chunk(b"iCCP", b"P\0\0" + packed(1 << 28))), "invalid_input"),
        "a JPEG cut short": (cat[: len(cat) // 2], "invalid_input"),
        "a JPEG's first bytes": (cat[:16], "invalid_input"),
        "a PNG cut short": (photograph("camera.png")[:5000], "invalid_input"),
        "a WebP cut short": (saved(picture(), "WEBP")[:900], "invalid_input"),
        "a JPEG's beginning before something else": (b"\xff\xd8\xff\xe0" + b"MZ" * 500, "invalid_input"),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "invalid_input"),
        "HTML": (b"<!doctype html><title>404</title>", "invalid_input"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "invalid_input"),
        "TIFF": (saved(picture(), "TIFF"), "invalid_input"),
        "an icon": (saved(picture(), "ICO"), "invalid_input"),
        "no bytes": (b"", "invalid_input"),
        "zeros": (bytes(4096), "invalid_input"),
    }
