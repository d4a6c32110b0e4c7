"""download.images with lists: a listed link is not asked for, a listed body not decoded."""

import hashlib

import pytest

from clipmill.metadata.fingerprint import settings_of
from clipmill.pipeline.errors import RecipeError
from clipmill.stages.download import images
from clipmill.stages.download.images import DownloadImages
from clipmill.stages.ops.tables.blocklists import Lists
from tests.stages.download.site import FILES


@pytest.fixture
def lists(tmp_path):
    def write(**entries: str) -> Lists:
        for name, text in entries.items():
            (tmp_path / name).write_text(f"{text}\n")
        return Lists(**{name: str(tmp_path / name) for name in entries})

    return write


EMPTY = dict.fromkeys(("image", "image_bytes", "width", "height", "sha256", "http_status"))


def test_a_listed_link_or_host_is_not_asked_for(download, server, lists):
    link = f"http://127.0.0.1:{server.port}/file/ok.jpg"
    by_link, free = download("/file/ok.jpg", "/file/ok.png", lists=lists(links=link))
    assert by_link == {**EMPTY, "reason": "listed"}
    assert free["reason"] is None
    by_host, *_ = download("http://a.bad.test/x", "/file/ok.png", lists=lists(hosts="bad.test"))
    assert by_host == {**EMPTY, "reason": "listed"}
    digest = hashlib.md5(link.encode()).hexdigest()
    (by_digest,) = download("/file/ok.jpg", lists=lists(digests=digest))
    assert by_digest == {**EMPTY, "reason": "listed"}
    assert server.asked["/file/ok.jpg"] == 0


def test_a_link_that_leads_to_a_listed_one_is_not_followed(download, server, lists):
    target = f"http://127.0.0.1:{server.port}/file/ok.jpg"
    (row,) = download(f"/to/?url={target}", lists=lists(links=target))
    assert row == {**EMPTY, "reason": "listed"}
    assert server.asked["/file/ok.jpg"] == 0


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_listed_body_is_not_decoded(download, lists, monkeypatch, kind):
    seen = []
    monkeypatch.setattr(
        "clipmill.stages.ops.images.encoded.probe", lambda body: seen.append(body) or 1 / 0
    )
    digest = hashlib.new(kind, FILES["ok.jpg"]).hexdigest().upper()
    (row,) = download("/file/ok.jpg", lists=lists(digests=digest))
    assert row == {**EMPTY, "reason": "listed"}
    assert seen == []


def test_without_lists_nothing_changes_and_each_list_is_pinned(lists, tmp_path):
    assert "lists" not in settings_of(DownloadImages())
    named = lists(hosts="bad.test")
    pinned = {}
    from tests.stages.caption.streaming import worker

    DownloadImages(lists=named).open(worker(pin=lambda what, sha: pinned.update({what: sha})))
    assert pinned == {f"list {named.hosts}": named.sha256()["hosts"]}
    for name in ("phashes", "pdq"):
        with pytest.raises(RecipeError, match="makes no perceptual hashes"):
            DownloadImages(lists=lists(**{name: "0" * 64}))
    assert images.LISTED in DownloadImages.reasons
