"""The browser of the tests: one that is installed, else npm's, else a line first and last."""

import io
import platform
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from tests import chromium
from tests.chromium import NONE, NoBrowserError, found, taken

pytest_plugins = ("pytester",)

ANSWERS = f"""#!{sys.executable} -IS
import json, os
heard = b""
while more := os.read(3, 1 << 16):
    *asked, heard = (heard + more).split(b"\\0")
    for text in asked:
        said = dict(id=json.loads(text)["id"], result=dict(targetId="1", sessionId="2"))
        os.write(4, json.dumps(said).encode() + b"\\0")
"""
WITH_LIBRARIES = ANSWERS.replace(
    "heard = b", 'assert os.listdir(os.environ["LD_LIBRARY_PATH"]) == ["libnss3.so"]\nheard = b', 1
)
ENDS = "#!/bin/sh\necho no libnss3.so >&2\nexit 127\n"
NPM = """#!/bin/sh
echo asked >> {0}/asked
sleep 0.2
/bin/cp {0}/packed.tgz sparticuz-chromium-153.0.0.tgz
"""


def write(program: Path, text: str) -> Path:
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)
    return program


def tar(mode: str, **files: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as it:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            it.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def packed(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "brotli") as into:
        into.write(data)
    return sink.getvalue().to_pybytes()


def write_npm(folder: Path, program: str) -> None:
    """An npm that has this program as the package's browser, and notes that it is asked."""
    files = {
        "chromium": program.encode(),
        "al2023.tar": tar("w", **{"lib/libnss3.so": b""}),
        "fonts.tar": tar("w", **{"fonts/Open.ttf": b"font"}),
    }
    package = {f"package/bin/{name}.br": packed(data) for name, data in files.items()}
    (folder / "packed.tgz").write_bytes(tar("w:gz", **package))
    write(folder / "bin" / "npm", NPM.format(folder))


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch) -> Path:
    """A machine with nothing on the path, and an empty cache."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(chromium.TOLD, raising=False)
    monkeypatch.setattr(chromium, "NAMES", [it for it in chromium.NAMES if "/" not in it])
    monkeypatch.setattr(chromium, "BUILT_FOR", (platform.system(), platform.machine()))
    return tmp_path


def test_the_first_that_is_installed_and_answers_is_taken(bare):
    write(bare / "bin" / "chromium", ENDS)
    edge = write(bare / "bin" / "microsoft-edge", ANSWERS)
    write_npm(bare, ANSWERS)
    assert found() == str(edge)
    assert not (bare / "asked").exists()


def test_what_make_found_is_not_looked_for_again(bare, monkeypatch):
    write(bare / "bin" / "chromium", ANSWERS)
    monkeypatch.setenv(chromium.TOLD, "/their/chrome")
    assert found() == "/their/chrome"
    monkeypatch.setenv(chromium.TOLD, f"{NONE}gone")
    with pytest.raises(NoBrowserError, match=f"{NONE}gone"):
        found()


def test_without_one_npms_is_unpacked_once_with_its_libraries_and_its_font(bare):
    write_npm(bare, WITH_LIBRARIES)
    with ThreadPoolExecutor() as two:
        first, second = two.map(lambda _: taken(), range(2))
    assert first == second == found()
    assert (bare / "asked").read_text() == "asked\n"
    place = Path(first).parent
    assert (place / "fonts" / "Open.ttf").read_bytes() == b"font"
    left = {each.name for each in (bare / "cache").iterdir()}
    assert left == {place.name, f"{place.name}.lock"}


@pytest.mark.parametrize(
    ("npm", "why"),
    [
        (None, "npm is not installed"),
        (ENDS, "ended with 127: no libnss3.so"),
        ("", r"the one that npm brought does not start \(no libnss3.so\)"),
    ],
)
def test_where_there_is_none_every_reason_is_told_and_what_to_do(npm, why, bare):
    broken = write(bare / "bin" / "chromium", ENDS)
    if npm:
        write(bare / "bin" / "npm", npm)
    elif npm is not None:
        write_npm(bare, ENDS)
    with pytest.raises(NoBrowserError) as none:
        found()
    said = f"{NONE}{broken} does not start \\(no libnss3.so\\); .*{why}.*apt install chromium"
    assert none.match(said)


def test_a_machine_that_npms_build_is_not_for_is_asked_for_no_download(bare, monkeypatch):
    monkeypatch.setattr(chromium, "BUILT_FOR", ("Linux", "of another kind"))
    write_npm(bare, ANSWERS)
    with pytest.raises(NoBrowserError, match="is for Linux on of another kind"):
        found()
    assert not (bare / "asked").exists()


@pytest.mark.parametrize(
    ("told", "more", "ci"),
    [(f"{NONE}by make", ["-n1"], ""), ("", [], ""), ("", [], "true")],
    ids=["told by make, in two processes", "found out by a test", "in CI"],
)
def test_a_skip_is_the_last_line_and_the_first_after_make_and_ci_counts_it(
    told, more, ci, pytester, monkeypatch
):
    pytester.makepyfile(test_it="def test_page(tab): pass\ndef test_other(): pass\n")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv(chromium.TOLD, told)
    ran = pytester.runpytest_inprocess("-q", "-p", "tests.chromium", *more)
    text = ran.stdout.str()
    first, *_, last = text.strip().splitlines()
    assert ran.ret == (1 if ci else 0), text
    assert ("1 passed, 1 error" if ci else "1 passed, 1 skipped") in text
    assert (f"{NONE}npm is not installed" in text) == (not told)
    assert last.startswith(NONE) == (not ci)
    assert (first == last == told) == bool(told)
