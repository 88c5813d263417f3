"""``axon`` from the outside: the real program, a hub on loopback, a store in a temporary folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.axon.conftest import AXON, BERT, CONFIG, answer, axon, contents, gguf, keep, work_left
from tests.axon.hub_server import HubServer, Repository
from tests.axon.onnx_files import line

from mlos.store import Store

STAGES = {"download", "verify", "convert", "parity", "package"}


def flip(path: Path, at: int = -5) -> None:
    """Change one byte of a read-only file in place."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def test_the_briefs_command_packages_and_proves(made: tuple[dict[str, Any], Path]) -> None:
    result, home = made
    assert result["name"] == "bert"
    assert result["reference"].startswith(f"hf/{BERT}@")
    assert (result["cached"], result["weights"], result["licence"]) == (False, "hub", "apache-2.0")
    assert set(result["seconds"]) == STAGES
    assert result["seconds"]["convert"] > 0
    assert {measure["output"] for measure in result["parity"]} == {"logits", "last_hidden_state"}
    assert all(measure["passed"] and measure["max_abs_error"] < 1e-4 for measure in result["parity"])
    assert result["digest"] == Path(result["folder"]).name
    assert work_left(home / "store") == []


def test_the_sources_weights_stay_out_of_the_package_and_its_readme_comes_along(
    made: tuple[dict[str, Any], Path], tiny_bert: Path
) -> None:
    result, home = made
    package = Path(result["folder"])
    names = set(contents(package))
    assert names >= {
        "manifest.json",
        "model.onnx",
        "tokenizer.json",
        "config.json",
        "golden/record.json",
        "README.md",
    }
    assert not any(name.endswith(".safetensors") for name in names)
    weights = hashlib.sha256((tiny_bert / "model.safetensors").read_bytes()).hexdigest()
    assert not (home / "store" / "blobs" / "sha256" / weights).exists()
    manifest = json.loads((package / "manifest.json").read_bytes())
    roles = {file["path"]: file["role"] for file in manifest["files"]}
    assert roles["README.md"] == "document"
    assert result["size"] == sum(file["size"] for file in manifest["files"])


def test_the_alias_the_licence_and_the_parity_table_are_shown(published: HubServer, home: Path) -> None:
    done = axon("install", "hf/google/bert-base-uncased@latest")
    assert done.returncode == 0
    assert f"hf/google/bert-base-uncased is published as hf/{BERT}" in done.stderr
    for words in (
        "installed already",
        "apache-2.0",
        "convert",
        "logits",
        "last_hidden_state",
        "atol 0.0001",
        "pass",
    ):
        assert words in done.stdout
    assert published.requests("/resolve/") == []


def test_a_locked_commit_that_is_installed_is_not_asked_for(
    made: tuple[dict[str, Any], Path], hub: HubServer, home: Path
) -> None:
    assert answer("install", made[0]["reference"])["cached"] is True
    assert hub.seen == []


def test_one_flipped_byte_is_named_and_an_install_repairs_it(
    made: tuple[dict[str, Any], Path], published: HubServer, home: Path
) -> None:
    blob = home / "store" / "packages" / made[0]["digest"] / "model.onnx.data"
    flip(blob)
    done = axon("verify", "bert", "--output", "json")
    assert done.returncode == 4
    (fault,) = json.loads(done.stdout)["packages"][0]["faults"]
    assert (fault["path"], fault["problem"]) == ("model.onnx.data", "changed")
    everything = axon("verify")
    assert everything.returncode == 4
    assert "model.onnx.data" in everything.stderr.splitlines()[0]
    repaired = answer("install", "hf/google/bert-base-uncased@latest")
    assert repaired["cached"] is False
    assert repaired["digest"] == made[0]["digest"]
    assert axon("verify").returncode == 0


