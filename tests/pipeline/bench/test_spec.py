"""What a bench is asked for: names, sources, settings; and what differs from before."""

from dataclasses import replace

import pytest

from clipmill.pipeline.bench.spec import Arguments, Arm, Bench, Source, bench_of
from clipmill.pipeline.errors import RecipeError

ARGUMENTS = Arguments(arms=("best=/run:subset",), tasks="/eval", scale="nano", seeds=2)

SETS = "batch_size=32", "warmup_steps=1"


def asked(**more) -> Bench:
    return bench_of(replace(ARGUMENTS, **more), None, "/bench")


def test_an_arm_is_rows_and_settings():
    bench = asked(
        arms=("best=/run:subset", "far=s3://bucket/run:subset"),
        lists=("dc=/lists/dc.npy",),
        mixes=("both=best:7,dc:3",),
        again=("fast=best,learning_rate=4e-3,texts=first",),
        trusted="/other:pairs",
        sets=("batch_size=32",),
    )
    assert bench.rows == {
        "best": Source(kind="stage", run="/run", stage="subset"),
        "far": Source(kind="stage", run="s3://bucket/run", stage="subset"),
        "dc": Source(kind="list", path="/lists/dc.npy"),
        "both": Source(kind="mix", shares={"best": 0.7, "dc": 0.3}),
        "trusted": Source(kind="own", run="/other", stage="pairs"),
    }
    fast = Arm(rows="best", settings={"learning_rate": 0.004, "texts": "first"})
    assert bench.arms["fast"] == fast
    assert bench.arms["both"] == Arm(rows="both")
    assert (bench.settings, bench.runs) == ({"batch_size": 32}, ["/run", "s3://bucket/run"])


def test_what_is_added_stands_beside_what_was_there():
    before = asked()
    more = bench_of(Arguments(arms=("text=/run:long",), seeds=4), before, "/bench")
    assert list(more.rows) == ["best", "text"]
    assert (more.seeds, more.tasks, more.judges) == (4, "/eval", ("zero_shot",))
    probed = bench_of(Arguments(judges="zero_shot,probe"), more, "/bench")
    assert bench_of(Arguments(), probed, "/bench").judges == ("zero_shot", "probe")
    assert bench_of(Arguments(), more, "/bench") == more
    assert bench_of(ARGUMENTS, before, "/bench") == before  # the same command goes on
    set_too = asked(sets=SETS)
    assert bench_of(Arguments(sets=SETS[1:]), set_too, "/bench") == set_too  # as it has them


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"arms": ()}, "no arm of a run"),
        ({"arms": ("run:subset",)}, "names no arm"),
        ({"arms": ("best=subset",)}, "names no stage of a run"),
        ({"arms": ("raw=/run:a",)}, "'raw' as an arm's name"),
        ({"arms": ("random_of_7=/run:a",)}, "'random_of_7' as an arm's name"),
        ({"arms": ("random_of_mine=/run:a",)}, "'random_of_mine' as an arm's name"),
        ({"arms": ("a_scores=/run:a",)}, "'a_scores' as an arm's name"),
        ({"arms": ("a_probes=/run:a",)}, "'a_probes' as an arm's name"),
        ({"arms": ("random_of_7_in_a=/run:a",)}, "'random_of_7_in_a' as an arm's name"),
        ({"judges": "probe"}, "--judge probe"),
        ({"arms": ("a b=/run:a",)}, "'a b' as an arm's name"),
        ({"arms": ("best=/run:a", "best=/run:b")}, "'best' stands for other rows"),
        ({"again": ("best=raw,texts=first",)}, "'best' stands for other rows"),
        ({"again": ("fast=bset,texts=first",)}, "no arm 'bset'"),
        ({"again": ("fast=best",)}, "'fast' is 'best' again"),
        ({"again": ("fast=best,seeds=3",)}, "'seeds=3' is no setting"),
        ({"sets": ("learning_rate",)}, "'learning_rate' is no setting"),
        ({"sets": ("scale=small",)}, "write --scale"),
        ({"mixes": ("both=best:0.7",)}, "a mixture of one arm"),
        ({"mixes": ("both=best:0.7,txet:0.3",)}, "no arm 'txet' to mix"),
        ({"mixes": ("both=best:0.7,raw:-1",)}, "'raw:-1' has no weight"),
        ({"tasks": None}, "no tasks"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": 10**12}, "give 1 to 1,000"),
        ({"arms": ("best=s3://key:secret@bucket/run:a",)}, "a URI with keys"),
    ],
)
def test_what_cannot_be_compared_is_refused(more, found):
    with pytest.raises(RecipeError) as error:
        asked(**more)
    assert found in " ".join(error.value.args)


@pytest.mark.parametrize(
    ("then", "found"),
    [
        (Arguments(arms=("best=/run:other",)), "'best' stands for other rows"),
        (Arguments(scale="small"), "--scale small, and this bench has nano"),
        (Arguments(sets=("batch_size=64",)), "--set batch_size=64, and this bench has none"),
        (Arguments(seeds=1), "--seeds 1, and this bench has 2"),
        (Arguments(sets=("texts=first",)), "--set texts=first, and this bench has batch_size=32"),
        (Arguments(hold_out="home"), "--hold-out home, and this bench has none"),
        (Arguments(hold_in="home"), "--hold-in home, and this bench has none"),
        (Arguments(hold_out="a", hold_in="b"), "--hold-out and --hold-in together"),
    ],
)
def test_a_bench_stays_what_it_was(then, found):
    with pytest.raises(RecipeError) as error:
        bench_of(then, asked(sets=() if "none" in found else SETS), "/bench")
    assert found in error.value.args[0]
