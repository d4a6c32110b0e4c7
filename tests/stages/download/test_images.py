"""Downloads from a real server on loopback that does all a bad one does."""

import asyncio
import hashlib
import threading
import time
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

import clipmill.stages.download._web
from clipmill.metadata.fingerprint import settings_of
from clipmill.pipeline.errors import RecipeError
from clipmill.stages.download._web import Client, Rules
from clipmill.stages.download.images import DownloadImages
from clipmill.stages.download.img2dataset import Img2dataset
from clipmill.stages.ops.images.blur import blurred
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.resize import resize
from tests.stages.download.site import FILES, opened

CASES = [  # path or URL, settings, HTTP status, reason
    ("", {}, None, "no_url"),
    (" ", {}, None, "no_url"),
    (None, {}, None, "no_url"),
    ("just words", {}, None, "bad_url"),
    ("http://", {}, None, "bad_url"),
    ("http://[::1/x", {}, None, "bad_url"),
    ("http://host:99999/", {}, None, "bad_url"),
    ("http://" + "a" * 70 + ".test/", {}, None, "bad_url"),
    ("ftp://127.0.0.1/x", {}, None, "bad_url"),
    ("file:///etc/hostname", {}, None, "bad_url"),
    ("javascript:alert()", {}, None, "bad_url"),
    ("/to/?url=file:///etc/hostname", {}, 302, "bad_url"),
    ("http://nobody.invalid/x", {}, None, "unresolvable"),
    ("http://127.0.0.1:CLOSED/x", {}, None, "refused"),
    ("https://127.0.0.1:OPEN/file/ok.jpg", {}, None, "tls"),
    ("/hang", {"timeout_s": 0.2}, None, "timeout"),
    ("/drip", {"timeout_s": 0.2}, 200, "timeout"),
    ("/half", {}, 200, "connection_lost"),
    ("/drop", {}, None, "connection_lost"),
    ("/garbage", {}, None, "bad_response"),
    ("/status/999", {}, 999, "bad_response"),
    ("/loop/0", {"max_redirects": 3}, 302, "redirect_loop"),
    ("/noai", {}, 200, "opt_out"),
    ("/file/ok.jpg", {"max_body_bytes": 1000}, 200, "too_large"),
    ("/vast", {"timeout_s": 0.2}, 200, "too_large"),  # as its header says: nothing is awaited
    ("/endless", {"max_body_bytes": 5000}, 200, "too_large"),  # found on the way
    ("/status/304", {}, 304, "http_3xx"),
    ("/status/302", {}, 302, "http_3xx"),  # to nowhere
    ("/status/401", {}, 401, "http_4xx"),
    ("/status/403", {}, 403, "http_403"),
    ("/status/404", {}, 404, "http_404"),
    ("/status/410", {}, 410, "http_410"),
    ("/status/429", {}, 429, "http_429"),
    ("/status/500", {}, 500, "http_500"),
    ("/status/503", {}, 503, "http_5xx"),
    ("/file/page.html", {}, 200, "not_an_image"),
    ("/file/drawing.svg", {}, 200, "not_an_image"),
    ("/file/empty", {}, 200, "not_an_image"),
    ("/status/204", {}, 204, "not_an_image"),
    ("/zipped/ok.jpg", {}, 200, "not_an_image"),  # nobody asked for it, and it could be a bomb
    ("/file/corrupt.png", {}, 200, "undecodable"),
    ("/file/cut.jpg", {}, 200, "truncated"),
    ("/file/costly.jpg", {}, 200, "too_costly"),
    ("/file/ok.jpg", {"max_pixels": 2399}, 200, "too_many_pixels"),
    ("/file/tiny.png", {"min_image_size": 3}, 200, "too_small"),
    ("/file/line.png", {"max_aspect_ratio": 44.9}, 200, "extreme_aspect"),
]
# have their own tests, below, in test_hosts and in test_listed
ELSEWHERE = {"no_boxes", "bad_box", "private_address", "no_sha256", "hash_mismatch", "host_down"}
ELSEWHERE |= {"listed"}


