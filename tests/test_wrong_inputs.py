"""Wrong inputs, one a command: each is told what was found, where, and what to do.

More wrong recipes stand in test_bad_recipes.py, wrong rows and pictures in test_bad_input.py
and test_bad_images.py.
"""

import io
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.own_code import VARIABLE

ERROR = re.compile(r"(?:clipmill|\w+): (.*?)\n  where: (.*?)\n  do:    (.*)", re.DOTALL)
POOL = "stages:\n  pool: {uses: ingest.datacomp, path: pool/metadata, shard_rows: 200}\n"
TEXTS = {
    "it.yaml": POOL + "  caption: {uses: annotate.caption, from: pool}\n"
    "  subset: {uses: select.where, from: caption, where: caption_words >= 4}\n"
    "  uids: {uses: export.uid_list, from: subset}\n",
    "tars.yaml": "stages:\n  pool: {uses: ingest.webdataset, path: tars}\n",
    "pictures.yaml": "stages:\n  pool: {uses: ingest.image_folder, path: notes}\n",
    "table.yaml": "stages:\n  pool: {uses: ingest.parquet, path: cut.parquet, url_col: url}\n",
    "links.yaml": "stages:\n  pool: {uses: ingest.url_list, path: one.csv}\n",
    "down.yaml": "stages:\n  pool: {uses: ingest.url_list, path: good.csv, caption_col: caption}\n"
    "  images: {uses: download.images, from: pool, retries: 0}\n",
    "named.yaml": POOL + "  kept: {uses: select.uid_list, from: pool, path: notes/a.md}\n",
    "concepts.yaml": POOL
    + "  con: {uses: annotate.concepts, from: pool, concepts: gone.parquet}\n",
    "tree.yaml": POOL
    + "  near: {uses: cluster.kmeans, from: pool, column: b32_img, clusters: 4}\n"
    + "  tree: {uses: select.balanced_tree, from: near, centroids: gone.parquet, rows: 9, "
    + "levels: [2]}\n",
    "pruned.yaml": POOL
    + "  near: {uses: cluster.kmeans, from: pool, column: b32_img, clusters: 4}\n"
    + "  wide: {uses: select.density, from: near, centroids: gone.parquet, rows: 9}\n"
    + "  far: {uses: select.prototypes, from: near, rows: 9}\n",
    "aims.yaml": POOL
    + "  near: {uses: cluster.kmeans, from: pool, column: b32_img, clusters: 4}\n"
    + "  caption: {uses: annotate.caption, from: pool}\n"
    + '  aims: {uses: select.image_based, from: near, column: b32_img, centroids: "stage:near", '
    + "targets: pool/eval}\n"
    + "  even: {uses: select.sample, from: caption, per: caption_words, at_most: 3}\n",
    "caps.yaml": POOL
    + "  made: {uses: caption.rewrite, from: pool, model: reference}\n"
    + "  sents: {uses: caption.split, from: pool}\n"
    + "  checks: {uses: score.caption, from: made}\n"
    + "  chosen: {uses: select.captions, from: checks}\n"
    + '  keep: {uses: select.where, from: chosen, where: "len(texts) > 1"}\n',
    "sees.yaml": POOL + "  made: {uses: caption.synthesize, from: pool, model: reference}\n",
    "bank.yaml": "instruction: a\npairs:\n  - {source: a, target: ''}\n",
    "prompt.yaml": "id: a\nlabel: short\nmax_tokens: 9\n",
    "tasks.yaml": "stages:\n  zero: {uses: evaluate.zero_shot, model: reference, tasks: notes}\n",
    "good.csv": "url,caption\n"
    + "".join(f"http://127.0.0.1:9/{n}.jpg,number {n} of them\n" for n in range(30)),
    "empty.csv": "",
    "mac.csv": "url,caption\rhttp://127.0.0.1:9/1.jpg,a dog\r",
    "one.csv": "caption\na dog\na cat\n",
    "broken.jsonl": '{"url": \n',
    "numbers.json": "[1, 2]",
    "text.parquet": "url,caption\n",
    "empty.parquet": "",
    "notes/a.md": "xyz\n",
}

