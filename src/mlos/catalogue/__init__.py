"""The models we know: references and aliases, golden requests, tolerances, seeded recipes.

The knowledge is data: ``models/NAME.toml`` holds one model, ``configs/`` the published configurations as they
were transcribed, ``defaults.toml`` what serves for a model that is not listed. Adding a model is adding a file.
"""

from mlos.catalogue.catalogue import Catalogue, Resolved, TaskDefaults, catalogue
from mlos.catalogue.entry import Entry, GoldenRequest, References, SeededRecipe, TinyRecipe, TokenizerRecipe

__all__ = [
    "Catalogue",
    "Entry",
    "GoldenRequest",
    "References",
    "Resolved",
    "SeededRecipe",
    "TaskDefaults",
    "TinyRecipe",
    "TokenizerRecipe",
    "catalogue",
]
