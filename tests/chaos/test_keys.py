"""Keys of a real store: a run, a resume and every reader, and nowhere a byte of the keys."""

import pytest

from clipmill.metadata.storage import Storage
from tests.conftest import Said

pytestmark = pytest.mark.soak

RECIPE = """
stages:
  pool:    {{uses: ingest.datacomp, path: "{pool}", shard_rows: 60}}
  caption: {{uses: annotate.caption, from: pool}}
  subset:  {{uses: select.where, from: caption, where: caption_words >= 4}}
  uids:    {{uses: export.uid_list, from: subset}}
"""
KEYS = "KEY:SECRET@"


def test_a_run_on_a_store_keeps_no_key_and_its_readers_take_them_from_the_environment(
    bucket, generated, tmp_path, clipmill, monkeypatch
):
    pool, run = bucket.uri("pool"), bucket.uri("keys/run")
    for file in (generated / "metadata").iterdir():
        Storage(pool).put(file.name, file.read_bytes(), point="rename")
    recipe = tmp_path / "it.yaml"
    recipe.write_text(RECIPE.format(pool=pool))
    go = ("run", recipe, "--workers", 0, "--out")
    said = [clipmill(*go, run), clipmill(*go, run, "--json")]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    of_run = ("--run", run.replace(KEYS, ""))
    recipe.write_text(RECIPE.format(pool=pool.replace(KEYS, "")))
    again = clipmill(*go, of_run[1])  # the same run: nothing is left to do
    assert "caption: found done" in again.err
    funnel = clipmill("funnel", *of_run, "--json")
    uid = funnel.json["ends"][0]["causes"][0]["example"]
    to = ("--stage", "subset", "--to", "uid_list", "--workers", 0)
    said += [
        again,
        funnel,
        clipmill("status", *of_run),
        clipmill("why", uid, *of_run),
        clipmill("sweep", *of_run, "--stage", "subset", "--vary", "caption_words=3:5:1"),
        clipmill("report", *of_run, "--out", tmp_path / "report.html"),
        clipmill("export", "--out", bucket.uri("keys/uids"), "--run", run, *to),
    ]
    assert [one.code for one in said] == [0] * len(said), failed(said)
    assert not [one for one in said if "SECRET" in one.out + one.err]
    assert "SECRET" not in (tmp_path / "report.html").read_text()
    stored = objects(Storage(bucket.uri("keys")))
    assert len([name for name in stored if "/recipes/" in name]) == 1, "an export leaves none"
    assert not [name for name, data in stored.items() if b"SECRET" in data]


def failed(said: list[Said]) -> list[str]:
    return [one.out + one.err for one in said if one.code]


def objects(folder: Storage) -> dict[str, bytes]:
    """Every object at any depth."""
    found = {f"/{entry.name}": folder.read(entry.name) for entry in folder.entries()}
    for name in folder.folders():
        found |= {f"/{name}{path}": data for path, data in objects(folder.child(name)).items()}
    return found
