"""How soon a model answers that is loaded into a running server, ours beside a peer's, page cache warm.

    python -m benchmarks.loading [--peer mlserver] [--workload bert] [--pairs 10]

Both servers run, with nothing loaded. A block asks one of them to load the model, by the repository of the
Open Inference Protocol V2, then asks the model once and holds the answer to the right one; its time is that
from the request to load to the answer. Then the model is unloaded. The first load of each server is the
cold one, or the one that compiles, and is left out. Our server is administered on its Unix socket, a peer
on its port.

What loading is differs: ours starts a confined process, and ends it when the model is unloaded; MLServer
opens the file in a process that it keeps.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx2

from benchmarks.client import ask
from benchmarks.figures import alternate, arguments, said_of, show
from benchmarks.sides import Served, Side, peer_names, side_named
from benchmarks.wire import Asked, check, written
from benchmarks.workloads import WORKLOADS, package_of, requests_of, settings_of, workload_named
from mlos.console import Console
from mlos.errors import MlosError, UnavailableError, UsageError
from mlos.tune import paired

WIRE = "json"
_LOAD_SECONDS = 300.0
_REST_SECONDS = 3.0
"""Before each block, since servers tidy up after an unload; ours starts the process of the next worker."""


class Loading:
    """The model of one server, loaded and unloaded again and again.

    Raises:
        UsageError: if the server has no repository.
    """

    def __init__(self, name: str, served: Served, requests: Sequence[Asked]) -> None:
        if served.repository is None or WIRE not in served.wires:
            raise UsageError(f"{name} cannot be asked to load a model", field="peer", got=name)
        self.name, self._served, self._requests = name, served, requests
        self._repository, self._wire = served.repository, served.wires[WIRE]
        self._written = [written(self._wire.form, self._wire.path, asked) for asked in requests]
        self._loads = 0
        self.seconds: list[float] = []
        """Of every load, the first included, which is in no ratio."""
        self._order("unload")

    def block(self) -> float:
        """Load, ask, hold the answer to the right one, unload; the seconds from the first to the answer.

        Raises:
            ParityError: if the answer is wrong.
            UnavailableError: if the server refuses, or does not answer.
        """
        time.sleep(_REST_SECONDS)
        number = self._loads % len(self._requests)
        self._loads += 1
        began = time.perf_counter()
        self._order("load")
        body, length = ask(self._served.port, self._written[number])
        taken = time.perf_counter() - began
        check(self._wire.form, self._requests[number], body, length, self._served.tolerance)
        self._order("unload")
        self.seconds.append(taken)
        return taken

    def _order(self, verb: str) -> None:
        socket = self._repository.socket
        with httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(socket) if socket else None),
            base_url=f"http://127.0.0.1:{self._served.port}",
            timeout=_LOAD_SECONDS,
        ) as client:
            try:
                answer = client.post(f"{self._repository.path}/{verb}")
            except httpx2.TransportError as error:
                raise UnavailableError(f"{self.name} did not {verb} the model: {error!r}") from error
        if not answer.is_success:
            raise UnavailableError(
                f"{self.name} did not {verb} the model: status {answer.status_code}: {answer.text[:300]}"
            )


def compare(
    ours: Side, peer: Side, workload: str, pairs: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Load in both, in alternation; what was found.

    Raises:
        MlosError: if a server cannot be set up, does not load, or answers wrong.
    """
    what = workload_named(workload)
    package = package_of(what)
    requests, settings = requests_of(what, package, seed), settings_of(what, package)
    for side in (ours, peer):
        say(f"{side.name}: setting up")
        side.prepare()
    with ours.serving(package, settings) as first, peer.serving(package, settings) as second:
        candidate, reference = Loading(ours.name, first, requests), Loading(peer.name, second, requests)
        for one in (candidate, reference):
            say(f"{one.name}: first load {one.block():.3f} s, left out")
        ratio = paired.ratio_of(list(alternate(reference.block, candidate.block, pairs, seed)))
    return {
        "workload": workload,
        "digest": package.digest,
        "seed": seed,
        "ours": ours.title,
        "peer": peer.title,
        "configuration": peer.configuration,
        "seconds": {one.name: [round(each, 6) for each in one.seconds] for one in (candidate, reference)},
        "ratio": ratio.model_dump(),
    }


def main(given: Sequence[str] | None = None) -> int:
    """Compare, and print."""
    parser = arguments("loading", "Loading a model into a running server, beside a peer.")
    parser.add_argument("--peer", default="mlserver", help=f"of {', '.join(peer_names())}, with a repository")
    parser.add_argument("--workload", default="bert", help=f"of {', '.join(WORKLOADS)}, asked by {WIRE}")
    asked, console = parser.parse_args(given), Console()
    try:
        paired.require()
        sides = side_named("mlos"), side_named(asked.peer)
        found = compare(*sides, asked.workload, asked.pairs, asked.seed, console.note)
    except MlosError as error:
        console.error(error)
        return error.exit_status
    ratio = paired.Ratio.model_validate(found["ratio"])
    seconds: dict[str, list[float]] = found["seconds"]
    lines = {
        name: f"{statistics.median(taken[1:]):.3f} s from load to the right answer (median of {len(taken) - 1})"
        for name, taken in seconds.items()
    }
    show({**lines, f"mlos / {asked.peer}": said_of(ratio)}, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
