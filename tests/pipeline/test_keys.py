"""Keys that stand in a recipe, in --set or in --out: no byte of them is stored or printed."""

from pathlib import Path

import pytest
from aiohttp import web

from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from tests.answering import Answering

SECRET = "hush"
OPTIONS = "region=eu"
RECIPE = f"""
stages:
  pool:   {{uses: ingest.url_list, path: "nofs://AKIA:{SECRET}@bucket/pool?{OPTIONS}"}}
  images: {{uses: download.images, from: pool}}
  emb:
    {{uses: embed.clip, from: images, model: "checkpoint:https://me:{SECRET}@host/m", width: 8}}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "it.yaml"
    path.write_text(RECIPE)
    return path


def test_a_fingerprint_is_that_of_the_recipe_without_its_keys(recipe):
    folders = [stage.folder for stage in make_plan(load_recipe(str(recipe))).stages.values()]
    recipe.write_text(RECIPE.replace(f"AKIA:{SECRET}@", "").replace(f"me:{SECRET}@", ""))
    assert [s.folder for s in make_plan(load_recipe(str(recipe))).stages.values()] == folders


def test_no_byte_of_a_run_folder_and_no_verb_has_a_key(recipe, tmp_path, clipmill, monkeypatch):
    run = tmp_path / "run"
    where = ("--out", run, "--workers", 0, "--until", "pool")
    again = ("--set", f"pool.path=nofs://AKIA:{SECRET}@bucket/other?{OPTIONS}")
    refused = [clipmill("plan", recipe), clipmill("run", recipe, *where)]
    assert [one.code for one in refused] == [2, 2]
    assert not [one for one in refused if SECRET in one.out + one.err]
    monkeypatch.setattr(
        "clipmill.pipeline.planning.looks.look", lambda *_: {}
    )  # as if it were there
    said = [
        clipmill("plan", recipe, *again),
        clipmill("plan", recipe, "--json"),
        clipmill("run", recipe, *where, *again),
        clipmill("run", recipe, *where, "--json"),
        clipmill("status", "--run", run),
        clipmill("status", "--run", run, "--json"),
        clipmill("plan", recipe, "--set", f"pool.pth=s3://AKIA:{SECRET}@bucket/pool"),
        clipmill("plan", recipe, "--set", f"pool=s3://AKIA:{SECRET}@bucket/pool"),
        clipmill("plan", f"s3://AKIA:{SECRET}@bucket/it.yaml"),
        clipmill("status", "--run", f"s3://AKIA:{SECRET}@bucket/run?no_such_option=1"),
        clipmill("doctor", "--model", f"checkpoint:s3://AKIA:{SECRET}@bucket/m?no_such=1"),
        clipmill("frobnicate", f"s3://AKIA:{SECRET}@bucket/run"),
    ]
    assert [one.code for one in said] == [0, 0, 1, 1, 0, 0, 2, 2, 2, 2, 1, 2]
    assert not [one for one in said if SECRET in one.out + one.err]
    assert f"nofs://bucket/pool?{OPTIONS}" in said[1].out
    assert "do:    write a path, or a URI such as s3://bucket/folder" in said[9].err
    assert len(list(run.glob("recipes/*.json"))) == 2
    assert not [path for path in run.rglob("*") if path.is_file() and hush_in(path)]


def hush_in(path: Path) -> bool:
    return SECRET.encode() in path.read_bytes()


DENIED = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"""


async def deny(request: web.Request) -> web.Response:
    return web.Response(status=403, text=DENIED, content_type="application/xml")


def test_a_store_that_wants_other_keys_is_told_apart_from_one_that_fails(
    recipe, tmp_path, clipmill
):
    server = Answering(deny)
    uri = f"s3://AKIA:{SECRET}@bucket/x?endpoint_override=127.0.0.1:{server.port}&scheme=http"
    out = ("--out", tmp_path / "run", "--workers", 0, "--until", "pool")
    try:
        of_pool = clipmill("run", recipe, *out, "--set", f"pool.path={uri}")
        of_run = clipmill("status", "--run", uri)
    finally:
        server.close()
    assert (of_pool.code, of_run.code) == (2, 1)
    for said in (of_pool.err, of_run.err):
        assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: no run stores the keys" in said
