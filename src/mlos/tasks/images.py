"""Image files to pixel tensors with Pillow and numpy alone, as the framework's own image processor does it.

A file becomes upright RGB as transformers' ``load_image`` makes it: turned as its EXIF data says, the first
frame of several, alpha dropped, 16-bit grey clipped. Then it is resized, cropped around its centre, and its
pixels are scaled and normalised. Up to there a pixel is one of 256 values, so scaling and normalising are a
table of 256 fractions per colour, computed once with the framework's own operations: the result is
bit-identical.

Sizes are read from the headers and checked before anything is decoded. Pillow itself bounds what it unpacks of
texts and profiles within PNG files.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# Pillow knows a format once its module was imported.
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from pydantic import ValidationError

from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest, Manifest, TensorSpec
from mlos.tasks.image_steps import ImageSteps
from mlos.tasks.prepared import Limits, inputs_of, subject_among

INPUT = "pixel_values"
"""The tensor of a model that takes images: FP32, (images, 3, height, width)."""
MASK = "pixel_mask"
"""Where images are padded to one size: INT64, (images, height, width), 1 at an image's pixels."""
PADDED = ("height", "width")
"""The free axes of a model that takes padded images."""
MAX_INPUT_PIXELS = 32 * 224 * 224
"""Most pixels of one request as the model sees them: what it needs for its activations grows with them."""
MAX_PADDED_PIXELS = 3 * 1333 * 1333
"""The same where images are padded: three of the largest that DETR sees, some upright and some not."""
FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
    )
)
_KNOWN = "a JPEG, PNG, WebP, GIF or BMP file"
_T = TypeVar("_T")

# Pillow's own bound is a constant of the process, and a warning; the one here is a setting, and checked first.
Image.MAX_IMAGE_PIXELS = None
# It also warns of odd but readable files, on the standard error of whoever decodes.
warnings.filterwarnings("ignore", module=r"PIL(\..*)?$")


