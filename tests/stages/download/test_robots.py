"""X-Robots-Tag as specified: whose rules they are, and which of them opt out."""

import pytest

from clipmill.stages.download._web import opts_out

AGENTS = ("clipmill", "mine")
RULES = ("noai", "noimageai", "noindex", "noimageindex")
DATE = "25 Jun 2030 15:00:00 PST"


@pytest.mark.parametrize(
    ("value", "out"),
    [
        ("noindex", True),
        ("NoIndex", True),
        ("  noindex  ", True),
        ("noai", True),
        ("noimageai", True),
        ("noimageindex", True),
        ("none", True),
        ("nofollow, NOAI", True),
        ("all, noindex", True),
        ("noindex,nofollow", True),
        ("noindex, max-snippet:-1", True),
        ("max-snippet:-1, noindex", True),
        ("max-image-preview:none, noindex", True),
        ("max-image-preview: large, max-video-preview: 3, none", True),
        (f"unavailable_after: {DATE}, noindex", True),
        ("unavailable_after: Sun, 06 Nov 1994 08:49:37 GMT, noindex", True),
        ("unavailable_after: Sunday, 06-Nov-94 08:49:37 GMT, noindex", True),
        ("unavailable_after: 2030-06-25T15:00:00+00:00, noindex", True),
        ("*: noindex", True),
        ("* : nofollow, noindex", True),
        ("clipmill: noindex", True),
        ("ClipMill : nofollow, NoAI", True),
        ("mine: none", True),
        ("googlebot: nofollow, clipmill: noindex", True),
        ("googlebot: noindex, *: noai", True),
        ("noindex, googlebot: all", True),
        (f"clipmill: unavailable_after: {DATE}, noindex", True),
        ("clipmill: max-snippet: 0, noimageindex", True),
        ("googlebot: noindex", False),
        ("googlebot: nofollow, noindex", False),
        ("googlebot: noindex, otherbot: noai, none", False),
        ("Googlebot-Image: noimageindex", False),
        ("clipmill: nofollow, googlebot: noindex", False),
        ("clipmiller: noindex", False),
        ("all", False),
        ("nofollow, noarchive, nosnippet, notranslate", False),
        ("max-image-preview:none", False),
        ("max-image-preview: none, max-snippet:-1", False),
        (f"unavailable_after: {DATE}", False),
        (f"googlebot: unavailable_after: {DATE}, noindex", False),
        ("googlebot: unavailable_after: Sun, 06 Nov 1994 08:49:37 GMT, noindex", False),
        ("index, noindexes, donoindex", False),
        ("", False),
        (", : ,,:", False),
    ],
)
def test_whether_a_header_opts_out(value, out):
    assert opts_out([value], AGENTS, RULES) is out


def test_each_header_begins_with_the_rules_for_all():
    assert opts_out(["googlebot: all", "noindex"], AGENTS, RULES)
    assert opts_out(["all", "mine: noai"], AGENTS, RULES)
    assert not opts_out(["all", "googlebot: noindex"], AGENTS, RULES)
    assert not opts_out([], AGENTS, RULES)


def test_only_the_rules_asked_for_opt_out():
    assert not opts_out(["none, noindex"], AGENTS, ("noai",))
    assert not opts_out(["none, noindex"], AGENTS, ())
    assert opts_out(["none"], AGENTS, ("nofollow",))
