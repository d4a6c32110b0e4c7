"""The section of captions: figures of the ledger, examples with their pictures, hostile texts."""

from html import unescape

import pytest

from pipeline.ledger.captions import EXAMPLES, captions
from pipeline.report.build import report

pytestmark = pytest.mark.usefixtures("own_stages")


def section_of(page: str) -> str:
    return page[page.index('<section id="captions"') :].partition("</section>")[0]


def test_the_section_has_the_counts_of_the_ledger_and_twenty_rows(captioned):
    (found,) = captions(captioned)
    part = section_of(report(captioned))
    assert "Captions of best" in part
    total, kept = sum(found.texts.values()), sum(found.kept.values())
    assert 0 < kept < total
    assert f"{total} texts of {found.rows} rows, of which best keeps {kept}" in part
    for source, count in found.reasons["min_words"].items():
        assert f">{count} <small" in part, source
    assert part.count("<figure>") == part.count("data:image/") == EXAMPLES == 20
    assert part.count('class="gone"') == part.count('<span class="mark">')


def test_texts_stand_as_they_are_and_none_is_read_as_html(captioned):
    (found,) = captions(captioned)
    part = section_of(report(captioned))
    every = [it.text for example in found.examples for it in example.texts.texts]
    assert any("<b>" in text for text in every)
    assert all(text in unescape(part) for text in every)
    for tag in ("<script", "<img src=x", "<b>"):
        assert tag not in part


def test_a_page_of_a_run_without_captions_has_no_such_section(state):
    assert 'id="captions"' not in report(state)
