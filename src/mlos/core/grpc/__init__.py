"""The gRPC surface: the Open Inference Protocol V2 and gRPC's own health protocol over the data plane.

``protocol.binpb`` is what ``scripts/protocol.py`` compiles of the ``.proto`` files beside it.
"""
