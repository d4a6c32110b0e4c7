"""Two long rules, and what of them one alone has."""

import pytest

from clipmill.pipeline.run_folder.words import apart

LONG = "caption_letters >= 3 AND NOT caption_is_filename AND caption_mojibake < 2 AND luma_std > 4"


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        (LONG, f"{LONG} AND min_side >= 64", ("", "min_side >= 64")),
        (f"(a = 1 AND b = ')') AND {LONG}", LONG, ("(a = 1 AND b = ')')", "")),
        (f"a = 'x AND y' and {LONG}", f"a = 'z' and {LONG}", ("a = 'x AND y'", "a = 'z'")),
        (LONG, LONG.replace(" AND ", "\n  AND "), None),
        (f"a BETWEEN 1 AND 2 AND {LONG}", LONG, None),
        (f"{LONG} AND a > 2 OR b > 3", f"{LONG} AND a > 5 OR b > 3", None),
        (f"{LONG} AND (a > 2 OR b > 3)", LONG, ("(a > 2 OR b > 3)", "")),
        (LONG, "score > 3", None),
        ("a > 3 AND b > 4", "a > 3", None),
    ],
)
def test_of_long_rules_the_parts_that_differ_are_told(before, after, parts):
    assert apart(before, after) == parts
