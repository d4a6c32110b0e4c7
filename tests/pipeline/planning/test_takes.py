"""What a setting takes: every number of every stage has a range, and a range is told in words."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_type_hints

import msgspec
import msgspec.inspect as types
import pytest
from msgspec import Meta

from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.pipeline.planning.takes import in_words, range_of, setting_types
from clipmill.pipeline.stage import OneUp, Share

STAGES = known_uses()  # with none of a test's own
# Numbers that may be any: a seed is added to the recipe's.
FREE = {"train.clip seeds", "train.clip loss_settings"}  # a loss has ranges of its own
# Texts that may be empty: no token is sent; a directive or a network is not looked at.
MAY_BE_EMPTY = {
    f"download.{name} {key}"
    for name in ("images", "img2dataset")
    for key in ("user_agent_token", "disallowed_header_directives", "allow_private_addresses")
} | {"train.clip loss_settings"}


def parts(kind):
    """A type, and those that it is made of."""
    yield kind
    inner = [*getattr(kind, "types", ()), getattr(kind, "item_type", None)]
    inner += [getattr(kind, "key_type", None), getattr(kind, "value_type", None)]
    inner += [field.type for field in getattr(kind, "fields", ())]
    for one in inner:
        if one is not None:
            yield from parts(one)


def test_every_number_of_a_stage_has_a_range_and_every_name_a_letter():
    without, empty = set(), set()
    for uses in STAGES:
        for key, kind in setting_types(stage_class(uses, "here")).items():
            for part in parts(kind):
                if isinstance(part, types.IntType | types.FloatType) and not range_of(part):
                    without.add(f"{uses} {key}")
                if isinstance(part, types.StrType) and not part.min_length:
                    empty.add(f"{uses} {key}")
    assert without <= FREE
    assert empty <= MAY_BE_EMPTY


def test_defaults_lie_within_their_ranges():
    for uses in STAGES:
        cls = stage_class(uses, "here")
        hints = get_type_hints(cls, include_extras=True)
        for field in types.type_info(cls).fields:
            if field.default is not msgspec.NODEFAULT:
                given, hint = msgspec.to_builtins(field.default), hints[field.name]
                assert msgspec.convert(given, hint) == field.default, f"{uses} {field.name}"


@dataclass(frozen=True, kw_only=True)
class Best:
    column: str
    fraction: Share = 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (OneUp, "a whole number, at least 1"),
        (Share, "a number, above 0, at most 1"),
        (Annotated[float, Meta(gt=0, lt=1)], "a number, above 0, below 1"),
        (Annotated[int, Meta(ge=1, le=10_000)], "a whole number, at least 1, at most 10,000"),
        (OneUp | None, "a whole number, at least 1"),
        (Literal["a", "b"], "one of: a, b"),
        (tuple[OneUp, ...], "a list [a whole number, at least 1, …]"),
        (dict[str, bool], "{text: true or false}"),
        (Best, "{column: …, fraction: …}"),
        (Annotated[str, Meta(min_length=1)], "text, not empty"),
    ],
)
def test_a_type_in_words(kind, words):
    assert in_words(types.type_info(kind)) == words
