"""Build llama.cpp for this very machine, once, and install it into the Python that runs this file.

The build takes minutes and depends on little: the source, the compiler, the flags, what the processor can do.
So its wheels are kept under the user's cache, in a folder named by all of that, and the next checkout takes
them from there. A second wheel holds what the first lacks: llama.cpp's own converter, and its vocabularies.

It imports the standard library alone. ``--key`` prints the name of the build's folder and does nothing else.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENT = ROOT / "requirements" / "native.txt"
FLAGS = (
    "-DGGML_NATIVE=ON",  # every instruction this processor has; it is part of the key
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)
INCLUDED = "set(LLAMA_BUILD_COMMON OFF)\nadd_compile_options(-U__AMX_INT8__)\n"
"""Read by CMake at the start of llama.cpp's own project. The bindings ask for the library of its command-line
programs, which takes half of the build and which they do not load. And its kernels for AMX are left out: GCC 12
takes ``_tile_loadconfig`` to read 8 of its 64 bytes and drops the stores to the others, so that the first
product of matrices on a processor that has AMX ends the process."""
VOCABULARIES = ("llama-spm", "llama-bpe", "gpt-2", "qwen2", "deepseek-coder")
_RECIPE = 1
"""Raised when this file would make other wheels of the same source and flags."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def main(arguments: list[str]) -> int:
    """Install both wheels, building them first where no build is kept; return the exit status."""
    key = build_key()
    if arguments == ["--key"]:
        print(key)
        return 0
    folder = kept() / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if folder.is_dir():
            print(f"  llama.cpp: built before, taken from {folder}", flush=True)
        else:
            print("  llama.cpp: building it for this processor, which takes minutes once …", flush=True)
            started = time.monotonic()
            build(folder)
            print(f"  llama.cpp: built in {time.monotonic() - started:.0f} s, kept in {folder}", flush=True)
    install = ("install", "--no-deps", "--no-index", "--force-reinstall", "--quiet")
    _run([*_pip(*install), *map(str, sorted(folder.glob("*.whl")))], "pip could not install the wheels")
    return 0


