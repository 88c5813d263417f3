"""A language model small enough to make in seconds, in every precision: TinyLlama's architecture, seeded."""

from __future__ import annotations

import atexit
import hashlib
import itertools
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from tests.small import seed

from mlos.catalogue import catalogue
from mlos.engines import LanguageModel, Sampling
from mlos.model import Artifact, FileEntry, Manifest
from mlos.parity import GoldenRecord
from mlos.store import InstallRecord, Package, Store


def alone(engine: LanguageModel, prompt: list[int], count: int, sampling: Sampling | None = None) -> list[int]:
    """What the engine writes after ``prompt`` when it writes nothing else."""
    tokens = engine.generate(prompt, sampling or Sampling(), lambda: None)
    found = list(itertools.islice(tokens, count))
    tokens.close()
    return found


def clear(engine: LanguageModel, prompt: list[int], count: int, margin: float) -> list[int]:
    """The greedy tokens after ``prompt``, up to the first that leads by less than ``margin``.

    Of two logits that lie closer together the last bits may decide which is the larger.
    """
    tokens = alone(engine, prompt, count)
    logits = engine.run({"input_ids": np.array([[*prompt, *tokens]])})["logits"][0, len(prompt) - 1 : -1]
    best = np.sort(logits, axis=1)[:, -2:]
    return tokens[: len(list(itertools.takewhile(lambda pair: pair[1] - pair[0] > margin, best)))]


@dataclass(frozen=True)
class TinyLlama:
    """The repository in the hub's layout, and the folder of what was made of it: an artifact per precision."""

    repository: Path
    folder: Path
    artifacts: Mapping[str, Artifact]
    golden: GoldenRecord

    @staticmethod
    def manifest(artifact: Artifact) -> Manifest:
        """What a package of it says that holds ``artifact``."""
        return Manifest(
            name="tinyllama",
            reference="seeded/tiny/tinyllama",
            commit="0",
            weights="seeded",
            source_format="safetensors",
            tasks=("chat", "text-generation"),
            artifact=artifact,
            golden="golden",
            files=(),
        )

    def install(self, store: Store, precision: str = "Q4_K_M") -> Package:
        """It in this precision as a package of ``store``, unproved."""
        artifact = self.artifacts[precision]
        assert artifact.path is not None
        data = (self.folder / artifact.path).read_bytes()
        entry = FileEntry(
            path=artifact.path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role="weights"
        )
        manifest = self.manifest(artifact).model_copy(update={"golden": None, "files": (entry,)})
        with store.staging() as staging:
            (staging.folder / artifact.path).write_bytes(data)
            return store.commit(staging, manifest, InstallRecord(installed_at=datetime.now(UTC), axon="0"))


@cache
def tiny_llama() -> TinyLlama:
    """The model, made once a process."""
    from mlos.axon.convert.causal_lm import CausalLM
    from mlos.axon.convert.onnx_export import to_onnx

    root = Path(tempfile.mkdtemp(prefix="mlos-tiny-llama-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    repository, folder = root / "repository", root / "made"
    repository.mkdir()
    folder.mkdir()
    entry = catalogue().entries["tinyllama"]
    seed("tinyllama", repository)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the framework, about its own future
        family = CausalLM.load(repository)
        requests = [{"name": case.name, "request": msgspec.to_builtins(case.request)} for case in entry.golden]
        golden = family.record(requests, lambda: None)
        forms = ("F32", "F16", "Q8_0", "Q5_K_M")
        made = family.write(folder, to_onnx, lambda _: None, packaged="Q4_K_M", forms=forms)
    golden.save(folder / "golden")
    return TinyLlama(
        repository, folder, {each.precision: each for each in (made.artifact, *made.forms)}, golden
    )
