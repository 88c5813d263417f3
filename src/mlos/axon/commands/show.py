"""``axon list`` and ``axon info``: what is installed."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from mlos.axon.commands import OutputOption, ProgressOption, facts, settings, short_reference, voice
from mlos.axon.commands.install import parity_table
from mlos.model import Artifact
from mlos.store import Broken, Package, Store


def list_packages(output: OutputOption = None, progress: ProgressOption = None) -> None:
    """Show what is installed, last installed first; broken packages too."""
    console = voice.choose(output, progress)
    store = Store(settings().store)
    packages, broken = store.packages(), store.broken()
    data = [*(summary(package) for package in packages), *(_broken(item) for item in broken)]
    console.result(data, lambda: _table(packages, broken), [str(item["reference"]) for item in data])


def info(
    model: Annotated[str, typer.Argument(help="Short name, repository name, reference, or digest.")],
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Show one package: its manifest, its files, its parity."""
    console = voice.choose(output, progress)
    package = Store(settings().store).find(model)
    data = summary(package) | {
        "folder": str(package.folder),
        "seconds": package.record.seconds,
        "axon": package.record.axon,
        "manifest": package.manifest.model_dump(mode="json"),
    }
    console.result(data, lambda: _details(package), [package.digest])


def summary(package: Package) -> dict[str, Any]:
    """A package as ``axon list`` gives it."""
    manifest = package.manifest
    return {
        "name": manifest.name,
        "reference": package.reference,
        "digest": package.digest,
        "owns_name": package.owns_name,
        "weights": manifest.weights,
        "licence": manifest.licence,
        "tasks": list(manifest.tasks),
        "format": manifest.artifact.format,
        "precision": manifest.artifact.precision,
        "parameters": manifest.parameters,
        "size": manifest.size,
        "installed_at": package.record.installed_at.isoformat(),
        "state": "installed",
        "error": None,
    }


def _broken(item: Broken) -> dict[str, Any]:
    absent = dict.fromkeys(("weights", "licence", "tasks", "format", "precision", "parameters", "size"))
    return {
        "name": item.name,
        "reference": item.reference,
        "digest": item.digest,
        "owns_name": False,
        **absent,
        "installed_at": item.record.installed_at.isoformat() if item.record else None,
        "state": "broken",
        "error": item.error.as_dict(),
    }


def _table(packages: list[Package], broken: list[Broken]) -> RenderableType:
    if not packages and not broken:
        return Text("nothing is installed; try: axon install hf/google-bert/bert-base-uncased@latest")
    table = Table("name", "reference", "tasks", "size", "weights", "digest")
    table.columns[1].overflow = "fold"
    for package in packages:
        manifest = package.manifest
        table.add_row(
            Text(manifest.name + ("" if package.owns_name else " (name taken)")),
            Text(short_reference(package)),
            ", ".join(manifest.tasks),
            decimal(manifest.size),
            manifest.weights,
            package.digest[:12],
        )
    for item in broken:
        table.add_row(Text(item.name), Text(item.reference), "[red]broken[/]", "", "", (item.digest or "")[:12])
    notes = [Text(f"broken: {item.error.message}; try: {item.error.hint}") for item in broken]
    return Group(table, *notes)


def _details(package: Package) -> RenderableType:
    manifest = package.manifest
    rows = [
        ("name", manifest.name + ("" if package.owns_name else " (another package owns the short name)")),
        ("reference", package.reference),
        ("digest", package.digest),
        ("weights", manifest.weights),
        ("licence", manifest.licence or "none declared"),
        ("architecture", manifest.architecture or "unknown"),
        ("parameters", "unknown" if manifest.parameters is None else f"{manifest.parameters:,}"),
        ("tasks", ", ".join(manifest.tasks)),
        (
            "artifact",
            f"{_files(manifest.artifact)} ({manifest.artifact.format}, {manifest.artifact.precision})",
        ),
        (
            "inputs",
            "\n".join(f"{spec.name}: {spec.dtype} {list(spec.shape)}" for spec in manifest.artifact.inputs),
        ),
        (
            "outputs",
            "\n".join(f"{spec.name}: {spec.dtype} {list(spec.shape)}" for spec in manifest.artifact.outputs),
        ),
        ("tools", ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.tools.items()))),
        ("installed", f"{package.record.installed_at:%Y-%m-%d %H:%M:%S} UTC by axon {package.record.axon}"),
        ("folder", str(package.folder)),
    ]
    files = Table("file", "role", "size", "SHA-256", title="files", title_justify="left")
    for file in manifest.files:
        files.add_row(Text(file.path), file.role, decimal(file.size), file.sha256[:16])
    return Group(facts(rows), parity_table(manifest.parity), files)


def _files(artifact: Artifact) -> str:
    return artifact.path or ", ".join(_files(part) for part in artifact.parts.values())
