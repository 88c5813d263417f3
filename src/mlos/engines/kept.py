"""What a library made of a model file for this processor, kept so that nobody has to make it again.

A form is a folder that appears whole or not at all, and is held to the checksums of its files whenever it is
opened, beside the opening, on another core. They are CRC-32, at twice the speed of SHA-256: a form is guarded
against disks, not against people, for who may write here may write all that is derived on this host. Its name
tells all that it depends on: another version, another setting or another processor finds nothing instead of
something wrong.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlos.errors import CorruptError

_CHECKSUMS = "checksums.json"
"""Of each file its size in bytes and its CRC-32."""


@dataclass(frozen=True)
class KeptForm:
    """A form of one model file in ``folder``, which may not be there yet."""

    folder: Path

    @classmethod
    def of(cls, path: Path, cache: Path, *depends_on: object) -> KeptForm:
        """The form of ``path`` below ``cache``, which depends on this processor and on ``depends_on`` too."""
        status = path.stat()
        told = [path.name, status.st_size, status.st_mtime_ns, _processor(), *depends_on]
        return cls(cache / hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32])

    @property
    def present(self) -> bool:
        """Whether it has been made."""
        return (self.folder / _CHECKSUMS).is_file()

    def make(self, write: Callable[[Path], object]) -> bool:
        """Let ``write`` fill a folder that then becomes the form; whether one is there afterwards.

        Where nothing can be written, as by a confined worker, there is none. What ``write`` raises is raised,
        and leaves nothing.
        """
        passing = self.folder.with_name(f"{self.folder.name}.{secrets.token_hex(4)}")
        try:
            passing.mkdir()
        except OSError:
            return False
        try:
            write(passing)
            sums = {file.name: [file.stat().st_size, _checksum(file)] for file in sorted(passing.iterdir())}
            (passing / _CHECKSUMS).write_text(json.dumps(sums), encoding="ascii")
            if not self.present:
                self.discard()  # what is left of one
            passing.rename(self.folder)
        except OSError:
            return self.present
        finally:
            shutil.rmtree(passing, ignore_errors=True)
        return True

    def discard(self) -> None:
        """Take it away, where that is allowed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def verified(self) -> Iterator[None]:
        """Check its files while the body opens them.

        Raises:
            CorruptError: before the body if a file is missing or of another size, after it if one has changed.
        """
        try:
            sums = json.loads((self.folder / _CHECKSUMS).read_bytes())
            wanted = {self.folder / name: (int(size), int(checksum)) for name, (size, checksum) in sums.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise self._corrupt(_CHECKSUMS, "a list of files and checksums", str(error)) from error
        for file, (size, _) in wanted.items():  # mapping more than there is would end the process
            there = file.stat().st_size if file.is_file() else None
            if there != size:
                raise self._corrupt(
                    file.name, f"{size} bytes", f"{there} bytes" if there is not None else "nothing"
                )
        with ThreadPoolExecutor(1) as aside:
            found = {file: aside.submit(_checksum, file) for file in wanted}
            try:
                yield
            finally:  # what could not be opened may have changed, which says more
                for file, (_, checksum) in wanted.items():
                    if (got := found[file].result()) != checksum:
                        raise self._corrupt(file.name, f"CRC-32 {checksum:08x}", f"{got:08x}")

    def _corrupt(self, name: str, expected: str, got: str) -> CorruptError:
        return CorruptError(
            f"{name} of a kept form is not as it was written", field=name, expected=expected, got=got
        )


def _checksum(file: Path) -> int:
    """Computed in one call, which leaves the interpreter to other threads."""
    if not file.stat().st_size:
        return 0
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
        return zlib.crc32(content)


def _processor() -> str:
    """What this processor can do, as the kernel lists it: weights packed for another one would be misread."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return " ".join(sorted(found[1].split())) if found else ""
