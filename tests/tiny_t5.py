"""An encoder-decoder small enough to make within seconds: T5's architecture, seeded."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from mlos.axon.seeding import seed
from mlos.catalogue import catalogue
from mlos.console import Console, OutputFormat, ProgressMode
from mlos.model import Artifact, Manifest
from mlos.parity import GoldenRecord


@dataclass(frozen=True)
class TinyT5:
    """The repository in the hub's layout, the framework's model, and the folder of what was made of it."""

    repository: Path
    folder: Path
    artifact: Artifact
    manifest: Manifest
    golden: GoldenRecord
    model: Any
    tokenizer: Any


@cache
def tiny_t5() -> TinyT5:
    """The model, made once a process."""
    from mlos.axon.convert.seq2seq import Seq2Seq

    root = Path(tempfile.mkdtemp(prefix="mlos-tiny-t5-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    repository, folder = root / "repository", root / "made"
    repository.mkdir()
    folder.mkdir()
    entry = catalogue().entries["t5"]
    seed(entry, True, repository, Console(OutputFormat.QUIET, ProgressMode.NONE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the framework, about its own future
        family = Seq2Seq.load(repository)
        made = family.write(folder, lambda _: None)
        requests = [{"name": case.name, "request": msgspec.to_builtins(case.request)} for case in entry.golden]
        golden = family.record(requests, lambda: None)
    golden.save(folder / "golden")
    manifest = Manifest(
        name="t5",
        reference="seeded/tiny/t5",
        commit="0",
        weights="seeded",
        source_format="safetensors",
        tasks=tuple(family.tasks),
        artifact=made.artifact,
        preprocessing=family.preprocessing(),
        files=(),
    )
    return TinyT5(repository, folder, made.artifact, manifest, golden, family.model, family.tokenizer)
