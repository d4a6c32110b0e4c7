"""What a wrong recipe or argument gets: exit code 2, a message of three parts, nothing written."""

import re
from dataclasses import dataclass

import pytest

POOL = "  pool: {uses: ingest.url_list, path: pool.csv}\n"
TEXTS = POOL + "  lang: {uses: annotate.language, from: pool}\n"
TWICE = (
    TEXTS
    + "  again: {uses: annotate.language, from: pool}\n"
    + "  both: {uses: select.where, from: [lang, again], where: WHERE}\n"
)


@dataclass(frozen=True)
class Case:
    """A recipe, and what its error says."""

    stages: str
    found: str
    where: str
    do: str
    head: str = "stages:\n"
    arguments: tuple[str, ...] = ()


def select(where: str) -> str:
    return TEXTS + f'  keep: {{uses: select.where, from: lang, where: "{where}"}}\n'


CASES = {
    # The file
    "not YAML": Case("  pool: {uses: [\n", "not YAML", "mine.yaml:", "mend the file"),
    "a tab": Case("\tpool: {}\n", "not YAML", "mine.yaml:2", "spaces"),
    "a list": Case("- a\n", "list", "mine.yaml", "`stages:`", head=""),
    "a word": Case("word", "a value, not keys", "mine.yaml", "`stages:`", head=""),
    "an empty file": Case("", "no stages", "mine.yaml", "at least one stage", head=""),
    "a key that is a list": Case("? [a, b]\n: 1\n", "key", "mine.yaml:1", "word", head=""),
    "no stages": Case("", "no stages", "mine.yaml", "at least one stage"),
    "an unknown top key": Case(POOL, "'stagse'", "mine.yaml:1", "'stages'", head="stagse:\n"),
    "a key twice": Case(POOL + POOL, "'pool' stands twice", "mine.yaml:3", "keep one"),
    "a setting twice": Case(
        "  pool:\n    uses: ingest.url_list\n    path: a\n    path: b\n",
        *("'path' stands twice", "mine.yaml:5", "keep one"),
    ),
    "a tagged value": Case("  pool: {uses: !x a}\n", "cannot read the value", "mine.yaml:2", "str"),
    "a tag of Python": Case(
        "  pool: !!python/object/apply:os.getpid []\n", "has a tag", "mine.yaml:2", "mappings only"
    ),
    "bytes": Case("  pool: {uses: !!binary aGk=}\n", "has a tag", "mine.yaml:2", "strings"),
    "aliases that double": Case(
        "  a0: &a0 [x, x]\n"
        + "".join(f"  a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        *("an alias, *a0", "mine.yaml:3", "write the value out"),
    ),
    "an alias of itself": Case("&a [*a]\n", "an alias, *a", "mine.yaml:1", "out", "stages: "),
    "a merge key": Case("  pool:\n    <<: {}\n", "<< as a key", "mine.yaml:3", "write a word"),
    "a number as a key": Case("  1: {}\n", "1 as a key", "mine.yaml:2", "quote it"),
    "a number that is none": Case(
        POOL.replace("}", ", shard_rows: .nan}"), ".nan", ":2", "64 bits"
    ),
    "a number of 65 bits": Case(POOL, str(2**63), ":1", "64 bits", f"seed: {2**63}\nstages:\n"),
    "a number of 5,000 digits": Case(
        POOL, "cannot read the value", ":1", "numbers", f"seed: {'9' * 5000}\nstages:\n"
    ),
    "NUL": Case('  pool: {uses: "a\\0b"}\n', "a character that no text holds", ":2", "take it out"),
    "a control character": Case(POOL + "\x07", "not YAML: special characters", "mine.yaml", "mend"),
    "lists in lists": Case("[" * 50_000, "more than 20 deep", "mine.yaml:1", "few", "stages: "),
    "mappings in mappings": Case(
        "".join(" " * n + "a:\n" for n in range(1, 300)), "more than 20 deep", ":20", "few stages"
    ),
    "too many values": Case("[" + "a, " * 50_000, "more than 10,000", ":1", "few", "stages: "),
    "too large": Case(POOL + "#" * 250_000, "more than 250,000 bytes", "mine.yaml", "small file"),
    "too many stages": Case(
        "".join(f"  s{n}: {{}}\n" for n in range(300)), "300 stages", "mine.yaml", "200"
    ),
    "a seed of words": Case(POOL, "seed is 'one'", "mine.yaml:1", "whole", "seed: one\nstages:\n"),
    "a stage of one word": Case("  pool: here\n", "'here'", "mine.yaml:2, stage 'pool'", "uses:"),
    "a name for a path": Case("  ../x: {uses: ingest.url_list, path: a}\n", "'../x'", ":2", "name"),
    # Stages and their settings
    "no uses": Case("  pool: {path: a}\n", "`uses` is None", "mine.yaml:2", "kind.name"),
    "an unknown stage": Case(
        "  pool: {uses: ingest.urllist, path: a}\n",
        *("no stage 'ingest.urllist'", "mine.yaml:2, stage 'pool', key 'uses'", "ingest.url_list"),
    ),
    "a file that is no stage": Case(
        "  pool: {uses: ops.compiled}\n",
        "0 stage classes",
        "mine.yaml:2",
        "one file holds one stage",
    ),
    "a mistyped key": Case(
        POOL + "  lang:\n    uses: annotate.language\n    form: pool\n",
        *("unknown key 'form'", "mine.yaml:5, stage 'lang', key 'form'", "'from'"),
    ),
    "a mistyped setting": Case(
        "  pool: {uses: ingest.url_list, path: a, shard_row: 5}\n",
        *("unknown key 'shard_row'", "mine.yaml:2, stage 'pool'", "'shard_rows'"),
    ),
    "a mistyped inner key": Case(
        TEXTS
        + "  keep:\n    uses: select.where\n    from: lang\n    top:\n"
        + "      column: language_confidence\n      fractoin: 0.5\n      fraction: 0.5\n",
        *("unknown key 'top.fractoin'", "mine.yaml:9", "'fraction'"),
    ),
    "a mistyped key in a list": Case(
        TEXTS
        + "  same:\n    uses: dedup.exact\n    from: lang\n    by: url\n    keep:\n"
        + "      - {column: language_confidence, order: desc, ordr: asc}\n",
        *("unknown key 'keep.ordr'", "mine.yaml:9", "'order'"),
    ),
    "a missing setting": Case(
        "  pool: {uses: ingest.url_list}\n",
        "`path` is missing",
        "mine.yaml:2",
        "write path: text, not empty (a file,",
    ),
    "a wrong type": Case(
        "  pool: {uses: ingest.url_list, path: a, shard_rows: many}\n",
        *(
            "shard_rows is 'many'",
            "mine.yaml:2, stage 'pool', key 'shard_rows'",
            "write shard_rows: a whole number, at least 1",
        ),
    ),
    "a value out of range": Case(
        "  pool: {uses: ingest.url_list, path: a, shard_rows: 0}\n",
        *("shard_rows is 0", "mine.yaml:2, stage 'pool', key 'shard_rows'", "at least 1"),
    ),
    "a share above 1": Case(
        TEXTS
        + "  best:\n    uses: select.where\n    from: lang\n"
        + "    top:\n      column: language_confidence\n      fraction: 1.5\n",
        *("top.fraction is 1.5", "mine.yaml:9", "write fraction: a number, above 0, at most 1"),
    ),
    "an empty path": Case(
        "  pool: {uses: ingest.url_list, path: ''}\n", "path is ''", "mine.yaml:2", "not empty"
    ),
    "a value in a list out of range": Case(
        TEXTS + "  uids: {uses: export.parquet, from: lang, columns: [url, '']}\n",
        *("columns is ''", "mine.yaml:4, stage 'uids', key 'columns'", "not empty"),
    ),
    "a nested setting left out": Case(
        TEXTS + "  best: {uses: select.where, from: lang, top: {fraction: 0.5}}\n",
        *("`top.column` is missing", "mine.yaml:4, stage 'best', key 'top'", "write column: text"),
    ),
    "a top without a size": Case(
        TEXTS + "  best: {uses: select.where, from: lang, top: {column: language_confidence}}\n",
        *("neither fraction nor rows", "mine.yaml:4, stage 'best', key 'top'", "one of the two"),
    ),
    "a wrong choice": Case(
        TEXTS.replace("from: pool", "from: pool, model: lid"),
        "model is 'lid'",
        "mine.yaml:3",
        "write model: one of: cld3-datacomp, cld3-laion, lid",
    ),
    "an unknown model": Case(
        POOL + "  emb: {uses: embed.clip, from: pool, model: refrence}\n",
        *("'refrence'", "mine.yaml:3", "reference"),
    ),
    # Edges
    "an edge to nothing": Case(
        TEXTS.replace("from: pool", "from: pol"),
        *("no stage 'pol'", "mine.yaml:3, stage 'lang', key 'from'", "'pool'"),
    ),
    "no edge": Case(
        TEXTS.replace(", from: pool", ""), "needs rows", "mine.yaml:3", "from: <stage>"
    ),
    "an edge into a root": Case(
        TEXTS + "  more: {uses: ingest.url_list, path: a, from: lang}\n",
        *("takes no `from`", "mine.yaml:4", "nothing; it is a root"),
    ),
    "a cycle": Case(
        POOL
        + "  one: {uses: annotate.language, from: two}\n"
        + "  two: {uses: annotate.caption, from: one}\n",
        *("a cycle: one -> two -> one", "mine.yaml:3", "break it"),
    ),
    "an edge of the wrong kind": Case(
        TEXTS
        + "  uids: {uses: export.uid_list, from: lang}\n"
        + "  more: {uses: annotate.caption, from: uids}\n",
        *("'uids' gives data, and `from` takes rows", "mine.yaml:5", "`data`"),
    ),
    "rows as data": Case(
        TEXTS.replace("from: pool", "data: pool"),
        *("'pool' gives rows, and `data` takes data", "mine.yaml:3", "`from`"),
    ),
    "two roots": Case(
        TEXTS.replace("from: pool", "from: [pool, other]")
        + "  other: {uses: ingest.url_list, path: b}\n",
        *("rows of two roots meet: pool, other", "mine.yaml:3", "ingest.union"),
    ),
    "only on what selects nothing": Case(
        TEXTS.replace("from: pool", "from: pool, only: pool"),
        *("'pool' writes no `keep`", "mine.yaml:3", "a select stage"),
    ),
    "only for the whole pool": Case(
        select("language = 'en'") + "  uids: {uses: export.uid_list, from: pool, only: keep}\n",
        *("takes no `only`", "mine.yaml:5", "row stages"),
    ),
    "only where rows is meant": Case(
        select("language = 'en'")
        + "  uids: {uses: export.uid_list, from: pool}\n"
        + "  clip: {uses: train.clip, data: uids, only: keep}\n",
        *("takes no `only`", "mine.yaml:6, stage 'clip', key 'only'", "write `rows: keep`"),
    ),
    "rows of what selects nothing": Case(
        TEXTS
        + "  uids: {uses: export.uid_list, from: pool}\n"
        + "  clip: {uses: train.clip, data: uids, rows: lang}\n",
        *("'lang' writes no `keep`", "mine.yaml:5, stage 'clip', key 'rows'", "a select stage"),
    ),
    "rows of another root": Case(
        select("language = 'en'")
        + "  other: {uses: ingest.url_list, path: b}\n"
        + "  uids: {uses: export.uid_list, from: other}\n"
        + "  clip: {uses: train.clip, data: uids, rows: keep}\n",
        *("'keep' selects rows of 'pool', and 'uids' holds rows of 'other'", "mine.yaml:7"),
        "name a select stage over 'other', or an export of 'pool'",
    ),
    "rows of a model's results": Case(
        select("language = 'en'")
        + "  zero: {uses: evaluate.zero_shot, model: reference, tasks: a}\n"
        + "  clip: {uses: train.clip, data: zero, rows: keep}\n",
        *("'zero' (evaluate.zero_shot) holds no rows of a pool", "mine.yaml:6", "an export"),
    ),
    "rows without data": Case(
        select("language = 'en'") + "  clip: {uses: train.clip, rows: keep}\n",
        *("train.clip needs a dataset", "mine.yaml:5", "write `data: <export stage>`"),
    ),
    "rows of a stage's own rows": Case(
        select("language = 'en'") + "  set: {uses: export.parquet, from: pool, rows: keep}\n",
        *("`rows` says which rows of `data` are read", "mine.yaml:5", "write `from: keep`"),
    ),
    "rows and data for one of them": Case(
        select("language = 'en'")
        + "  uids: {uses: export.uid_list, from: keep}\n"
        + "  set: {uses: export.webdataset, from: pool, data: uids}\n",
        *("export.webdataset takes `from` or `data`, and both", "mine.yaml:6", "leave one"),
    ),
    "neither rows nor data": Case(
        POOL + "  set: {uses: export.webdataset}\n",
        *("export.webdataset needs rows or a dataset", "mine.yaml:3", "`from: <stage>` or `data"),
    ),
    "rows where no data is taken": Case(
        select("language = 'en'") + "  look: {uses: annotate.caption, from: pool, rows: keep}\n",
        *("unknown key 'rows'", "mine.yaml:5, stage 'look', key 'rows'", "annotate.caption"),
    ),
    # Columns
    "a column of no ancestor": Case(
        select("langage = 'en'"),
        *("no ancestor writes column 'langage'", "mine.yaml:4, stage 'keep'", "'language'"),
    ),
    "a column of two ancestors": Case(
        TWICE.replace("WHERE", "language = 'en'"),
        *("'again' and 'lang'", "mine.yaml:5", "again.language or lang.language"),
    ),
    "a column of no such stage": Case(
        TWICE.replace("WHERE", "lnag.language = 'en'"),
        "'lnag'",
        "mine.yaml:5",
        "did you mean 'lang'",
    ),
    "a column its stage does not write": Case(
        TWICE.replace("WHERE", "lang.languages = 'en'"), "'languages'", ":5", "'language'"
    ),
    "a binding of nothing read": Case(
        TEXTS.replace("from: pool", "from: pool, read: {image: pool.url}"),
        *("the stage reads no 'image'", "mine.yaml:3", "it reads: text"),
    ),
    "a binding that is no column": Case(
        TEXTS.replace("from: pool", "from: pool, read: {text: 3}"), "3", "mine.yaml:3", "stage.col"
    ),
    "a binding of another type": Case(
        select("language = 'en'")
        + "  more: {uses: annotate.caption, from: keep, read: {text: keep}}",
        *("keep.keep is bool, and 'text' is string", "mine.yaml:5", "bind another column"),
    ),
    "a keeper that is no mapping": Case(
        POOL + "  same: {uses: dedup.exact, from: pool, by: url, keep: width}",
        *("keep is 'width'", "mine.yaml:3", "write keep: {column: …, order: …}"),
    ),
    "an unquoted comma in braces": Case(
        POOL + "  keep: {uses: select.where, from: pool, where: COALESCE(a, 0) < 3}",
        *("unknown key '0) < 3'", "mine.yaml:3", "in quotes"),
    ),
    "a keeper by what has no order": Case(
        POOL + "  same: {uses: dedup.exact, from: pool, by: url, keep: {column: text, order: asc}}",
        *("pool.text is string, and 'text' is double", "mine.yaml:3", "`keep` ranks by numbers"),
    ),
    # Conditions
    "an aggregate": Case(select("url = MAX(url)"), "aggregate", "mine.yaml:4", "`top`"),
    "a subquery": Case(select("url IN (SELECT 1)"), "subquery", "mine.yaml:4", "select.uid_list"),
    "no SQL": Case(
        select("url = = 3"), "not SQL", "mine.yaml:4, stage 'keep', key 'where'", "mend it"
    ),
    "a thousand conditions": Case(
        select(" AND ".join(["url <> 'a'"] * 1000)), "2,999 words", "mine.yaml:4", "`a IN (…)`"
    ),
    "a thousand alternatives": Case(
        select(" OR ".join(["url = 'a'"] * 1000)), "2,999 words", "mine.yaml:4", "`a IN (…)`"
    ),
    "a condition in brackets": Case(
        select("(" * 200 + "true" + ")" * 200), "nested more than 40 deep", "mine.yaml:4", "take"
    ),
    "a condition of sums": Case(
        select("1 = 1" + " + 1" * 100), "nested more than 40 deep", "mine.yaml:4", "take"
    ),
    "a condition denied": Case(
        select("NOT " * 400 + "true"), "nested more than 40 deep", "mine.yaml:4", "take"
    ),
    "a number against text": Case(
        select("language_confidence >= 'high'"),
        *("compares a number with text", "mine.yaml:4, stage 'keep', key 'where'"),
        "language_confidence is a number (float): compare it with a number",
    ),
    "a number in quotes": Case(
        select("language_confidence >= '0.5'"),
        *("compares a number with text", "mine.yaml:4", "write 0.5, without quotes"),
    ),
    "text against a number": Case(
        select("language = 3"), "compares text with a number", ":4", "write '3', in quotes"
    ),
    "a text without quotes": Case(
        select("language = en"),
        *("no ancestor writes column 'en'", "mine.yaml:4", "did you mean 'en' in single quotes?"),
    ),
    "a text in double quotes": Case(
        TEXTS + "  keep: {uses: select.where, from: lang, where: 'language IN (\"en\")'}\n",
        *("no ancestor writes column 'en'", "mine.yaml:4", "did you mean 'en' in single quotes?"),
    ),
    "a column of three parts": Case(
        select("a.b.c > 1"), "`a.b.c` names no column", ":4", "write `column` or `stage.column`"
    ),
    "a condition that breaks off": Case(
        select("language = 'en' AND"),
        *("something is missing beside `AND`", "mine.yaml:4", "is a condition"),
    ),
    "a quote left open": Case(select("language = 'en"), "a quote is not closed", ":4", "close it"),
    "two conditions": Case(select("true; false"), "not one condition", "mine.yaml:4", "AND"),
    # Arguments
    "--set of a condition that names no column": Case(
        select("true"),
        *("'langage'", "mine.yaml:4, stage 'keep', --set keep.where=langage", "'language'"),
        arguments=("keep.where=langage = 'en'",),
    ),
    "--set of an alias": Case(
        POOL, "an alias, *a", "--set pool.path=", "write", arguments=("pool.path=[&a [*a]]",)
    ),
    "--set of a deep value": Case(
        POOL, "20 deep", "--set pool.path=", "few", arguments=("pool.path=" + "[" * 5000,)
    ),
    "--set of a deep key": Case(
        POOL, "20 deep", "--set pool.a.a", "stage.key", arguments=("pool" + ".a" * 5000 + "=1",)
    ),
    "--set of a long condition": Case(
        select("true"),
        *("nested more than 40 deep", "--set keep.where=((", "take"),
        arguments=("keep.where=" + "(" * 300 + "true" + ")" * 300,),
    ),
}


@pytest.mark.slow("each is a command")
def test_a_wrong_recipe_is_refused_before_anything_is_written(clipmill, tmp_path):
    recipe = tmp_path / "mine.yaml"
    wrong = []
    for name, case in CASES.items():
        recipe.write_text(case.head + case.stages)
        sets = [part for text in case.arguments for part in ("--set", text)]
        said = clipmill("run", recipe, "--out", tmp_path / "run", *sets)
        parts = re.fullmatch(r"clipmill: (.*)\n  where: (.*)\n  do:    (.*)\n", said.err, re.DOTALL)
        found, where, do = parts.groups() if parts else ("", "", "")
        is_told = case.found in found and case.where in where and case.do in found + do
        is_clean = said.out == "" and list(tmp_path.iterdir()) == [recipe]
        if not (parts and is_told and is_clean and said.code == 2):
            wrong.append(f"{name}: ended with {said.code}, said\n{said.out}{said.err}")
    assert not wrong, "\n".join(wrong)
