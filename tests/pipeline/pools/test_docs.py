"""`clipmill pool docs` on small packages made here, in the cache where a download would lie."""

import io
import json
import shutil
import tarfile
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.pools import docs
from clipmill.pipeline.pools.docs import build_docs
from clipmill.pipeline.pools.server import start_server
from tests.debs import write_deb

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="not on Debian")


def png(color: str, side: int = 40, said: str = "") -> bytes:
    out, info = io.BytesIO(), PngInfo()
    info.add_text("Comment", said, zip=True)
    Image.new("RGB", (side, side), color).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def figure(source: str, number: int, caption: str) -> str:
    return (
        f"<figure><img src={source}><figcaption>Figure {number}.1. {caption}</figcaption></figure>"
    )


FILES = {
    "foxes-doc": {
        "html/index.html": "<p>See a fox.</p>"
        '<img src="red.png" alt="A red fox"><img src="gone.png" alt=x>'
        '<img src="data:image/png;base64,AA" alt=x><img src="broken.jpg" alt="No picture">',
        "html/red.png": png("red"),
        "html/broken.jpg": b"<html>404</html>",
        "html/unused.png": png("blue"),
        "html/pages.html": "".join(f'<img src="next.gif" alt="to {n}">' for n in range(10_000)),
        "html/next.gif": png("black", 8),
        "html/one.html": "".join(f'<img src="i/{n}.png" alt="icon">' for n in range(60)),
        **{f"html/i/{n}.png": png("grey", n + 1) for n in range(60)},
        "html/de/index.html": '<img src="red.png" alt="Ein Fuchs">',
        "html/long.html": f"<img src=red.png alt=before>{' ' * 4_000}<img src=red.png alt=behind>",
    },
    "hares-doc": {
        "h/a.html": figure("a.png", 1, "A brown hare") + figure("b.png", 2, "Its ears"),
        "h/b.html": figure("c.png", 3, "Its ears") + figure("red.png", 4, "A fox of the pool"),
        "h/c.html": figure("d.png", 5, "A cut hare") + figure("e.png", 6, "A wordy hare"),
        "h/a.png": png("brown"),
        "h/b.png": png("white"),
        "h/c.png": png("pink"),
        "h/d.png": png("tan").partition(b"IDAT")[0][:-4] + b"\0\0\0\1IDATxCRC.\0\0\0\0!!!!CRC.",
        "h/e.png": png("tan", said="a" * (1 << 21)),
        "h/red.png": png("red"),
    },
    "empty-doc": {"html/index.html": "<p>No picture."},
}


