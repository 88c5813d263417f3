"""Proves a model: installs it, serves it, compares its answers with the framework's, loads it, reports.

It drives the real programs (``axon``, ``mlos_core``) as processes and speaks HTTP to the server, as a user
would. What it finds is one JSON file per run (:mod:`mlos.validation.results`); pages are views of such files.
"""
