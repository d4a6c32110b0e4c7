"""The recipe `docs-pool`, whole, on two small packages: published ones, and ones made here."""

import json
import shutil
import zlib

import polars as pl
import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.pools.docs import build_docs
from clipmill.pipeline.pools.generated import generated_drawings
from clipmill.pipeline.pools.picture import encode, picture_of
from clipmill.pipeline.pools.server import start_server
from clipmill.pipeline.run_folder.state import latest
from tests.debs import write_deb
from tests.every_stage import Finished

PACKAGES = ["libvigraimpex-doc"], ["puredata-doc"]
FIGURE = '<figure><img src="{0}.png" alt="{1}"><figcaption>Fig. {0} {2}</figcaption></figure>'
SHORT = ("batch_size=64", "samples_seen=256", "warmup_steps=1", "seeds=[0]")


def made_here(cache) -> None:
    """Writes two packages of 200 figures under the published ones' names."""
    for seed, (name,) in enumerate(PACKAGES):
        drawings = generated_drawings(200, seed)
        figures = [
            FIGURE.format(number, drawing.key, f"A {drawing.words['en'].label} in the middle")
            for number, drawing in enumerate(drawings)
        ]
        pictures = {
            f"{number}.png": encode(picture_of(drawing, 64), "png", "#fff", 90)
            for number, drawing in enumerate(drawings)
        }
        write_deb(cache, name, {"a.html": "".join(figures), **pictures})


@pytest.mark.soak(cpu_s=20)
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="not on Debian")
@pytest.mark.parametrize("published", [False, True])
def test_docs_pool_runs_whole_and_its_rules_drop_what_they_say(published, tmp_path, monkeypatch):
    pool, port = tmp_path / "pool", 22_000 + zlib.crc32(bytes(tmp_path)) % 8_000
    if not published:
        monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path))
        made_here(tmp_path)
    try:
        counts = build_docs(pool, port, *PACKAGES)
    except StageError as error:
        pytest.skip(error.args[0])  # no registry, or no lists of it
    if counts["missing"]:
        pytest.skip(json.dumps(counts["missing"]))
    given = [f"pool.path={pool}/metadata"]
    for arm in ("raw", "rules", "curated"):
        given += [f"{arm}_models.{setting}" for setting in SHORT]
        given += [f"{arm}_scores.tasks={pool}/eval"]
    words = [word for setting in given for word in ("--set", setting)]
    with start_server(pool, port):
        run = str(tmp_path / "run")
        assert main(["run", "docs-pool", "--out", run, "--workers", "0", *words]) == 0
        done = Finished(latest(run), port)
    rows, junk, subset, best = (
        pl.from_arrow(done.written(done.plan.stages[name]))
        for name in ("pool", "junk", "subset", "best")
    )
    assert len(rows) == counts["rows"]
    assert set(rows["package"]) == {"libvigraimpex-doc"}
    assert junk.filter(subset["keep"])["caption_boilerplate"].max() < 0.5
    assert 0 < best["keep"].sum() < subset["keep"].sum() < len(rows)
