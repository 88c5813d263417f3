"""Where packages live: content-addressed, committed atomically, leased while used, verified at any time."""

from mlos.store.collect import Collected
from mlos.store.integrity import Fault, examine, read_manifest
from mlos.store.package import Broken, InstallRecord, Package
from mlos.store.store import Staging, Store

__all__ = [
    "Broken",
    "Collected",
    "Fault",
    "InstallRecord",
    "Package",
    "Staging",
    "Store",
    "examine",
    "read_manifest",
]
