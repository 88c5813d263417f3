"""Asks a server through KServe's own client, and writes what it got as JSON; in an environment of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import (  # type: ignore[import-not-found]  # it lives in its own environment
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)

ROWS = np.array([[1, 2, 3], [4.5, -5, 6]], np.float32)


def request(model: str, binary: bool, rows: Any = ROWS) -> Any:
    given = InferInput("x", list(rows.shape), "FP32")
    given.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model, [given])


def told(response: Any) -> dict[str, Any]:
    output = response.outputs[0]
    values = output.as_numpy()
    return {"model": response.model_name, "name": output.name, "type": str(values.dtype), "y": values.tolist()}


async def failure(asked: Any) -> str:
    try:
        await asked
    except Exception as error:  # its kinds of errors differ between the protocols
        return f"{type(error).__name__}: {error}"
    return "none"


async def over_rest(url: str) -> dict[str, Any]:
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        return {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model": await client.is_model_ready(url, "double"),
            "json": told(await client.infer(url, request("double", False), model_name="double")),
            "binary": told(await client.infer(url, request("double", True), model_name="double")),
            "unknown": await failure(client.infer(url, request("nobody", False), model_name="nobody")),
            "wrong": await failure(
                client.infer(url, request("double", True, ROWS[:, :2].copy()), model_name="double")
            ),
        }


async def over_grpc(address: str) -> dict[str, Any]:
    async with InferenceGRPCClient(address) as client:
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model": await client.is_model_ready("double"),
            "json": told(await client.infer(request("double", False))),
            "binary": told(await client.infer(request("double", True))),
            "unknown": await failure(client.infer(request("nobody", False))),
            "wrong": await failure(client.infer(request("double", True, ROWS[:, :2].copy()))),
        }


async def main(url: str, address: str) -> None:
    found = {"rest": await over_rest(url), "grpc": await over_grpc(address)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
