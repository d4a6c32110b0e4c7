"""Links in normal form: what RFC 3986 calls equal is, and nothing else."""

import pyarrow as pa
import pytest

from clipmill.stages.dedup.exact import normalised


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTP://Example.COM/A", "http://example.com/A"),
        ("http://a.org:80/x", "http://a.org/x"),
        ("https://a.org:443", "https://a.org/"),
        ("http://a.org:443/x", "http://a.org:443/x"),
        ("https://a.org:/x", "https://a.org/x"),
        ("http://a.org?q=1", "http://a.org/?q=1"),
        ("http://a.org/x#part", "http://a.org/x"),
        ("http://a.org/%7ea%c3%a9%2f", "http://a.org/~a%C3%A9%2F"),
        ("http://a.org/%2541", "http://a.org/%2541"),
        ("http://User:Word@A.org:80/me@B", "http://User:Word@a.org/me@B"),
        ("http://[2001:DB8::1]:80/", "http://[2001:db8::1]/"),
        ("http://a.org/x y\t", "http://a.org/xy"),
        ("http://a.org/x/", "http://a.org/x/"),
        ("no link", "nolink"),
        (" \n", None),
        ("#top", None),
        (None, None),
    ],
)
def test_a_link_has_one_normal_form(url, normal):
    assert normalised(pa.array([url], pa.string())).to_pylist() == [normal]
    assert normalised(pa.array([normal], pa.string())).to_pylist() == [normal]


def test_chunks_and_no_links_at_all():
    chunks = pa.chunked_array([["http://A/"], [], ["http://B/"]], pa.string())
    assert normalised(chunks).to_pylist() == ["http://a/", "http://b/"]
    assert normalised(pa.array([], pa.string())).to_pylist() == []
