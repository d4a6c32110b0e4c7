"""What a setting takes, in words: its kind and its range, as its type declares them."""

import re
from typing import Any

import msgspec.inspect as types

PART = re.compile(r"\.(\w+)|\[(\d+)\]")  # of a path as msgspec writes it: `$.keep[0].order`


def setting_types(cls: type) -> dict[str, types.Type]:
    """The type of each setting of a stage, or of a group of settings such as `top`."""
    made = types.type_info(cls)
    assert isinstance(made, types.DataclassType)
    return {field.name: field.type for field in made.fields}


def in_words(kind: types.Type) -> str:
    """What to write for a setting of this type: `a whole number, at least 1`."""
    match kind:
        case types.UnionType(types=several):
            return " or ".join(in_words(one) for one in several if not _is_null(one))
        case types.IntType() | types.FloatType():
            word = "a whole number" if isinstance(kind, types.IntType) else "a number"
            return ", ".join(part for part in (word, range_of(kind)) if part)
        case types.StrType():
            return "text, not empty" if kind.min_length else "text"
        case types.LiteralType(values=values):
            return f"one of: {', '.join(map(str, values))}" if len(values) > 1 else str(values[0])
        case types.DataclassType(fields=fields):
            return f"{{{', '.join(f'{field.name}: …' for field in fields)}}}"
        case types.VarTupleType(item_type=item):
            return f"a list [{in_words(item)}, …]"
        case types.DictType(key_type=key, value_type=value):
            return f"{{{in_words(key)}: {in_words(value)}}}"
        case types.BoolType():
            return "true or false"
    return str(kind)  # a type of a stage of your own that no recipe of ours has


def _is_null(kind: types.Type) -> bool:
    return isinstance(kind, types.NoneType)  # leaving the setting out says as much


def range_of(kind: types.IntType | types.FloatType) -> str:
    """`at least 1`, `above 0, at most 1`; empty where any number will do."""
    bounds = ((kind.ge, "at least"), (kind.gt, "above"), (kind.le, "at most"), (kind.lt, "below"))
    return ", ".join(f"{word} {bound:,}" for bound, word in bounds if bound is not None)


def at_path(cls: type, given: Any, path: str) -> tuple[tuple[str, ...], Any, types.Type]:
    """The keys, the value and the type that a path of msgspec's names: `$.top.fraction`."""
    keys: list[str] = []
    kind: types.Type = types.type_info(cls)
    value = given
    for name, number in PART.findall(path):
        several = kind.types if isinstance(kind, types.UnionType) else (kind,)
        for one in several:
            if name and isinstance(one, types.DataclassType):
                kind = next(field.type for field in one.fields if field.name == name)
                value = value.get(name)
                keys.append(name)
            elif number and isinstance(one, types.VarTupleType):
                kind, value = one.item_type, value[int(number)]
    return tuple(keys), value, kind
