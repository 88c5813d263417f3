"""The JSON schemas of answers, and of the few requests that no type describes, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

FLAT_ERROR, PLAIN_ERROR = "V2Error", "Error"
_STRING: dict[str, Any] = {"type": "string"}
_MAYBE: dict[str, Any] = {"type": ["string", "null"]}
_WHOLE: dict[str, Any] = {"type": "integer", "minimum": 0}
_NUMBER: dict[str, Any] = {"type": "number"}
_BOOLEAN: dict[str, Any] = {"type": "boolean"}
_REASON = {"type": "string", "enum": ["stop", "length"]}


def _object(**fields: Any) -> dict[str, Any]:
    """An object that has all of these fields, and may have others."""
    return {"type": "object", "required": list(fields), "properties": fields}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _map(values: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


_DETAILS = {
    "code": _STRING,
    "message": _STRING,
    **dict.fromkeys(("field", "expected", "got", "hint", "request_id"), _MAYBE),
}
_USAGE = _object(prompt_tokens=_WHOLE, completion_tokens=_WHOLE, total_tokens=_WHOLE)
_TENSOR = _object(name=_STRING, datatype=_STRING, shape=_list({"type": "integer", "minimum": -1}))
_DURATION = _object(count=_WHOLE, ns=_WHOLE)
_MODEL = _object(
    id=_STRING,
    object={"const": "model"},
    created=_WHOLE,
    owned_by=_STRING,
    reference=_STRING,
    digest=_MAYBE,
    state=_STRING,
    reason=_MAYBE,
)
_WRITTEN = {"id": _STRING, "object": _STRING, "created": _WHOLE, "model": _STRING, "usage": _USAGE}

ANSWERS: dict[str, Any] = {
    # V1 has the details in an object of their own, OpenAI's addresses have that protocol's four of them.
    PLAIN_ERROR: _object(
        error={
            "oneOf": [
                _object(**_DETAILS),
                {
                    **_object(message=_STRING, type=_STRING, param=_MAYBE, code=_STRING),
                    "not": {"required": ["request_id"]},
                },
            ]
        }
    ),
    FLAT_ERROR: _object(error=_STRING, **_DETAILS),
    "Nothing": {"type": "object"},
    "Document": _object(openapi=_STRING, info=_map({}), paths=_map({})),
    "Health": _object(live=_BOOLEAN, ready=_BOOLEAN, reason=_MAYBE, models=_map(_WHOLE)),
    "Live": _object(live=_BOOLEAN),
    "Ready": _object(ready=_BOOLEAN, reason=_MAYBE),
    "Version": _object(name=_STRING, version=_STRING),
    "Model": _MODEL,
    "Models": _object(object={"const": "list"}, data=_list(_MODEL)),
    "Inference": _object(
        model=_STRING,
        digest=_STRING,
        task=_STRING,
        result={},
        engine=_STRING,
        precision=_STRING,
        mode=_STRING,
        timings_ms=_map(_NUMBER),
        request_id=_STRING,
    ),
    "Chat": _object(
        **_WRITTEN,
        choices=_list(
            _object(index=_WHOLE, message=_object(role=_STRING, content=_STRING), finish_reason=_REASON)
        ),
    ),
    "Completion": _object(
        **_WRITTEN, choices=_list(_object(index=_WHOLE, text=_STRING, finish_reason=_REASON))
    ),
    "Embeddings": _object(
        object={"const": "list"},
        data=_list(
            _object(object={"const": "embedding"}, index=_WHOLE, embedding={"anyOf": [_list(_NUMBER), _STRING]})
        ),
        model=_STRING,
        usage=_object(prompt_tokens=_WHOLE, total_tokens=_WHOLE),
    ),
    "Server": _object(name=_STRING, version=_STRING, extensions=_list(_STRING)),
    "Metadata": _object(
        name=_STRING,
        versions=_list(_STRING),
        platform=_STRING,
        inputs=_list(_TENSOR),
        outputs=_list(_TENSOR),
    ),
    "Config": _object(
        name=_STRING, platform=_STRING, backend=_STRING, input=_list(_map({})), output=_list(_map({}))
    ),
    "Statistics": _object(
        model_stats=_list(
            _object(
                name=_STRING,
                version=_STRING,
                last_inference=_WHOLE,
                inference_count=_WHOLE,
                execution_count=_WHOLE,
                inference_stats=_map(_DURATION),
                batch_stats=_list(_map({})),
                memory_usage=_list(_object(type=_STRING, id=_WHOLE, byte_size=_WHOLE)),
            )
        )
    ),
    "Index": _list(_object(name=_STRING, version=_STRING, state=_STRING, reason=_STRING)),
    "Inferred": _object(model_name=_STRING, model_version=_STRING, outputs=_list(_TENSOR)),
    "GenerateRequest": {
        "type": "object",
        "required": ["text_input"],
        "properties": {"text_input": _STRING, "id": _STRING, "parameters": _map({})},
        "additionalProperties": True,
    },
    "Generated": _object(
        model_name=_STRING,
        model_version=_STRING,
        text_output=_STRING,
        finish_reason=_REASON,
        prompt_tokens=_WHOLE,
        completion_tokens=_WHOLE,
    ),
}
