"""What a model is: how it is named, what a package of it declares, what a request to it holds.

This room knows no engine, no network and no file system; everything above it speaks in its words.
"""

from mlos.model.manifest import (
    SCHEMA_VERSION,
    Artifact,
    Calibration,
    FileEntry,
    FileRole,
    Manifest,
    ModelFormat,
    ParityMeasure,
    QualityMeasure,
    Weights,
)
from mlos.model.reference import Reference
from mlos.model.request import InferenceRequest, Message
from mlos.model.tensors import DType, Tensors, TensorSpec

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "Calibration",
    "DType",
    "FileEntry",
    "FileRole",
    "InferenceRequest",
    "Manifest",
    "Message",
    "ModelFormat",
    "ParityMeasure",
    "QualityMeasure",
    "Reference",
    "TensorSpec",
    "Tensors",
    "Weights",
]
