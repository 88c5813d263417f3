"""The gates: a golden record against a model's answers, in numpy alone.

This room knows nothing of engines, tokenizers or packages; it is given arrays and results and says how far
they stand from the framework's, and whether standing apart would have been noticed at all.
"""

from mlos.parity.compare import compare_outputs, describe, require
from mlos.parity.difference import Difference, compare_inputs, compare_result
from mlos.parity.record import Case, GoldenRecord
from mlos.parity.tolerance import TOLERANCES, Tolerance, tolerance_named, tolerance_of
from mlos.parity.vacuity import vacuity

__all__ = [
    "TOLERANCES",
    "Case",
    "Difference",
    "GoldenRecord",
    "Tolerance",
    "compare_inputs",
    "compare_outputs",
    "compare_result",
    "describe",
    "require",
    "tolerance_named",
    "tolerance_of",
    "vacuity",
]
