"""The report's concept map: discs and their cards, strips, scales, and nothing but text in them."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.findings.cluster_counts import DrawnRow
from clipmill.pipeline.ledger.findings.clusters import Cluster, ClusterMap, cluster_maps
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.report import build
from clipmill.pipeline.report import clusters as drawing
from clipmill.pipeline.report.build import report
from clipmill.pipeline.report.clusters import cluster_section
from clipmill.pipeline.run_folder.state import RunState
from tests.parsed import Page


@pytest.fixture(scope="module", autouse=True)
def own(own_stages) -> None:
    """The select that goes by clusters."""


@pytest.fixture(scope="module")
def found(clustered) -> ClusterMap:
    (only,) = cluster_maps(clustered)
    return only


@pytest.fixture
def html(clustered_html) -> str:
    return clustered_html


def lying(*places: tuple[float, float], rows: int = 10) -> list[Cluster]:
    return [
        Cluster(number=i, rows=rows * (i + 1), kept=(i,), spread=0.1 * i, x=x, y=y, few=())
        for i, (x, y) in enumerate(places)
    ]


def test_the_page_shows_the_map_its_strips_and_its_shares_and_asks_for_nothing(html, found):
    page = Page(html)
    assert page.asks_for_nothing()
    assert "Concept map of clusters" in page.text
    assert f"The {len(found.pruned[0].most)} clusters most pruned by even" in page.text
    assert "clusters least pruned by even" in page.text
    assert "pruned by control" not in page.text  # which does not go by clusters
    assert "Share kept of large and small clusters, by fraction of even" in page.text
    for scale in (*(f"share kept by {end}" for end in found.ends), "density"):
        assert scale in page.text
    assert html.count('class="c" tabindex="0"') == len(found.drawn)


def test_a_strip_says_the_least_and_the_greatest_share_in_it(html, found):
    for side, clusters in (("most", found.pruned[0].most), ("least", found.pruned[0].least)):
        end = list(found.ends).index(found.pruned[0].stage)
        shares = sorted(of.kept[end] / of.rows for of in clusters)
        said = f"clusters {side} pruned by even {shares[0]:.1%} to {shares[-1]:.1%} kept"
        assert said in " ".join(Page(html).text.split())


def test_the_same_folder_gives_the_same_bytes(html, clustered):
    assert report(clustered) == html


def test_hostile_captions_stay_text(html):
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in html
    assert "<script" not in html
    titles = [tag.get("title") or tag.get("aria-label") for tag in Page(html).all("div")]
    assert not [title for title in titles if title and "alert" in title]


def test_every_disc_says_in_words_what_it_shows(html, found):
    said = [tag["aria-label"] for tag in Page(html).all("div") if tag.get("class") == "c"]
    for cluster, words in zip(found.drawn, said, strict=True):
        share = f"{cluster.kept[0] / cluster.rows:.1%}"
        assert words.startswith(f"cluster {cluster.number}: {cluster.rows} row")
        assert f"{share} kept by even" in words


def test_area_is_as_rows_and_both_axes_have_one_scale(found):
    of = lying((0, 0), (4, 0), (0, 1), (4, 1))
    discs, height = drawing._discs(replace(found, drawn=tuple(of)))
    left, top = (np.array([float(disc[side]) for disc in discs]) for side in ("left", "top"))
    high = top * height / 100
    assert left[1] - left[0] == pytest.approx(4 * (high[0] - high[2]), abs=0.05)
    assert high[0] > high[2]  # up is up
    assert (left.min(), left.max()) == (drawing.MARGIN, 100 - drawing.MARGIN)
    small = [replace(cluster, rows=100 * 4**cluster.number) for cluster in of]
    crowd = [replace(of[0], number=9, rows=50_000)] * 20
    discs, _ = drawing._discs(replace(found, drawn=(*small, *crowd)))
    sizes = [float(disc["size"]) for disc in discs[:4]]
    assert sizes[3] / sizes[2] == pytest.approx(2, rel=0.02)
    assert sizes[0] == drawing.DISC[0]  # though it has fewer rows


@pytest.mark.parametrize("places", [[], [(0, 0)], [(1, 1), (1, 1)], [(0, 0), (1e-17, 3e-18)]])
def test_clusters_that_lie_in_one_place_are_drawn_there(places, found):
    discs, height = drawing._discs(replace(found, drawn=tuple(lying(*places))))
    assert all((disc["left"], disc["top"]) == ("50.00", "50.00") for disc in discs)
    assert 0 < height <= 100


def test_shades_go_from_the_least_to_the_most(found):
    of = lying(*[(i, i) for i in range(9)])
    share, spread = drawing._scales(replace(found, ends={"even": 36}, drawn=tuple(of)))
    for scale in (share, spread):
        shades = [scale["of"](cluster) for cluster in of]
        assert shades == sorted(shades)
        assert (shades[0], shades[-1]) == (0, drawing.SHADES - 1)
    assert (share["low"], share["high"]) == ("0 %", "8.89 %")
    level = [replace(cluster, kept=(0,), spread=None) for cluster in of]
    (only,) = drawing._scales(replace(found, ends={"even": 0}, drawn=tuple(level)))
    assert {only["of"](cluster) for cluster in level} == {0}


def test_pictures_and_captions_are_of_so_many_and_of_so_many_bytes(clustered, found, monkeypatch):
    every = cluster_section(clustered, found)
    size = sum(len(s["picture"]["src"]) for d in every["discs"] for s in d["card"] if s["picture"])
    monkeypatch.setattr(drawing, "PICTURE_BYTES", size // 2)
    monkeypatch.setattr(drawing, "PICTURED", 4)
    monkeypatch.setattr(drawing, "CARDS", 6)
    some = cluster_section(clustered, found)
    cards = {disc["number"]: disc["card"] for disc in some["discs"] if disc["card"] is not None}
    assert len(cards) == 6
    assert 0 < some["pictured"] <= 4
    pictures = [s["picture"]["src"] for card in cards.values() for s in card if s["picture"]]
    assert 0 < sum(map(len, pictures)) <= size // 2
    assert all(sample["text"] for card in cards.values() for sample in card)
    monkeypatch.setattr(build, "cluster_section", lambda *_: some)
    page = Page(build.report(clustered))
    assert f"{some['pictured']} clusters show pictures, 6 captions, the others" in page.text


def test_thousands_of_discs_are_a_page_of_bounded_size(clustered, found, html, monkeypatch):
    rng = np.random.default_rng(0)
    place = found.drawn[0].few[0].place
    many = tuple(
        Cluster(
            number=i,
            rows=int(3000 / math.sqrt(i + 1)),
            kept=(1, 2, 1, 1),
            spread=float(rng.random()),
            x=float(rng.random()),
            y=float(rng.random()),
            few=(DrawnRow(place, (True, False)),) * 4,
        )
        for i in range(2000)
    )
    whole = replace(found, drawn=many, met=100_000, undrawn_rows=7_000_000)
    section = cluster_section(clustered, whole)
    monkeypatch.setattr(build, "cluster_section", lambda *_: section)
    page = build.report(clustered)
    assert len(page) - len(html) < drawing.PICTURE_BYTES + 1_500_000
    assert "Drawn are the 2,000 largest of 100,000 clusters; the others hold 7,000,000 rows" in page


PLANTED = {0: 60, 1: 30, 2: 10}  # rows of each direction
WITHOUT_PICTURES = """
seed: 0
stages:
  pool:
    uses: ingest.parquet
    path: {pool}
    caption_col: text
    image_embedding_col: vector
    embedding_width: 3
    shard_rows: 40
  ways: {{uses: mine.largest, from: pool}}
  even: {{uses: mine.evened, from: ways, read: {{cluster_id: ways.largest}}, fraction: 0.5}}