@pytest.fixture(scope="module")
def debs(tmp_path_factory):
    cache = tmp_path_factory.mktemp("debs")
    for name, files in FILES.items():
        links = {"html/de/red.png": "html/red.png"} if name == "foxes-doc" else {}
        write_deb(cache, name, files, links)
    whole = (cache / "foxes-doc_1_all.deb").read_bytes()
    (cache / "cut-doc_1_all.deb").write_bytes(whole[: len(whole) // 2])
    return cache


@pytest.fixture(autouse=True)
def cache(debs, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPMILL_CACHE", str(debs))
    client = tmp_path / "bin/apt-get"
    client.parent.mkdir()
    client.write_text('#!/bin/sh\necho "E: Unable to locate package $2" >&2\nexit 100\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:/usr/bin:/bin")
    monkeypatch.setattr(docs, "MAX_PAGE_BYTES", 4_000)
    return debs


def rows(folder) -> dict[str, dict]:
    return {row["text"]: row for row in pq.read_table(folder).to_pylist()}


def test_a_pool_of_manuals_names_what_it_lacks_and_holds_whole_packages_out(tmp_path):
    out = tmp_path / "pool"
    packages = ["foxes-doc", "gone-doc", "cut-doc", "empty-doc"]
    out.mkdir()
    for left in ("unfinished", "truth.parquet"):  # by another kind of pool
        (out / left).touch()
    counts = build_docs(out, 8_000, packages, ["hares-doc"])
    assert not (out / "truth.parquet").exists()
    own, held = rows(out / "metadata"), rows(out / "held_out/metadata")
    assert counts["missing"].keys() == {"gone-doc", "cut-doc", "empty-doc"}
    assert "Unable to locate package gone-doc" in counts["missing"]["gone-doc"]
    assert {row["package"] for row in own.values()} == {"foxes-doc"}
    assert {row["package"] for row in held.values()} == {"hares-doc"}
    assert counts == json.loads((out / "pool.json").read_text())["counts"]

    red = own["A red fox"]
    assert (red["text_kind"], red["page"]) == ("alt", "usr/html/index.html")
    assert red["url"] == own["Ein Fuchs"]["url"]  # a link to the same picture
    assert own["See a fox."]["text_kind"] == "sentence"
    assert own["No picture"]["original_width"] is None
    assert "x" not in own
    assert "before" in own
    assert "behind" not in own  # of a page cut there
    assert sum(text.startswith("to ") for text in own) == docs.MAX_TEXTS
    assert pq.read_table(out / "metadata")["text"].to_pylist().count("icon") == 60
    with (
        start_server(out) as site,
        urlopen(red["url"].replace("http://127.0.0.1:8000", site)) as got,
    ):
        assert got.read() == png("red")
    assert not list(out.rglob("unused.png"))

    with tarfile.open(out / "eval/docs_retrieval/test/0.tar") as tar:
        captions = [tar.extractfile(entry).read() for entry in tar if entry.name.endswith(".txt")]
    assert captions == [b"A brown hare"]  # two share one, one is in the pool, two do not decode


def test_a_build_goes_on_where_it_was_cut_and_asks_again_for_what_was_missing(
    tmp_path, monkeypatch, cache
):
    read: list[str] = []
    stream = docs.debian_stream

    def counted(name, is_wanted):
        read.append(name)
        if name == "hares-doc" and read.count(name) == 1:
            raise KeyboardInterrupt
        return stream(name, is_wanted)

    monkeypatch.setattr(docs, "debian_stream", counted)
    with pytest.raises(KeyboardInterrupt):
        build_docs(tmp_path / "pool", 8_000, ["foxes-doc", "late-doc"], ["hares-doc"])
    assert not (tmp_path / "pool/pool.json").exists()
    for _ in range(2):
        counts = build_docs(tmp_path / "pool", 8_000, ["foxes-doc", "late-doc"], ["hares-doc"])
        assert counts["missing"].keys() == {"late-doc"}
    shutil.copy(cache / "hares-doc_1_all.deb", tmp_path / "late-doc_1_all.deb")
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path))
    counts = build_docs(tmp_path / "pool", 8_000, ["foxes-doc", "late-doc"], ["hares-doc"])
    assert counts["missing"] == {}
    assert read.count("foxes-doc") == 2  # its pages, then its pictures
    again = build_docs(tmp_path / "whole", 8_000, ["foxes-doc", "late-doc"], ["hares-doc"])
    assert again["missing"].keys() == {"foxes-doc", "hares-doc"}  # which that cache lacks
    assert (tmp_path / "pool/metadata").is_dir()


def test_no_package_at_all_is_an_error(tmp_path):
    with pytest.raises(StageError, match=r"none of 2 packages; a-doc: .*Unable to locate"):
        build_docs(tmp_path / "pool", 8_000, ["a-doc"], ["b-doc"])


def test_the_command_says_what_it_left_out_and_how_to_serve_the_rest(
    clipmill, tmp_path, monkeypatch
):
    files = {"a.html": '<img src="a.png" alt="Grass"><img src="a.png" alt="A lawn">'}
    write_deb(tmp_path, "grass-doc", {**files, "a.png": png("green")})
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path))
    out = tmp_path / "pool"
    said = clipmill("pool", "docs", "--out", out, "--port", 9_000)
    assert said.code == 0
    assert said.out.startswith(f"{out}: 2 rows in {out}/metadata, 0 of other packages")
    assert said.out.endswith(f"\nnext: clipmill pool serve {out}\n")
    assert "left out: gimp-help-en: `apt-get download gimp-help-en` ended with 100" in said.err
    assert len(said.err.splitlines()) == len(docs.PACKAGES) + len(docs.HELD_OUT)  # one is a count
