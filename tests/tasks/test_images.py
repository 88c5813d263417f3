"""Images become the framework's own tensors to the last bit, and nothing sent costs more than it may."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray
from PIL import Image
from tests.tasks.pictures import photograph, picture, png, poison, readable, saved
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import load_image

from mlos.axon.convert.image_processor import steps_of
from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.host.child import run_confined
from mlos.host.sandbox import Policy
from mlos.model import Artifact, InferenceRequest, Manifest, TensorSpec
from mlos.tasks import Limits
from mlos.tasks.image_steps import ImageSteps
from mlos.tasks.images import MASK, MAX_INPUT_PIXELS, MAX_PADDED_PIXELS, PADDED, ImageEncoder, images_of

TASK = "image-classification"
READABLE, POISON = readable(), poison()
# Pillow's warnings are its own; outside of tests they are silenced where its readers are imported.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")


def processor(model_type: str, **settings: Any) -> Any:
    """The framework's own image processor, its Pillow form, as ``preprocessor_config.json`` would set it up."""
    kind: Any = {
        "convnext": transformers.ConvNextImageProcessorPil,
        "vit": transformers.ViTImageProcessorPil,
        "deit": transformers.DeiTImageProcessorPil,
        "efficientnet": transformers.EfficientNetImageProcessorPil,
        "mobilenet_v2": transformers.MobileNetV2ImageProcessorPil,
    }[model_type]
    return kind(**settings)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "ResNet": lambda: processor("convnext", size={"shortest_edge": 224}, crop_pct=0.875),
    "ConvNeXT at 384": lambda: processor("convnext"),
    "ViT": lambda: processor("vit"),
    "DeiT": lambda: processor("deit"),
    "EfficientNet": lambda: processor(
        "efficientnet", size={"height": 224, "width": 224}, rescale_offset=True, resample=0
    ),
    "MobileNet": lambda: processor("mobilenet_v2"),
    "without normalising": lambda: processor("vit", do_normalize=False),
    "without rescaling": lambda: processor("deit", do_rescale=False, resample=1),
}


def manifest(steps: ImageSteps, said: Any = ...) -> Manifest:
    """A package whose model takes what ``steps`` make, and which says so, or says something else."""
    height, width = steps.size or (1, 1)
    options = {"steps": steps.model_dump(mode="json") if said is ... else said}
    return Manifest(
        name="tiny",
        reference="seeded/tiny/resnet@0",
        commit="0",
        weights="seeded",
        source_format="safetensors",
        tasks=(TASK,),
        artifact=Artifact(
            format="onnx",
            precision="fp32",
            path="model.onnx",
            inputs=(TensorSpec(name="pixel_values", dtype="FP32", shape=("batch", 3, height, width)),),
            outputs=(TensorSpec(name="logits", dtype="FP32", shape=("batch", 3)),),
        ),
        preprocessing={TASK: options},
        files=(),
    )


def encoder(steps: ImageSteps | None = None, **limits: int) -> ImageEncoder:
    return ImageEncoder(manifest(steps or steps_of(PROCESSORS["ResNet"]())), TASK, Limits(**limits))


def frameworks(processor: Any, *files: bytes) -> NDArray[Any]:
    """What transformers' own loading and preprocessing make of image files."""
    images = [load_image(Image.open(io.BytesIO(file))) for file in files]
    pixels: NDArray[Any] = processor(images=images, return_tensors="np")["pixel_values"]
    return pixels.astype(np.float32)


