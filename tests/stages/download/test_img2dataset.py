"""download.img2dataset beside download.images: the same rows, bytes and pixels, and reasons."""

from collections import Counter
from functools import partial

import pytest

import clipmill.stages.download.img2dataset
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.pools.faults import bomb
from clipmill.stages.download._rows import Answer
from clipmill.stages.download.images import DownloadImages
from clipmill.stages.download.img2dataset import (
    FETCHING,
    REDIRECTING,
    RESIZING,
    Img2dataset,
    answer,
)
from tests.stages.download.site import FILES, only_loopback, picture

FILES["large.png"] = picture("png", 300, 600)
FILES["bomb.png"] = bomb()
GOOD = ("ok.jpg", "ok.png", "large.jpg", "large.png", "tiny.png", "line.png")


@pytest.fixture
def theirs(download):
    """Rows of the given paths or URLs, downloaded in one batch by img2dataset."""
    return partial(download, stage=Img2dataset, concurrency=4)


@pytest.mark.parametrize("settings", [
    {},
    {"skip_reencode": False, "encode_format": "png", "encode_quality": 1},
    {"resize": "border", "image_size": 64},
    {"resize": "center_crop", "image_size": 32, "encode_format": "webp", "encode_quality": 80},
    {"resize": "keep_ratio", "image_size": 100, "resize_only_if_bigger": False},
    {"min_image_size": 3, "max_aspect_ratio": 40.0},
])  # fmt: skip
def test_both_make_the_same_of_what_is_good(download, theirs, settings):
    paths = [f"/file/{name}" for name in GOOD] + ["/status/404", "/file/ok.jpg"]
    mine, their = download(*paths, **settings), theirs(*paths, **settings)
    assert mine == their
    assert Counter(row["reason"] for row in mine)["http_404"] == 1


CASES = [  # path or URL, settings, HTTP status, reason
    ("", {}, None, "no_url"),
    ("just words", {}, None, "bad_url"),
    ("http://", {}, None, "bad_url"),
    ("http://[::1/x", {}, None, "bad_url"),
    ("http://good.test:x/", {}, None, "bad_url"),
    ("http://good.test/a b", {}, None, "bad_url"),
    ("http://good.test/ä", {}, None, "bad_url"),
    ("ftp://127.0.0.1/x", {}, None, "bad_url"),
    ("file:///etc/hostname", {}, None, "bad_url"),
    ("data:image/png;base64,AAAA", {}, None, "bad_url"),
    ("/to/?url=file:///etc/hostname", {}, 302, "bad_url"),
    ("/to/?url=ftp://127.0.0.1/x", {}, None, "bad_url"),
    ("http://nobody.test/x", {}, None, "unresolvable"),
    ("http://127.0.0.1:CLOSED/x", {}, None, "refused"),
    ("https://127.0.0.1:OPEN/file/ok.jpg", {}, None, "tls"),
    ("/hang", {"timeout_s": 0.2}, None, "timeout"),
    ("/half", {}, None, "connection_lost"),
    ("/drop", {}, None, "connection_lost"),
    ("/garbage", {}, None, "bad_response"),
    ("/loop/0", {}, 302, "redirect_loop"),
    ("/noai", {}, 200, "opt_out"),
    ("/file/ok.jpg", {"max_body_bytes": 1000}, None, "too_large"),
    ("/endless", {"max_body_bytes": 5000}, None, "too_large"),
    ("/status/304", {}, 304, "http_3xx"),
    ("/status/401", {}, 401, "http_4xx"),
    ("/status/403", {}, 403, "http_403"),
    ("/status/404", {}, 404, "http_404"),
    ("/status/410", {}, 410, "http_410"),
    ("/status/429", {}, 429, "http_429"),
    ("/status/500", {}, 500, "http_500"),
    ("/status/503", {}, 503, "http_5xx"),
    ("/file/page.html", {}, 200, "undecodable"),
    ("/file/empty", {}, 200, "undecodable"),
    ("/file/ok.jpg", {"max_pixels": 2399}, 200, "too_many_pixels"),
    ("/file/bomb.png", {}, 200, "too_many_pixels"),  # 2.7 GB, were they decoded first
    ("/file/costly.jpg", {}, 200, "too_costly"),
    ("/file/tiny.png", {"min_image_size": 3}, 200, "too_small"),
    ("/file/line.png", {"max_aspect_ratio": 44.9}, 200, "extreme_aspect"),
    ("http://10.0.0.1/x", {}, None, "private_address"),
    ("http://2130706433:OPEN/x", {"allow_private_addresses": False}, None, "private_address"),
    ("/to/?url=http://127.0.0.2:OPEN/x", {"allow_private_addresses": ["127.0.0.1"]}, None,
     "private_address"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "settings", "status", "reason"), CASES)
def test_its_messages_become_our_reasons(
    theirs, server, closed_port, monkeypatch, url, settings, status, reason
):
    only_loopback(monkeypatch)
    url = url.replace("CLOSED", str(closed_port)).replace("OPEN", str(server.port))
    (row,) = theirs(url, **settings)
    empty = dict.fromkeys(("image", "image_bytes", "width", "height", "sha256"))
    assert row == {**empty, "http_status": status, "reason": reason}
    assert server.asked["/x"] == 0


def test_every_declared_reason_is_exercised():
    elsewhere = {"no_sha256", "hash_mismatch"}
    assert {reason for *_, reason in CASES} | elsewhere == set(Img2dataset.reasons)
    assert {reason for _, reason in FETCHING + REDIRECTING + RESIZING} < set(Img2dataset.reasons)
    assert set(Img2dataset.transient) == set(DownloadImages.transient) - {"host_down"}


@pytest.mark.parametrize(
    "line", ["HTTP Error 200: x", "HTTP Error 99999: x", "", "\0 timedout", "é"]
)
def test_what_a_server_writes_in_a_message_is_no_new_reason(line):
    assert answer(None, line, None) == Answer(reason="bad_response")


def test_what_a_server_writes_beside_a_status_changes_no_reason():
    assert answer(None, "HTTP Error 404: timed out", None) == Answer(status=404, reason="http_404")


def test_a_known_digest_admits_only_the_bytes_of_the_crawl(theirs, download):
    known = download("/file/ok.jpg")[0]["sha256"]
    rows = theirs(*["/file/ok.jpg"] * 3, sha256=[known, "0" * 64, None], verify_sha256=True)
    assert [row["reason"] for row in rows] == [None, "hash_mismatch", "no_sha256"]


def test_its_keys_are_those_of_download_images():
    ours, fields = DownloadImages.__dataclass_fields__, Img2dataset.__dataclass_fields__
    assert fields.keys() < ours.keys()
    assert all(fields[name].default == ours[name].default for name in fields)


def test_without_the_package_the_plan_says_what_to_install(monkeypatch):
    monkeypatch.setattr(clipmill.stages.download.img2dataset, "find_spec", lambda name: None)
    with pytest.raises(StageError, match=r"clipmill\[img2dataset\]"):
        Img2dataset().look()
