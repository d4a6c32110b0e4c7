"""What only old variants hold is listed, deleted, and made again by a run; the rest stays."""

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.verify import verify
from tests import numbered
from tests.artefacts import linked

pytestmark = pytest.mark.usefixtures("own_stages")


@pytest.fixture
def folder(own_stages, numbered_run, tmp_path):
    """A run folder whose second recipe keeps by another rule."""
    folder = linked(numbered_run, tmp_path / "folder")
    numbered.run(folder, numbered.STAGES.replace("e <> 9", "e <> 13"), numbered_run)
    return folder


def stored(run) -> dict[str, int]:
    return {
        f"stages/{path.name}": sum(
            file.stat().st_size for file in path.rglob("*") if file.is_file()
        )
        for path in (run / "stages").iterdir()
    }


def test_what_an_old_variant_holds_alone_is_listed_then_deleted_and_made_again(folder, clipmill):
    run = folder / "run"
    before = stored(run)
    listed = clipmill("diff", "--run", run, "--free", 1, "--json").json
    assert listed
    assert {it["folder"]: it["bytes"] for it in listed}.items() <= before.items()
    assert stored(run) == before
    said = clipmill("diff", "--run", run, "--free", 1).out
    assert "--delete deletes it" in said
    assert clipmill("diff", "--run", run, "--free", 1, "--delete").out.endswith("deleted\n")
    left = stored(run)
    assert left.keys() == before.keys() - {it["folder"] for it in listed}
    assert not [it for it in verify(Storage(str(run)), lambda *_: None) if it.damaged]
    last = clipmill("diff", "--run", run, "--json").json["variants"][1]
    assert (last["left"], last["is_last"]) == ({}, True)
    numbered.run(folder, numbered.STAGES, folder)
    assert stored(run).keys() == before.keys()


def test_the_last_variant_and_no_variant_are_refused(folder, clipmill):
    for arguments, words in (
        (("--free", 2), "variant 2 ran last"),
        (("--free", 7), "no variant 7"),
        (("--delete",), "--free takes numbers"),
    ):
        said = clipmill("diff", "--run", folder / "run", *arguments)
        assert (said.code, words in said.err) == (2, True), said.err
