"""Keep-rates by group: who is warned of, and who is too few to say."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.ledger.selection import groups as module
from clipmill.pipeline.ledger.selection.causes import KEPT, Cause
from clipmill.pipeline.ledger.selection.groups import LARGEST, KeepRates, LostTo, Tally, keep_rates
from clipmill.pipeline.ledger.selection.survey import survey
from clipmill.pipeline.run_folder.state import latest
from tests.parsed import Page

SMALL = ("look", "min_side >= 16")
ENGLISH = ("english", "language = 'en'")


def tally(**groups: tuple[int, int]) -> Tally:
    """Kept and dropped rows by group."""
    return tallied(
        {
            (name, cause): rows
            for name, of in groups.items()
            for cause, rows in zip((KEPT, SMALL), of, strict=True)
        }
    )


def tallied(counts: dict[tuple[str | None, Cause], int]) -> Tally:
    found = Tally()
    for (name, cause), rows in counts.items():
        group = pa.array([name] * rows, pa.string()).dictionary_encode()
        found.count(group, [cause], [np.ones(rows, bool)])
    return found


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


def test_where_all_is_kept_no_group_is_warned_of():
    assert not warnings(keep_rates(tally(en=(10, 0), fr=(25, 0), de=(11, 0))))


def test_the_smaller_groups_stand_together_but_for_those_warned_of():
    many = {f"g{i:02}": (50, 50) for i in range(LARGEST + 5)}
    found = keep_rates(tally(en=(500, 500), **many, zz=(0, 90)))
    names = [group.name for group in found.groups]
    assert names[0] == "en"
    assert names[-2:] == ["zz", "6 others"]
    assert sum(group.rows for group in found.groups) == 1000 + 100 * (LARGEST + 5) + 90


def test_rows_of_no_group_are_shown_as_such():
    found = keep_rates(tallied({(None, KEPT): 3, ("en", SMALL): 1}))
    assert [group.name for group in found.groups] == ["(none)", "en"]


def test_what_took_most_of_a_group_and_the_rules_that_name_it_stand_beside_it():
    found = keep_rates(
        tallied(
            {
                ("en", KEPT): 90,
                ("en", SMALL): 10,
                ("fr", SMALL): 3,
                ("fr", ENGLISH): 97,
                ("de", ENGLISH): 40,
            }
        ),
        {ENGLISH, ("english", "language <> 'xx'")},
    )
    by_name = {group.name: group.lost_most for group in found.groups}
    assert by_name["en"] == LostTo(stage="look", reason="min_side >= 16", rows=10)
    assert by_name["fr"] == LostTo(stage="english", reason="language = 'en'", rows=97)
    assert found.rules == (LostTo(stage="english", reason="language = 'en'", rows=137),)


SELECTS = """
stages:
  pool:    {uses: ingest.datacomp, path: %s/metadata}
  lang:    {uses: annotate.language, from: pool}
  caption: {uses: annotate.caption, from: pool}
  english: {uses: select.where, from: lang, where: language = 'en'}
  masked:  {uses: annotate.caption, from: pool, only: english}
  inside:  {uses: select.where, from: lang, where: language = 'en'}
  before:  {uses: select.where, from: [english, caption], where: caption_words >= 1}
  mask:    {uses: select.where, from: masked, where: caption_words >= 1}
  nowhere: {uses: select.where, from: caption, where: caption_words >= 3}
"""


def test_a_lost_group_is_blamed_on_the_rule_that_names_it_in_whatever_select(
    clipmill, generated, tmp_path
):
    """It stands in the last select, in one before it, in a mask, or beside it."""
    (tmp_path / "it.yaml").write_text(SELECTS % generated)
    run = ("run", tmp_path / "it.yaml", "--out", tmp_path / "run", "--workers", "0")
    assert clipmill(*run).code == 0
    clipmill("report", "--run", tmp_path / "run", "--out", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text()).text
    state = latest(str(tmp_path / "run"))
    for select, stage in (("inside", "inside"), ("before", "english"), ("mask", "english")):
        rates = survey(state, select).groups["language"]
        (named,) = rates.rules
        assert (named.stage, named.reason) == (stage, "language = 'en'"), select
        spoken = [group for group in rates.groups if group.name not in ("en", "(none)")]
        assert named.rows == sum(group.rows for group in spoken), select
        others = [group for group in rates.groups if group.name == "fr"]
        assert [(g.lost_most.stage, g.lost_most.reason) for g in others] == [
            (stage, "language = 'en'")
        ], select
        assert f"A rule names the language: language = 'en' in {stage} took {named.rows}" in page
    assert survey(state, "nowhere").groups["language"].rules == ()  # it builds on none of them
    assert "No rule that took rows names the language" not in page


def test_rows_are_tallied_as_one_by_one_whoever_counts_them():
    """A cause may come twice, as of rows outside a mask that a select before it dropped."""
    rng = np.random.default_rng(0)
    expected, parts = Counter(), []
    for names in (["en"], ["fr", "en"], [None, "de"], ["it", None, "fr"]):
        parts.append(Tally())
        for causes in ([KEPT], [KEPT, SMALL, SMALL]):
            group_N = rng.choice(np.array(names, object), 20)
            cause_N = rng.integers(0, len(causes), 20)
            group = pa.array(group_N.tolist(), pa.string()).dictionary_encode()
            parts[-1].count(group, causes, [cause_N == place for place in range(len(causes))])
            expected.update((group_N[i], causes[cause_N[i]]) for i in range(20))
    whole = Tally()
    for part in parts:
        whole.add(part)
    counted = {
        (name, cause): whole.rows_CG[c, g]
        for name, g in whole.groups.items()
        for cause, c in whole.causes.items()
        if whole.rows_CG[c, g]
    }
    assert counted == expected
    assert len(whole) == len({name for name, _ in expected})


def test_of_very_many_groups_the_rarer_half_are_counted_as_one(monkeypatch):
    sizes = {f"site-{number}": (9 * number + 9, number + 1) for number in range(40)}
    whole = keep_rates(tally(**sizes))
    monkeypatch.setattr(module, "NAMES", 38)
    few = tally(**{name: of for name, of in sizes.items() if name < "site-3"})
    few.add(tally(**{name: of for name, of in sizes.items() if name >= "site-3"}))
    assert keep_rates(few) == whole
    assert len(few.groups) == 19
    assert few.other_groups == 21
    assert whole.groups[-1].name == "28 others"
