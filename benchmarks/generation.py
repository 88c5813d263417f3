"""What it brings that generations share a worker: streams together over one stream, and one stream either way.

Two servers run the same model on one host: one that continues generations together, one that writes one after
another. Blocks alternate in groups of four, in random ABBA or BAAB order (:mod:`mlos.tune.paired`). Printed are

- the tokens per second of all streams together over those of one, of the server that continues them together;
- the same of the other server, which is near 1 and shows what sharing brings;
- the time of one stream where it may share, over its time where it may not: what sharing costs who is alone.

The first two compare a server with itself. The third compares two processes, each started once, and no interval
here knows how far two processes of one program lie apart: 15 % were seen. To say more, start it several times.

    python benchmarks/generation.py [tinyllama] [--streams 8] [--tokens 64] [--groups 10]

The model must be installed. Nothing else should run on the machine. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2

from mlos.host.environment import record
from mlos.settings import Settings
from mlos.store import Store
from mlos.tune.paired import Ratio, Run, groups, ratio_of
from mlos.validation import programs

WORDS = ("river", "stone", "cloud", "letter", "engine", "garden", "winter", "music", "signal", "harbour")


@contextmanager
def serving(digest: str, sequences: int) -> Iterator[Callable[[int], None]]:
    """A server that continues so many generations together, as a function that asks it for one."""
    os.environ["MLOS_SEQUENCES"] = str(sequences)
    chance = random.Random(0)  # prompts are no secret
    with programs.serving(digest) as server, httpx2.Client(timeout=600, trust_env=False) as client:
        address = f"{server.url}/v1/models/{server.model['id']}/inference"

        def ask(tokens: int) -> None:
            body = {"prompt": " ".join(chance.choices(WORDS, k=12)), "parameters": {"max_tokens": tokens}}
            used = client.post(address, json=body).raise_for_status().json()["result"]["usage"]
            if used["completion_tokens"] != tokens:
                raise SystemExit(f"an answer ended after {used['completion_tokens']} tokens: ask for fewer")

        yield ask
        server.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description="Generations together, one alone, and one after another.")
    parser.add_argument("model", nargs="?", default="tinyllama", help="an installed model that writes")
    parser.add_argument("--streams", type=int, default=8, help="generations at a time")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each")
    parser.add_argument("--groups", type=int, default=10, help="groups of four blocks")
    asked = parser.parse_args(arguments)
    digest = Store(Settings().store).find(asked.model).digest
    with (
        serving(digest, asked.streams) as sharing,
        serving(digest, 1) as single,
        ThreadPoolExecutor(asked.streams) as pool,
    ):

        def one(ask: Callable[[int], None]) -> Run:
            return lambda: ask(asked.tokens)

        def all_of(ask: Callable[[int], None]) -> Run:
            return lambda: list(pool.map(ask, [asked.tokens] * asked.streams))

        def compared(reference: Run, candidate: Run, seed: int) -> Ratio:
            return ratio_of(list(groups({"": reference}, {"": candidate}, asked.groups, seed)))

        found = {
            "streams_together": gain(compared(one(sharing), all_of(sharing), 1), asked.streams),
            "streams_one_by_one": gain(compared(one(single), all_of(single), 2), asked.streams),
            "one_stream_time": compared(one(single), one(sharing), 3).model_dump(),
        }
    for name, row in found.items():
        sys.stderr.write(
            f"{name:20} {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n {row['n']}, "
            f"noise floor {row['floor']:.1%}\n"
        )
    about = {"environment": record().id, "model": asked.model, "digest": digest}
    size = {"streams": asked.streams, "tokens": asked.tokens}
    sys.stdout.write(json.dumps(about | size | found) + "\n")
    return 0


def gain(time: Ratio, streams: int) -> dict[str, Any]:
    """A ratio of times as one of tokens per second: of ``streams`` answers in the one, of one in the other."""
    return time.model_dump() | {
        "ratio": round(streams / time.ratio, 4),
        "low": round(streams / time.high, 4),
        "high": round(streams / time.low, 4),
    }


if __name__ == "__main__":
    sys.exit(main())
