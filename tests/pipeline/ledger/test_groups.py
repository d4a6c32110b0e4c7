"""Keep-rates by group: who is warned of, and who is too few to say."""

from collections import Counter

import pytest

from pipeline.ledger.groups import LARGEST, KeepRates, keep_rates


def tally(**groups: tuple[int, int]) -> Counter:
    """Kept and dropped rows by group."""
    return Counter(
        {(name, kept): rows[not kept] for name, rows in groups.items() for kept in (True, False)}
    )


def warnings(found: KeepRates) -> dict[str, str]:
    return {group.name: group.warning for group in found.groups if group.warning}


def test_a_group_that_loses_more_than_twice_the_average_is_warned_of():
    found = keep_rates(tally(en=(9000, 1000), fr=(700, 300), de=(880, 120)))
    assert found.average == pytest.approx(10580 / 12000)
    assert warnings(found) == {"fr": "loses 2.5 times the average"}
    assert found.warnings == 1


def test_where_most_is_lost_the_warning_is_of_what_is_kept():
    found = keep_rates(tally(en=(3000, 7000), fr=(100, 900), da=(0, 500)))
    assert warnings(found) == {"fr": "keeps 0.37 times the average", "da": "keeps none"}


def test_a_handful_of_rows_warns_of_nothing():
    assert not warnings(keep_rates(tally(en=(3000, 7000), fr=(0, 5))))


def test_the_smaller_groups_stand_together_but_for_those_warned_of():
    many = {f"g{i:02}": (50, 50) for i in range(LARGEST + 5)}
    found = keep_rates(tally(en=(500, 500), **many, zz=(0, 90)))
    names = [group.name for group in found.groups]
    assert names[0] == "en"
    assert names[-2:] == ["zz", "6 others"]
    assert sum(group.rows for group in found.groups) == 1000 + 100 * (LARGEST + 5) + 90


def test_rows_of_no_group_are_shown_as_such():
    found = keep_rates(Counter({(None, True): 3, ("en", False): 1}))
    assert [group.name for group in found.groups] == ["(none)", "en"]


TWO_SELECTS = """
stages:
  pool:    {uses: ingest.datacomp, path: %s/metadata}
  lang:    {uses: annotate.language, from: pool}
  caption: {uses: annotate.caption, from: pool}
  english: {uses: select.where, from: lang, where: language = 'en'}
  best:    {uses: select.where, from: [english, caption], where: caption_words >= 1}
"""


def test_a_group_that_an_earlier_select_asks_for_is_said_to_be_asked_for(
    clipmill, generated, tmp_path
):
    (tmp_path / "it.yaml").write_text(TWO_SELECTS % generated)
    run = ("run", tmp_path / "it.yaml", "--out", tmp_path / "run", "--workers", "0")
    assert clipmill(*run).code == 0
    clipmill("report", "--run", tmp_path / "run", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "the selection asks for a language" in page
    assert "no rule names the language" not in page
