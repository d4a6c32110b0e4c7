"""Which values of score.caption a good caption has: the cuts that select.captions begins with.

A value that is null is undefined, and no cut fails for it. Recall and false rejects at these cuts
are measured by tests/benchmarks/caption_gates.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The least and the greatest value that passes."""

    least: float = -inf
    most: float = inf


# By the value's column; verdicts count 0 and 1. In this order: what fails first is the reason.
CUTS: Mapping[str, Cut] = MappingProxyType(
    {
        "text_words": Cut(least=1),
        "text_is_refusal": Cut(most=0),
        "text_garbled": Cut(most=0),
        "text_repetition": Cut(most=0.1),
        "text_prompt_leak": Cut(most=0.1),
        "text_has_disclaimer": Cut(most=0),
        "text_markup": Cut(most=0),
        "text_foreign": Cut(most=0.5),
        "text_copy_ratio": Cut(most=0.85),
        "text_invented": Cut(most=0),
        "text_is_cut": Cut(most=0),
    }
)


def first_failed(values: Mapping[str, pa.Array], cuts: Mapping[str, Cut]) -> pa.Array:
    """The column of the first cut that each text fails; null where it passes all.

    `values` are flat, an item for each text; a cut whose column is not there is passed over.
    """
    named = [name for name in cuts if name in values]
    failed = []
    for name in named:
        value = values[name]
        if value.type != pa.float32():  # whose 0.1 is at a cut of 0.1, and not above it
            value = value.cast(pa.float64())
        value_N = value.to_numpy(zero_copy_only=False)  # a null is NaN, which fails nothing
        failed.append(pa.array((value_N < cuts[name].least) | (value_N > cuts[name].most)))
    return pc.case_when(pc.make_struct(*failed), *named)
