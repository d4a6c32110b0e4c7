"""Downloads killed in mid-shard: the server's own count proves what is fetched again."""

from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.passes import read_stage
from clipmill.metadata.record import state_of
from clipmill.metadata.scan import scan
from clipmill.metadata.storage import Storage
from clipmill.stages.download.images import DownloadImages
from tests.engine_stages.harness import clipmill_run
from tests.stages.download.site import FILES

pytestmark = pytest.mark.chaos

ROWS = 900  # of one shard: four batches
KEPT = 2 * DownloadImages.batch_rows  # rows that are stored as the run dies
BUSY = {5, 300, 700}  # rows whose server is busy when it is first asked

RECIPE = """
seed: 0
stages:
  pool: {{uses: ingest.url_list, path: {pool}, url_col: url, caption_col: null}}
  images: {{uses: download.images, from: pool, allow_private_addresses: true, retries: 0}}
"""


class Site(ThreadingHTTPServer):
    """Pictures by row, and how often each was asked for."""

    daemon_threads, request_queue_size = True, 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: Counter[int] = Counter()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        row = int(self.path[1:])
        self.server.asked[row] += 1
        is_busy = row in BUSY and self.server.asked[row] == 1
        body = b"" if is_busy else FILES["ok.jpg"]
        self.send_response(503 if is_busy else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def recipe(site, tmp_path):
    urls = [f"http://127.0.0.1:{site.server_address[1]}/{row}" for row in range(ROWS)]
    pq.write_table(pa.table({"url": urls}), tmp_path / "urls.parquet")
    path = tmp_path / "it.yaml"
    path.write_text(RECIPE.format(pool=tmp_path / "urls.parquet"))
    return path


def check(site, out):
    """That no good picture that was stored is fetched again, and that all is there."""
    again = {row for row, times in site.asked.items() if times > 1}
    assert {row for row in again if row < KEPT} == {row for row in BUSY if row < KEPT}
    assert max(site.asked.values()) == 2
    (name,) = [name for name in Storage(str(out)).folders("stages") if name.startswith("images-")]
    folder = Storage(str(out)).child("stages").child(name)
    state = state_of(scan(folder).records[0], None)
    (rows,) = read_stage(folder, state, ["image", "reason"], ROWS)
    # Those that were first asked for after the kill are busy still: --retry is for them.
    assert set(rows["reason"].to_pylist()) <= {None, "http_5xx"}
    assert rows["image"].null_count <= len(BUSY)
    assert rows["image"].to_pylist().count(FILES["ok.jpg"]) == ROWS - rows["image"].null_count
    assert rows["image"].to_pylist()[5] == rows["image"].to_pylist()[300] == FILES["ok.jpg"]
    assert "kept" not in folder.folders()


def test_killed_in_mid_shard_no_stored_picture_is_fetched_again(site, recipe, tmp_path, clipmill):
    out = tmp_path / "run"
    killed = clipmill_run(recipe, out, tmp_path / "first", fault="kept:2")
    assert killed.killed, killed.output
    assert len(list(out.glob("stages/images-*/kept/000000/*.parquet"))) == 2
    assert clipmill("verify", "--run", out).code == 0
    assert clipmill("status", "--run", out).code == 0
    again = clipmill_run(recipe, out, tmp_path / "again")
    assert again.code == 0, again.output
    check(site, out)


def test_killed_on_s3_no_stored_picture_is_fetched_again(site, recipe, tmp_path, bucket):
    uri = bucket.uri("downloads")
    killed = clipmill_run(recipe, uri, tmp_path / "first", fault="kept:2")
    assert killed.killed, killed.output
    again = clipmill_run(recipe, uri, tmp_path / "again")
    assert again.code == 0, again.output
    check(site, uri)


@pytest.mark.drawn(one_in=3, cpu_s=20)
def test_a_worker_of_ray_that_is_killed_leaves_its_pictures_to_the_next(
    site, recipe, ray_head, tmp_path
):
    out = tmp_path / "run"
    ended = clipmill_run(
        *(recipe, out, tmp_path / "first", *ray_head.arguments),
        fault="kept:2",
        scope="process",
        workers=1,
        env=ray_head.environment,
    )
    assert ended.code == 0, ended.output
    assert sum(point.startswith("kept ") for point in ended.points) > 2
    check(site, out)
