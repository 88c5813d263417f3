"""The build of llama.cpp: what names it, and the wheel of what its own wheel lacks."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from scripts import native


def test_the_processor_s_features_are_those_of_the_first_processor() -> None:
    assert native.processor_features("processor\t: 0\nflags\t\t: sse2 avx2\n\nflags\t\t: mmx\n") == [
        "avx2",
        "sse2",
    ]
    assert native.processor_features("processor\t: 0\nFeatures\t: fp asimd\n") == ["asimd", "fp"]
    assert native.processor_features("") == []


def test_the_key_is_that_of_this_machine_and_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = native.build_key()
    assert key == native.build_key()
    assert key.startswith(f"llama.cpp-{native.version()}-")
    other = tmp_path / "c++"
    other.write_text("#!/bin/sh\necho another compiler 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("CXX", str(other))
    assert native.build_key() != key
    monkeypatch.setattr(native, "FLAGS", ())
    assert len({native.build_key(), key}) == 2


def test_the_program_says_its_key_and_builds_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, native.__file__, "--key"],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    assert (done.stdout.strip(), done.stderr) == (native.build_key(), "")
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, native.__file__, "--key"],
        capture_output=True,
        text=True,
        env=os.environ | {"CXX": str(tmp_path / "none")},
    )
    assert done.returncode == 1
    assert "C++ compiler" in done.stderr
    assert "apt-get install g++" in done.stderr


def test_builds_are_kept_in_the_user_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.kept() == tmp_path / "mlos" / "builds"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert native.kept() == tmp_path / "home" / ".cache" / "mlos" / "builds"


def test_the_converter_s_wheel_holds_what_it_needs_and_installs(tmp_path: Path) -> None:
    source = tmp_path / "source.tar.gz"
    files = {
        "pyproject.toml": "",
        "vendor/llama.cpp/LICENSE": "MIT",
        "vendor/llama.cpp/README.md": "stays out",
        "vendor/llama.cpp/convert_hf_to_gguf.py": "import conversion",
        "vendor/llama.cpp/convert_lora_to_gguf.py": "stays out",
        "vendor/llama.cpp/conversion/__init__.py": "ANSWER = 42",
        "vendor/llama.cpp/conversion/notes.txt": "stays out",
        "vendor/llama.cpp/gguf-py/gguf/__init__.py": "",
        "vendor/llama.cpp/gguf-py/gguf/scripts/dump.py": "stays out",
        "vendor/llama.cpp/models/ggml-vocab-gpt-2.gguf": "GGUF",
        "vendor/llama.cpp/models/ggml-vocab-mpt.gguf": "stays out",
    }
    with tarfile.open(source, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-1/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    wheel = native.converter_wheel(source, tmp_path)
    with zipfile.ZipFile(wheel) as packed:
        held = {name for name in packed.namelist() if ".dist-info/" not in name}
        assert all(b"stays out" not in packed.read(name) for name in packed.namelist())
    assert held == {
        "llama_cpp_converter/__init__.py",
        "llama_cpp_converter/convert_hf_to_gguf.py",
        "llama_cpp_converter/conversion/__init__.py",
        "llama_cpp_converter/gguf-py/gguf/__init__.py",
        "llama_cpp_converter/models/ggml-vocab-gpt-2.gguf",
    }
    first = wheel.read_bytes()
    assert native.converter_wheel(source, tmp_path).read_bytes() == first
    target = tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True)
    assert (target / "llama_cpp_converter" / "conversion" / "__init__.py").read_text() == "ANSWER = 42"


def test_a_build_waits_for_another_of_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "build"
    script = "import pathlib, sys\nfrom scripts import native\n"
    script += "with native._alone(pathlib.Path(sys.argv[1])): print('in')"
    with native._alone(folder):
        other = subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.communicate(timeout=1)
    assert other.communicate(timeout=30)[0] == "in\n"
