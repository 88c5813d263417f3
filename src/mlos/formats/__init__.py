"""Model files as untrusted input: which format, whether sound, and what they hold, without a native parser.

SafeTensors, ONNX and GGUF are read by checked pure Python that bounds its time and memory; pickles are only
recognised. What passes here may be given to a native parser, still in a sandboxed process.
"""

from mlos.formats.dispatch import detect, verify
from mlos.formats.summary import Summary
from mlos.formats.survey import Survey, survey

__all__ = ["Summary", "Survey", "detect", "survey", "verify"]
