"""MLOS packages, serves and validates machine-learning models.

Three programs: ``axon`` packages a model, ``mlos_core`` serves what is packaged, ``mlos`` proves it.
The rooms below are ordered; each imports only from those before it (``docs/architecture.md``).
"""

from importlib.metadata import version

__version__ = version("mlos")
