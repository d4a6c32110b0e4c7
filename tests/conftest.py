"""What many tests share: the command line in this process, a drawn pool, a folder of own stages."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from clipmill.pipeline import own_code
from clipmill.pipeline.cli import main
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.pools.build import build_pool
from tests import every_stage as every_stage_
from tests import numbered
from tests.artefacts import Artefacts

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


@pytest.fixture(scope="session")
def seed(pytestconfig) -> str:
    """What `make chaos SEED=…` draws by."""
    return pytestconfig.getoption("seed")


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch) -> Iterator[None]:
    """A recipe that is read adds the folder `stages/` beside it: for this test alone.

    Modules that a test has changed are there again after it, as plans that tests share need them.
    """
    monkeypatch.setattr(own_code._held, "added", [])
    before = {it: sys.modules[it] for it in own_modules(len(sys.modules)) if it in sys.modules}
    yield
    sys.modules.update(before)


@lru_cache(1)
def own_modules(_: int) -> list[str]:
    """Names of the own modules that are imported: looked for again where another module is."""
    return [name for name in sys.modules if name.startswith(own_code.NAME)]


@pytest.fixture
def clipmill(capsys) -> Callable[..., Said]:
    """Runs one command in this process."""

    def run(*arguments: object) -> Said:
        own_code._held.added.clear()  # a command is a process of its own
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # how argparse ends
            code = int(stop.code or 0)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def artefacts(pytestconfig) -> Iterator[Artefacts]:
    """What all processes of a test run share; fails the run where a test changed some of it."""
    made = Artefacts(pytestconfig.rootpath / ".pytest_cache" / "d" / "artefacts")
    yield made
    made.check()


@pytest.fixture(scope="session")
def generated(artefacts) -> Path:
    """A generated pool of 120 rows, which nobody serves."""

    def build(folder: Path) -> None:
        build_pool("generated", folder / "pool", rows=120)

    return artefacts("generated", build) / "pool"


@pytest.fixture(scope="session")
def links(generated, tmp_path_factory) -> Iterator[int]:
    """The port at which the images of tests/every_stage.py are served."""
    with every_stage_.served(generated, tmp_path_factory.mktemp("links")) as port:
        yield port


@pytest.fixture(scope="session")
def every_stage(artefacts, generated, links) -> every_stage_.Finished:
    """A finished run of every stage, each root one shard."""
    folder = artefacts("whole", every_stage_.whole(generated, links), every_stage_.RECIPE)
    return every_stage_.opened(folder, links)


@pytest.fixture(scope="session")
def numbered_run(artefacts) -> Path:
    """A folder with the pool of tests/numbered.py and its finished run; `linked` makes copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(OWN_STAGES / "stages"))
        return artefacts("numbered", numbered.build, OWN_STAGES)


@pytest.fixture(scope="module")
def own_stages() -> Iterator[None]:
    """Puts tests/own_stages on the path, as a user's own folder would be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(OWN_STAGES / "stages"))
        yield
