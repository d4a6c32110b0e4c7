"""Hosts that only hang, and hosts that are not to be asked."""

import asyncio
import time
from collections import Counter

import pyarrow as pa
import pytest

import clipmill.stages.download._web
from clipmill.pipeline.errors import RecipeError
from clipmill.stages.download._web import Client, Rules
from clipmill.stages.download.images import DownloadImages
from tests.stages.download.site import only_loopback, opened


def reasons(rows):
    return [row["reason"] for row in rows]


def test_a_batch_that_fails_leaves_the_others_what_they_share_with_it(server):
    settings = DownloadImages(allow_private_addresses=True)
    rules = Rules(**{name: getattr(settings, name) for name in Rules.__dataclass_fields__})

    def keep(body, fails):
        if fails:
            raise MemoryError
        return len(body)

    client = Client(rules, 1, keep=keep)
    shared, other = (f"http://127.0.0.1:{server.port}/{path}" for path in ("slow/0", "file/ok.jpg"))

    async def both():
        calls = (
            client.fetch_all([shared], about=[(False,)]),
            client.fetch_all([shared, other], about=[(False,), (True,)]),
        )
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second = asyncio.run(both())
    assert first[0].kept
    assert isinstance(second, MemoryError)


def test_a_host_that_only_times_out_is_set_aside(download, server):
    started = time.monotonic()
    rows = download(*(f"/hang/{n}" for n in range(64)), timeout_s=0.5, deadline_s=1.5, retries=2)
    assert time.monotonic() - started < 6  # eight rows at a time, to their deadline, take 8.7 s
    found = Counter(reasons(rows))
    # As the first of the eight ends, the next begins: of those, seven may be under way.
    assert 8 <= found["timeout"] == server.asked.total() <= 8 + 7
    assert found["host_down"] == 64 - found["timeout"]


def test_rows_of_other_hosts_do_not_wait_for_one_that_hangs(download, server):
    hanging = [f"http://localhost:{server.port}/after/20?{n}" for n in range(64)]
    others = [f"/slow/{n}" for n in range(20)]  # until these are asked, those get no answer
    rows = download(*hanging, *others, concurrency=12, timeout_s=30.0, deadline_s=30.0)
    assert set(reasons(rows)) == {None}


def test_connections_do_not_pile_up_host_by_host(download, server, monkeypatch):
    hosts = [f"h{n}.test" for n in range(60)]
    only_loopback(monkeypatch, **{host.replace(".", "_"): "127.0.0.1" for host in hosts})
    rows = download(*(f"http://{host}:{server.port}/slow" for host in hosts), concurrency=4)
    assert set(reasons(rows)) == {None}
    assert server.most_open < 20  # most systems allow a process 1,024 open files


def test_urls_of_one_host_share_its_connections(download, server):
    rows = download(*(f"/slow/{n}" for n in range(20)), max_per_host=2)
    assert set(reasons(rows)) == {None}
    assert len(server.connections) <= 4


@pytest.fixture
def two_time_outs(monkeypatch):
    monkeypatch.setattr(clipmill.stages.download._web, "HOST_TIME_OUTS", 2)


@pytest.mark.chaos  # waits
@pytest.mark.usefixtures("two_time_outs")
def test_any_answer_begins_the_count_anew(download):
    paths = ["/hang", "/file/ok.jpg", "/hang?", "/status/404", "/hang?2", "/hang?3", "/file/ok.png"]
    rows = download(*paths, max_per_host=1, timeout_s=0.5)
    timeout = "timeout"
    assert reasons(rows) == [timeout, None, timeout, "http_404", timeout, timeout, "host_down"]


@pytest.mark.usefixtures("two_time_outs")
def test_a_redirect_to_a_host_that_is_down_keeps_the_status_it_had(download, server):
    there = f"http://localhost:{server.port}/hang"
    rows = download(there, f"{there}?2", f"/to/?url={there}", timeout_s=0.5, max_per_host=1)
    assert [(r["reason"], r["http_status"]) for r in rows[1:]] == [
        ("timeout", None),
        ("host_down", 302),
    ]


@pytest.fixture
def worker(server, tmp_path):
    """A worker with these settings, which downloads shards of batches of paths or URLs."""

    def worker(**settings):
        function = opened(tmp_path, **settings)
        base = f"http://127.0.0.1:{server.port}"

        def shard(*batches):
            urls = [[base + url if url[0] == "/" else url for url in batch] for batch in batches]
            answers = function.all([pa.table({"url": batch}) for batch in urls])
            return [reasons(answer.to_pylist()) for answer in answers]

        return shard

    return worker


@pytest.mark.usefixtures("two_time_outs")
def test_a_host_that_is_down_is_so_for_the_batches_under_way_and_not_for_the_next_shard(worker):
    shard = worker(timeout_s=0.3, max_per_host=1)
    assert shard(["/hang", "/hang?2"], ["/file/ok.jpg"]) == [["timeout"] * 2, ["host_down"]]
    assert shard(["/file/ok.png"], ["/file/ok.gif"]) == [[None], [None]]
    assert "host_down" in DownloadImages.transient  # as --retry does


@pytest.mark.usefixtures("two_time_outs")
def test_links_that_hang_at_the_end_of_a_shard_lose_none_of_the_next(worker):
    shard = worker(timeout_s=0.3, max_per_host=4)
    hanging = ["/file/ok.jpg", "/hang", "/hang?2", "/hang?3"]  # the first is answered at once
    assert shard(hanging) == [[None, "timeout", "timeout", "timeout"]]
    assert shard([f"/slow/{n}" for n in range(6)]) == [[None] * 6]


