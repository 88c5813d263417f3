"""The Open Inference Protocol V2, as far as REST and gRPC share it: calls, answers, what is told of models.

Reference: https://github.com/kserve/open-inference-protocol, with Triton's extensions for binary tensors,
classification, statistics, model configuration, the model repository and generating.
"""

from mlos.core.v2.call import Call, Given, answer_of, ask_of, strings_from_json, urgency_of
from mlos.core.v2.models import Models

__all__ = ["Call", "Given", "Models", "answer_of", "ask_of", "strings_from_json", "urgency_of"]