"""


def without_pictures(folder, of_N, vectors: list, until: str | None = None) -> RunState:
    """A run over captions and these vectors."""
    table = {"text": [f"of direction {of}" for of in of_N]}
    table["vector"] = pa.array(vectors, pa.list_(pa.float32()))
    pq.write_table(pa.table(table), folder / "pool.parquet")
    (folder / "it.yaml").write_text(WITHOUT_PICTURES.format(pool=folder / "pool.parquet"))
    plan = make_plan(load_recipe(str(folder / "it.yaml")), until)
    return run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines()).state


def test_planted_clusters_of_an_own_stage_lie_where_they_must_without_pictures_too(tmp_path):
    of_N = np.random.default_rng(0).permutation(np.repeat(list(PLANTED), list(PLANTED.values())))
    state = without_pictures(tmp_path, of_N, np.eye(3)[of_N].tolist())
    (found,) = cluster_maps(state)
    assert [cluster.rows for cluster in found.drawn] == [60, 30, 10]
    # 20 of each leave 50 of 100, 21 leave 52.
    assert [cluster.kept for cluster in found.drawn] == [(20,), (20,), (10,)]
    assert [cluster.spread for cluster in found.drawn] == [0.25] * 3
    place = np.array([(cluster.x, cluster.y) for cluster in found.drawn])
    apart = np.linalg.norm(place[:, None] - place[None], axis=2)
    np.testing.assert_allclose(apart, np.sqrt(2) * (1 - np.eye(3)), atol=1e-6)  # all in the plane
    assert sum(found.variance) == pytest.approx(1)
    assert [cluster.rows for cluster in (*found.pruned[0].most, *found.pruned[0].least)] == [60, 10]
    page = Page(report(state))
    assert "Concept map of ways" in page.text
    assert page.text.count("of direction 0") >= 4
    assert not page.all("img")


def test_without_a_select_the_density_is_all_there_is_to_see(tmp_path):
    state = without_pictures(tmp_path, range(3), np.eye(3).tolist(), until="ways")
    (found,) = cluster_maps(state)
    assert (found.ends, found.pruned, found.over) == ({}, (), ())
    page = Page(report(state))
    assert [scale["name"] for scale in cluster_section(state, found)["scales"]] == ["density"]
    assert "3 of 3 clusters have rows: 3 rows in all" in page.text


def test_clusters_without_any_row_are_said_and_not_drawn(tmp_path):
    state = without_pictures(tmp_path, range(3), [None] * 3)
    (found,) = cluster_maps(state)
    assert (found.met, found.rows, found.without, found.drawn) == (0, 0, 3, ())
    assert "0 of 3 clusters have rows: 0 rows in all. 3 rows of the pool are in none" in report(
        state
    )
