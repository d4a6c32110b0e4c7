"""Banks: how pairs are drawn, and what is said of a bad one."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.errors import RecipeError
from clipmill.stages.caption.rewrite import bank_of, prompt_of
from clipmill.stages.models.prompts import HERE

STYLES = ("bard", "chatgpt", "human", "mscoco")
GOOD = """\
instruction: "Say it anew:"
pairs:
  - {source: a dog, target: one dog}
  - source: a cat
    target: one cat
"""


def test_a_bank_is_shipped_of_each_style_that_the_paper_has():
    assert tuple(sorted(file.stem for file in (HERE / "caption/banks").glob("*.yaml"))) == STYLES
    for style in STYLES:
        bank = bank_of(style, 3)
        sides = [side.casefold() for pair in bank.pairs for side in pair]
        assert len(bank.pairs) == 16
        assert len(set(sides)) == 32, "no caption stands in it twice"


def test_every_choice_of_pairs_is_as_likely_as_every_other():
    """chi-square over 10,000 rows: 3,360 ordered choices are too many, their parts are counted."""
    from scipy import stats

    uid = pa.array([number.to_bytes(16) for number in range(10_000)], pa.binary(16))
    bank = bank_of("human", 3)
    place = {pair: number for number, pair in enumerate(bank.pairs)}
    bits = coin_hash(uid, seed=0, stage="rewrites", purpose="pairs human 0").tolist()
    drawn = np.array([[place[pair] for pair in bank.examples(one, 3)] for one in bits])
    for at in range(3):
        assert stats.chisquare(np.bincount(drawn[:, at], minlength=16)).pvalue > 0.001
    sets = Counter(map(frozenset, drawn.tolist()))  # 560 of them, 17.9 rows each
    assert len(next(iter(sets))) == 3, "no pair is drawn twice"
    assert len(sets) == 560
    assert stats.chisquare(list(sets.values())).pvalue > 0.001


def test_the_choice_is_a_known_one():
    """Brute force: a number's remainders say which of those that are left comes next."""
    bank = bank_of("human", 3)
    number = 5 + 16 * (0 + 15 * 13)
    expected = [bank.pairs[5], bank.pairs[0], bank.pairs[15]]
    assert bank.examples(number, 3) == expected
    assert bank.examples(number + 16 * 15 * 14, 3) == expected


def test_a_prompt_is_known_to_the_byte():
    assert prompt_of([("a dog", "one dog"), ("a cat", "one cat")], "two birds") == (
        "a dog => one dog\n\na cat => one cat\n\ntwo birds =>"
    )


def test_a_users_bank_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    bank = bank_of(str(path), 2)
    assert (bank.instruction, bank.pairs) == (
        "Say it anew:",
        (("a dog", "one dog"), ("a cat", "one cat")),
    )
    assert bank.template == "Say it anew:\na dog => one dog\na cat => one cat"


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        (GOOD.replace("target: one cat", 'target: ""'), 5, "'target' is empty"),
        (GOOD.replace("target: one cat", "target:"), 5, "'target' is empty"),
        (GOOD.replace("    target: one cat\n", ""), 4, "no field 'target'"),
        (GOOD.replace("a cat", "A Dog"), 4, "'A Dog' stands twice"),
        (GOOD.replace("one cat", "one cat\n    note: x"), 6, "unknown field 'note'"),
        (GOOD.replace("one cat", "one => cat"), 5, "holds a line break or '=>'"),
        (GOOD.replace("one cat", '"one\\ncat"'), 5, "holds a line break or '=>'"),
        (GOOD.replace("one cat", "one cat\n    target: x"), 6, "'target' stands twice"),
        (GOOD.replace("a cat", "[a, cat]"), 4, "'source' is empty"),
        (GOOD + "  - a bird => one bird\n", 6, "no pair"),
        ('instruction: "Say it anew:"\n', 1, "no field 'pairs'"),
        (GOOD.replace('"Say it anew:"', ""), 1, "'instruction' is empty"),
        (GOOD.partition("  - source")[0], 3, "1 pairs, and 2 are drawn"),
        ('instruction: "x"\npairs: none\n', 2, "`pairs` is no list"),
        ("[1, 2", 1, "expected ',' or ']'"),
        ("", 1, "no fields"),
        ("? [a]\n: b", 2, "unknown field"),
        ("[" * 1_000, 1, "recursion"),
        ("a: &a [*a]", 1, "unknown field 'a'"),
        ("x" * 300_000, 1, "more than 250,000 bytes"),
    ],
)
def test_a_bad_bank_stops_the_plan_with_its_line(text, line, found, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        bank_of(str(path), 2)
    said, where, do = error.value.args
    assert found in said
    assert where == f"{path}:{line}"
    assert do


def test_a_bank_that_is_no_text_or_not_there_is_said(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00pairs")
    with pytest.raises(RecipeError, match="can't decode"):
        bank_of(str(path), 2)
    with pytest.raises(RecipeError, match="no file"):
        bank_of(str(tmp_path / "nowhere.yaml"), 2)
    with pytest.raises(RecipeError, match=r"no bank 'chatgtp'\n.*\n.*did you mean 'chatgpt'"):
        bank_of("chatgtp", 2)
