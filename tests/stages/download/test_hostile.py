"""No row fails a shard: whatever a URL or a server says, there is a reason, and neighbours live."""

import gzip
import random
import threading

import pyarrow as pa
import pytest

from clipmill.stages.download.images import DownloadImages
from clipmill.stages.download.img2dataset import Img2dataset
from tests.stages.download.site import FILES, RawSite, only_loopback, opened

JPG = FILES["ok.jpg"]
OK = b"HTTP/1.1 200 OK\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: "
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
PIECES = [
    f"{len(JPG[i : i + 999]):x};a=b\r\n".encode() + JPG[i : i + 999] for i in range(0, 2500, 999)
]
BODY = b"\r\n".join([*PIECES, b"0", b"X: y", b"", b""])


@pytest.fixture
def raw(monkeypatch):
    """The raw site, served from a thread; nothing else can be reached."""
    only_loopback(monkeypatch)
    with RawSite() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture
def between_by(raw, tmp_path, caplog):
    """Rows of these URLs, which stand between two good ones; nothing is told beside the reason."""

    def opened_by(stage, **settings):
        # Nothing here hangs; a busy machine may stand still.
        run = opened(tmp_path, stage, timeout_s=120.0, **settings)

        def rows(urls):
            good = raw.url("/good", raw.good)
            first, *found, last = run(pa.table({"url": [good, *urls, f"{good}?last"]})).to_pylist()
            assert first["reason"] is last["reason"] is None
            for row in found:
                assert row["reason"] in (None, *stage.reasons)
                assert (row["reason"] is None) == (row["image"] is not None)
            # aiohttp's own servers are other tests': what is left of one is told when collected.
            told = [it.getMessage() for it in caplog.records]
            assert not [line for line in told if "aiohttp/web_protocol" not in line]
            return found

        return rows

    return opened_by


@pytest.fixture
def between(between_by):
    return between_by(DownloadImages, max_per_host=64)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://xn--/", "bad_url"),
        ("http://xn--a-ä.test/", "bad_url"),
        ("http://xn--mnche-3ya.test/", "bad_url"),  # no name is written like this
        ("http://" + "é" * 70 + ".test/", "bad_url"),
        ("http://\u2100.test/", "bad_url"),
        ("http://a\0b.test/", "bad_url"),
        ("http://a\x1bb.test/", "bad_url"),
        ("http://a b.test/", "bad_url"),
        ("http://a\\b.test/", "bad_url"),
        ("http://host.test:99999/", "bad_url"),
        ("http://host.test:-1/", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("http://[]@/", "bad_url"),
        ("http://[fe80::1%25lo]/", "private_address"),
        ("http://[v1.x]/", "unresolvable"),
        ("http:///x", "bad_url"),
        ("http:x", "bad_url"),
        ("//host.test/x", "bad_url"),
        ("data:image/png;base64,AAAA", "bad_url"),
        ("http://a..b.test/", "bad_url"),
        ("http://" + "a." * 50_000, "unresolvable"),
        ("http://:@/", "bad_url"),
        ("http://%3A:x@good.test/", "bad_url"),  # no user of HTTP has a colon
        ("http://\u200d@good.test/", "bad_url"),
    ],
)
def test_a_url_that_cannot_be_asked_has_a_reason(between, url, reason):
    (row,) = between([url])
    assert (row["reason"], row["http_status"]) == (reason, None)


def test_long_urls_and_controls_in_paths_are_asked(between, raw):
    base = raw.url("/good", raw.good)
    rows = between([base + "a" * 100_000, base + "\0 \x7f\ud7ff", base.replace("//", "//u:p@")])
    assert {row["reason"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        (b"http://xn--/", "bad_url"),
        (b"//xn--", "bad_url"),
        (b"http://[", "bad_url"),
        (b"http://:99999", "bad_url"),
        (b"http://host.test:99999/", "bad_url"),
        (b"http://\xed\xa0\x80/", "bad_url"),
        (b"/caf\xe9", "bad_url"),  # which page is meant only its server knows
        (b"ftp://good.test/", "bad_url"),
        (b"javascript:alert()", "bad_url"),
        (b"", "redirect_loop"),
        (b"?", "redirect_loop"),
        (b"/" + b"x" * 20_000, "bad_response"),
        (b"http://169.254.169.254/", "private_address"),
        (b"http://[::ffff:a9fe:a9fe]/", "private_address"),
        (b"http://2852039166/", "bad_url"),
        (b"http://0xa9fea9fe/", "private_address"),
    ],
)
def test_a_redirect_that_leads_nowhere_has_a_reason(between, raw, location, reason):
    # Closed as said: a connection that is kept and then closed may be lost in mid-request.
    answer = b"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: %b\r\n\r\n" % location
    (row,) = between([raw.url("/away", answer)])
    assert row["reason"] == reason


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (b"", None, "connection_lost"),
        (b"\0" * 100, None, "bad_response"),
        (b"HTTP/1.1 abc OK\r\n\r\n", None, "bad_response"),
        (b"HTTP/1.1 99999 OK\r\n\r\n", None, "bad_response"),
        (b"HTTP/1.1 000 OK\r\n\r\n", 0, "bad_response"),
        (b"HTTP/7.3 200 OK\r\n\r\n", None, "bad_response"),
        (b"HTTP/1.1 200 " + b"a" * 100_000, None, "bad_response"),
        (b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 101, "bad_response"),
        (OK + b"X: " + b"a" * 1_000_000, None, "bad_response"),
        (OK + b"X: y\r\n" * 10_000 + b"\r\n", None, "bad_response"),
        (OK + b"X\0Y: z\r\n\r\n", None, "bad_response"),
        (OK + b"Content-Length: -1\r\n\r\n", None, "bad_response"),
        (OK + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n", None, "bad_response"),
        (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", None, "bad_response"),
        (OK + b"Content-Length: 99\r\n\r\nshort", 200, "connection_lost"),
        (OK + CHUNKED + b"zz\r\n", None, "bad_response"),
        (OK + CHUNKED + b"5\r\nab", 200, "connection_lost"),
        (
            OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10**7), mtime=0),
            200,
            "not_an_image",
        ),
        (OK + b"Content-Encoding: br, \xff\r\n\r\n" + JPG, 200, None),
        (OK + b"Content-Type: \xff\r\nSet-Cookie: \xff;;=\r\n\r\n" + JPG, 200, None),
        (OK + CHUNKED + BODY, 200, None),
        (BUSY + b"Wed, 21 Oct " + b"9" * 30 + b" 07:28:00 GMT\r\n\r\n", 503, "http_5xx"),
        (BUSY + b"9" * 5_000 + b"\r\n\r\n", 503, "http_5xx"),
    ],
    ids=lambda value: str(value)[-40:],  # not a megabyte
)
def test_an_answer_that_is_none_has_a_reason(between, raw, answer, status, reason):
    (row,) = between([raw.url("/odd", answer)])
    assert (row["reason"], row["http_status"]) == (reason, status)


