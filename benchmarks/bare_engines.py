"""What serving costs: a model behind ``mlos_core`` against the same file in its engine's own loop, no server.

Both sides run on one host in one run, in groups of four blocks in random ABBA or BAAB order; a group gives
one ratio, of the geometric means of its blocks' medians. Printed are the geometric mean of the ratios with
its 95 % BCa bootstrap interval, and the noise floor: the 95th percentile of |ratio - 1| between blocks of the
bare engine alone. One server process serves all blocks, so what differs between two starts of a server is not
in the interval.

    python -m benchmarks.bare_engines [bert resnet t5 tinyllama] [--pairs 20]

The models must be installed (``make e2e-test`` installs them). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.workloads import WORKLOADS, requests_of
from mlos.host.environment import record, usable_cores
from mlos.model import Artifact
from mlos.parity import GoldenRecord
from mlos.settings import Settings
from mlos.store import Package, Store
from mlos.validation import programs

WORDS = (
    *("river", "stone", "cloud", "letter", "engine", "garden"),
    *("winter", "music", "signal", "harbour", "paper", "number"),
)
TOKENS = 64
"""Tokens that a language model writes per request."""
Timed = Callable[[], float]
"""One request: the seconds it took, over what it did (tokens, or 1)."""


def bare_session(package: Package, artifact: Artifact) -> Any:
    """ONNX Runtime as the engine sets it up."""
    import onnxruntime  # type: ignore[import-untyped]  # it ships no types

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    assert artifact.path is not None
    return onnxruntime.InferenceSession(
        str(package.folder / artifact.path), options, providers=["CPUExecutionProvider"]
    )


def bert(package: Package, client: httpx2.Client, address: str) -> tuple[Timed, Timed]:
    """Texts of 128 tokens over HTTP to embeddings, against the session on the tensors made of them."""
    workload = WORKLOADS["bert"]
    requests = requests_of(workload, package, seed=0)
    session = bare_session(package, package.manifest.artifact)
    texts, tensors = (itertools.cycle(requests) for _ in range(2))

    def served() -> float:
        body = {"text": next(texts).text, "task": "embeddings"}
        began = time.perf_counter()
        answer = client.post(address, json=body)
        taken = time.perf_counter() - began
        answer.raise_for_status()
        return taken

    def bare() -> float:
        feed = dict(next(tensors).tensors)
        began = time.perf_counter()
        session.run([workload.output], feed)
        return time.perf_counter() - began

    return served, bare


def resnet(package: Package, client: httpx2.Client, address: str) -> tuple[Timed, Timed]:
    """A photograph as a JPEG over HTTP, against the session on the pixels made of it."""
    assert package.manifest.golden is not None
    case = next(
        case
        for case in GoldenRecord.load(package.path(package.manifest.golden)).cases
        if case.request.image is not None
    )
    session = bare_session(package, package.manifest.artifact)
    pixels = dict(case.inputs)

    def served() -> float:
        began = time.perf_counter()
        answer = client.post(address, content=case.request.image, headers={"Content-Type": "image/jpeg"})
        taken = time.perf_counter() - began
        answer.raise_for_status()
        return taken

    def bare() -> float:
        began = time.perf_counter()
        session.run(["logits"], pixels)
        return time.perf_counter() - began

    return served, bare


def t5(package: Package, client: httpx2.Client, address: str) -> tuple[Timed, Timed]:
    """A text over HTTP, greedy, against a loop over the two sessions that writes the same tokens; per token."""
    assert package.manifest.golden is not None
    case = next(
        case
        for case in GoldenRecord.load(package.path(package.manifest.golden)).cases
        if case.request.text is not None and not case.request.parameters.get("num_beams")
    )
    encoder, decoder = (
        bare_session(package, package.manifest.artifact.parts[name]) for name in ("encoder", "decoder")
    )
    wanted = [node.name for node in decoder.get_outputs()]
    given = {node.name: node.shape for node in decoder.get_inputs()}

    def served() -> float:
        began = time.perf_counter()
        answer = client.post(address, json={"text": case.request.text, "parameters": case.request.parameters})
        taken = time.perf_counter() - began
        tokens: int = answer.raise_for_status().json()["result"]["usage"]["completion_tokens"]
        return taken / tokens

    def bare() -> float:
        began = time.perf_counter()
        source = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = [node.name for node in encoder.get_outputs()]
        encoded = dict(zip(outputs, encoder.run(outputs, source), strict=True))
        fixed = {name: encoded[name] for name in given if name.startswith("cross.")}
        past = {
            name: np.zeros(
                [axis if isinstance(axis, int) else int(axis == "batch") for axis in shape], np.float32
            )
            for name, shape in given.items()
            if name.startswith("past.")
        }
        tokens: NDArray[Any] = case.inputs["decoder_input_ids"]
        for at in range(tokens.shape[1]):
            feed = {
                "decoder_input_ids": tokens[:, at : at + 1],
                "attention_mask": source["attention_mask"],
                **fixed,
                **past,
            }
            results = dict(zip(wanted, decoder.run(wanted, feed), strict=True))
            past = {name: results["present." + name.removeprefix("past.")] for name in past}
            int(results["logits"][0, -1].argmax())
        steps: int = tokens.shape[1]
        return (time.perf_counter() - began) / steps

    return served, bare


def tinyllama(package: Package, client: httpx2.Client, address: str) -> tuple[Timed, Timed]:
    """A new prompt over HTTP, greedy, against llama-cpp-python's own loop on the same file; per token."""
    import llama_cpp

    assert package.manifest.artifact.path is not None
    llama = llama_cpp.Llama(
        str(package.folder / package.manifest.artifact.path),
        n_ctx=2048,
        n_threads=usable_cores(),
        n_threads_batch=usable_cores(),
        verbose=False,
    )
    chance = random.Random(0)

    def prompt() -> str:
        return " ".join(chance.choices(WORDS, k=24))

    def served() -> float:
        body = {"prompt": prompt(), "parameters": {"max_tokens": TOKENS}}
        began = time.perf_counter()
        answer = client.post(address, json=body)
        taken = time.perf_counter() - began
        tokens: int = answer.raise_for_status().json()["result"]["usage"]["completion_tokens"]
        return taken / tokens

    def bare() -> float:
        text = prompt()
        began, written = time.perf_counter(), 0
        tokens = llama.tokenize(text.encode(), add_bos=True)
        for token in llama.generate(tokens, temp=0.0, top_k=1):
            written += 1
            llama.detokenize([token])
            if written == TOKENS or token == llama.token_eos():
                break
        return (time.perf_counter() - began) / written

    return served, bare


