"""What a page says of its pictures, whatever the page is like."""

import pytest

from clipmill.pipeline.pools.sources.pages import path_in_package, uses_of

PAGE = "usr/share/doc/a/html/de/page.html"


def texts(html: str | bytes) -> list[dict[str, str]]:
    page = html if isinstance(html, bytes) else html.encode()
    return [dict(use.texts()) for use in uses_of(page)]


@pytest.mark.parametrize(
    "html",
    [
        "<figure><img src=a.png><figcaption><p>A <b>fox</b>.</p></figcaption></figure>",
        '<div class="image"><img src=a.png><div class="caption">A <div>fox.</div></div></div>',
        '<div class="figure"><p class="title"><b>A fox.</b></p><div><img src=a.png></div></div>',
        '<figure><div><img src=a.png></div><p class="caption">A fox.</figure>',
        "<figure><img src=a.png><figcaption>A fox.",
        '<div class="image"><img src=a.png><p class="caption">A <div>fox.</div></div><p>End.</p>',
    ],
    ids=["html5", "doxygen", "docbook", "p not closed", "cut", "p not closed in a div"],
)
def test_a_caption_is_that_of_its_figure_alone(html):
    assert texts(f"<img src=0.png>{html}") == [{}, {"figcaption": "A fox."}]


@pytest.mark.parametrize(
    ("html", "sentence"),
    [
        ("<p>First. Press <img src=a.png> to g<i>o</i>. Last.", "Press to go."),
        ("<p>First. See below. <img src=a.png> Last.", "See below."),
        ("<p>One. Two:</p><p><img src=a.png></p><p>After.", "Two:"),
        ("<p>左。右。<img src=a.png>", "右。"),
        ("<script>x = 'No.'</script><img src=a.png>", None),
        (f"<pre>{'long ' * 200}<img src=a.png></pre>", None),
    ],
)
def test_the_sentence_is_that_around_a_picture_or_the_last_before_it(html, sentence):
    assert texts(html) == [{"sentence": sentence} if sentence else {}]


@pytest.mark.parametrize(
    ("declared", "encoded"),
    [
        ('<meta charset="koi8-r">', "koi8-r"),
        ('<meta content="text/html; charset=shift_jis">', "shift_jis"),
        ('<?xml version="1.0" encoding="UTF-8"?>', "utf-8"),
        ("", "utf-8"),
        ('<meta charset="koi8-r">', "utf-16"),  # behind a byte-order mark
    ],
)
def test_alts_are_decoded_as_the_page_declares(declared, encoded):
    page = f'{declared}<img src=a.png alt="Лиса">'.encode(encoded)
    assert texts(page) == [{"alt": "Лиса"}]


@pytest.mark.parametrize(
    "declared",
    [
        *("", "utf-8", "utf8", "utf-16", "iso-8859-1", "latin-1", "ascii"),
        *("no-such-charset", "base64", "idna"),
    ],
)
def test_a_charset_that_does_not_fit_is_read_as_browsers_read_it(declared):
    page = f'<meta charset="{declared}"><img src=a.png alt="“Füchse”">'.encode("cp1252")
    assert texts(page) == [{"alt": "“Füchse”"}]


def test_links_lead_into_the_package_or_nowhere():
    inside = {
        "../pics/a%20b.png?v=1#x": "usr/share/doc/a/html/pics/a b.png",
        "/usr/share/a.png": "usr/share/a.png",
        "../../../../../../../etc/a.png": "etc/a.png",  # which no package has
    }
    assert {src: path_in_package(PAGE, src) for src in inside} == inside
    outside = ("data:image/png;base64,AAAA", "https://example.org/a.png", "//b/a.png", "http://[")
    assert {path_in_package(PAGE, src) for src in (*outside, "%2e%2e/%2e%2e/a.png")} == {None}


@pytest.mark.parametrize("unit", ["<a ", "<!--a>", "<![CDATA[ ", '<a "', "<"])
def test_a_page_that_never_ends_its_tags_takes_no_quadratic_time(unit):
    assert texts(f"<img src=a.png alt=first>{unit * 30_000}")[0]["alt"] == "first"  # else a minute


def test_boxes_are_as_deep_as_in_browsers():
    figure = "<figure><img src=a.png><figcaption>A fox.</figcaption></figure>"
    assert texts(f"{'<div>' * 500}{figure}") == [{"figcaption": "A fox."}]
    assert texts(f"{'<div>' * 600}{figure}{'</div>' * 600}")[0].keys() <= {"sentence"}
