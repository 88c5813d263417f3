"""What the protocol tells of a server's models: metadata, configuration, statistics, readiness, the repository.

All of it is made of plain dictionaries in the protocol's own names, which are JSON's for REST and are read into
messages for gRPC. A model's version is the beginning of its package's digest.
"""

from __future__ import annotations

from typing import Any

from mlos import __version__
from mlos.core.dataplane import DataPlane
from mlos.core.replica import Replica, State
from mlos.engines import engine_for
from mlos.errors import ForbiddenError, MlosError, NotFoundError, NotOfferedError
from mlos.model import Artifact, TensorSpec
from mlos.store import Package

EXTENSIONS = (
    *("binary_tensor_data", "classification", "generate", "model_configuration", "model_repository"),
    *("parameters", "schedule_policy", "statistics"),
)
_VERSION_LENGTH = 12
_STATES = {State.READY: "READY", State.LOADING: "LOADING", State.RESTARTING: "LOADING"}


class Models:
    """The models of a data plane in the protocol's words.

    Every method that takes a name raises ``NotFoundError`` if there is no such model, or not in that version.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def server(self) -> dict[str, Any]:
        """The server's metadata."""
        return {"name": "mlos", "version": __version__, "extensions": list(EXTENSIONS)}

    def find(self, name: str, version: str = "") -> Replica:
        """The model that is meant; any version if none is named."""
        replica = self._plane.supervisor.find(name)
        known = version_of(replica.package)
        if version and not (version.startswith(known) and replica.package.digest.startswith(version)):
            raise NotFoundError(
                f"model {name!r} has no version {version[:100]!r}",
                field="version",
                expected=known,
                got=repr(version[:100]),
                hint="leave the version out, or install it: the version is the beginning of a package's digest",
            )
        return replica

    def unready(self, name: str, version: str = "") -> str | None:
        """Why a model does not take requests; one that its first request loads does."""
        replica = self.find(name, version)
        if self._plane.draining:
            return "draining: the server is about to end"
        able = replica.state in (State.READY, State.STOPPED) and not replica.withdrawn
        return None if able else replica.reason or replica.state

    def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """The tensors that a model takes and gives; a free axis is -1."""
        replica = self.find(name, version)
        package, artifact = replica.package, replica.package.manifest.artifact
        return {
            "name": name_of(package),
            "versions": [version_of(package)],
            "platform": f"{_engine(replica)}_{artifact.format}",
            "inputs": [_tensor(spec) for spec in artifact.inputs],
            "outputs": [_tensor(spec) for spec in artifact.outputs],
        }

    def config(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's configuration, as far as it has what Triton's has."""
        replica = self.find(name, version)
        package, artifact = replica.package, replica.package.manifest.artifact
        told = {
            "tasks": ",".join(package.manifest.tasks),
            "digest": package.digest,
            "reference": package.reference,
            "precision": artifact.precision,
        }
        return {
            "name": name_of(package),
            "platform": f"{_engine(replica)}_{artifact.format}",
            "backend": _engine(replica),
            "max_batch_size": 0,  # the first axis is a tensor's like any other
            "input": [_config_tensor(spec) for spec in artifact.inputs],
            "output": [_config_tensor(spec) for spec in artifact.outputs],
            "parameters": {key: {"string_value": value} for key, value in told.items()},
            "model_transaction_policy": {"decoupled": False},
        }

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Those of one model, or without a name of all."""
        replicas = [self.find(name, version)] if name else self._plane.supervisor.models()
        return {"model_stats": [_statistics(replica) for replica in replicas]}

    def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """What there is and in what state; of what cannot be served, the reason."""
        supervisor = self._plane.supervisor
        rows = [
            {
                "name": name_of(replica.package),
                "version": version_of(replica.package),
                "state": _STATES.get(replica.state, "UNAVAILABLE"),
                "reason": replica.reason or "",
            }
            for replica in supervisor.models()
        ]
        rows += [
            {
                "name": broken.reference,
                "version": (broken.digest or "")[:_VERSION_LENGTH],
                "state": "UNAVAILABLE",
                "reason": broken.error.message,
            }
            for broken in supervisor.broken()
        ]
        return [row for row in rows if not ready or row["state"] == "READY"]

    async def load(self, name: str, parameters: object = None, *, administrator: bool) -> None:
        """Load a model now instead of at its first request, and wait until it is ready.

        Who may ask may load, since the first request does it too; what was taken out of service comes back by
        administration alone.

        Raises:
            ForbiddenError: if it was unloaded, and who asks is no administrator.
            NotOfferedError: if it is to be loaded otherwise than it was packaged.
            MlosError: what it failed for.
        """
        if parameters:
            raise NotOfferedError(
                "a model is loaded as it was packaged: files and configurations of a request are not taken",
                field="parameters",
                expected="no parameters",
            )
        if self.find(name).withdrawn and not administrator:
            raise ForbiddenError(
                f"model {name} was unloaded, and only administration loads it again",
                field="name",
                hint="load it on the server's Unix socket, or with the administration token",
            )
        await self._plane.supervisor.load(name)

    async def unload(self, name: str) -> None:
        """Take a model out of service; returns once its worker has ended."""
        await self._plane.supervisor.unload(name)


def name_of(package: Package) -> str:
    """How a model is listed: its short name where that is its own."""
    return package.name if package.owns_name else package.reference


def version_of(package: Package) -> str:
    """The version that a package is served as."""
    return package.digest[:_VERSION_LENGTH]


def _engine(replica: Replica) -> str:
    if replica.report is not None:
        return replica.report.engine
    artifact: Artifact = replica.package.manifest.artifact
    try:
        name = getattr(engine_for(next(iter(artifact.parts.values()), artifact)), "name", None)
    except MlosError:  # no engine here opens it, which its first request will say
        name = None
    return name if isinstance(name, str) else "none"


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": _lengths(spec)}


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.dtype}", "dims": _lengths(spec)}


def _lengths(spec: TensorSpec) -> list[int]:
    return [axis if isinstance(axis, int) else -1 for axis in spec.shape]


def _statistics(replica: Replica) -> dict[str, Any]:
    memory = replica.memory_bytes()
    return {
        "name": name_of(replica.package),
        "version": version_of(replica.package),
        **replica.statistics.as_dict(),
        "memory_usage": [] if memory is None else [{"type": "CPU", "id": 0, "byte_size": memory}],
    }