# command: what is found, where, what to do; where the exit code is not 2, that too
CASES: dict[str, tuple[str, str, str] | tuple[str, str, str, int]] = {
    # Verbs and options
    "rum it.yaml": ("no verb 'rum'", "clipmill", "did you mean 'run'?"),
    "frobnicate": ("no verb 'frobnicate'", "clipmill", "there are: init, curate"),
    "good.csv": ("no verb 'good.csv'", "clipmill", "clipmill curate good.csv --out run"),
    "it.yaml": ("no verb 'it.yaml'", "clipmill", "clipmill run it.yaml --out run"),
    "--vresion": ("unknown option '--vresion'", "clipmill", "did you mean '--version'?"),
    "run": ("missing: recipe, --out", "clipmill run", "clipmill run --help"),
    "run it.yaml": ("missing: --out", "clipmill run", "clipmill run --help"),
    "run it.yaml --otu r": ("unknown option '--otu'", "clipmill run", "did you mean '--out'"),
    "run it.yaml -o r": ("unknown option '-o'", "clipmill run", "its options are: -h, --help"),
    "run it.yaml r --out r": ("more than it takes: r", "clipmill run", "--help"),
    "run it.yaml --out": ("--out without a value", "clipmill run", "--help"),
    "run it.yaml --out ''": ("an empty path", "--out", "name a folder"),
    "init mac.csv --out m.yaml": ("carriage returns alone", "mac.csv", "tr "),
    "run it.yaml --out r --workers x": ("--workers is 'x'", "clipmill run", "--help"),
    "run it.yaml --out r --workers -1": ("--workers -1", "the arguments", "0 or more"),
    "run it.yaml --out r --address x:1": ("--address without Ray", "the arguments", "--executor"),
    "run it.yaml --out r --executor rya": ("'rya' as --executor", "run", "did you mean 'ray'?"),
    "run it.yaml --out r --retry tiemout": ("'tiemout'", "--retry", "crashed"),
    "status": ("missing: --run", "clipmill status", "clipmill status --help"),
    "stages --josn": ("unknown option '--josn'", "clipmill stages", "did you mean '--json'?"),
    "export --run run --to png --out x": ("'png' as --to", "clipmill export", "there are: parquet"),
    "export --run run --to csv": ("missing: --out", "clipmill export", "--help"),
    "sweep --run run --stage subset": ("missing: --vary", "clipmill sweep", "--help"),
    "pool": ("missing: KIND", "clipmill pool", "clipmill pool --help"),
    "pool dmeo --out x": ("'dmeo' as KIND", "clipmill pool", "did you mean 'demo'?"),
    "pool generated": ("missing: --out", "clipmill pool generated", "pool generated --help"),
    "pool generated --out x --rows many": ("--rows is 'many'", "clipmill pool generated", "--help"),
    "pool generated --out x --rows 0": ("rows=0", "clipmill pool generated", "1 row or more"),
    "concepts": ("missing: KIND", "clipmill concepts", "clipmill concepts --help"),
    "concepts build x --min-pmi y": ("--min-pmi is 'y'", "clipmill concepts build", "--help"),
    "doctor tsk notes": ("'tsk' as", "clipmill doctor", "did you mean 'tasks'?"),
    "plan quickstart --until nosuch": ("no stage 'nosuch'", "--until", "the recipe has: trusted,"),
    "run smoke --out r --retry http_404": (
        *("'http_404' is a reason that does not pass", "--retry", "here: connection_lost"),
    ),
    "concepts show \udcff": ("bytes that are no UTF-8", "the arguments", "rename that file"),
    f"status --run {'x' * 5000}": ("File name too long", "x", ""),
    # Recipes
    "plan gone.yaml": ("no file 'gone.yaml'", "the recipe argument", "check the path"),
    "plan quickstrat": ("no recipe 'quickstrat'", "recipe", "did you mean 'quickstart'?"),
    "plan qqq": ("no recipe 'qqq'", "the recipe argument", "there are: balanced-tree"),
    "plan good.csv": ("'good.csv' is no recipe", "recipe", "clipmill init good.csv"),
    "plan notes": ("'notes' is data", "the recipe argument", "clipmill init notes"),
    "run s3://a/b --out r": ("'s3://a/b' is data", "the recipe argument", "clipmill init s3://a/b"),
    "plan binary.yaml": ("not UTF-8", "binary.yaml", "UTF-8"),
    "recipes smok": ("no recipe 'smok'", "the recipe argument", "did you mean 'smoke'?"),
    "stages clip_score": ("no stage 'clip_score'", "clipmill stages", "'score.clip_score'"),
    "stages ingset": ("no stage 'ingset'", "clipmill stages", "did you mean 'ingest'"),
    "stages zzz": (
        "no stage 'zzz'",
        "clipmill stages",
        "there are: annotate.blur, annotate.caption",
    ),
    "plan it.yaml --until susbet": ("no stage 'susbet'", "--until", "did you mean 'subset'?"),
    "plan it.yaml --set nosuch.a=1": ("no stage 'nosuch'", "--set nosuch.a=1", "seed, pool"),
    "plan it.yaml --set pool": ("no '='", "--set pool", "stage.key=value"),
    "plan it.yaml --set pool=1": ("no key", "--set pool=1", "--set pool.key=value"),
    "plan it.yaml --set seed=x": ("seed is 'x'", "--set seed=x", "whole number"),
    "plan it.yaml --set 'pool.path=[a'": ("not YAML", "--set pool.path=[a", "quote the value"),
    "plan it.yaml --set pool.pth=a": ("unknown key 'pth'", "--set pool.pth=a", "'path'"),
    "plan it.yaml --set pool.shard_rows=x": ("shard_rows is 'x'", "--set", "a whole number"),
    "plan it.yaml --set pool.shard_rows=0": ("shard_rows is 0", "--set", "at least 1"),
    "plan it.yaml --set subset.top=3": ("top is 3", "--set subset.top=3", "top: {column: …"),
    "plan it.yaml --set subset.uses=where": ("`uses` is 'where'", "--set", "kind.name"),
    "plan it.yaml --set subset.uses=select.were": ("'select.were'", "--set", "'select.where'"),
    "plan down.yaml --set images.retries=-1": ("retries is -1", "--set", "at least 0"),
    "plan down.yaml --set images.timeout_s=0": ("timeout_s is 0", "--set", "at least 0.01"),
    "plan down.yaml --set images.encode_format=gif": ("'gif'", "--set", "jpg"),
    "plan tree.yaml": ("no file 'gone.parquet'", "key 'centroids'", "stage:NAME"),
    "plan tree.yaml --set tree.centroids=stage:pool": ("gives rows", "--set", "gives centroids"),
    "plan tree.yaml --set tree.levels=[2,3]": ("from 2 up to 3", "levels", "[500, 50, 10]"),
    "plan tree.yaml --set tree.levels=[0]": ("levels", "--set", "at least 1"),
    "plan tree.yaml --set tree.rows=": ("nothing says how much", "'tree'", "rows: 1000"),
    "plan tree.yaml --set tree.fraction=0": ("fraction is 0", "--set", "above 0"),
    # Captions
    "plan caps.yaml --set made.model=gpt-4": (
        "unknown scheme 'gpt-4'",
        "--set",
        "openai:URL#MODEL",
    ),
    "plan caps.yaml --set made.model=openai:http://h/v1": ("after #", "--set", "in quotes: a #"),
    "plan caps.yaml --set made.model=openai:http://u:p@h/v1#m": (
        *("a URL with a name, a password", "--set", "limits.api_key_env"),
    ),
    "plan caps.yaml --set made.model=gguf:gone.gguf": ("no file 'gone", "--set", "the weights"),
    "plan caps.yaml --set made.styles=[nosuch]": ("no bank 'nosuch'", "--set", "bard, chatgpt"),
    "plan caps.yaml --set made.styles=[bank.yaml]": ("'target' is empty", "bank.yaml:3", "a text"),
    "plan caps.yaml --set made.limits.max_tokens_total=-1": (
        *("limits.max_tokens_total is -1", "--set", "at least 0"),
    ),
    "plan caps.yaml --set checks.captions=[sents.captions]": (
        *("'sents' is no ancestor of 'checks'", "'checks'", "add it to `from`"),
    ),
    "plan caps.yaml --set checks.from=pool": (
        *("no ancestor writes column 'captions'", "'checks'", "writes it: 'made', 'sents'"),
    ),
    "plan caps.yaml --set chosen.from=made": (
        *("no ancestor writes column 'texts'", "'chosen'", "let score.caption come before it"),
    ),
    "plan caps.yaml --set chosen.mix=nosuch": ("mix is 'nosuch'", "--set", "blip2, laclip"),
    "plan caps.yaml --set 'chosen.where=text_word > 1'": (
        "'text_word'",
        "'chosen'",
        "'text_words'",
    ),
    "plan caps.yaml --set 'chosen.where=text_clip_score > 0'": (
        *("'text_clip_score'", "'chosen'", "score.caption come before it, with `model`"),
    ),
    "plan caps.yaml --set 'keep.where=text_words > 1'": (
        *("a list for one value", "--set", "any(text_words"),
    ),
    "plan sees.yaml": (
        *("no ancestor writes column 'image'", "sees.yaml:3", "writes it: download.images"),
    ),
    "plan sees.yaml --set made.model=smollm2": ("texts alone", "--set", "gguf:FILE#PROJECTOR"),
    "plan sees.yaml --set made.prompts=[prompt.yaml]": (
        "no field 'text'",
        "prompt.yaml:1",
        "write",
    ),
    "plan aims.yaml": ("task 'generated_retrieval' has pictures", "'model'", "name the model"),
    "plan aims.yaml --set aims.targets=notes": ("no task in", "--set", "CLIP_benchmark's layout"),
    "plan aims.yaml --set even.rows=3": ("rows and at_most say how much", "'even'", "give one of"),
    "plan aims.yaml --set even.per=reason": ("no ancestor writes column 'reason'", ":6", "columns"),
    "plan aims.yaml --set even.per=cluster_id": (
        *("no ancestor writes column 'cluster_id'", "aims.yaml:6"),
        "add to `from` a stage that writes it: 'near'",
    ),
    "plan pruned.yaml": ("no file 'gone.parquet'", "key 'centroids'", "stage:NAME"),
    "plan pruned.yaml --set wide.centroids=stage:far": ("gives rows", "--set", "gives centroids"),
    "plan pruned.yaml --set wide.centroids=": ("centroids is None", "--set", "text"),
    "plan pruned.yaml --set wide.rows=": ("nothing says how much", "'wide'", "rows: 1000"),
    "plan pruned.yaml --set wide.fraction=0.5": ("rows and fraction", "'wide'", "one of the two"),
    "plan pruned.yaml --set wide.rows=0": ("rows is 0", "--set", "at least 1"),
    "plan pruned.yaml --set far.fraction=0": ("fraction is 0", "--set", "above 0"),
    "plan pruned.yaml --set far.fraction=1.5": ("fraction is 1.5", "--set", "at most 1"),
    "plan pruned.yaml --set wide.tau=0": ("tau is 0", "--set", "above 0"),
    "plan pruned.yaml --set far.balance=1.5": ("balance is 1.5", "--set", "at most 1"),
    "plan pruned.yaml --set wide.order=near": ("order is 'near'", "--set", "hard"),
    "plan named.yaml --set kept.path=": ("path is None", "--set kept.path=", "text"),
    # Folders of runs
    "run it.yaml --out notes": ("holds other files: a.md", "notes", "a new folder"),
    "run it.yaml --out good.csv": ("a file, where a folder is meant", "good.csv", "name a folder"),
    "run it.yaml --out /proc/nosuch": ("no such file or folder", "/proc/nosuch", "check the path"),
    "status --run gone": ("no run", "gone", "check --run"),
    "status --run notes": ("no run", "notes", "check --run"),
    "status --run good.csv": ("a file, where a folder is meant", "good.csv", "name a folder"),
    "funnel --run gone": ("no run", "gone", "check --run"),
    "verify --run gone": ("no run", "gone", "check --run"),
    "report --run gone": ("no run", "gone", "check --run"),
    "why 01234567 --run gone": ("no run", "gone", "check --run"),
    # Questions
    "why zz --run run": ("has the uid, link or caption 'zz'", "run", "check it"),
    "why 00000000 --run run": ("uid, link or caption '00000000'", "run", "check it"),
    "sweep --run run --stage susbet --vary a=1:2:1": ("no stage", "--stage", "'subset'"),
    "sweep --run run --stage pool --vary a=1:2:1": ("no threshold", "--stage", "subset"),
    "sweep --run run --stage subset --vary a=1:2:1": (
        "no threshold 'a'",
        "'subset'",
        "caption_words",
    ),
    "sweep --run run --stage subset --vary a": ("not NAME=START:STOP:STEP", "--vary a", "as in"),
    "sweep --run run --stage subset --vary a=2:1:1": ("range is empty", "--vary", "at most STOP"),
    "sweep --run run --stage subset --vary a=1:9:1e-6": ("values", "--vary", "a wider STEP"),
    "report --run run --baseline raw": ("comes from 'raw'", "--baseline", "evaluate"),
    "report --run run --out gone/a.html": (
        "no such file or folder",
        "gone/a.html",
        "check the path",
    ),
    "report --run run --out notes": ("a folder, where a file is meant", "notes", "name a file"),
    "export --run run --stage susbet --to csv --out x": ("no stage", "--stage", ""),
    "export --run run --stage uids --to csv --out x": ("holds no rows", "--stage", "subset"),
    "export --run run --to parquet --out x": ("needs pictures", "the arguments", "--to csv"),
    "export --run run --to csv --columns b --out x": ("no column 'b'", "--columns", "url"),
    "export --run run --to csv --dropped b --out x": ("lost for 'b'", "--dropped", "caption_words"),
    # Data for init and curate
    "init gone.csv": ("nothing there", "gone.csv", "CSV"),
    "init bare": ("an empty folder", "bare", "CSV"),
    "init 'nothing-*.csv'": ("no file that fits", "nothing-*.csv", "CSV"),
    "init tars": ("unexpected end of data", "tars/0.tar", "put the whole file in its place"),
    "init notes": ("no data that can be read: 1 .md", "notes", "CSV"),
    "init binary.csv": ("bytes that are no text", "binary.csv", "suffix"),
    "init empty.csv": ("no rows", "empty.csv", "give a file that holds some"),
    "init one.csv": ("no column of links or of pictures", "one.csv", "--url NAME"),
    "init empty.parquet": ("0 bytes", "empty.parquet", "put the whole file in its place"),
    "init cut.parquet": ("cannot be read", "cut.parquet", "put the whole file in its place"),
    "init text.parquet": ("cannot be read", "text.parquet", "put the whole file in its place"),
    "init numbers.parquet": ("no column of links", "numbers.parquet", "--url NAME"),
    "init broken.jsonl": ("no rows", "broken.jsonl", "give a file that holds some"),
    "init good.csv --out it.yaml": ("there already", "it.yaml", "another name"),
    "init good.csv --url link --out x.yaml": ("no column 'link'", "good.csv", "url, caption"),
    "init good.csv --keep 3 --out x.yaml": ("--keep 3", "the arguments", "0.3 keeps the best"),
    "init good.csv --keep 0.3 --out x.yaml": ("no score", "good.csv", "--score COLUMN"),
    "init good.csv --keep 0.3 --score b --out x.yaml": ("'b'", "--score", "columns of numbers"),
    "init good.csv --keep 0.3 --model refrence --out x.yaml": ("'refrence'", "emb", "'reference'"),
    "curate good.csv": ("missing: --out", "clipmill curate", "clipmill curate --help"),
    "curate gone.csv --out x": ("nothing there", "gone.csv", "CSV"),
    "curate good.csv --out x --to csv": ("'csv' as --to", "clipmill curate", "webdataset"),
    "curate bare --out x": ("an empty folder", "bare", "CSV"),
    "curate numbers.parquet --out x": ("no column of links", "numbers.parquet", "--url NAME"),
    # Data that a run meets
    "run it.yaml --out r --set pool.path=gone": ("ends in .parquet", "gone", "that holds"),
    "run links.yaml --out r": ("the file has caption", "one.csv", "`caption_col: caption`"),
    "run pictures.yaml --out r": ("ends in .jpg", "notes", "a folder"),
    "run table.yaml --out r": ("cannot be read", "cut.parquet", "put the whole file", 1),
    "run tars.yaml --out r": ("unexpected end of data", "tars/0.tar", "put the whole file", 1),
    "run named.yaml --out r": ("'xyz' is no uid", "a.md", "", 1),
    "run concepts.yaml --out r": ("gone.parquet", "con", ""),
    "run tasks.yaml --out r": ("no task", "notes", "subfolders are tasks"),
    "run down.yaml --out r": ("private_address", "images", "`allow_private_addresses: true`", 1),
    # Pools, concepts, clusters
    "pool generated --out good.csv": (
        "a file, where a folder is meant",
        "good.csv",
        "name a folder",
    ),
    "pool serve gone": ("no such folder", "gone", "clipmill pool generated --out gone"),
    "pool serve notes": ("no pool", "notes", "name a pool's folder"),
    "pool serve pool --port 9": ("name port 8765, not 9", "pool.json", "--port 8765"),
    "pool score notes --run run": ("no truth.parquet", "notes", "a folder of `clipmill pool`"),
    "concepts show gone": ("no such file", "gone", "clipmill concepts build"),
    "concepts show notes": ("is a directory", "notes", "name a file"),
    "concepts show good.csv": ("neither Parquet nor JSON", "concepts show", "concepts build"),
    "concepts show numbers.json": ("nor a JSON list of strings", "show", "concepts build"),
    "concepts build x": ("no source of concepts", "the arguments", "--corpus"),
    "concepts build x --corpus gone": ("no such file or folder", "gone", "check the path"),
    "concepts build x --corpus numbers.parquet": ("no column 'text'", "the arguments", "leave out"),
    "concepts build x --list good.csv": ("neither Parquet nor JSON", "the arguments", "leave out"),
    "submit it.yaml --out s3://a/b": ("missing: --address", "clipmill submit", "--help"),
    "submit it.yaml --address x --out s3://a/b": ("no address of a dashboard", "--address", "http"),
    "submit it.yaml --address http://127.0.0.1:9 --out s3://a/b": (
        *("no Ray head answers", "--address http://127.0.0.1:9", "check the address"),
    ),
}
MODELS = {  # of doctor, whose form is a line on what was found, and one on what to do
    "refrence": ("unknown scheme 'refrence'", "did you mean 'reference'?"),
    "open_clip:ViT-B-32": ("it names no weights", "write open_clip:NAME/TAG"),
    "open_clip:ViT-B-32@gone.pt": ("no such file", "copy the weights there"),
    "checkpoint:bare": ("no model.json", "name the folder that a training stage wrote"),
}


