"""The model packager: where models come from, how they become packages, and the ``axon`` command line."""