@pytest.mark.parametrize("name", READABLE)
def test_a_file_becomes_the_frameworks_pixels(name: str) -> None:
    theirs = PROCESSORS["ResNet"]()
    ours = encoder(steps_of(theirs)).encode([READABLE[name]], "image")
    assert ours.keys() == {"pixel_values"}
    assert ours["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(ours["pixel_values"], frameworks(theirs, READABLE[name]))


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_known_processors_pixels_are_made(name: str) -> None:
    theirs = PROCESSORS[name]()
    files = [READABLE[kind] for kind in ("photograph", "turned 6", "smaller than the crop", "odd lengths")]
    ours = encoder(steps_of(theirs)).encode(files, "images")["pixel_values"]
    np.testing.assert_array_equal(ours, frameworks(theirs, *files))


def test_the_pictures_differ_where_they_should() -> None:
    """A reader that took the wrong frame, ignored EXIF or CMYK would show: no two of these are alike."""
    pixels = {name: encoder().encode([file], "image")["pixel_values"] for name, file in READABLE.items()}
    distinct = ["turned 1", *(f"turned {number}" for number in range(2, 9)), "CMYK", "palette"]
    for number, name in enumerate(distinct):
        for other in distinct[:number]:
            assert np.abs(pixels[name] - pixels[other]).max() > 0.1, (name, other)
    np.testing.assert_array_equal(pixels["turned 1"], pixels["turned beyond all sense"])


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every poisonous and every readable file leads to in a worker's sandbox."""
    folder = tmp_path_factory.mktemp("files")
    files = {name: content for name, (content, _) in POISON.items()} | dict(READABLE)
    for number, content in enumerate(files.values()):
        (folder / str(number)).write_bytes(content)
    answer = run_confined(
        "decoding",
        {"folder": folder, "names": list(files), "manifest": encoder_manifest()},
        Policy(read=(folder,), file_bytes=0),
        timeout=120,
        env={"PYTHONPATH": str(Path(__file__).parent / "children")},
    )
    return {"found": answer["found"], "stderr": answer["stderr"]}


def encoder_manifest() -> dict[str, Any]:
    return manifest(steps_of(PROCESSORS["ResNet"]())).model_dump(mode="json")


@pytest.mark.parametrize("name", POISON)
def test_what_does_harm_is_answered_with_an_error_and_little_memory(
    confined: dict[str, Any], name: str
) -> None:
    found = confined["found"][name]
    assert found["code"] == POISON[name][1]
    assert found["http_status"] in (400, 413)
    assert found["field"] == "image"
    assert found["expected"]
    assert found["got"]
    assert "0x" not in found["message"]  # no address of an object
    assert found["grown_bytes"] < 48 << 20


def test_the_sandbox_keeps_no_reader_from_its_work(confined: dict[str, Any]) -> None:
    """Some of what Pillow needs is imported only when a file asks for it."""
    for name, content in READABLE.items():
        expected = encoder().encode([content], "image")["pixel_values"]
        assert confined["found"][name]["sum"] == float(expected.sum(dtype=np.float64)), name


def test_pillows_warnings_are_kept_to_itself(confined: dict[str, Any]) -> None:
    assert confined["stderr"] == ""


def test_the_error_names_which_image_is_none() -> None:
    with pytest.raises(InvalidInputError, match=r"^images\[1\] is not a JPEG, PNG, WebP") as caught:
        encoder().encode([photograph(), b"GIF8", photograph()], "images")
    assert caught.value.field == "images[1]"
    assert caught.value.got == "4 bytes that begin with b'GIF8'"


def test_the_pixels_of_all_images_together_are_bounded() -> None:
    small = saved(picture().resize((100, 100)), "PNG")
    encoder(max_image_pixels=30_000 + 70_000).encode([small] * 3, "images")
    with pytest.raises(PayloadTooLargeError, match="100 x 100 pixels, together with those before it") as caught:
        encoder(ImageSteps(resize=(8, 8)), max_image_pixels=29_999).encode([small] * 3, "images")
    assert caught.value.field == "images[2]"
    assert caught.value.expected == "at most 9999 pixels"


def test_more_images_than_a_model_has_room_for_are_refused_before_one_is_opened() -> None:
    most = MAX_INPUT_PIXELS // 224**2
    with pytest.raises(PayloadTooLargeError, match=f"{most + 1} images of 224 x 224 pixels") as caught:
        encoder().encode([b"not even an image"] * (most + 1), "images")
    assert caught.value.expected == f"at most {most} images"
    assert encoder().encode([png(1, 1)] * most, "images")["pixel_values"].shape == (most, 3, 224, 224)


def test_an_image_that_grows_when_resized_is_refused() -> None:
    with pytest.raises(PayloadTooLargeError, match="1 x 2000 pixels become 256 x 512000") as caught:
        encoder().encode([png(1, 2000)], "image")
    assert caught.value.hint == "send an image of more usual proportions"


def test_a_jpeg_of_countless_scans_is_refused_before_they_are_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    assert encoder().encode([whole], "image")
    scan = whole[whole.index(b"\xff\xda") : whole.index(b"\xff\xda") + 12]
    with pytest.raises(InvalidInputError, match="scans"):
        encoder().encode([whole[:-2] + scan * 300 + whole[-2:]], "image")


def test_images_of_a_request() -> None:
    assert images_of(InferenceRequest(image=b"a"), TASK) == ("image", [b"a"])
    assert images_of(InferenceRequest(images=[b"a"]), TASK) == ("images", [b"a"])
    with pytest.raises(InvalidInputError, match="holds no image"):
        images_of(InferenceRequest(images=[]), TASK)
    with pytest.raises(InvalidInputError, match="takes image or images, not text"):
        images_of(InferenceRequest(text=base64.b64encode(photograph()).decode()), TASK)


@pytest.mark.parametrize(
    "steps",
    [
        None,
        {},
        {"resize": 256},
        {"resize": [224, 224], "resample": 7},
        {"crop": [224, 0]},
        {"crop": [224, 224], "sharpen": True},
        {"crop": [224, 224], "normalize": [{"mean": [0.5], "std": [0.5, 0.5, 0.5]}]},
    ],
)
def test_a_package_that_does_not_say_how_is_refused(steps: Any) -> None:
    with pytest.raises(RefusedError) as caught:
        ImageEncoder(manifest(ImageSteps(crop=(224, 224)), steps), TASK, Limits())
    assert caught.value.field == "preprocessing.image-classification.steps"


def test_a_model_that_takes_other_tensors_is_refused() -> None:
    wrong = manifest(ImageSteps(crop=(224, 224)), {"crop": [225, 224]})
    with pytest.raises(RefusedError, match="makes other tensors of images than the model takes") as caught:
        ImageEncoder(wrong, TASK, Limits())
    assert "225" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("vit", {"size": {"shortest_edge": 224}}, "images of different sizes"),
        ("vit", {"do_resize": False}, "images of different sizes"),
        ("vit", {"size": {"shortest_edge": 224, "longest_edge": 300}}, "resizes in a way"),
        ("deit", {"do_pad": True}, "pads images"),
        ("vit", {"size": {"height": 1 << 20, "width": 4}}, "out of bounds"),
        ("convnext", {"size": {"shortest_edge": 224}, "do_center_crop": True}, "crops twice"),
    ],
)
def test_a_processor_that_does_something_else_is_refused(
    kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        steps_of(processor(kind, **settings))


def test_an_unknown_processor_is_refused_by_name() -> None:
    unknown: Any = transformers.GLPNImageProcessorPil
    with pytest.raises(RefusedError, match="GLPNImageProcessorPil") as caught:
        steps_of(unknown())
    assert caught.value.field == "image_processor_type"


def detr(**settings: Any) -> ImageEncoder:
    """An encoder of DETR's steps."""
    steps = steps_of(transformers.DetrImageProcessorPil(**settings))
    inputs = (
        TensorSpec(name="pixel_values", dtype="FP32", shape=("batch", 3, *PADDED)),
        TensorSpec(name=MASK, dtype="INT64", shape=("batch", *PADDED)),
    )
    outputs = (TensorSpec(name="logits", dtype="FP32", shape=("batch", 2)),)
    artifact = Artifact(format="onnx", precision="fp32", path="model.onnx", inputs=inputs, outputs=outputs)
    made = manifest(steps).model_copy(update={"artifact": artifact})
    return ImageEncoder(made, TASK, Limits())


def test_images_of_different_sizes_are_padded_as_the_framework_pads_them() -> None:
    size = {"shortest_edge": 80, "longest_edge": 133}
    sizes = [(60, 60), (300, 31), (47, 91), (80, 80)]
    pictures = [picture().resize(each) for each in sizes]
    wanted: Any = transformers.DetrImageProcessorPil(size=size)(images=pictures, return_tensors="np")
    got, upright = detr(size=size).encode_sized([saved(each, "PNG") for each in pictures], "images")
    assert set(got) == set(wanted) == {"pixel_values", MASK}
    assert upright == [(height, width) for width, height in sizes]
    for name, tensor in got.items():
        assert tensor.dtype == wanted[name].dtype
        np.testing.assert_array_equal(tensor, wanted[name])
    assert 0 < got[MASK].mean() < 1
    alone = detr(size=size).encode([saved(pictures[0], "PNG")], "image")
    assert alone["pixel_values"].shape == (1, 3, 80, 80)
    assert alone[MASK].all()


def test_sizes_are_the_frameworks_to_the_pixel() -> None:
    steps = ImageSteps(resize=800, longest=1333)
    numbers = np.random.default_rng(0)
    for width, height in [
        *numbers.integers(1, 3000, (2000, 2)).tolist(),
        (800, 1333),
        (480, 800),
        (1333, 1333),
    ]:
        wanted = get_size_with_aspect_ratio((height, width), 800, 1333)
        assert steps.resized(width, height) == wanted[::-1]


def test_padded_images_are_bounded_before_they_are_decoded_and_as_they_are_padded() -> None:
    wide, high = (saved(picture().resize(size), "PNG") for size in ((1333, 800), (800, 1333)))
    assert detr().encode([wide, high, wide], "images")["pixel_values"].shape == (3, 3, 1333, 1333)
    with pytest.raises(PayloadTooLargeError, match=f"the limit of {MAX_PADDED_PIXELS} pixels in all"):
        detr().encode([wide, high, high, wide], "images")
    tiny = png(2, 2)
    with pytest.raises(PayloadTooLargeError, match="as the model sees them"):
        detr().encode([tiny] * 8 + [tiny[:60]], "images")  # the last cannot be decoded, and is not


def test_a_line_that_would_vanish_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="3000 x 1 pixels become 1333 x 0 when resized"):
        detr().encode([png(3000, 1)], "image")


def test_padding_to_a_size_of_its_own_or_by_another_processor_is_refused() -> None:
    with pytest.raises(RefusedError, match="pads images"):
        detr(pad_size={"height": 900, "width": 900})
    with pytest.raises(RefusedError, match="images of different sizes"):
        detr(do_pad=False)
