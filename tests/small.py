"""The small variants of the catalogue's models, each seeded and converted once in a whole run of the tests.

Several processes that run tests share what was made: who needs a model first makes it, and the others wait. The
children's own code runs here in the tests' process, which has the framework loaded: a model takes a
second or two instead of a dozen. That the real programs do the same in confined children, the tests of
installing show.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import onnx
import torch
from filelock import FileLock
from pydantic import BaseModel, RootModel

from mlos import __version__, formats
from mlos.axon import convert, prove_child
from mlos.axon.convert import Converted, child
from mlos.axon.draft import Draft
from mlos.axon.seeding import child as seeding
from mlos.axon.seeding import recipe_of
from mlos.axon.zoo import with_test_data
from mlos.catalogue import Entry, catalogue
from mlos.console import Console, OutputFormat, ProgressMode
from mlos.engines import open_model
from mlos.model import Artifact, FileEntry, FileRole, InferenceRequest, Manifest, ParityMeasure
from mlos.parity import tolerance_of
from mlos.store import InstallRecord, Package, Store
from mlos.tasks import Limits, Silence, tasks_of

Made = TypeVar("Made", bound=BaseModel)


def _silence(event: dict[str, Any]) -> None:
    """Nobody looks on."""


def _run(main: Any, order: dict[str, Any]) -> Any:
    """What the child ``main`` answers, in this process."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # as the children do
            return main(order, _silence)
    finally:
        torch.set_num_threads(threads)


def seed(name: str, destination: Path) -> None:
    """Write the small variant of a model into an existing folder, in the hub's layout."""
    recipe, tokenizer = recipe_of(catalogue().entries[name], True)
    _run(seeding.main, {"recipe": recipe, "tokenizer": tokenizer, "destination": destination})


@dataclass
class Candidate:
    """A converted model in a folder of its own, which a test may damage, and what its manifest would say."""

    entry: Entry
    folder: Path
    converted: Converted

    def draft(self, **changed: Any) -> Manifest:
        return Manifest(
            name=self.entry.name,
            reference=f"seeded/tiny/{self.entry.name}@0",
            commit="0",
            weights="seeded",
            source_format="safetensors",
            files=tuple(self._entry(path, role) for path, role in self.converted.files),
            **{
                "artifact": self.converted.artifact,
                "tasks": self.converted.tasks,
                "preprocessing": self.converted.preprocessing,
                "golden": "golden",
                **changed,
            },
        )

    def prove(self, **changed: Any) -> tuple[ParityMeasure, ...]:
        """The gate, on the model as it lies in the folder now."""
        draft = self.draft(**changed)
        row = tolerance_of(draft.artifact, self.entry.tolerance)
        return prove_child.answer(self.folder, draft, row, 2, _silence)

    def ask(self, **request: Any) -> Any:
        """What its own task answers to a request, as a worker computes it."""
        asked = InferenceRequest(**request)
        task = tasks_of(self.folder, self.draft(), Limits()).choose(asked)
        prepared = task.preprocess(asked)
        engine = open_model(self.folder, self.converted.artifact, 1)
        return task.postprocess(prepared, task.compute(engine, prepared, Silence()))

    def weights(self, graph: str) -> dict[str, Any]:
        """The arrays that the ONNX file ``graph`` holds, by name."""
        proto = onnx.load(self.folder / graph)
        return {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}

    def change(self, graph: str, changed: dict[str, Any]) -> None:
        """Write other arrays into the ONNX file ``graph``."""
        proto = onnx.load(self.folder / graph)
        for each in proto.graph.initializer:
            if each.name in changed:
                each.CopyFrom(onnx.numpy_helper.from_array(changed[each.name], each.name))
        onnx.save_model(proto, self.folder / graph)

    def _entry(self, path: str, role: FileRole) -> FileEntry:
        data = (self.folder / path).read_bytes()
        return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role=role)


class Proved(RootModel[tuple[ParityMeasure, ...]]):
    """The measures of a parity that passed."""


@dataclass(frozen=True)
class Small:
    """What was made so far, below ``folder``."""

    folder: Path

    def repository(self, name: str) -> Path:
        """The small variant of a model in the hub's layout. Not to be written to."""
        destination = self.folder / "repositories" / name
        with self._turn(f"{name}.repository"):
            if not destination.exists():
                passing = destination.with_name(f"{name}.passing")
                passing.mkdir(parents=True)
                seed(name, passing)
                passing.rename(destination)
        return destination

    def converted(self, name: str) -> tuple[Path, Converted]:
        """It converted, and the folder it lies in. Not to be written to."""
        output = self.folder / "converted" / name
        return output, self._once(f"{name}.converted", Converted, lambda: self._convert(name, output))

    def candidate(self, name: str, folder: Path) -> Candidate:
        """A copy of it in the new folder ``folder``, to be proved or damaged."""
        source, converted = self.converted(name)
        shutil.copytree(source, folder)
        return Candidate(catalogue().entries[name], folder, converted)

    def install(self, name: str, store: Store) -> Package:
        """It as a package of ``store``, proved."""
        with store.staging() as staging:
            shutil.rmtree(staging.folder)
            candidate = self.candidate(name, staging.folder)
            parity = self._once(f"{name}.proved", Proved, lambda: Proved(candidate.prove())).root
            record = InstallRecord(installed_at=datetime.now(UTC), axon=__version__)
            return store.commit(staging, candidate.draft(parity=parity), record)

    def _once(self, name: str, kind: type[Made], make: Callable[[], Made]) -> Made:
        """What ``make`` makes, or made before, here or in another process."""
        kept = self.folder / f"{name}.json"
        with self._turn(name):
            if not kept.exists():
                kept.write_text(make().model_dump_json())
            return kind.model_validate_json(kept.read_text())

    def _turn(self, name: str) -> FileLock:
        return FileLock(self.folder / f"{name}.lock")

    def _convert(self, name: str, output: Path) -> Converted:
        output.mkdir(parents=True)
        entry = catalogue().entries[name]
        if entry.seeded is not None and entry.seeded.form == "onnx":
            return self._taken(entry, output)
        requests = [(case.name, case.request) for case in entry.golden]
        order = convert.order(self.repository(name), output, requests, entry.tasks)
        return Converted.model_validate(_run(child.main, order))

    def _taken(self, entry: Entry, output: Path) -> Converted:
        """An ONNX file as it is, its test data as the golden record."""
        source = self.repository(entry.name)
        (summary,) = formats.survey(source).summaries
        artifact = Artifact(
            format="onnx", precision="fp32", path="model.onnx", inputs=summary.inputs, outputs=summary.outputs
        )
        shutil.copyfile(source / "model.onnx", output / "model.onnx")
        draft = Draft("onnx", artifact, ("tensors",), summary.parameters, {"model.onnx": "graph"})
        quiet = Console(OutputFormat.QUIET, ProgressMode.NONE)
        draft = with_test_data(draft, source, output, tolerance_of(artifact, entry.tolerance), quiet)
        return Converted(
            artifact=draft.artifact,
            tasks=draft.tasks,
            architecture=entry.architecture,
            parameters=draft.parameters,
            preprocessing={},
            tools={},
            files=tuple(draft.roles.items()),
        )
