"""Lists of what a pool must not hold: their forms, what is on them, what a bad one says."""

import hashlib
from functools import partial

import numpy as np
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.tables.blocklists import Blocked, Lists, opened, words_of

MD5, SHA = hashlib.md5(b"body").hexdigest(), hashlib.sha256(b"other").hexdigest()


@pytest.fixture
def read(tmp_path):
    def read(**lists: str) -> Blocked:
        for name, text in lists.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        named = Lists(**{name: str(tmp_path / name) for name in lists})
        return opened(named, tuple(named.sha256().values()))

    return read


@pytest.mark.parametrize(
    "text",
    [
        f"{MD5}\n{SHA}\n",
        f"  {MD5.upper()} \r\n\r\n\t{SHA.upper()}\r\n",
        f"\ufeff{MD5}\n{SHA}",
        f"\n{MD5}\n{SHA}\n",
        f'"{MD5}"\n"{SHA}"\n',
        f"sha256\n{SHA}\n{MD5}\n",
        f'id,"MD5",note\n1,{MD5.upper()},a\n2," {SHA} ","b, c"\n3,,\n',
        f"note;hash\na;{SHA}\nb;{MD5}\n",
    ],
    ids=[
        "lines",
        "upper case, spaces",
        "mark",
        "blank first line",
        "quotes",
        "header",
        "csv",
        "semicolons",
    ],
)
def test_a_list_is_read_in_each_form(read, text):
    blocked = read(digests=text)
    assert len(blocked.entries["digests"]) == 2
    assert [blocked.has_file(body) for body in (b"body", b"other", b"third")] == [True, True, False]
    assert (
        blocked.digests([SHA, SHA.upper(), None, "", "no hex"]).tolist() == [True] * 2 + [False] * 3
    )


@pytest.mark.parametrize(
    ("url", "on"),
    [
        ("http://a.test/1.jpg", True),
        ("HTTPS://A.test/1.JPG#part", True),
        (" http://a.test/1.jpg/ ", True),
        ("http://a.test/1.jpg?x=1", False),
        ("http://a.test/2.jpg", False),
        (None, False),
        ("", False),
    ],
)
def test_a_link_is_listed_whatever_its_case_and_scheme(read, url, on):
    assert read(links="http://a.test/1.jpg\n").links([url])["links"].tolist() == [on]


@pytest.mark.parametrize(
    ("url", "on"),
    [
        ("http://bad.test/x", True),
        ("https://user:pass@WWW.a.Bad.Test.:8080/x?u=http://good.test/", True),
        ("http://notbad.test/x", False),
        ("http://bad.test.good/x", False),
        ("http://good.test/?u=http://bad.test/", False),
        ("http://bad.test@good.test/", False),
        ("http://straße.test/x", True),
        ("http://xn--strae-oqa.test/x", False),  # IDNA 2008's; the list has 2003's, `strasse`
        ("http://sub.strasse.test/x", True),
        ("bad.test/x", False),  # no link: nothing is asked
        (None, False),
    ],
)
def test_a_host_takes_what_lies_below_it(read, url, on):
    blocked = read(hosts="domain\n*.bad.test\nStraße.test.\n")
    assert blocked.links([url, None, url])["hosts"].tolist() == [on, False, on]


def test_a_digest_may_be_of_the_link(read):
    urls = ["http://a.test/1.jpg", "http://a.test/2.jpg", "http://a.test/3.jpg", None]
    entries = [
        hashlib.md5(urls[0].encode()).hexdigest(),
        hashlib.sha256(urls[1].encode()).hexdigest(),
    ]
    found = read(digests="\n".join(entries)).links(urls)["digests"]
    assert found.tolist() == [True, True, False, False]


def test_a_hash_is_near_up_to_the_radius(read):
    code = 0x0123456789ABCDEF
    blocked = read(phashes=f"{code:016X}\nffffffffffffffff\n")
    codes = np.array([code, code ^ 0b1111111, code ^ 0b11111111, ~code & (2**64 - 1)], np.uint64)
    near = partial(blocked.near, "phashes", radius=7)
    assert near(codes[:, None]).tolist() == [True, True, False, False]
    assert near(codes[:, None], radius=0).tolist() == [True, False, False, False]
    assert near(codes[:0, None]).tolist() == []


def test_a_hash_of_several_words_is_near_by_the_sum_of_their_bits(read):
    blocked = read(pdq=f"pdq,quality\n{'0' * 64},90\n{'F' * 63}0,90\n")
    codes = [f"{31:064x}", "8" + "0" * 31 + f"{63:032x}", "0" * 32 + "f" * 32, "f" * 64]
    code_N4 = words_of("".join(codes), 4)
    for radius in (0, 3, 4, 5, 7, 127, 128):  # all ones are 256 bits from the first entry
        on = [apart <= radius for apart in (5, 7, 128, 4)]
        assert blocked.near("pdq", code_N4, radius).tolist() == on, radius


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        ({"links": ""}, "the list is empty, so it would block nothing"),
        ({"hosts": "domain\n"}, "the list is empty"),
        ({"digests": "\n \n"}, "the list is empty"),
        ({"digests": f"{SHA}\n{SHA[:-1]}\n"}, "line 2 is no entry"),
        ({"phashes": f"hash\n{SHA[:16]}\n0x12\n"}, "line 3 is no entry"),
        ({"pdq": f"{SHA}\n{SHA[:16]}\n"}, "line 2 is no entry"),
        ({"links": 'url,note\n"http://a.test/1.jpg,1\nhttp://a.test/2.jpg,2\n'}, "and no CSV"),
        ({"links": "http://a.test/1.jpg\nhttp://a.test/2.jpg\x01a\n"}, "no text of lines"),
        ({"hosts": "http://bad.test/\n"}, "its first line is no entry, and no header"),
        ({"hosts": "1,bad.test\n2,other.test\n"}, "its first line is no entry, and no header"),
        ({"hosts": "a.test\nm\ufffdnchen.test\n"}, "line 2 is no entry"),
        ({"digests": "name,size\na,1\n"}, "its first line is no entry, and no header"),
    ],
)
def test_a_bad_list_is_refused(read, lists, found):
    with pytest.raises(StageError, match=found) as raised:
        read(**lists)
    (name,) = lists
    assert f"key `lists.{name}`" in raised.value.args[1]
    assert SHA[:9] not in str(raised.value.args), "no entry is repeated"


def test_an_entry_takes_eight_bytes(read):
    hosts = read(hosts="".join(f"host{n}.test\n" for n in range(20_000))).entries["hosts"]
    assert (len(hosts), hosts.nbytes) == (20_000, 160_000)