@pytest.mark.parametrize(("url", "settings", "status", "reason"), CASES)
def test_each_way_to_fail_has_a_status_and_a_reason(
    download, server, closed_port, url, settings, status, reason
):
    url = url and url.replace("CLOSED", str(closed_port)).replace("OPEN", str(server.port))
    bad, good = download(url, "/file/ok.png", **settings)
    empty = dict.fromkeys(("image", "image_bytes", "width", "height", "sha256"))
    assert bad == {**empty, "http_status": status, "reason": reason}
    if set(settings) <= {"timeout_s", "max_redirects"}:
        assert good["reason"] is None  # a neighbour is spared


def test_every_declared_reason_is_exercised():
    assert {reason for *_, reason in CASES} | ELSEWHERE == set(DownloadImages.reasons)
    assert set(clipmill.stages.download._web.RETRIED) < set(DownloadImages.transient)
    assert set(DownloadImages.transient) < set(DownloadImages.reasons)


def test_a_jpeg_may_be_decoded_smaller_which_is_another_stage(download):
    reduced = {"decode": "reduced", "image_size": 100}
    (full,), (less,) = (
        download("/file/large.jpg", image_size=100),
        download("/file/large.jpg", **reduced),
    )
    assert (less["width"], less["height"]) == (full["width"], full["height"]) == (100, 50)
    assert less["image"] != full["image"]
    assert less["sha256"] == full["sha256"]
    assert "decode" not in settings_of(DownloadImages())
    assert settings_of(DownloadImages(**reduced))["decode"] == "reduced"


def test_what_fits_keeps_its_bytes(download):
    (row,) = download("/file/ok.jpg")
    body = FILES["ok.jpg"]
    assert row == {
        "image": body,
        "image_bytes": len(body),
        "width": 60,
        "height": 40,
        "sha256": hashlib.sha256(body).hexdigest(),
        "http_status": 200,
        "reason": None,
    }


FACE = [0.1, 0.1, 0.6, 0.8]


def test_boxes_are_blurred_once_resized_and_before_a_picture_is_padded_and_stored(download):
    paths = ["/file/large.jpg"] * 2 + ["/file/ok.jpg"] * 4
    boxes = [[FACE], [], [], None, [[float("nan"), *FACE[1:]]], [FACE]]
    how = {
        "blur": "face_bboxes",
        "resize": "border",
        "encode_format": "png",
        "encode_quality": 1,
        "keep_formats": ("jpg",),
    }
    rows = download(*paths, boxes=boxes, **how)
    large = decode(FILES["large.jpg"])
    for row, soft in zip(rows, (partial(blurred, boxes=[FACE]), lambda rgb: rgb), strict=False):
        np.testing.assert_array_equal(decode(row["image"]), resize(large, "border", 512, blur=soft))
    assert rows[0]["image"] != rows[1]["image"]
    assert rows[2]["image"] == FILES["ok.jpg"]
    assert [row["reason"] for row in rows] == [None] * 3 + ["no_boxes", "bad_box", None]
    small = decode(FILES["ok.jpg"])
    np.testing.assert_array_equal(decode(rows[5]["image"]), blurred(small, [FACE]))
    (whole,) = download("/file/ok.jpg", boxes=[[FACE]], blur="face_bboxes", resize="no")
    assert whole["image"] != FILES["ok.jpg"]
    assert "blur" not in settings_of(DownloadImages())


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("ok.png", {}, (60, 40)),  # another format
        ("lies.png", {}, (40, 30)),  # of how many frames it has
        ("turned.jpg", {}, (40, 60)),  # upright
        ("large.jpg", {}, (512, 256)),  # smaller
        ("ok.jpg", {"skip_reencode": False}, (60, 40)),
        ("ok.jpg", {"resize_only_if_bigger": False}, (512, 341)),
        ("large.jpg", {"resize": "border", "image_size": 64}, (64, 64)),
        ("large.jpg", {"resize": "keep_ratio", "image_size": 64}, (128, 64)),
        ("large.jpg", {"resize": "center_crop", "image_size": 64}, (64, 64)),
    ],
)
def test_what_does_not_fit_is_encoded_again(download, name, settings, size):
    (row,) = download(f"/file/{name}", **settings)
    assert (row["width"], row["height"]) == size
    assert decode(row["image"]).shape == (*size[::-1], 3)
    assert row["image"][:3] == b"\xff\xd8\xff"
    assert row["image"] != FILES[name]
    assert row["image_bytes"] == len(row["image"])
    assert row["sha256"] == hashlib.sha256(FILES[name]).hexdigest()  # of the body as it came


