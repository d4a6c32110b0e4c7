import io
import shutil
import tarfile

import pytest

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.packages import (
    cached_versions,
    debian_files,
    debian_stream,
    npm_files,
)
from tests.debs import write_deb


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path))
    return tmp_path


def write_npm_package(file, files, links=()):
    with tarfile.open(file, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name in links:
            member = tarfile.TarInfo(f"package/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(member)


def test_a_cached_package_needs_no_client(cache, monkeypatch):
    write_npm_package(cache / "scope-icons-1.0.0.tgz", {"a.svg": b"<svg/>", "b.txt": b"no"})
    monkeypatch.setenv("PATH", "")
    files = npm_files("@scope/icons", "1.0.0", lambda path: path.endswith(".svg"))
    assert files == {"a.svg": b"<svg/>"}
    assert cached_versions(["@scope/icons", "absent"]) == ["scope-icons-1.0.0.tgz"]


def test_links_inside_a_package_are_not_followed(cache):
    write_npm_package(cache / "icons-1.0.0.tgz", {"a": b"1"}, links=["b"])
    assert npm_files("icons", "1.0.0", lambda path: True) == {"a": b"1"}


def test_a_missing_client_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StageError, match=r"(?s)npm is not installed.*do:.*install Node.js"):
        npm_files("icons", "1.0.0", lambda path: True)


def test_a_failing_client_is_quoted_and_leaves_nothing_behind(cache, monkeypatch):
    client = cache / "bin" / "npm"
    client.parent.mkdir()
    client.write_text("#!/bin/sh\necho half > half.tgz\necho no route >&2\nexit 7\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:/usr/bin:/bin")
    with pytest.raises(StageError, match="ended with 7: no route"):
        npm_files("icons", "1.0.0", lambda path: True)
    assert [entry.name for entry in cache.iterdir()] == ["bin"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="not on Debian")
def test_a_debian_package_is_read_without_installing_it(cache):
    usr = cache / "roots/stamps/usr"
    usr.mkdir(parents=True)
    (usr / "out.txt").symlink_to("../../etc/passwd")
    (usr / "far.txt").symlink_to("/etc/passwd")
    (usr / "soft.txt").symlink_to("./a.txt")
    write_deb(cache, "stamps", {"a.txt": "A fox.", "b.png": b""}, links={"link.txt": "a.txt"})
    assert debian_files("stamps", lambda path: path.endswith(".txt")) == {"usr/a.txt": b"A fox."}
    links = {path: to for path, to in debian_stream("stamps", bool) if isinstance(to, str)}
    assert links == {"usr/link.txt": "usr/a.txt", "usr/soft.txt": "usr/a.txt"}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="not on Debian")
@pytest.mark.parametrize("cut", [b"fox.A", b"./usr/b.txt"], ids=["in a file", "between two"])
def test_a_debian_package_that_is_cut_is_named(cache, cut):
    write_deb(cache, "stamps", {"a.txt": "A fox." * 5_000, "b.txt": "A hare."})
    deb = cache / "stamps_1_all.deb"
    whole = deb.read_bytes()
    deb.write_bytes(whole[: whole.rindex(cut)])
    with pytest.raises(StageError, match=r"(?s)cannot be read.*stamps_1_all.deb.*do:.*delete it"):
        debian_files("stamps", lambda path: True)