MODELS = {
    "bert": (bert, 10, "s"),
    "resnet": (resnet, 10, "s"),
    "t5": (t5, 4, "s/token"),
    "tinyllama": (tinyllama, 1, "s/token"),
}
"""How each is asked, requests per block, and the unit."""


def compare(served: Timed, bare: Timed, block: int, pairs: int) -> dict[str, Any]:
    """Alternate blocks of both, and what may be said of the ratio served over bare."""
    order = random.Random(1)
    for side in (served, bare):
        statistics.median(side() for _ in range(block))  # warm
    ratios: list[float] = []
    same: list[float] = []
    seconds: dict[str, list[float]] = {"served": [], "bare": []}
    for _ in range(pairs):
        sides = [("served", served), ("bare", bare), ("bare", bare), ("served", served)]
        if order.random() < 0.5:
            sides = [sides[1], sides[0], sides[3], sides[2]]
        medians: dict[str, list[float]] = {"served": [], "bare": []}
        for name, side in sides:
            medians[name].append(statistics.median(side() for _ in range(block)))
        for name, found in medians.items():
            seconds[name] += found
        # One ratio a group: its two share whatever drifted meanwhile.
        ratios.append(stats.gmean(medians["served"]) / stats.gmean(medians["bare"]))
        same.append(medians["bare"][0] / medians["bare"][1])
    logs = np.log(ratios)
    interval = stats.bootstrap((logs,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    return {
        "ratio": float(np.exp(logs.mean())),
        "low": float(np.exp(interval.low)),
        "high": float(np.exp(interval.high)),
        "pairs": len(ratios),
        "noise_floor": float(np.quantile(np.abs(np.array(same) - 1), 0.95)),
        "served": statistics.median(seconds["served"]),
        "bare": statistics.median(seconds["bare"]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the models named, or all of them."""
    parser = argparse.ArgumentParser(description="Serving against the bare engine, in one run.")
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all of them if none is named")
    parser.add_argument("--pairs", type=int, default=20, help="groups of four blocks per model")
    asked = parser.parse_args(arguments)
    console, store = Console(stderr=True), Store(Settings().store)
    table = Table("model", "unit", "served", "bare", "served / bare [95 %]", "noise floor", "peak memory")
    found: dict[str, Any] = {"environment": record().id, "models": {}}
    for name in asked.models or MODELS:
        ask, block, unit = MODELS[name]
        package = store.find(name)
        with programs.serving(package.digest) as server, httpx2.Client(timeout=120, trust_env=False) as client:
            console.print(f"{name}: {asked.pairs} groups of blocks …")
            served, bare = ask(package, client, f"{server.url}/v1/models/{server.model['id']}/inference")
            row = compare(served, bare, block, asked.pairs)
            rows = client.get(f"{server.url}/v1/models").json()["data"]
            row["peak_memory_bytes"] = rows[0]["peak_memory_bytes"]
            server.stop()
        found["models"][name] = row | {"unit": unit, "digest": package.digest}
        table.add_row(
            name,
            unit,
            f"{row['served']:.4g}",
            f"{row['bare']:.4g}",
            f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n {row['pairs']}",
            f"{row['noise_floor']:.1%}",
            f"{row['peak_memory_bytes'] / 1e6:.0f} MB",
        )
    console.print(table)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