class ImageEncoder:
    """The image steps of one package, set up for one task.

    It reads :class:`ImageSteps` from ``manifest.preprocessing[task]["steps"]``, and fills ``inputs``, by
    default those that the task's ``output`` is made of (:func:`~mlos.tasks.prepared.inputs_of`).
    """

    def __init__(
        self,
        manifest: Manifest,
        task: str,
        limits: Limits,
        inputs: Sequence[TensorSpec] | None = None,
    ) -> None:
        self.options: dict[str, Any] = manifest.preprocessing.get(task, {})
        field = f"preprocessing.{task}.steps"
        try:
            self._steps = ImageSteps.model_validate(self.options.get("steps"))
        except ValidationError as error:
            raise RefusedError(
                f"the package does not say how the task {task} prepares images: {error.errors()[0]['msg']}",
                field=field,
            ) from error
        if self._steps.size is None and not self._steps.pad:
            raise RefusedError("images of one request must come out as one size", field=field)
        self._max_pixels, self._table = limits.max_image_pixels, self._steps.table()
        taken = {
            spec.name: (spec.dtype, spec.shape[1:])
            for spec in (inputs_of(manifest, task) if inputs is None else inputs)
        }
        made: dict[str, Any] = {INPUT: ("FP32", (3, *(self._steps.size or ())))}
        if self._steps.pad:
            made = {INPUT: ("FP32", (3, *PADDED)), MASK: ("INT64", PADDED)}
        if not _alike(taken, made):
            raise RefusedError(
                f"the task {task} makes other tensors of images than the model takes",
                field="artifact.inputs",
                expected=str(made),
                got=str(taken),
            )

    def encode(self, files: Sequence[bytes], field: str) -> dict[str, NDArray[Any]]:
        """The pixels of image files as one tensor of shape (images, 3, height, width); see below."""
        return self.encode_sized(files, field)[0]

    def encode_sized(
        self, files: Sequence[bytes], field: str
    ) -> tuple[dict[str, NDArray[Any]], list[tuple[int, int]]]:
        """The pixels of image files, (images, 3, height, width), and each upright image's own height and width.

        Where images are padded, ``pixel_mask`` of shape (images, height, width) is 1 at an image's pixels.
        ``field`` is the request's: ``image``, or ``images``, whose files errors number.

        Raises:
            InvalidInputError: naming the file that is no image, or a broken one.
            PayloadTooLargeError: if a size in a header, or all together, are over a limit; nothing was decoded.
                What padding adds is known afterwards.
        """
        if self._steps.size is not None:
            _check_seen(len(files), *self._steps.size, MAX_INPUT_PIXELS, field)
        fields = ["image"] if field == "image" else [f"images[{number}]" for number in range(len(files))]
        left, seen, opened = self._max_pixels, 0, []
        for name, content in zip(fields, files, strict=True):
            image = _open(content, name, left)
            left -= image.width * image.height
            self._check_resized(image, name)
            seen += math.prod(self._steps.seen(image.width, image.height))
            _check_seen(1, seen, 1, MAX_PADDED_PIXELS, field)
            opened.append(image)
        prepared = [
            self._cropped(_read(functools.partial(self._resized, image), name))
            for name, image in zip(fields, opened, strict=True)
        ]
        height, width = (max(edges) for edges in zip(*(each.shape[:2] for each in prepared), strict=True))
        _check_seen(len(prepared), height, width, MAX_PADDED_PIXELS, field)
        pixels = np.zeros((len(files), 3, height, width), dtype=np.float32)
        mask = np.zeros((len(files), height, width), dtype=np.int64) if self._steps.pad else None
        for number, image_pixels in enumerate(prepared):
            own = np.s_[number, ..., : image_pixels.shape[0], : image_pixels.shape[1]]
            for colour, row in enumerate(self._table):
                np.take(row, image_pixels[:, :, colour], out=pixels[own][colour])
            if mask is not None:
                mask[own] = 1
        sizes = [(image.height, image.width) for image in opened]  # upright by now
        return {INPUT: pixels} | ({} if mask is None else {MASK: mask}), sizes

    def _check_resized(self, image: Image.Image, field: str) -> None:
        """A line of pixels, its short edge resized, would become a huge image."""
        width, height = self._steps.resized(image.width, image.height)
        if width * height > self._max_pixels:
            raise PayloadTooLargeError(
                f"{field}: {image.width} x {image.height} pixels become {width} x {height} when resized",
                field=field,
                expected=f"at most {self._max_pixels} pixels",
                got=f"{width * height} pixels",
                hint="send an image of more usual proportions",
            )
        if not width * height:
            raise InvalidInputError(
                f"{field}: {image.width} x {image.height} pixels become {width} x {height} when resized",
                field=field,
                expected="an image of more usual proportions",
                got=f"{image.width} x {image.height} pixels",
            )

    def _resized(self, image: Image.Image) -> NDArray[np.uint8]:
        """The image upright, in RGB and resized: shape (height, width, 3)."""
        ImageOps.exif_transpose(image, in_place=True)
        # What need not change is not copied: a large photograph would be, twice.
        upright = image if image.mode == "RGB" else image.convert("RGB")
        if self._steps.resize is not None:
            upright = upright.resize(self._steps.resized(*upright.size), Image.Resampling(self._steps.resample))
        return np.asarray(upright)

    def _cropped(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The centre of an image, or the image in the centre: shape (height, width, 3)."""
        size = self._steps.size
        if size is None or pixels.shape[:2] == size:
            return pixels
        (top, down), (left, right) = (
            _centred(length, wanted) for length, wanted in zip(pixels.shape[:2], size, strict=True)
        )
        canvas = np.zeros((*size, 3), dtype=np.uint8)
        canvas[down, right] = pixels[top, left]
        return canvas


def _alike(taken: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether a model takes the tensors that are made: a free axis of its takes any length."""
    return taken.keys() == made.keys() and all(
        dtype == made[name][0]
        and len(axes) == len(made[name][1])
        and all(isinstance(axis, str) or axis == own for axis, own in zip(axes, made[name][1], strict=True))
        for name, (dtype, axes) in taken.items()
    )


def images_of(request: InferenceRequest, task: str) -> tuple[str, list[bytes]]:
    """Which field of the request has its image files, and the files.

    Raises:
        InvalidInputError: if it holds something else, or no image at all.
    """
    kind = subject_among(request, task, "image", "images")
    images = [request.image] if request.image is not None else request.images
    if not images:
        raise InvalidInputError(
            "images holds no image", field="images", expected="at least one image", got="an empty list"
        )
    return kind, images


def _check_seen(images: int, height: int, width: int, most: int, field: str) -> None:
    """Check how many pixels the model sees, before there is room made for them.

    Raises:
        PayloadTooLargeError: if it sees more than ``most``.
    """
    if images * height * width > most:
        raise PayloadTooLargeError(
            f"{field}: {images} images of {width} x {height} pixels, as the model sees "
            f"them, are over the limit of {most} pixels in all",
            field=field,
            expected=f"at most {most // (height * width)} images",
            got=f"{images} images",
            hint="send fewer images at a time",
        )


_JPEG_SCAN, _MOST_SCANS = b"\xff\xda", 200
"""The marker of a scan (ITU-T T.81, B.1.1.3), and how many an image may have: usual ones have up to ten."""


def _open(content: bytes, field: str, max_pixels: int) -> Image.Image:
    """The image, its header read and nothing decoded.

    Raises:
        InvalidInputError: if it is not an image of a known format.
        PayloadTooLargeError: if it has more than ``max_pixels``.
    """
    # Pillow hands a WebP file to its decoder at once, which makes room for the whole image.
    _check_size(_webp_size(content), field, max_pixels)
    try:
        image = _read(lambda: Image.open(io.BytesIO(content), formats=FORMATS), field)
    except InvalidInputError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        raise InvalidInputError(
            f"{field} is not {_KNOWN}",
            field=field,
            expected=_KNOWN,
            got=f"{len(content)} bytes that begin with {content[:16]!r}" if content else "no bytes",
        ) from error
    _check_size(image.size, field, max_pixels)
    if image.format == "JPEG" and (scans := content.count(_JPEG_SCAN)) > _MOST_SCANS:
        raise InvalidInputError(
            f"{field}: its pixels come in {scans} scans, each of which is decoded over the whole image",
            field=field,
            expected=f"at most {_MOST_SCANS} scans",
            got=str(scans),
        )
    if 0 in image.size:
        raise InvalidInputError(
            f"{field} has no pixels", field=field, expected="an image with pixels", got=str(image.size)
        )
    return image


def _check_size(size: tuple[int, int], field: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        together = "" if field == "image" else ", together with those before it,"
        raise PayloadTooLargeError(
            f"{field}: {width} x {height} pixels{together} are over the request's limit on pixels",
            field=field,
            expected=f"at most {max_pixels} pixels",
            got=f"{width * height} pixels",
            hint="send a smaller image or fewer at a time, or raise MLOS_MAX_IMAGE_PIXELS",
        )


def _read(read: Callable[[], _T], field: str) -> _T:
    """What ``read`` reads of the image file in ``field``.

    Raises:
        InvalidInputError: if it cannot.
    """
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # a broken file can bring each of Pillow's readers to raise anything
        raise InvalidInputError(
            f"{field} cannot be decoded: {str(error) or type(error).__name__:.200}",
            field=field,
            expected="a whole image file",
            got="a truncated or broken one",
        ) from error


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in the header of a WebP file (RFC 9649, 2.5 to 2.7); zeros for any other file."""
    head = content[:30].ljust(30, b"\0")
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
            return width, height
        case _:
            return 0, 0


def _centred(length: int, wanted: int) -> tuple[slice, slice]:
    """Which part of an edge is taken, and where it comes to lie on an edge of length ``wanted``."""
    if length >= wanted:
        start = (length - wanted) // 2
        return slice(start, start + wanted), slice(0, wanted)
    start = math.ceil((wanted - length) / 2)
    return slice(0, length), slice(start, start + length)
