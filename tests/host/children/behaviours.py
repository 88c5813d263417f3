"""A child that does what it is asked: work, print, fail in every way a child can fail."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mlos.errors import RefusedError
from mlos.host.child import Emit, serve


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    match request["do"]:
        case "echo":
            sys.stdout.write("a library prints\n")
            os.write(1, b"and so does C code\n")
            return {"heard": request["say"]}
        case "events":
            for number in range(request["count"]):
                emit({"number": number})
            return {}
        case "describe":
            return {"environment": dict(os.environ), "cwd": str(Path.cwd()), "stdin": sys.stdin.read()}
        case "numpy":
            import numpy as np

            Path(request["write"], "made").mkdir()
            text = Path(request["read"], "weights").read_text()
            Path(request["write"], "made", "answer").write_text(text)
            workers = [threading.Thread(target=np.ones((64, 64)).sum) for _ in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return {"trace": float((np.ones((256, 256)) @ np.ones((256, 256))).trace()), "text": text}
        case "refuse":
            raise RefusedError("no \x1b[31mred", hint="try another", field="f", expected="e", got="g")
        case "raise":
            raise ValueError("three is not four")
        case "nan":
            return {"value": float("nan")}
        case "crash":
            ctypes.string_at(0)
        case "abort":
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(request["status"])
        case "memory":
            return {"bytes": len(bytearray(request["bytes"]))}
        case "file":
            with Path("large").open("wb") as file:
                file.write(bytes(request["bytes"]))
        case "spin":
            while True:
                pass
        case "sleep":
            emit({"pid": os.getpid()})
            time.sleep(60)
        case "garbage":
            # The stream to the parent is the only pipe beside stderr (and stdout, which is it).
            for descriptor in range(3, 10):
                if Path(f"/proc/self/fd/{descriptor}").exists() and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                    os.write(descriptor, request["bytes"].encode() + b"\n")
        case "close":
            os.close(2)
            os.close(1)
            for descriptor in range(3, 10):
                if Path(f"/proc/self/fd/{descriptor}").exists():
                    os.close(descriptor)
            time.sleep(60)
    return {}


if __name__ == "__main__":
    serve(main)