def test_offline_what_is_installed_goes_on_working(
    made: tuple[dict[str, Any], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    down = axon("install", "hf/google/bert-base-uncased@latest")
    assert down.returncode == 7
    assert "does not answer" in down.stderr
    assert answer("install", "--offline", "hf/google/bert-base-uncased@latest")["cached"] is True
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [package["name"] for package in answer("list")] == ["bert"]
    assert answer("info", "bert")["digest"] == made[0]["digest"]
    assert answer("verify")["sound"] is True
    assert answer("install", "bert")["cached"] is True
    other = axon("install", "hf/org/other")
    assert other.returncode == 7
    assert "not installed" in other.stderr


def test_a_broken_package_is_listed_as_such(made: tuple[dict[str, Any], Path], home: Path) -> None:
    flip(home / "store" / "packages" / made[0]["digest"] / "manifest.json")
    (package,) = answer("list")
    assert (package["name"], package["state"]) == ("bert", "broken")
    assert package["error"]["hint"].startswith("axon install hf/")
    assert axon("list").returncode == 0
    assert axon("info", "bert").returncode == 4
    assert axon("verify").returncode == 4


def test_remove_and_gc_say_what_they_would_do_and_do_it(made: tuple[dict[str, Any], Path], home: Path) -> None:
    assert answer("remove", "bert", "--dry-run")["removed"] is False
    assert len(answer("list")) == 1
    assert answer("remove", "bert")["reference"] == made[0]["reference"]
    assert answer("list") == []
    compiled = home / "cache" / "compiled" / "host" / "engine" / made[0]["digest"]
    compiled.mkdir(parents=True)
    compiled.joinpath("form").write_bytes(bytes(1 << 20))
    would = answer("gc", "--dry-run")
    assert would["bytes"] >= made[0]["size"] + (1 << 20)
    freed = answer("gc")
    assert (freed["files"], freed["bytes"]) == (would["files"], would["bytes"])
    assert not compiled.exists()
    assert list((home / "store" / "packages").iterdir()) == []
    assert axon("info", "bert").returncode == 3


def test_an_onnx_file_is_served_as_tensors_with_no_reference(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    model = line(tmp_path / "in" / "line.onnx", external="line.weights")
    result = answer("install", f"file:{model}")
    assert (result["name"], result["weights"], result["parity"]) == ("line", "local", [])
    manifest = answer("info", "line")["manifest"]
    assert manifest["tasks"] == ["tensors"]
    assert manifest["golden"] is None
    assert manifest["artifact"]["precision"] == "fp32"
    assert manifest["artifact"]["inputs"] == [{"name": "x", "dtype": "FP32", "shape": ["n", 4]}]
    assert {file["path"]: file["role"] for file in manifest["files"]} == {
        "line.onnx": "graph",
        "line.weights": "weights",
    }
    assert answer("install", f"file:{model}")["cached"] is True
    assert answer("install", result["reference"])["cached"] is True
    assert "no reference" in axon("install", f"file:{model}").stdout
    model.unlink()
    assert answer("verify")["sound"] is True


def test_a_gguf_file_is_packaged_before_an_engine_serves_it(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(gguf())
    answer("install", f"file:{tmp_path}/small.gguf")
    manifest = answer("info", "small")["manifest"]
    assert manifest["artifact"]["format"] == manifest["source_format"] == "gguf"
    assert (manifest["architecture"], manifest["parameters"], manifest["parity"]) == ("llama", 8, [])


def hostile_safetensors(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 20) + b'{"w": 1}')
    return f"file:{folder}"


def hostile_gguf(folder: Path) -> str:
    folder.mkdir()
    (folder / "m.gguf").write_bytes(gguf(tensors=(1 << 64) - 1))
    return f"file:{folder}/m.gguf"


def hostile_onnx(folder: Path) -> str:
    folder.mkdir()
    return f"file:{line(folder / 'm.onnx', external='../../../../etc/passwd')}"


def hostile_pickle(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    return f"file:{folder}"


def hostile_pickle_in_disguise(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(b"\x80\x02}q\x00." + b"\0" * 64)
    return f"file:{folder}"


def hostile_code(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "x", "auto_map": {"AutoModel": "modeling.X"}})
    )
    shutil.copy(line(folder / "model.onnx"), folder / "other.bin")
    return f"file:{folder}"


@pytest.mark.parametrize(
    "attack",
    [hostile_safetensors, hostile_gguf, hostile_onnx, hostile_pickle, hostile_pickle_in_disguise, hostile_code],
)
def test_a_hostile_file_is_refused_in_one_line_and_nothing_is_written(
    attack: Any, store: Store, tmp_path: Path
) -> None:
    kept = keep(store, tmp_path)
    before = contents(store.root)
    done = axon("install", attack(tmp_path / "attack"))
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    first, *rest = done.stderr.strip().splitlines()
    assert first.startswith("error: ")
    assert all(text.startswith("try: ") for text in rest)
    assert "root:" not in done.stderr
    assert contents(store.root) == before
    assert work_left(store.root) == []
    assert [package.digest for package in store.packages()] == [kept.digest]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["install", "not a reference/x"], 2, "not a model reference"),
        (["install"], 2, "Missing argument"),
        (["install", "hf/org/nothing"], 3, "no repository"),
        (["install", "nosuchname"], 3, "no model named"),
        (["info", "bert"], 3, "nothing"),
        (["install", "hf/org/gated"], 8, "licence"),
        (["install", "hf/org/huge"], 6, "bytes"),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(
    hub: HubServer, arguments: list[str], code: int, words: str
) -> None:
    hub.repositories["org/gated"] = Repository({"model.onnx": b"x" * 64}, gated="auto", token="hf_member")
    huge = [
        {
            "rfilename": "model.onnx",
            "size": 10**17,
            "lfs": {"size": 10**17, "sha256": "a" * 64, "pointerSize": 1},
        }
    ]
    body = json.dumps({"id": "org/huge", "sha": "a" * 40, "siblings": huge}).encode()
    hub.fail("status", "hub:/api/models/org/huge", status=200, body=body)
    done = axon(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_data_goes_to_stdout_and_everything_else_to_stderr(tmp_path: Path) -> None:
    model = line(tmp_path / "line.onnx")
    done = axon("--output", "json", "install", f"file:{model}", "--progress", "json")
    assert json.loads(done.stdout)["name"] == "line"
    events = [json.loads(text) for text in done.stderr.splitlines()]
    assert {"verify", "package"} <= {event["step"] for event in events}
    failed = axon("info", "other", "--output", "json")
    assert failed.stdout == ""
    assert json.loads(failed.stderr)["error"]["code"] == "not_found"
    assert axon("list", "--output", "quiet").stdout.startswith("file:")


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(published: HubServer, tmp_path: Path) -> None:
    would = answer("install", "hf/google/bert-base-uncased", "--dry-run")
    assert would["reference"] == f"hf/{BERT}@{published.repositories[BERT].commit}"
    assert would["installed"] is False
    assert {file["path"] for file in would["files"]} >= {"model.safetensors", "tokenizer.json"}
    assert published.requests("/resolve/") == []
    assert not (tmp_path / "home").exists()


def test_the_exit_codes_stand_in_the_help() -> None:
    for arguments in (["--help"], ["install", "--help"]):
        shown = " ".join(axon(*arguments).stdout.split())
        assert "0 done, 1 unexpected, 2 usage, 3 not found" in shown
    assert axon("--version").stdout.startswith("axon ")


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOS_PORT", "many")
    done = axon("list")
    assert done.returncode == 2
    assert "MLOS_PORT" in done.stderr


def test_an_interrupt_ends_with_130_and_leaves_only_the_download(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("stall", "cdn:", at=500_000)
    running = subprocess.Popen(
        [AXON, "install", "hf/org/model"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not hub.requests("", "cdn") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    weights = hub.repositories["org/model"].files["model.safetensors"]
    assert work_left(tmp_path / "home" / "store") == [hashlib.sha256(weights).hexdigest()]


def install_at_once(reference: str, processes: int) -> None:
    """F08: one result, all succeed."""
    command = [str(AXON), "install", reference, "--output", "json"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    results = []
    for process in running:
        out, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
        results.append(json.loads(out))
    assert len({result["digest"] for result in results}) == 1
    assert sorted(result["cached"] for result in results) == [False] + [True] * (processes - 1)
    assert len(answer("list")) == 1
    assert answer("verify")["sound"] is True


def test_eight_processes_that_install_the_same_model_have_one_result(tmp_path: Path) -> None:
    install_at_once(f"file:{line(tmp_path / 'line.onnx')}", 8)


@pytest.mark.slow
def test_four_processes_convert_a_model_once(tiny_bert: Path) -> None:
    install_at_once(f"file:{tiny_bert}", 4)
