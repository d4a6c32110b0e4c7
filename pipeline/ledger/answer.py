"""Turns an answer into plain values, as `--json` prints it."""

from dataclasses import fields, is_dataclass
from typing import Any


def as_json(answer: Any) -> Any:
    """Returns an answer as dicts and lists, by field name; fields at their default are left out."""
    if is_dataclass(answer):
        values = {field: getattr(answer, field.name) for field in fields(answer)}
        return {
            field.name: as_json(value) for field, value in values.items() if value != field.default
        }
    if isinstance(answer, dict):
        return {key: as_json(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [as_json(value) for value in answer]
    return answer