def test_a_batch_does_not_wait_for_the_slow_url_of_the_one_before(worker, server):
    slow = [f"http://localhost:{server.port}/after/20"]  # answers when these have been asked
    shard = worker(concurrency=4, timeout_s=20.0)
    found = shard(slow, *([f"/slow/{n}"] for n in range(20)))
    assert found == [[None]] * 21


def test_a_url_that_repeats_in_another_batch_under_way_is_fetched_once(worker, server):
    found = worker()(["/slow/0", "/slow/1"], ["/slow/1", "/slow/2"], ["/slow/1"])
    assert found == [[None, None], [None, None], [None]]
    assert server.asked == Counter({"/slow/0": 1, "/slow/1": 1, "/slow/2": 1})


def test_one_host_has_its_limit_over_all_batches(worker, server):
    worker(max_per_host=2)(*([f"/slow/{n}"] for n in range(12)))
    assert server.most_open <= 2 + 1  # one is closing


def test_hosts_are_forgotten_when_nothing_is_due_there(server, tmp_path):
    settings = DownloadImages(allow_private_addresses=True, timeout_s=0.3, retries=0)
    rules = Rules(**{name: getattr(settings, name) for name in Rules.__dataclass_fields__})
    client = Client(rules, 1, keep=lambda body: None)

    async def known(*urls):
        await client.fetch_all([f"{url}:{server.port}{path}" for url, path in urls])
        return [host for host, _ in client.hosts]

    async def both():
        first = await known(("http://localhost", "/file/ok.jpg"), ("http://127.0.0.1", "/hang"))
        return first, await known(("http://127.0.0.1", "/file/ok.jpg"))

    assert asyncio.run(both()) == ([], [])


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        *((host, "private_address") for host in ("127.0.0.1", "[::1]", "0.0.0.0", "localhost")),
        *((host, "private_address") for host in ("10.0.0.1", "169.254.169.254", "[::ffff:7f00:1]")),
        ("0x7f.1", "private_address"),  # a name to all but the system's resolver
        ("2130706433", "bad_url"),  # the client library takes it for no address
        ("127.1", "bad_url"),
    ],
)
def test_private_addresses_are_refused_however_written(download, server, host, reason):
    (row,) = download(f"http://{host}:{server.port}/file/ok.jpg", allow_private_addresses=False)
    assert (row["reason"], row["http_status"]) == (reason, None)
    assert not server.asked


@pytest.mark.parametrize(
    ("url", "setting"),
    [
        ("http://127.0.0.1:{port}/file/ok.jpg", True),
        ("http://127.0.0.1:{port}/file/ok.jpg", ["127.0.0.0/30"]),
        ("http://images.internal:{port}/file/ok.jpg", ["images.internal"]),
        ("http://IMAGES.internal.:{port}/file/ok.jpg", ["10.0.0.0/8", "Images.Internal"]),
        ("http://images.internal:{port}/to/?url=/file/ok.jpg", ["images.internal"]),
    ],
)
def test_a_recipe_opens_networks_and_names(download, server, monkeypatch, url, setting):
    names = {"images_internal": "127.0.0.1", "IMAGES_internal_": "127.0.0.1"}
    only_loopback(monkeypatch, **names, images_internal_="127.0.0.1")
    (row,) = download(url.format(port=server.port), allow_private_addresses=setting)
    assert row["reason"] is None


@pytest.mark.parametrize(
    ("url", "setting"),
    [
        ("http://10.0.0.1/", True),
        ("http://other.internal:{port}/file/ok.jpg", ["images.internal"]),
        ("http://127.0.0.1:{port}/file/ok.jpg", ["images.internal"]),
        ("http://images.internal:{port}/to/?url=http://127.0.0.1:{port}/x", ["images.internal"]),
        ("http://127.0.0.1:{port}/to/?url=http://127.0.0.2:{port}/x", ["127.0.0.1"]),
        ("http://169.254.169.254/latest/", ["0.0.0.0/0"]),
        ("http://[::ffff:169.254.169.254]/latest/", ["0.0.0.0/0", "::/0"]),
        ("http://metadata.internal/latest/", ["metadata.internal"]),
        ("http://168.63.129.16/", False),
    ],
)
def test_what_a_recipe_does_not_open_is_refused_at_every_hop(
    download, server, monkeypatch, url, setting
):
    names = {"images_internal": "127.0.0.1", "other_internal": "127.0.0.1"}
    only_loopback(monkeypatch, **names, metadata_internal="169.254.169.254")
    (row,) = download(url.format(port=server.port), allow_private_addresses=setting)
    assert (row["reason"], row["http_status"]) == ("private_address", None)
    assert not server.asked.keys() & {"/x", "/file/ok.jpg"}


def test_a_name_with_an_open_and_a_closed_address_reaches_only_the_open_one(
    download, server, monkeypatch
):
    only_loopback(monkeypatch, two_faced_test="127.0.0.2 127.0.0.1")  # nobody is at the first
    url = f"http://two.faced.test:{server.port}/file/ok.jpg"
    (row,) = download(url, allow_private_addresses=["127.0.0.2"])
    assert row["reason"] in ("refused", "private_address")
    assert not server.asked


def test_an_entry_that_opens_nothing_is_refused_by_the_plan():
    with pytest.raises(RecipeError, match="key `allow_private_addresses`") as error:
        DownloadImages(allow_private_addresses=("10.1.2.3/8",))
    assert error.value.args[2] == "write 10.0.0.0/8"
