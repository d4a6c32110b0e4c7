"""SelectCaptions: against a plain loop over rows, for every rule and every mix."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import TEXT_LIST, TEXTS
from clipmill.metadata.uid import coin
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select._captions import GBC, SHARES
from clipmill.stages.select.captions import SelectCaptions

KINDS = (("original", "original"), ("sc", "short"), ("sc", "long"), ("re", "rewrite"))


def text(words: str | None, source="original", label="original") -> dict:
    return {"text": words, "source": source, "model": None, "prompt_id": None, "label": label}


def table(rows: list, **lists) -> pa.Table:
    uids = [n.to_bytes(16, "big") for n in range(1, len(rows) + 1)]
    columns = {"uid": pa.array(uids, pa.binary(16)), "texts": pa.array(rows, TEXT_LIST)}
    types = {
        "text_clip_score": pa.float32(),
        "text_is_refusal": pa.bool_(),
        "text_images": pa.int64(),
    }
    for name, values in lists.items():
        columns[name] = pa.array(values, pa.list_(types.get(name, pa.float32())))
    return pa.table(columns)


def drawn(rows: int, seed: int = 0) -> pa.Table:
    """Rows with some texts or none, with and without an original, of few scores, some missing."""
    rng = np.random.default_rng(seed)
    texts, scores, refusals, images = [], [], [], []
    for number in range(rows):
        kinds = [KINDS[0]] * (rng.random() < 0.8) + [KINDS[k] for k in rng.integers(1, 4, 3)]
        kinds = kinds[: rng.integers(0, 5)]
        texts.append([text(f"{number} " * (1 + n), *kind) for n, kind in enumerate(kinds)] or None)
        of_row = [
            None if rng.random() < 0.1 else float(it) for it in rng.integers(0, 9, len(kinds)) / 20
        ]
        scores.append(None if rng.random() < 0.05 else of_row)
        refusals.append([bool(it) for it in rng.random(len(kinds)) < 0.15])
        images.append([int(it) for it in rng.integers(1, 6, len(kinds))])
    return table(texts, text_clip_score=scores, text_is_refusal=refusals, text_images=images)


def by_a_loop(rows: pa.Table, stage: SelectCaptions, coins) -> tuple[list, list, list]:
    """texts, text_reasons and fell_back, rule by rule as the docstring has them."""
    share = stage.share or SHARES.get(stage.mix, 0)
    listed = []
    for row in rows.to_pylist():
        texts = row["texts"] or []
        scores = row["text_clip_score"] or [None] * len(texts)
        listed.append(
            [
                {**it, "score": s, "refusal": r, "images": i}
                for it, s, r, i in zip(
                    texts, scores, row["text_is_refusal"], row["text_images"], strict=True
                )
            ]
        )
    ranked = []
    for n, texts in enumerate(listed):
        own = next((it for it in texts if it["source"] == "original"), None)
        ranked += [(-it["score"], n) for it in [own] if it and it["score"] is not None]
    has_own = sum(any(it["source"] == "original" for it in texts) for texts in listed)
    top = sorted(ranked)[: int(has_own * share)]
    least = min((-score for score, _ in top), default=np.inf)
    out = []
    for n, texts in enumerate(listed):
        cuts = dict(GBC) if stage.cuts == "gbc" else stage.cuts or {}
        for it in texts:
            is_made, cut = it["source"] != "original", cuts.get(it["source"], cuts.get(it["label"]))
            it["why"] = None
            if is_made and it["refusal"] and stage.checks:
                it["why"] = "text_is_refusal"
            elif stage.where and it["score"] is None:
                it["why"] = "undefined:text_clip_score"
            elif stage.where and not it["score"] >= np.float32(0.1):
                it["why"] = "text_clip_score >= 0.1"
            elif cut is not None and it["score"] is None:
                it["why"] = "undefined:text_clip_score"
            elif cut is not None and np.float32(it["score"]) < np.float32(cut):
                it["why"] = f"cut:{it['source'] if it['source'] in cuts else it['label']}"
            elif is_made and stage.most_images and it["images"] > stage.most_images:
                it["why"] = "most_images"
        good = [it for it in texts if not it["why"]]
        own = next((it for it in good if it["source"] == "original"), None)
        wants = stage.made or (("short",) if stage.mix == "short-synthetic" else ())
        made = [
            it
            for it in good
            if it["source"] != "original"
            and (not wants or it["source"] in wants or it["label"] in wants)
        ]
        made = max(made, key=lambda it: -1 if it["score"] is None else it["score"], default=None)
        kept = good
        if stage.mix == "veclip":
            kept = [own, made]
        elif stage.mix in SHARES:
            takes = n not in {n for _, n in top} if stage.mix == "blip2" else coins[n] < share
            if stage.mix == "blip2" and made and not (made["score"] or -9) >= least:
                made = None
            kept = [made] if takes else [own or made]
        kept = [it for it in kept if it]
        first = next((it for it in texts if it["source"] == "original"), None)
        fell_back = not kept and first is not None
        kept = [first] if fell_back else kept
        reasons = [
            None if any(it is k for k in kept) else it["why"] or f"mix:{stage.mix}" for it in texts
        ]
        out.append(([it["text"] for it in kept] or None, reasons or None, fell_back))
    return tuple(zip(*out, strict=True))


def ran(ctx, shards, **settings) -> pa.Table:
    SelectCaptions(**settings).run(Inputs(rows=shards), ctx)
    return pa.concat_tables(ctx.stored).unify_dictionaries()


def found(out: pa.Table) -> tuple:
    texts = tuple(row and [it["text"] for it in row] for row in out["texts"].to_pylist())
    return texts, tuple(out["text_reasons"].to_pylist()), tuple(out["fell_back"].to_pylist())


RULES = [
    {},
    {"checks": False, "where": "text_clip_score >= 0.1"},
    {"cuts": {"original": 0.1, "short": 0.25, "re": 0.2}},
    {"cuts": "gbc", "most_images": 3},
]
MIXES = [
    {"mix": "laclip"},
    {"mix": "veclip"},
    {"mix": "blip2"},
    {"mix": "blip2", "share": 0.6, "made": ("short",)},
    {"mix": "short-synthetic", "share": 0.5},
    {"mix": "metaclip-1.2"},
    {"mix": "metaclip-1.2", "made": ("re",)},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("mix", [{}, *MIXES], ids=str)
def test_texts_are_chosen_as_a_loop_chooses_them(rules, mix, memory_shards, memory_context):
    rows, stage = drawn(120), SelectCaptions(**rules, **mix)
    coins = coin(rows["uid"], seed=0, stage="it", purpose="mix")
    expected = by_a_loop(rows, stage, coins)
    assert any(expected[2]) or not rules, "some fall back"
    for cuts in ((0, 120), (0, 40, 41, 120)):
        shards = memory_shards(*(rows[a:b] for a, b in itertools.pairwise(cuts)))
        out = ran(memory_context(), shards, **rules, **mix)
        assert found(out) == expected
        had = [bool(row) for row in rows["texts"].to_pylist()]
        why = [
            None if row else "none_passes" if any_ else "no_text"
            for row, any_ in zip(expected[0], had, strict=True)
        ]
        assert out["reason"].to_pylist() == why


def test_a_score_equal_to_its_cut_stays_and_the_next_smaller_float_goes(
    memory_shards, memory_context
):
    assert GBC["long"] == GBC["detailed"] == 0.1917  # both are what GBC calls detailed
    for label, least in GBC.items():
        at = np.float32(least)
        below = np.nextafter(at, np.float32(0))
        source = "original" if label == "original" else "gbc"
        row = [text("at", source, label), text("below", source, label)]
        rows = table([row], text_clip_score=[[float(at), float(below)]])
        out = ran(memory_context(), memory_shards(rows), cuts="gbc")
        assert found(out)[:2] == ((["at"],), ([None, f"cut:{label}"],))
        assert out["text_scores"].to_pylist() == [[float(at)]]


def test_a_row_is_never_left_without_the_text_that_it_had(memory_shards, memory_context):
    rows = table(
        [[text("own"), text("no", "m", "long")], [text("no", "m", "long")], None, [text(None)]],
        text_is_refusal=[[None, True], [True], None, [None]],
    )
    out = ran(memory_context(), memory_shards(rows), where="words > 2")
    assert found(out) == (
        (["own"], None, None, None),
        ([None, "text_is_refusal"], ["text_is_refusal"], None, ["undefined:text"]),
        (True, False, False, False),
    )
    assert out["reason"].to_pylist() == [None, "none_passes", "no_text", "none_passes"]
    assert out.schema.field("texts").type == TEXTS.dtype


def test_where_asks_of_each_text_what_is_known_of_it(memory_shards, memory_context):
    row = [text("a red cat"), text("a b", "m", "short"), text("c d e", "m", "long")]
    rows = table([row], text_clip_score=[[0.1, 0.2, 0.3]])
    for where, kept in (
        ("source = 'original' OR label = 'long'", ["a red cat", "c d e"]),
        ("words >= 3 AND text_clip_score > 0.2", ["c d e"]),
        ("text LIKE '%b' AND model IS NULL", ["a b"]),
    ):
        assert found(ran(memory_context(), memory_shards(rows), where=where))[0] == (kept,)


def test_lists_are_chosen_from_where_nothing_has_scored_them(memory_shards, memory_context):
    rows = table([None] * 4).drop_columns(["texts"])
    rows = rows.append_column("text", pa.array(["own", None, "own", None]))
    lists = [[text("b", "m", "short")], [text("b", "m", "long")], None, []]
    rows = rows.append_column("s.captions", pa.array(lists, TEXT_LIST))
    rows = rows.append_column(
        "l.captions", pa.array([[text("c", "l", "x")]] + [None] * 3, TEXT_LIST)
    )
    names = ("s.captions", "l.captions")
    out = ran(memory_context(), memory_shards(rows), captions=names)
    assert found(out)[0] == (["own", "b", "c"], ["b"], ["own"], None)
    assert out["texts"][0].as_py()[0] == text("own")
    with pytest.raises(RecipeError, match="texts that have none"):
        SelectCaptions(captions=names, cuts="gbc")


def test_the_share_of_a_mix_is_that_of_the_coins(memory_shards, memory_context):
    rows = table([[text("own"), text("made", "m", "short")]] * 4000)
    coin_N = coin(rows["uid"], seed=0, stage="it", purpose="mix")
    for mix, share in (("short-synthetic", 0.45), ("metaclip-1.2", 0.15)):
        texts, _, fell_back = found(ran(memory_context(), memory_shards(rows), mix=mix))
        assert [row == ["made"] for row in texts] == (coin_N < share).tolist()
        assert np.mean([row == ["made"] for row in texts]) == pytest.approx(share, abs=0.03)
        assert not any(fell_back)


def test_values_of_other_texts_are_refused(memory_shards, memory_context):
    rows = table([[text("a")]], text_clip_score=[[0.1, 0.2]])
    with pytest.raises(StageError, match="2 values beside 1 texts"):
        ran(memory_context(), memory_shards(rows))


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_a_shard_without_any_text_is_left_as_it_is(mix, memory_shards, memory_context):
    empty = table([None, []], text_clip_score=[None, []])
    out = ran(memory_context(), memory_shards(empty, drawn(20), empty[:0]), cuts="gbc", **mix)
    assert out["reason"].to_pylist()[:2] == ["no_text", "no_text"]
    none = ran(memory_context(), memory_shards(empty), **mix)
    assert found(none) == ((None, None), (None, None), (False, False))


def test_a_name_in_made_that_no_text_has_is_refused(memory_shards, memory_context):
    shards = [[[text("a"), text("a b", "sents", "sentence")]], [[text("b"), text("c d", "sents")]]]
    shards = memory_shards(*map(table, shards))
    with pytest.raises(StageError, match=r"label 'sentz'(.|\n)*did you mean 'sents' or 'sentence'"):
        ran(memory_context(), shards, captions=(), mix="veclip", made=("sentence", "sentz"))
    with pytest.raises(StageError, match=r"label 'short'(.|\n)*sentence, sents"):
        ran(memory_context(), shards, captions=(), mix="short-synthetic")


def test_checks_may_be_named(memory_shards, memory_context):
    rows = table(
        [[text("own"), text("no", "m", "long"), text("3 cats", "m", "long")]],
        text_is_refusal=[[None, True, False]],
        text_invented=[[None, 0, 1]],
    )
    for checks, kept in (
        (True, ["own"]),
        (("text_is_refusal",), ["own", "3 cats"]),
        (("text_invented",), ["own", "no"]),
        (False, ["own", "no", "3 cats"]),
    ):
        assert found(ran(memory_context(), memory_shards(rows), checks=checks))[0] == (kept,)
    with pytest.raises(RecipeError, match="names 'text_images', which is no check"):
        SelectCaptions(checks=("text_images",))


def test_settings_that_say_nothing_are_refused():
    with pytest.raises(RecipeError, match="`share` is not of mix: laclip"):
        SelectCaptions(mix="laclip", share=0.5)
    with pytest.raises(RecipeError, match="mix is None"):
        SelectCaptions(made=("short",))
    with pytest.raises(StageError, match="no list beside the texts"):
        SelectCaptions(where="width > 3").check({"width": pa.int32()})
    with pytest.raises(StageError, match="compares text with a number"):
        SelectCaptions(where="source > 3").check({})