def kept() -> Path:
    """Where builds are kept: outside the checkout and outside the store of models."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlos" / "builds"


def build_key() -> str:
    """Name of the build for this source, compiler, processor and Python."""
    recipe = {
        "recipe": [_RECIPE, *FLAGS, INCLUDED, *VOCABULARIES],
        "source": re.findall("sha256:[0-9a-f]{64}", REQUIREMENT.read_text()),
        "compiler": _compiler(),
        "processor": processor_features(Path("/proc/cpuinfo").read_text()),
        "python": f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}",
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return f"llama.cpp-{version()}-{digest[:16]}"


def version() -> str:
    """The version that the requirement pins."""
    found = re.search(r"^llama-cpp-python==(\S+)", REQUIREMENT.read_text(), re.MULTILINE)
    assert found is not None, "the requirement pins a version"
    return found[1]


def processor_features(cpuinfo: str) -> list[str]:
    """The features of the first processor, sorted: x86 calls them ``flags``, Arm ``Features``."""
    found = re.search(r"^(?:flags|Features)\s*: (.*)$", cpuinfo, re.MULTILINE)
    return sorted(found[1].split()) if found else []


def build(folder: Path) -> None:
    """Build the wheels beside ``folder`` and move them there in one step."""
    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # of a build that was killed
    wheels = work / "wheels"
    wheels.mkdir(parents=True)
    fetch = ("download", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python", "--quiet")
    environment = os.environ | {
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}",  # cmake and ninja are in there
        "CMAKE_ARGS": " ".join((*FLAGS, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={work / 'included.cmake'}")),
    }
    (work / "included.cmake").write_text(INCLUDED)
    _run(
        [*_pip(*fetch), "--require-hashes", "-r", str(REQUIREMENT), "-d", str(work)],
        "pip could not download llama.cpp",
        environment,
    )
    (source,) = work.glob("*.tar.gz")
    compile_wheel(source, wheels, environment)
    converter_wheel(source, wheels)
    wheels.rename(folder)
    shutil.rmtree(work)


def compile_wheel(source: Path, wheels: Path, environment: Mapping[str, str]) -> None:
    """Compile the bindings' wheel into ``wheels``, and show how far it is."""
    command = [*_pip("wheel", "--verbose", "--no-deps", "--no-build-isolation", "--no-index"), str(source)]
    shown, tail = time.monotonic(), [""]
    with subprocess.Popen(
        [*command, "--wheel-dir", str(wheels)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=dict(environment),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail = [*tail[-40:], line]
            found = re.match(r"\s*\[(\d+)/(\d+)\] ", line)  # ninja's
            if found is None:
                continue
            share = f"  llama.cpp: {100 * int(found[1]) // int(found[2])} %"
            if sys.stdout.isatty():
                print(f"\r{share}", end="", flush=True)
            elif time.monotonic() - shown > 20:
                shown = time.monotonic()
                print(share, flush=True)
    if sys.stdout.isatty():
        print("\r", end="")
    if process.returncode != 0:
        sys.stderr.writelines(tail)
        raise SystemExit(_fail("llama.cpp could not be built", "see the compiler's message above"))


def converter_wheel(source: Path, wheels: Path) -> Path:
    """Make the wheel ``llama-cpp-converter`` of files that the source package has and its wheel lacks.

    They stand in the package's folder as they stand in llama.cpp's own, so that its script finds its parts.
    """
    name, home = f"llama_cpp_converter-{version()}", PurePosixPath("llama_cpp_converter")
    about = '"""llama.cpp\'s own converter to GGUF, and its vocabularies, as they are."""\n'
    members: dict[str, bytes] = {str(home / "__init__.py"): about.encode()}
    with tarfile.open(source) as archive:
        for entry in archive:
            path = PurePosixPath(*PurePosixPath(entry.name).parts[1:])
            if not entry.isfile() or not path.is_relative_to("vendor/llama.cpp"):
                continue
            path = path.relative_to("vendor/llama.cpp")
            target = _place(path, home, f"{name}.dist-info")
            if target is not None:
                content = archive.extractfile(entry)
                assert content is not None  # it is a file
                members[target] = content.read()
    members[f"{name}.dist-info/METADATA"] = (
        f"Metadata-Version: 2.4\nName: llama-cpp-converter\nVersion: {version()}\n"
        "Summary: The converter and the vocabularies of llama.cpp's source package\n"
        "License-Expression: MIT\nLicense-File: LICENSE\n"
    ).encode()
    members[f"{name}.dist-info/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: mlos\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{member},{_digest(data)},{len(data)}\n" for member, data in sorted(members.items()))
    members[f"{name}.dist-info/RECORD"] = f"{record}{name}.dist-info/RECORD,,\n".encode()
    wheel = wheels / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
        for place, data in sorted(members.items()):
            packed.writestr(zipfile.ZipInfo(place, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return wheel


def _place(path: PurePosixPath, home: PurePosixPath, facts: str) -> str | None:
    """Where a file of llama.cpp goes in the wheel; None if it stays out."""
    if str(path) == "LICENSE":
        return f"{facts}/licenses/LICENSE"
    code = str(path) == "convert_hf_to_gguf.py" or str(path.parent) in ("conversion", "gguf-py/gguf")
    vocabulary = str(path) in {f"models/ggml-vocab-{name}.gguf" for name in VOCABULARIES}
    return str(home / path) if (code and path.suffix == ".py") or vocabulary else None


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other builds of the same; a lock that a killed one held is free again."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compiler() -> str:
    """What the C++ compiler that CMake will take says of itself."""
    try:
        return subprocess.run(
            [os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise SystemExit(
            _fail(f"llama.cpp is built by a C++ compiler, and there is none: {error}", "apt-get install g++")
        ) from error


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]


def _run(command: list[str], failure: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment and dict(environment))
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        raise SystemExit(_fail(failure, "see pip's message above"))


def _fail(message: str, hint: str) -> int:
    print(f"error: {message}\ntry: {hint}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
