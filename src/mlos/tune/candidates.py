"""What might serve a model on this host: every engine that opens it, in the precisions asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlos.engines import compiles, default_engine, engines_for, installed
from mlos.errors import MissingExtraError, RefusedError
from mlos.model import Artifact
from mlos.store import Package
from mlos.tune.choice import OWN, Precision
from mlos.tune.record import Candidate


def require_golden(package: Package) -> None:
    """See to it that another way of computing ``package`` could be proved.

    Raises:
        RefusedError: if the package has no golden record.
    """
    if package.manifest.golden is None:
        raise RefusedError(
            f"{package.name} is served as it came: without a golden record nothing could prove another engine",
            field="golden",
            expected="a model that was converted from its framework's weights",
            got=f"a {package.manifest.source_format} file",
        )


def candidates(
    package: Package, variants: Sequence[Package], precision: Precision, threads: int
) -> list[Candidate]:
    """The default first, then what may be better: fewer threads, other engines, other precisions, variants.

    Other precisions, and variants, are timed with all ``threads`` only.
    """
    artifact = package.manifest.artifact
    own = artifact.precision
    default = Candidate(digest=package.digest, engine=default_engine(artifact), precision=own, threads=threads)
    found = [default]
    if own != OWN or precision in (OWN, "auto"):
        counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count < threads]
        for engine in _usable(artifact):
            found += [
                default.model_copy(update={"engine": engine, "threads": count}) for count in (threads, *counts)
            ]
    if own == OWN:
        for engine, computed in _computed(artifact):
            if precision in ("auto", computed):
                found.append(default.model_copy(update={"engine": engine, "precision": computed}))
        for variant in variants:
            form = variant.manifest.artifact
            if precision in ("auto", form.precision):
                found += [
                    Candidate(digest=variant.digest, engine=engine, precision=form.precision, threads=threads)
                    for engine in _usable(form)
                ]
    return list(dict.fromkeys(found))


def streamed(candidate: Candidate, artifact: Artifact) -> Iterator[Candidate]:
    """The same with its threads shared by several runs at once, where one file is computed in single runs."""
    if artifact.format == "onnx" and not artifact.parts:
        streams = candidate.threads
        while streams > 1:
            yield candidate.model_copy(update={"streams": streams})
            streams //= 2


def _usable(artifact: Artifact) -> list[str]:
    """The engines that open it and whose library is installed."""
    return [name for name, _ in _installed(artifact)]


def _computed(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Each engine that computes an fp32 file in other precisions, with each of these."""
    for name, precisions in _installed(artifact):
        yield from ((name, each) for each in precisions)


def _installed(artifact: Artifact) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, engine in engines_for(artifact).items():
        if not compiles(engine):
            if name in installed():
                yield name, ()
            continue
        try:
            yield name, engine.precisions()
        except MissingExtraError:  # not installed: no candidate
            continue
