"""LitServe: one API that takes tensors or a text."""

import sys  # and no annotations from the future: LitServe reads them as they stand
from typing import Any

import litserve
import numpy as np
from model_file import SETTINGS, ModelFile, answer_of, tensors_of


class Api(litserve.LitAPI):
    """A request is a text, or arrays by name; several of them are computed as one where batching is on."""

    def setup(self, device: str) -> None:
        """Open the file in the worker."""
        self._file = ModelFile()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """What was asked."""
        return request["text"] if "text" in request else tensors_of(request)

    def batch(self, inputs: list[Any]) -> Any:
        """Requests of one kind, as they come from the clients of one workload."""
        if isinstance(inputs[0], str):
            return inputs
        return {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}

    def predict(self, x: Any) -> Any:
        """One request, or a batch of them."""
        if isinstance(x, str):
            return self._file.embed([x])[0]
        return self._file.embed(x) if isinstance(x, list) else self._file.run(x)

    def unbatch(self, output: Any) -> list[Any]:
        """The answers one by one."""
        if not isinstance(output, dict):
            return list(output)
        length = len(next(iter(output.values())))
        return [{name: array[at : at + 1] for name, array in output.items()} for at in range(length)]

    def encode_response(self, output: Any) -> dict[str, Any]:
        """As JSON has it."""
        return answer_of(output) if isinstance(output, dict) else {"embedding": output.tolist()}


if __name__ == "__main__":
    batching = {"max_batch_size": 8, "batch_timeout": 0.002} if SETTINGS["batch"] else {}
    server = litserve.LitServer(Api(**batching), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
