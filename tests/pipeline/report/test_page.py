"""Templates to HTML: what a stranger's words cannot do to a page."""

from clipmill.pipeline.report.page import render


def test_control_characters_of_a_strangers_words_are_shown_and_not_sent():
    page = render("base.html", title="a\0b\x1b[2J\tc\n<d>")
    assert "<title>a\N{SYMBOL FOR NULL}b\N{SYMBOL FOR ESCAPE}[2J\tc\n&lt;d&gt;</title>" in page
