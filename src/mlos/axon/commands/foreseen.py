"""What ``--dry-run`` says of a variant: nothing is made, and its original is not installed for it."""

from __future__ import annotations

from typing import Any

from rich.filesize import decimal
from rich.text import Text

from mlos.axon.commands import settings
from mlos.axon.variants import Order, foreseen
from mlos.console import Console


def tell(model: str, label: str, console: Console, *, network: bool = True) -> None:
    """Print what making the form ``label`` of ``model`` would take."""
    found = foreseen(model, label, settings(), console, network=network)
    data: dict[str, Any] = {
        "name": found.name,
        "reference": found.reference,
        "precision": found.form.precision,
        "row": found.row,
    }
    made = f"held to the row {found.row} and stored as {found.name}"
    if isinstance(found, Order):
        data["variant_of"] = found.original.digest
        said = f"{found.reference} would be made of {found.original.name}, {made}"
    else:
        size = found.plan.origin.resolution.size
        data |= {"variant_of": None, "download": size, "room_needed": found.plan.bytes_needed}
        said = (
            f"{found.plan.origin.name} is not installed and would be first ({decimal(size)} to fetch); "
            f"{found.reference} would be made of it, {made}"
        )
    console.result(data, lambda: Text(said), [found.reference])
