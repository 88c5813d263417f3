"""A repository folder: which model it holds, and that none brings code (T1, T7)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from mlos.errors import CorruptError, NotFoundError, RefusedError
from mlos.formats import survey

PICKLE = b"\x80\x02]q\x00."
GGUF = b"GGUF\x03\0\0\0" + bytes(16)


def put(folder: Path, name: str, data: bytes | str = b"") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def put_safetensors(folder: Path, name: str = "model.safetensors", *tensors: str) -> Path:
    path = put(folder, name)
    save_file({tensor: np.zeros(4, np.float32) for tensor in tensors or ("w",)}, path)
    return path


def put_onnx(folder: Path, name: str = "onnx/model.onnx", data: str = "weights.bin") -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    weight = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    )
    path = put(folder, name)
    onnx.save_model(model, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def test_safetensors_come_first_and_the_rest_is_ignored(tmp_path: Path) -> None:
    put(tmp_path, "config.json", '{"model_type": "bert", "auto_map": {}}')
    put(tmp_path, "README.md", "# A model")
    put(tmp_path, "tokenizer.json", "{}")
    put(tmp_path, "pytorch_model.bin", PICKLE)
    put(tmp_path, ".cache/code.py", "print()")
    put(tmp_path, "model.gguf", GGUF)
    put_safetensors(tmp_path)
    put_safetensors(tmp_path, "2_Dense/model.safetensors", "a", "b")
    put_onnx(tmp_path)
    found = survey(tmp_path)
    assert found.format == "safetensors"
    assert [str(path) for path in found.files] == ["2_Dense/model.safetensors", "model.safetensors"]
    assert [summary.tensors for summary in found.summaries] == [2, 1]
    ignored = ["model.gguf", "onnx/model.onnx", "onnx/weights.bin", "pytorch_model.bin"]
    assert [str(path) for path in found.ignored] == ignored


def test_onnx_comes_before_gguf_and_keeps_its_data(tmp_path: Path) -> None:
    put(tmp_path, "model.gguf", GGUF)
    put_onnx(tmp_path)
    found = survey(tmp_path)
    assert (found.format, found.files) == ("onnx", (Path("onnx/model.onnx"),))
    assert found.summaries[0].external_files == ("weights.bin",)
    assert found.ignored == (Path("model.gguf"),)


def test_gguf_alone_is_taken(tmp_path: Path) -> None:
    put(tmp_path, "model.gguf", GGUF)
    assert survey(tmp_path).format == "gguf"


def test_pickles_alone_are_refused_with_the_way_out(tmp_path: Path) -> None:
    put(tmp_path, "config.json", "{}")
    put(tmp_path, "pytorch_model.bin", PICKLE)
    with pytest.raises(RefusedError, match=r"pytorch_model\.bin: it is a pickle") as caught:
        survey(tmp_path)
    assert "safetensors" in str(caught.value.hint)


def test_a_pickle_under_a_safe_name_is_refused_beside_a_sound_model(tmp_path: Path) -> None:
    put_safetensors(tmp_path)
    put(tmp_path, "zz.safetensors", PICKLE)
    with pytest.raises(RefusedError, match=r"zz\.safetensors: it is a pickle"):
        survey(tmp_path)


def test_code_is_refused(tmp_path: Path) -> None:
    put_safetensors(tmp_path)
    put(tmp_path, "code/modeling_x.py", "import os")
    with pytest.raises(RefusedError, match=r"code/modeling_x\.py: the repository brings code"):
        survey(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "sub/processor_config.json"])
@pytest.mark.parametrize(
    "text",
    [
        '{"auto_map": {"AutoModel": "modeling_x.X"}}',
        '{"text_config": [{"auto_map": {"AutoModel": "other/repo--modeling_x.X"}}]}',
        '{"auto_map": {}, "auto_map": {"AutoModel": "x.X"}, "auto_map": {}}',
        '\ufeff{"auto_map": ["tokenization_x.T", null]}',
    ],
)
def test_auto_map_is_refused_anywhere_in_a_configuration(tmp_path: Path, name: str, text: str) -> None:
    put_safetensors(tmp_path)
    put(tmp_path, name, text)
    with pytest.raises(RefusedError, match="needs code from its repository") as caught:
        survey(tmp_path)
    assert caught.value.message.startswith(name)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"n": ' + b"1" * 5000 + b"}"])
def test_a_damaged_configuration_is_corrupt(tmp_path: Path, data: bytes) -> None:
    put_safetensors(tmp_path)
    put(tmp_path, "config.json", data)
    with pytest.raises(CorruptError, match=r"config\.json: it is not valid JSON"):
        survey(tmp_path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = put_safetensors(tmp_path / "outside")
    folder = tmp_path / "model"
    put(folder, "config.json", "{}")
    (folder / "model.safetensors").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    with pytest.raises(RefusedError, match="links are not followed"):
        survey(folder)
    put(folder, "model.gguf", GGUF)
    found = survey(folder)
    assert found.format == "gguf"
    assert found.ignored == (Path("loop"), Path("model.safetensors"))


def test_an_empty_folder_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no model in the folder"):
        survey(tmp_path)
    with pytest.raises(NotFoundError, match="no such folder"):
        survey(tmp_path / "missing")


def test_a_wrong_download_is_named(tmp_path: Path) -> None:
    put(tmp_path, "sub/model.safetensors", "<html>Sign in</html>")
    with pytest.raises(RefusedError, match=r"sub/model\.safetensors: it is not a model file.* a web page"):
        survey(tmp_path)


SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def sharded(folder: Path, index: object) -> Path:
    for tensor, shard in SHARDS.items():
        put_safetensors(folder, shard, tensor)
    put(folder, "model.safetensors.index.json", index if isinstance(index, str) else json.dumps(index))
    return folder


def test_a_sharded_model_is_whole(tmp_path: Path) -> None:
    found = survey(sharded(tmp_path, {"metadata": {"total_size": 32}, "weight_map": SHARDS}))
    assert len(found.files) == 2
    assert sum(summary.parameters for summary in found.summaries) == 8


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {**SHARDS, "c": "model-00003-of-00003.safetensors"}}, "shard of 'c' is missing"),
        ({"weight_map": {**SHARDS, "a": SHARDS["b"]}}, "'a' is not where the index says"),
        ({"weight_map": {**SHARDS, "a": "../outside/model.safetensors"}}, "shard of 'a' is unsafe"),
        ({"weight_map": {**SHARDS, "a": "/etc/passwd"}}, "shard of 'a' is unsafe"),
        ({"weight_map": {**SHARDS, "a": ["x"]}}, "the index is wrong"),
        ({"metadata": {}}, "the index is wrong"),
        ([], "the index is wrong"),
        ("{", "not valid JSON"),
        ('{"weight_map": {}, "weight_map": {}}', "stands twice"),
    ],
)
def test_an_index_that_is_wrong_is_corrupt(tmp_path: Path, index: object, said: str) -> None:
    with pytest.raises(CorruptError, match=said) as caught:
        survey(sharded(tmp_path, index))
    assert caught.value.message.startswith("model.safetensors.index.json: ")