ANSWERS = [
    OK + b"X-Robots-Tag: unavailable_after: 25 Jun 2030 15:00:00 PST, other: noindex\r\n"
    b"Content-Length: %d\r\nSet-Cookie: a=b; Path=/\r\n\r\n" % len(JPG) + JPG,
    OK + b"Content-Encoding: gzip\r\n" + CHUNKED + BODY,
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Connection: close\r\n\r\n" + JPG,
    b"HTTP/1.1 302 Found\r\nLocation: http://u:p@good.test:99/a?b#c\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://xn--mnchen-3ya.test/\r\n\r\n",
    BUSY + b"Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n",
]
ODD_BYTES = (
    *(b"\0", b"\r\n", b"\n", b"\r", b":", b" ", b",", b"-1", b"9" * 20, b"0x10", b"\xff", b"%"),
    *(b"\xed\xa0\x80", b"chunked", b"gzip, br", b"Content-Length: 5\r\n", b"A" * 9_000),
    *(b"Location: http://xn--/\r\n", b"Location: //\r\n", b"X-Robots-Tag: *:\r\n", OK + b"\r\n"),
    *(b"Upgrade: x\r\nConnection: upgrade\r\n", b"101", b"204", b"304", b"@", b"[", b"?", b"#"),
)
URLS = [
    "http://user:pass@good.test:99/a%20b?q=1#f",
    "http://xn--mnchen-3ya.test/x",
    "http://[::1]:99/",
]
ODD_TEXTS = (
    *("\0", " ", "\r\n", "\t", "@", ":", "/", "//", "?", "#", "%", "%zz", "%00", "[", "]", "[::"),
    *("xn--", ".", "..", "\\", "ä", "｡", "\uff11", "\u2100", "\u202e", "\u200d", "\U0001f600", "ß"),
    *("99999", "-1", "a" * 70, "é" * 300, "a." * 9_000, "\u00ad", "\uff0f", "\uffff", "İ"),
)


def mutated(rng, whole, odd, most):
    """Some pieces left out, put in or written over, in the first `most` places."""
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, cut = rng.randrange(most + 1), rng.choice((0, 0, 1, 5, 20, len(whole)))
        whole = whole[:at] + rng.choice((odd[0][:0], *rng.choices(odd, k=2))) + whole[at + cut :]
    return whole


def fuzz(between, raw, seed):
    rng = random.Random(seed)
    urls = [mutated(rng, url, ODD_TEXTS, len(url)) for url in rng.choices(URLS, k=60)]
    for number, answer in enumerate(rng.choices(ANSWERS, k=60)):
        most = answer.index(b"\r\n\r\n") + 20
        urls.append(raw.url(f"/{number}", mutated(rng, answer, ODD_BYTES, most)))
    return {row["reason"] for row in between(urls)}


def test_mutated_urls_and_answers_have_declared_reasons(between, raw):
    seen = set().union(*(fuzz(between, raw, seed) for seed in range(5)))
    assert seen >= {None, "bad_url", "unresolvable", "bad_response", "connection_lost", "http_5xx"}


@pytest.mark.slow("loads img2dataset")
def test_they_have_by_img2dataset_too(between_by, raw):
    between = between_by(Img2dataset)
    seen = set().union(*(fuzz(between, raw, seed) for seed in range(3)))
    assert seen >= {None, "bad_url", "unresolvable", "bad_response", "connection_lost", "http_5xx"}


@pytest.mark.soak(cpu_s=60)
def test_many_mutated_urls_and_answers_have_declared_reasons(between, raw, seed, record_property):
    for number in range(500):
        fuzz(between, raw, f"{seed} {number}")
    record_property("tries", 500 * 120)
