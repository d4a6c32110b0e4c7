"""Which addresses are public, and who opts out. What a server may do: download/test_images."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from stages.ops.web import _retry_after_s, is_public, opts_out

DIRECTIVES = ("noai", "NoIndex")


def headers(name: str, *values: str) -> CIMultiDictProxy:
    return CIMultiDictProxy(CIMultiDict([(name, value) for value in values]))


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(host):
    assert is_public(host)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "0.0.0.0"),
        *("169.254.169.254", "100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fe80::1%lo", "fc00::1", "fec0::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"),
        *("2130706433", "127.1", "0x7f.1", "0177.0.0.1", "localhost", ""),
    ],
)
def test_private_reserved_and_oddly_written_addresses(host):
    assert not is_public(host)


@pytest.mark.parametrize(
    ("values", "out"),
    [
        ([], False),
        (["all"], False),
        (["noai"], True),
        (["nofollow, NOAI"], True),
        (["noindex"], True),
        (["all", "noai"], True),
        (["mine: noai"], True),
        (["Mine : noai"], True),
        (["other: noai"], False),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST"], False),
    ],
)
def test_who_opts_out(values, out):
    assert opts_out(headers("X-Robots-Tag", *values), "mine", DIRECTIVES) == out


def test_without_a_token_only_what_is_said_to_all_counts():
    assert not opts_out(headers("X-Robots-Tag", "mine: noai"), None, DIRECTIVES)
    assert not opts_out(headers("X-Robots-Tag", "noai"), None, ())


@pytest.mark.parametrize(
    ("wish", "seconds"), [("7", 7), ("", 0), ("soon", 0), ("-3", 0), ("Mon, 99 Foo", 0)]
)
def test_retry_after_in_seconds(wish, seconds):
    assert _retry_after_s(headers("Retry-After", wish)) == seconds


def test_retry_after_as_a_date():
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    assert 55 < _retry_after_s(headers("Retry-After", date)) <= 60
