"""Scores out of a model's answers: whole numbers from 0 to 100."""

import re
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from clipmill.pipeline.stage import OneUp
from clipmill.stages.models.asking import is_reply
from clipmill.stages.models.generator import Decoding

# A number, and "/100" after one; not a digit in a word, as in GPT4.
NUMBER = re.compile(r"(?<![A-Za-z_])-?\d(?:[\d.,]*\d)?")
OF_100 = re.compile(r"\s*(?:/|out of)\s*100\b", re.IGNORECASE)
UNPARSABLE, OUT_OF_RANGE = "unparsable", "out_of_range"


@dataclass(frozen=True, kw_only=True)
class Greedy(Decoding):
    """The likeliest answer, a short one."""

    max_tokens: OneUp = 16
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0


def score_of(answer: str, is_cut: bool) -> int | str:
    """Returns the whole number from 0 to 100 that an answer gives, or the reason that it has none.

    It must be the answer's one number, `/100` aside. A refusal's number is none, nor is one at
    which the answer was cut.
    """
    if is_reply(answer) or (is_cut and answer[-1:].isdecimal()):
        return UNPARSABLE
    try:
        (number,) = map(int, NUMBER.findall(OF_100.sub("", answer)))
    except ValueError:  # none, several, or a fraction
        return UNPARSABLE
    return number if 0 <= number <= 100 else OUT_OF_RANGE
