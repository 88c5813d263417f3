"""The runtime: a worker process per model, a supervisor over them, one data plane, thin protocol shells.

:mod:`worker` is what runs beside a model; :mod:`supervisor` starts, watches and replaces workers;
:mod:`dataplane` holds the rules of a request, whichever protocol it came by; :mod:`http` holds the shells.
"""