@pytest.fixture(scope="module")
def world(generated, tmp_path_factory) -> Path:
    """A folder of good and of wrong files, and `run`, a finished run."""
    world = tmp_path_factory.mktemp("world")
    for folder in ("notes", "bare", "tars"):
        (world / folder).mkdir()
    (world / "pool").symlink_to(generated)
    for name, text in TEXTS.items():
        (world / name).write_text(text)
    (world / "binary.csv").write_bytes(bytes(range(256)) * 20)
    (world / "binary.yaml").write_bytes(bytes(range(256)))
    pq.write_table(pa.table({"a": [1, 2], "b": [2.0, 3.0]}), world / "numbers.parquet")
    whole = (world / "numbers.parquet").read_bytes()
    (world / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with tarfile.open(world / "tars/0.tar", "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 3000
        tar.addfile(member, io.BytesIO(bytes(3000)))
    tar = (world / "tars/0.tar").read_bytes()
    (world / "tars/0.tar").write_bytes(tar[:2000])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setenv(VARIABLE, "")  # to which the command adds
        assert main(["run", "it.yaml", "--out", "run", "--workers", "0"]) == 0
    return world


@pytest.mark.slow("each is a command")
def test_a_wrong_input_is_told_what_where_and_what_to_do(world, clipmill, monkeypatch):
    monkeypatch.chdir(world)
    there = set(world.iterdir())
    wrong = []
    for command, (found, where, do, *code) in CASES.items():
        words = shlex.split(command)
        if words[0] == "run" and "--workers" not in words:
            words += ["--workers", "0"]
        said = clipmill(*words)
        text = said.out + said.err
        left = set(world.iterdir()) - there
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        is_told = any(
            found in error[0] and where in error[1] and do in error[2] and error[2].strip()
            for error in ERROR.findall(text)
        )
        is_clean = (not left or said.code == 1) and "Traceback" not in text
        if not (is_told and is_clean and said.code == (code[0] if code else 2)):
            wrong.append(f"{command}: ended with {said.code}, wrote {left}, said\n{text}")
    assert not wrong, "\n".join(wrong)


def test_a_model_that_does_not_load_is_told(world, clipmill, monkeypatch):
    monkeypatch.chdir(world)
    wrong = []
    for model, (found, do) in MODELS.items():
        said = clipmill("doctor", "--model", model)
        _, _, told = said.out.partition(f"\nBAD   model {model}")
        line, _, more = told.partition("\n")
        if said.code != 1 or found not in line or not more.strip().startswith(do):
            wrong.append(f"{model}: ended with {said.code}, said\n{said.out}")
    assert not wrong, "\n".join(wrong)


def test_they_are_ninety_and_more_and_differ():
    assert len(CASES) + len(MODELS) >= 90
    assert len({tuple(case) for case in CASES.values()}) >= 90
