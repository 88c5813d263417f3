"""The process of :mod:`mlos.core.first_load`: tunes one package as ``axon tune`` does, and ends.

The order comes on stdin; steps, and the error that it ends with, go to stderr as lines of JSON. It ends with
the server, its children end with it, and SIGTERM ends it as Ctrl-C ends ``axon tune``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from mlos.console import Console, OutputFormat, ProgressMode
from mlos.core.first_load import Order
from mlos.core.spawned import told
from mlos.errors import MlosError
from mlos.host.child import die_with
from mlos.settings import Settings
from mlos.store import Store
from mlos.tune.tuner import tune_and_record


def main() -> NoReturn:
    """Follow an :class:`Order`."""
    os.dup2(2, 1)  # nobody reads stdout, which a library that prints would fill
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    order = msgspec.json.decode(told()[0], type=Order)
    die_with(order.parent)
    console = Console(OutputFormat.JSON, ProgressMode.JSON)
    settings = Settings(home=Path(order.home))
    try:
        package = Store(settings.store).find(order.digest)
        tune_and_record(package, order.precision, settings, console, threads=order.threads)
    except MlosError as error:
        console.error(error)
        sys.exit(error.exit_status)
    sys.exit(0)


if __name__ == "__main__":
    main()
