"""The protocol's messages, made of compiled descriptors when they are needed.

The descriptors have a pool of their own, so this module and a client's generated one, which describe the same
names, can live in one process; and no generated code ties the server to one version of protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"


class Messages:
    """The classes of all messages, by their full names."""

    def __init__(self) -> None:
        data = files("mlos.core.grpc").joinpath("protocol.binpb").read_bytes()
        described = descriptor_pb2.FileDescriptorSet.FromString(data)
        self.pool = descriptor_pool.DescriptorPool()
        for file in described.file:
            self.pool.Add(file)
        names = [file.name for file in described.file]
        self._classes: dict[str, Any] = message_factory.GetMessageClassesForFiles(names, self.pool)

    def __getitem__(self, name: str) -> Any:
        """The class of a message, such as ``inference.ModelInferRequest``."""
        return self._classes[name]

    def read(self, name: str, data: dict[str, Any]) -> Any:
        """A message of what JSON would hold in its place."""
        return json_format.ParseDict(data, self[name]())

    def methods(self, service: str) -> Mapping[str, tuple[Any, Any]]:
        """Each method of a service by its name, with the classes of what it takes and gives."""
        described = self.pool.FindServiceByName(service)
        return {
            method.name: (self[method.input_type.full_name], self[method.output_type.full_name])
            for method in described.methods
        }
