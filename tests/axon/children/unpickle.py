"""A child that unpickles without any guard but the sandbox: what would be left if torch's own failed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from mlos.host.child import Emit, serve


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    try:
        pickle.loads(Path(request["path"]).read_bytes())
    except OSError as error:
        return {"stopped": type(error).__name__}
    return {"stopped": None}


if __name__ == "__main__":
    serve(main)
