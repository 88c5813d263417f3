"""The server of llama.cpp itself, in this process by xllamacpp; it listens on its own threads."""

from __future__ import annotations

import json
import os
import signal
import sys

import xllamacpp

SAID = json.loads(os.environ["MLOS_BENCH"])

if __name__ == "__main__":
    params = xllamacpp.CommonParams()
    params.model.path = SAID["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = int(sys.argv[1])
    params.n_parallel = SAID["sequences"]
    params.n_ctx = SAID["context"] * SAID["sequences"]
    params.kv_unified = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = SAID["threads"]
    params.cache_ram_mib = 0
    params.fit_params = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)
