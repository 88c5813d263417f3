"""The models we know: references and aliases, golden requests, tolerances, seeded recipes.

The knowledge is data: ``models/NAME.toml`` holds one model, ``configs/`` the published configurations as they
were transcribed, ``images/`` the pictures of golden requests, ``defaults.toml`` what serves for a model that is
not listed. Adding a model is adding a file.
"""

from mlos.catalogue.catalogue import Catalogue, Resolved, TaskDefaults, catalogue
from mlos.catalogue.entry import (
    CarriedTokenizer,
    Entry,
    GgufTokenizer,
    GoldenRequest,
    References,
    SeededRecipe,
    SyntheticTokenizer,
    TinyRecipe,
)

__all__ = [
    "CarriedTokenizer",
    "Catalogue",
    "Entry",
    "GgufTokenizer",
    "GoldenRequest",
    "References",
    "Resolved",
    "SeededRecipe",
    "SyntheticTokenizer",
    "TaskDefaults",
    "TinyRecipe",
    "catalogue",
]
