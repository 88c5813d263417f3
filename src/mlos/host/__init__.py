"""This machine: what it is (:mod:`environment`), what a process may do on it (:mod:`sandbox`, :mod:`child`).

Nothing here knows a model. :mod:`mlos.host.child` starts a module as a process that has no network, starts no
program and sees only the folders it was given; it dies with its parent.
"""
