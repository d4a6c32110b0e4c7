"""Which rows an export takes: those that are kept and lack nothing, or those a stage lost."""

import pyarrow as pa

from clipmill.stages.export._leaving import Dropped, Takes, summed, tally


def test_a_row_left_out_is_counted_once_at_its_first_reason():
    batch = pa.table(
        {
            "keep": [True, False, None, True, True, False],
            "image": pa.array([b"i", None, b"i", None, b"i", b"i"]),
            "text": ["t", None, "t", None, None, "t"],
        }
    )
    exported_N, counts = Takes()(batch)
    assert exported_N.tolist() == [True, *[False] * 5]
    assert counts == {"not_kept": 3, "no_image": 1, "no_text": 1}
    exported_N, counts = Takes(needs=())(batch)
    assert exported_N.tolist() == [True, False, False, True, True, False]
    assert counts == {"not_kept": 3}


def test_without_a_select_stage_and_without_images_every_row_leaves():
    exported_N, counts = Takes()(pa.table({"uid": [b"0" * 16] * 3}))
    assert exported_N.all()
    assert sum(counts.values()) == 0


def test_the_size_stands_for_an_image_that_is_not_read():
    exported_N, counts = Takes()(pa.table({"image_bytes": pa.array([7, None], pa.int64())}))
    assert exported_N.tolist() == [True, False]
    assert counts["no_image"] == 1


def test_rows_that_a_stage_lost_leave_whatever_they_lack_and_say_why(memory_shards):
    takes = Takes(dropped=Dropped("loud", "too_few", decided=("letters",)))
    assert takes.reads == ("loud.reason", "letters")
    assert takes.optional_reads == (), "neither `keep` nor how often a kept row counts"
    batch = pa.table(
        {
            "uid": pa.array([bytes([i]) * 16 for i in range(4)], pa.binary(16)),
            "text": ["a", None, "b", None],
            "loud.reason": pa.array(["too_few", "too_few", "no_text", None]).dictionary_encode(),
            "letters": [1, 0, None, 9],
        }
    )
    exported_N, counts = takes(batch)
    assert exported_N.tolist() == [True, True, False, False]
    assert counts == {"other_rows": 2}
    assert takes.dropped.columns_of(batch)["letters"].to_pylist() == [1, 0, None, 9]
    tallies = [tally(memory_shards(batch), takes, 2, 0, None)]
    assert summed(tallies, takes) == {"rows": 4, "exported": 2, "other_rows": 2}
