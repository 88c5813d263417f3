"""llama-cpp-python's own application, set up as ``python -m llama_cpp.server`` does."""

from __future__ import annotations

import json
import os
import sys

import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings

SAID = json.loads(os.environ["MLOS_BENCH"])

if __name__ == "__main__":
    app = create_app(
        server_settings=ServerSettings(interrupt_requests=False),
        model_settings=[
            ModelSettings(
                model=SAID["model"],
                n_ctx=SAID["context"],
                n_threads=SAID["threads"],
                n_threads_batch=SAID["threads"],
                logits_all=False,
                verbose=False,
            )
        ],
    )
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
