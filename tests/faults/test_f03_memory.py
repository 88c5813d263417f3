"""F03: thousands of requests of mixed lengths leave memory where it was, and never mix their answers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

PROGRAMS = Path(sys.executable).parent
REQUESTS = 10_000
CLIENTS = 16
WORDS = ("the", "a", "model", "server", "answers", "quickly", "while", "another", "waits", "turn")


@pytest.mark.soak
def test_ten_thousand_mixed_requests_neither_leak_nor_mix(tmp_path: Path) -> None:
    environment = os.environ | {"MLOS_HOME": str(tmp_path)}
    subprocess.run([PROGRAMS / "axon", "install", "seeded/tiny/bert"], env=environment, check=True)
    with subprocess.Popen(
        [PROGRAMS / "mlos_core", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        chance = random.Random(3)
        texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 60))) for _ in range(200)]
        with httpx2.Client(base_url=url, timeout=60) as client:

            def ask(text: str) -> Any:
                answer = client.post("/v1/models/bert/inference", json={"text": text, "task": "embeddings"})
                answer.raise_for_status()
                return answer.json()["result"]["embedding"]

            def memory() -> int:
                rows = client.get("/v1/models").json()["data"]
                return int(next(row["memory_bytes"] for row in rows if row["state"] == "READY"))

            alone = {text: np.array(ask(text)) for text in texts}
            settled = 0
            with ThreadPoolExecutor(CLIENTS) as pool:
                for block in range(10):
                    asked = chance.choices(texts, k=REQUESTS // 10)
                    for text, vector in zip(asked, pool.map(ask, asked), strict=True):
                        assert np.abs(np.array(vector) - alone[text]).max() < 1e-4
                    if block == 1:
                        settled = memory()
            grown = memory() - settled
            assert grown <= max(0.02 * settled, 20e6), f"{grown} bytes more than after the second block"
        server.send_signal(signal.SIGTERM)
        assert server.wait(40) == 0
