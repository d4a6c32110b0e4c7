"""annotate.safety: LAION's rule by hand and by brute force, the file of prompts, lost rows."""

import re

import numpy as np
import pyarrow as pa
import pytest
import yaml

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import RECIPES, recipe_in
from clipmill.stages.annotate.safety import LISTS, OWN_PROMPTS, Safety, read_prompts, tagged
from clipmill.stages.models.image_text import load
from tests.stages.networks import worker

NAMES = LISTS[:-1]
WORDS = ["teen", "kid", "child", "baby"]


def batch(row_ND, texts=None) -> pa.Table:
    texts = texts or [None] * len(row_ND)
    vectors = pa.array([*row_ND], pa.list_(pa.float32(), len(row_ND[-1])))
    return pa.table({"image_embedding": vectors, "text": pa.array(texts, pa.string())})


def by_hand(row_ND, vectors, texts) -> list[tuple]:
    """The rule as LAION-400M's worker wrote it: places in one list, by a sorted softmax."""

    def top2(row_D, *names):
        prompt_PD = np.concatenate([vectors[name] for name in names])
        weight_P = np.exp(100 * (prompt_PD @ (row_D / np.linalg.norm(row_D))))
        share_P = weight_P / weight_P.sum()
        return np.argsort(-share_P)[:2], share_P

    answers = []
    for row_D, text in zip(row_ND, texts, strict=True):
        (one, two), share_P = top2(row_D, "safe", "unsafe")
        edge = len(vectors["safe"])
        tag = "UNLIKELY" if max(one, two) < edge else "NSFW" if min(one, two) >= edge else "UNSURE"
        cause = "no"
        if tag != "UNLIKELY":
            places, _ = top2(row_D, "minor", "adult")
            beast = top2(row_D, "no_animal", "animal")[0][0] >= len(vectors["no_animal"])
            young = min(places) < len(vectors["minor"]) or any(word in text for word in WORDS)
            cause = "minor" if young else "animal" if beast else "no"
        answers.append((tag, share_P[edge:].sum(), cause))
    return answers


def test_the_rule_is_laions_by_brute_force():
    random = np.random.default_rng(0)
    sizes = {"safe": 5, "unsafe": 4, "minor": 2, "adult": 6, "animal": 4, "no_animal": 5}
    vectors = {name: random.standard_normal((rows, 16)) for name, rows in sizes.items()}
    vectors = {n: it / np.linalg.norm(it, axis=1, keepdims=True) for n, it in vectors.items()}
    row_ND = random.standard_normal((500, 16)).astype(np.float32)
    texts = [("a kid", "a fox")[number % 10 > 0] for number in range(500)]
    out = tagged(batch(row_ND, texts), vectors, WORDS, "")
    tag, score, cause = zip(*by_hand(row_ND.astype(np.float64), vectors, texts), strict=True)
    assert out["safety_tag"].to_pylist() == [*tag]
    assert out["safety_drop"].to_pylist() == [*cause]
    np.testing.assert_allclose(out["safety_score"].to_numpy(), score, atol=1e-6)
    assert {*tag} == {"UNLIKELY", "UNSURE", "NSFW"}
    assert {*cause} == {"minor", "animal", "no"}


def test_rows_between_known_prompts_have_the_tags_of_the_two_nearest():
    axis_DD = np.eye(12)
    vectors = {name: axis_DD[2 * n : 2 * n + 2] for n, name in enumerate(NAMES)}
    of = {f"{name}{n}": vectors[name][n] for name in NAMES for n in (0, 1)}
    adult, thing = of["adult0"] + of["adult1"], of["no_animal0"]
    naked = 3 * of["unsafe0"] + 2 * of["unsafe1"]
    cases = [
        (3 * of["safe0"] + 2 * of["safe1"] + of["minor0"], "a child", "UNLIKELY", "no"),
        (3 * of["safe0"] + 2 * of["unsafe0"] + adult + thing, "a fox", "UNSURE", "no"),
        (naked + adult + thing, "a fox", "NSFW", "no"),
        (naked + adult + thing, "KIDNEY", "NSFW", "minor"),
        (naked + of["adult0"] + 0.5 * of["minor1"] + thing, "a fox", "NSFW", "minor"),
        (naked + adult + thing + 2 * of["animal1"], "a fox", "NSFW", "animal"),
        (naked + adult + 2 * thing + of["animal1"], None, "NSFW", "no"),
    ]
    rows, texts, tags, causes = map(list, zip(*cases, strict=True))
    out = tagged(batch(rows, texts), vectors, WORDS, "")
    assert out["safety_tag"].to_pylist() == tags
    assert out["safety_drop"].to_pylist() == causes
    score_N = out["safety_score"].to_numpy()
    assert score_N[0] < 1e-9
    assert score_N[2] > 0.99


def test_rows_without_a_direction_say_so_and_another_models_vectors_are_refused(tmp_path):
    answer = Safety(model="reference").open(worker(tmp_path))
    good = load("reference").embed_texts(["pornography"])[0]
    out = answer(batch([None, [0] * 64, [np.nan] * 64, good])).to_pydict()
    lost = "zero_or_nan_embedding"
    assert out["reason"] == ["no_embedding", lost, lost, None]
    for name in ("safety_tag", "safety_score", "safety_drop"):
        assert out[name][:3] == [None] * 3
    assert out["safety_score"][3] > 0.99  # the caption is one of our own list's
    with pytest.raises(StageError, match="embeddings of 3 numbers, texts' of 64"):
        answer(batch([[1, 2, 3]]))


def test_a_file_of_prompts_is_used_and_pinned_and_a_broken_one_is_refused(tmp_path):
    lists, digest = read_prompts(OWN_PROMPTS)
    swapped = lists | {"safe": lists["unsafe"], "unsafe": lists["safe"]}
    file, pins = tmp_path / "own.yaml", {}
    file.write_text(yaml.safe_dump(swapped))
    row = load("reference").embed_texts(["pornography"])
    stage = Safety(model="reference", prompts=str(file))
    out = stage.open(worker(tmp_path, pin=pins.__setitem__))(batch([*row]))
    assert out["safety_score"][0].as_py() < 0.01
    assert pins.keys() == {"the prompts"}
    assert pins["the prompts"] != digest
    file.write_text(yaml.safe_dump(lists | {"words": ["Teen", "KID"]}))
    assert read_prompts(str(file))[0]["words"] == ["teen", "kid"]  # as captions are when searched
    for body, said in (
        ("safe: [", "no YAML"),
        ("[a, b]", "lists none"),
        (yaml.safe_dump(lists | {"adult": []}), "without texts: adult"),
        (yaml.safe_dump(lists | {"words": [3]}), "without texts: words"),
        (yaml.safe_dump(lists | {"more": ["a"]}), "; unknown: more\n"),
    ):
        file.write_text(body)
        with pytest.raises(StageError, match=said):
            stage.look()


def test_each_cut_that_the_recipe_keeps_closed_can_be_opened():
    path = RECIPES / "safety.yaml"
    body = path.read_text()
    closed = re.findall(r"^  # ((\w+): +{.*})  # (AND .*)$", body, re.M)
    assert [name for _, name, _ in closed] == ["laion", "theirs", "marks", "tag"]
    for line, name, condition in closed:
        opened = body.replace("  safe:\n", f"  {line}\n  safe:\n")
        opened = opened.replace("from: [soft, unsafe]", f"from: [soft, unsafe, {name}]")
        opened = opened.replace("nsfw_score < 0.2", f"nsfw_score < 0.2 {condition}")
        make_plan(recipe_in(opened.encode(), path))
