"""Models that the real ``axon`` packaged, each once in a whole run of the tests; stores of tests get copies.

For tests that are about what comes after packaging, and want it done by the program in its confined children.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from mlos.store import Package, Store

AXON = Path(sys.executable).with_name("axon")


@dataclass(frozen=True)
class Installed:
    """What was packaged so far, in the store below ``home``."""

    home: Path

    def copy(self, reference: str, store: Store) -> Package:
        """The package of ``reference``, with its own files in ``store``, where a test may damage them."""
        package = self._package(reference)
        with store.staging() as staging:
            shutil.copytree(package.folder, staging.folder, dirs_exist_ok=True)
            return store.commit(staging, package.manifest, package.record)

    def _package(self, reference: str) -> Package:
        """It, packaged now if it was not before; a variant brings its original along."""
        store = Store(self.home / "store")
        with FileLock(self.home / f"{reference.replace('/', '_')}.lock"):
            if reference not in self._named(store):
                subprocess.run(
                    [AXON, "install", reference, "--output", "quiet"],
                    env=os.environ | {"MLOS_HOME": str(self.home)},
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
        return self._named(store)[reference]

    @staticmethod
    def _named(store: Store) -> dict[str, Package]:
        """The packages by their references without a revision."""
        return {
            package.reference.replace(f"@{package.manifest.commit}", ""): package
            for package in store.packages()
        }
