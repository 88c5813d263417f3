"""T12: a worker that hands over shared memory that is not what it says is ended, and costs nobody else."""

from __future__ import annotations

from pathlib import Path

from tests.core import packages
from tests.core.conftest import Start

from mlos.store import Store

ROW = {"inputs": {"x": [[1, 2, 3]]}}
HOSTILE = """
import array, fcntl, os, socket
import numpy as np
from mlos.accel.wire import INLINE_LIMIT, MAGIC, PREFIX, SEALS

LARGE = INLINE_LIMIT + 4096
ATTACKS = {1: (0, LARGE), 2: (SEALS & ~fcntl.F_SEAL_SHRINK, LARGE), 3: (SEALS, 1 << 29)}

class Hostile:
    name = "hostile"
    formats = frozenset({"pytorch"})
    version = "1"

    @classmethod
    def open(cls, folder, artifact, threads):
        self = cls()
        self.channel = next(filter(None, (seqpacket(number) for number in range(256))))
        return self

    def run(self, inputs, outputs=None):
        kind = int(inputs["port"][0])
        if kind in ATTACKS:
            seals, told = ATTACKS[kind]
            descriptor = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
            os.truncate(descriptor, LARGE)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = array.array("i", [descriptor]).tobytes()
            packet = PREFIX.pack(MAGIC, 64, told)
            self.channel.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            if kind == 2:
                os.truncate(descriptor, 0)  # while it may be read
        return {"found": np.array([kind], np.int64)}

def seqpacket(number):
    try:
        found = socket.socket(fileno=os.dup(number))
    except OSError:
        return None
    if found.family == socket.AF_UNIX and found.type == socket.SOCK_SEQPACKET:
        return found
    found.close()
"""


def test_a_worker_that_lies_about_shared_memory_is_ended_alone(start: Start, store: Store, home: Path) -> None:
    modules = home / "modules"
    described = modules / "hostile-1.dist-info"
    described.mkdir(parents=True)
    (modules / "hostile.py").write_text(HOSTILE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[mlos.engines.v1]\nhostile = hostile:Hostile\n")
    packages.curious(store)
    packages.double(store)
    server = start()
    assert server.infer("double", ROW).status == 200
    other = server.worker("double")

    def asked(kind: int) -> int:
        return server.infer("curious", {"inputs": {"port": [kind], "canary": [1]}}).status

    assert asked(7) == 200
    for kind, said in ((1, "not sealed"), (2, "not sealed"), (3, f"not {1 << 29}")):
        assert asked(kind) == 503
        server.wait_for(lambda: asked(7) == 200)
        (died,) = [line["reason"] for line in server.lines() if line["message"] == "worker died"][kind - 1 :]
        assert "broke the protocol" in died
        assert said in died
    assert server.infer("double", ROW).json["result"] == {"y": [[2, 4, 6]]}
    assert server.worker("double") == other
    assert server.metric("mlos_restarts_total", model="double") == 0
