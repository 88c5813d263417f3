"""An environment of its own for each peer: exactly the versions of its ``requirements.txt``, made once.

Environments stand under the XDG cache, in ``mlos/bench/NAME-KEY``, where the key is the hash of the
requirements, of the wheels beside them and of the Python they are made for; other ones make another.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import platformdirs
from scripts import native

from mlos.errors import MissingExtraError, NotFoundError

_STAMP = "ready"
_INSTALL_SECONDS = 1800.0
_TAIL = 1500


def python_of(
    name: str, requirements: Path, base: str | None, wheels: Sequence[Path] = (), *, fresh: bool = True
) -> Path:
    """The Python of the peer's environment, which is made if it is not there; ``base`` is what it is made of.

    Raises:
        NotFoundError: if there is no such base, or no environment and none was to be made (``fresh=False``).
        MissingExtraError: if it cannot be made, with the last words of what failed.
    """
    if base is not None and not Path(base).exists():
        raise NotFoundError(f"{name} needs {base}, which is not there", hint="apt-get install python3-venv")
    made_of = base or sys.executable
    version = _output([made_of, "-c", "import sys; print(sys.version)"], name)
    beside = "".join(f"{wheel}\n" for wheel in wheels)
    key = hashlib.sha256(f"{base}\n{version}\n{beside}".encode() + requirements.read_bytes()).hexdigest()[:16]
    folder = platformdirs.user_cache_path("mlos") / "bench" / f"{name}-{key}"
    python = folder / "bin" / "python"
    if not (folder / _STAMP).exists() and not fresh:
        raise NotFoundError(f"{name} has no environment yet", hint=f"make bench PEERS={name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:  # two runs at once make it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _STAMP).exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)  # a run that was killed left a part
        try:
            _output([made_of, "-m", "venv", str(folder)], name)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            _output([*pip, "--requirement", str(requirements), *map(str, wheels)], name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / _STAMP).write_text(requirements.read_text())
    return python


def native_wheel() -> Path:
    """The wheel of llama.cpp that the setup built for this machine.

    Raises:
        NotFoundError: if it is not kept any more.
    """
    folder = native.kept() / native.build_key()
    for wheel in folder.glob("llama_cpp_python-*.whl"):
        return wheel
    raise NotFoundError(f"{folder} holds no build of llama.cpp", hint="python scripts/native.py builds it")


def _output(command: list[str], name: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603  (venv and pip)
            command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingExtraError(f"{name} cannot be set up: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-_TAIL:].strip()
        raise MissingExtraError(f"{name} cannot be set up: status {done.returncode}: {said}")
    return done.stdout
