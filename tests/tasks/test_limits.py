from __future__ import annotations

import pytest
from tests.tasks.conftest import Package

from mlos.errors import PayloadTooLargeError
from mlos.model import InferenceRequest
from mlos.tasks import tasks_of
from mlos.tasks.text import MAX_TOKENS


def test_a_batch_that_would_fill_the_memory_is_refused_before_it_is_computed(package: Package) -> None:
    tasks = tasks_of(package.folder, package.manifest)
    request = InferenceRequest(texts=["a"] * MAX_TOKENS, task="embeddings")
    with pytest.raises(PayloadTooLargeError, match="tokens") as refused:
        tasks.choose(request).preprocess(request)
    assert refused.value.hint == "send fewer texts at a time"
