"""The child of :mod:`mlos.axon.variants.quality`: two models embed the retrieval corpus and rank it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.axon.variants.quality import TASK
from mlos.catalogue.retrieval import retrieval
from mlos.engines import open_model
from mlos.host.child import Emit, serve
from mlos.model import InferenceRequest, Manifest, QualityMeasure
from mlos.parity.ranking import ndcg, order_agreement
from mlos.tasks import Silence, tasks_of


def scores_of(folder: Path, manifest: Manifest, threads: int) -> NDArray[np.float64]:
    """How near each query (row) of the corpus is to each passage (column): the cosine of their embeddings."""
    tasks, engine = tasks_of(folder, manifest), open_model(folder, manifest.artifact, threads)

    def embed(text: str) -> NDArray[np.float64]:
        request = InferenceRequest(text=text, task=TASK)
        task = tasks.choose(request)
        prepared = task.preprocess(request)
        result = task.postprocess(prepared, task.compute(engine, prepared, Silence()))
        vector = np.asarray(result["embedding"], dtype=np.float64)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    corpus = retrieval()
    queries = np.stack([embed(query) for query in corpus.queries])
    passages = np.stack([embed(passage.text) for passage in corpus.passages])
    return queries @ passages.T


def compare(original: NDArray[np.float64], variant: NDArray[np.float64]) -> QualityMeasure:
    """Both scorings of the corpus beside each other."""
    corpus = retrieval()
    numbers = range(len(corpus.queries))
    return QualityMeasure(
        task=f"retrieval: {len(corpus.passages)} passages, {len(corpus.queries)} queries",
        metric="nDCG@10",
        original=_mean([ndcg(original[query], corpus.relevance(query)) for query in numbers]),
        variant=_mean([ndcg(variant[query], corpus.relevance(query)) for query in numbers]),
        agreement=_mean([order_agreement(original[query], variant[query]) for query in numbers]),
    )


def _mean(values: list[float]) -> float:
    # To six places: the last bits of sums differ between processors, and the manifest is hashed.
    return round(float(np.mean(values)), 6)


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Measure the two models of ``request["models"]``, the original first."""
    original, variant = (
        scores_of(Path(model["folder"]), Manifest.model_validate(model["manifest"]), request["threads"])
        for model in request["models"]
    )
    return {"measures": [compare(original, variant).model_dump(mode="json")]}


if __name__ == "__main__":
    serve(main)
