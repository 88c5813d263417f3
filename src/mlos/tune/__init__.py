"""Tuning: which engine, precision and number of threads compute a model fastest on this host, and equal.

Candidates are timed against the default in alternation, each proved against the package's golden record by the
row of its precision; what was measured is kept per host, beside the store. Whoever serves a model asks
:func:`chosen` what to serve it with, and gets the reasons too. Nothing is measured while serving, unless a
server was told to tune what it loads first.
"""

from mlos.tune.choice import Choice, Precision, chosen
from mlos.tune.paired import Ratio
from mlos.tune.record import Batching, Candidate, Trial, Tuning, load

__all__ = ["Batching", "Candidate", "Choice", "Precision", "Ratio", "Trial", "Tuning", "chosen", "load"]