def test_other_formats_keep_their_bytes_where_they_fit_and_are_named(download):
    named = {"keep_formats": ("png", "webp"), "image_size": 64}
    (png,) = download("/file/ok.png", **named)
    (webp,) = download("/file/ok.webp", **named)
    assert (png["image"], webp["image"]) == (FILES["ok.png"], FILES["ok.webp"])
    (small,) = download("/file/ok.png", **named | {"image_size": 16})
    (frames,) = download("/file/lies.png", **named)
    assert small["image"][:3] == frames["image"][:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize("name", ["ok.gif", "large.jpg", "turned.jpg"])
def test_resize_no_stores_the_body_as_it_came(download, name):
    (row,) = download(f"/file/{name}", resize="no")
    assert row["image"] == FILES[name]
    assert (row["height"], row["width"], 3) == decode(FILES[name]).shape


def test_a_known_digest_admits_only_the_bytes_of_the_crawl(download, server):
    known = hashlib.sha256(FILES["ok.jpg"]).hexdigest().upper()
    paths = [
        "/file/ok.jpg",
        "/file/ok.png",
        "/file/page.html",
        "/file/ok.gif",
        *["/file/ok.jpg"] * 2,
    ]
    digests = [known, known, known, None, None, ""]
    rows = download(*paths, sha256=digests, verify_sha256=True)
    mismatch, unknown = "hash_mismatch", "no_sha256"
    assert [r["reason"] for r in rows] == [None, mismatch, mismatch, unknown, unknown, unknown]
    assert server.asked["/file/ok.gif"] == 0


def test_digests_are_read_only_where_they_are_verified():
    assert [c.name for c in DownloadImages().reads] == ["url"]
    assert [c.name for c in DownloadImages(verify_sha256=True).reads] == ["url", "sha256"]


def test_redirects_are_followed_up_to_the_limit(download):
    within, beyond = download("/hops/2", "/hops/3", max_redirects=3)
    assert (within["reason"], within["http_status"]) == (None, 200)
    assert beyond["reason"] == "redirect_loop"


def test_a_passing_fault_is_tried_again_after_a_pause(download, server):
    (row,) = download("/once/503", retries=1)
    assert (row["reason"], row["http_status"]) == (None, 200)
    first, second = server.times
    assert second - first >= 0.5


def test_retry_after_is_waited_for(download, server):
    (row,) = download("/once/429?s=1", retries=1)
    assert row["reason"] is None
    assert server.times[1] - server.times[0] >= 1


def test_a_wait_past_the_deadline_is_not_begun(download, server):
    started = time.monotonic()
    (row,) = download("/once/429?s=3600", retries=5)
    assert row["reason"] == "http_429"
    assert time.monotonic() - started < 10
    assert server.asked["/once/429"] == 1


@pytest.mark.parametrize("path", ["/status/404", "/file/cut.jpg", "/status/304"])
def test_a_lasting_fault_is_not_tried_again(download, server, path):
    download(path, retries=3)
    assert server.asked[path] == 1


def test_a_dripping_server_is_left_at_the_deadline(download, server):
    started = time.monotonic()
    (row,) = download("/drip", retries=50, timeout_s=0.2, deadline_s=1.0)
    assert row["reason"] == "timeout"
    assert time.monotonic() - started < 10  # fifty tries would take 35 s
    assert server.asked["/drip"] == 2  # 0.2 s, a pause of 0.5 s, 0.2 s again


def test_a_url_that_repeats_is_fetched_once(download, server):
    rows = download("/file/ok.jpg", "/file/ok.png", "/file/ok.jpg", "/file/ok.jpg")
    assert server.asked["/file/ok.jpg"] == 1
    assert rows[0] == rows[2] == rows[3] != rows[1]


def test_one_host_gets_no_more_requests_at_once_than_allowed(download, server):
    rows = download(*(f"/slow/{n}" for n in range(9)), max_per_host=3)
    assert {row["reason"] for row in rows} == {None}
    assert server.most_at_once == 3


def test_redirects_do_not_get_around_the_limit_of_a_host(download, server):
    target = f"http://localhost:{server.port}/slow"
    rows = download(*(f"/to/{n}?url={target}/{n}" for n in range(9)), max_per_host=2)
    assert {row["reason"] for row in rows} == {None}
    assert server.most_at_once <= 2 + 2


def test_requests_at_once_are_limited_over_all_hosts(download, server):
    hosts = [f"http://{host}:{server.port}/slow" for host in ("127.0.0.1", "localhost")]
    rows = download(*(f"{host}/{n}" for host in hosts for n in range(5)), concurrency=3)
    assert {row["reason"] for row in rows} == {None}
    assert server.most_at_once == 3


def test_bodies_in_memory_are_limited_too(server):
    fields = Rules.__dataclass_fields__
    settings = DownloadImages(concurrency=2, allow_private_addresses=True)
    rules = Rules(**{name: getattr(settings, name) for name in fields})
    held, most = set(), []

    def keep(body):
        held.add(threading.get_ident())
        most.append(len(held))
        time.sleep(0.02)
        held.remove(threading.get_ident())

    urls = [f"http://127.0.0.1:{server.port}/slow/{n}" for n in range(8)]
    answers = asyncio.run(Client(rules, threads=8, keep=keep).fetch_all(urls))
    assert {answer.reason for answer in answers} == {None}
    assert max(most) <= 2


def test_waiting_for_a_turn_costs_a_url_none_of_its_time(download):
    rows = download(*(f"/slow/{n}" for n in range(12)), max_per_host=1, timeout_s=0.3)
    assert {row["reason"] for row in rows} == {None}  # 0.6 s in all


def test_requests_are_signed(download, server):
    download("/file/ok.jpg", user_agent_token="someone")
    assert server.agents == {"Mozilla/5.0 (compatible; clipmill; someone)"}


def test_one_function_serves_many_batches(server, tmp_path):
    run = opened(tmp_path)
    for path in ("/file/ok.jpg", "/status/404", "/file/ok.png"):
        url = f"http://127.0.0.1:{server.port}{path}"
        assert run(pa.table({"url": [url]}))["http_status"].to_pylist() == [
            200 if "ok" in path else 404
        ]


def test_limits_of_speed_are_no_part_of_the_fingerprint():
    fields = DownloadImages.__dataclass_fields__.values()
    free = {f.name for f in fields if f.metadata.get("fingerprint") is False}
    assert free == {"timeout_s", "deadline_s", "retries", "concurrency", "max_per_host"}


@pytest.mark.parametrize(("name", "quality"), [("png", 95), ("jpg", 101), ("webp", -1)])
def test_a_quality_the_format_does_not_have_is_refused(name, quality):
    with pytest.raises(RecipeError, match=f"encode_quality is {quality}"):
        DownloadImages(encode_format=name, encode_quality=quality)


@pytest.mark.parametrize("stage", [DownloadImages, Img2dataset])
@pytest.mark.parametrize(
    ("name", "value", "do"),
    [
        ("user_agent_token", "mine\r\nX: y", "write ASCII letters"),  # no request could be made
        ("user_agent_token", "mühle", "write ASCII letters"),
    ],
)
def test_a_setting_by_which_no_row_could_be_downloaded_is_refused(stage, name, value, do):
    with pytest.raises(RecipeError, match=f"key `{name}`") as error:
        stage(**{name: value})
    assert do in error.value.args[2]
