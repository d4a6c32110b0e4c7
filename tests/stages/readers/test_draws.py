"""Draws: every sample as often as it should be, from any sample on, whatever was asked before."""

from collections import Counter

import numpy as np
import pytest

from clipmill.stages.readers._draws import ROWS_A_STREAM, Draws

GROUPS = [[5, 3], [1], [4, 4, 2], [7]]
TOTAL = 26


def samples(draws: Draws, stream: int, first: int, count: int) -> list[tuple[int, int, int]]:
    """Shard, group and place in the group's order of each."""
    return [
        (piece.shard, piece.group, at)
        for piece in draws.pieces(stream, first, count)
        for at in range(piece.start, piece.stop)
    ]


def test_an_epoch_has_every_sample_once_and_the_next_another_order():
    draws = Draws(GROUPS, 8, 0, "epochs")
    first, second = samples(draws, 0, 0, TOTAL), samples(draws, 0, TOTAL, TOTAL)
    whole = {
        (s, g, at) for s, sizes in enumerate(GROUPS) for g, n in enumerate(sizes) for at in range(n)
    }
    assert set(first) == set(second) == whole
    assert first != second


def test_the_streams_of_a_large_batch_share_an_epoch_between_them():
    draws = Draws([[100, 50], [30], [77]], 3 * ROWS_A_STREAM, 0, "epochs")
    assert draws.streams == 3
    shares = [257 * stream // 3 for stream in range(4)]
    seen = [
        one
        for stream in range(3)
        for one in samples(draws, stream, 0, shares[stream + 1] - shares[stream])
    ]
    assert len(set(seen)) == len(seen) == 257
    rows = [draws.rows(stream) for stream in range(3)]
    assert [(it.start, it.stop) for it in rows] == [(0, 128), (128, 256), (256, 384)]


@pytest.mark.parametrize("sampling", ["epochs", "shards"])
def test_any_sample_on_is_the_same_as_from_the_start(sampling):
    whole = samples(Draws(GROUPS, 8, 0, sampling), 0, 0, 300)
    for first in (0, 1, 25, 26, 199):
        assert samples(Draws(GROUPS, 8, 0, sampling), 0, first, 40) == whole[first : first + 40]


def test_shards_are_drawn_with_replacement_each_as_often():
    draws = Draws([[1]] * 10, 8, 0, "shards")
    drawn = Counter(shard for shard, _, _ in samples(draws, 0, 0, 10_000))
    assert len(drawn) == 10
    assert all(abs(count - 1000) < 5 * 30 for count in drawn.values()), drawn
    assert samples(draws, 0, 0, 50) != samples(Draws([[1]] * 10, 8, 1, "shards"), 0, 0, 50)


def test_streams_draw_apart():
    draws = Draws([[3]] * 50, 2 * ROWS_A_STREAM, 0, "shards")
    one, other = (samples(draws, stream, 0, 60) for stream in (0, 1))
    assert one != other


def test_a_drawn_shard_is_given_whole_group_by_group():
    draws = Draws(GROUPS, 8, 3, "shards")
    pieces = list(draws.pieces(0, 0, 500))
    runs: dict[str, Counter] = {}
    for piece in pieces[:-4]:
        draw = piece.purpose.partition(" group")[0]
        runs.setdefault(draw, Counter())[piece.shard, piece.group] += piece.stop - piece.start
    for taken in list(runs.values())[:-1]:
        (shard,) = {shard for shard, _ in taken}
        assert [taken[shard, group] for group in range(len(GROUPS[shard]))] == GROUPS[shard]


def test_no_group_without_samples_is_given():
    draws = Draws([[0, 2, 0], [3, 0]], 8, 0, "epochs")
    assert all(piece.stop > piece.start for piece in draws.pieces(0, 0, 50))
    assert np.unique([piece.group for piece in draws.pieces(0, 0, 5)]).tolist() == [0, 1]
