"""What many tests share: the command line in this process, a drawn pool, a folder of own stages."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.pools.build import build_pool
from tests import every_stage as every_stage_

OWN_STAGES = Path(__file__).parent / "own_stages"


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as strict JSON, which knows no NaN."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile` one process does a file whole, and all that read `every_stage`."""
    from xdist.scheduler import LoadFileScheduling

    class Whole(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "every_stage" if file in readers else file

    if config.getoption("dist") != "loadfile":
        return None
    files = Path(__file__).parent.rglob("test_*.py")
    readers = {
        file.relative_to(config.rootpath).as_posix()
        for file in files
        if re.search(r"^def .*\bevery_stage\b", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    return Whole(config, log)


@pytest.fixture(scope="session")
def seed(pytestconfig) -> str:
    """What `make chaos SEED=…` draws by."""
    return pytestconfig.getoption("seed")


@pytest.fixture
def clipmill(capsys, monkeypatch) -> Callable[..., Said]:
    """Runs one command in this process."""
    path = list(sys.path)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "path", list(path))  # a command adds the folder it runs in
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # how argparse ends
            code = int(stop.code or 0)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def generated(tmp_path_factory) -> Path:
    """A generated pool of 120 rows, which nobody serves."""
    folder = tmp_path_factory.mktemp("generated") / "pool"
    build_pool("generated", folder, rows=120)
    return folder


@pytest.fixture(scope="session")
def links(generated, tmp_path_factory) -> Iterator[int]:
    """The port at which the images of tests/every_stage.py are served."""
    with every_stage_.served(generated, tmp_path_factory.mktemp("links")) as port:
        yield port


@pytest.fixture(scope="session")
def every_stage(generated, links, tmp_path_factory) -> every_stage_.Finished:
    """A finished run of every stage, each root one shard."""
    return every_stage_.run(generated, tmp_path_factory.mktemp("whole"), links, 1, 120)


@pytest.fixture(scope="module")
def own_stages() -> Iterator[None]:
    """Puts tests/own_stages on the path, as a user's own folder would be."""
    before = list(sys.path)
    sys.path.insert(0, str(OWN_STAGES))
    yield
    sys.path[:] = before
