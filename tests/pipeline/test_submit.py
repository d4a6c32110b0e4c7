"""`clipmill submit` to a head that runs nothing; to a real one: tests/chaos/test_submit.py."""

import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from functools import lru_cache
from pathlib import Path

import pytest

from clipmill.pipeline import jobs, own_code, submit
from tests.engine_stages.harness import STAGES
from tests.pipeline.head import CUT, Head
from tests.test_docs import BLOCK, DOCUMENTS

ROOT = Path(__file__).parents[2]
RECIPE = """
stages:
  pool:   {uses: ingest.datacomp, path: pool/metadata, shard_rows: 30}
  images: {uses: download.images, from: pool}
"""
PACKED = submit.packed
LISTED = {"submission_id": "clipmill-it-1", "status": "RUNNING"}


@pytest.fixture(scope="module")
def packages():
    """Zips by what is in them: to pack all our code takes longer than most tests here."""
    return lru_cache(lambda held: PACKED(dict(held)))


@pytest.fixture
def head(packages, monkeypatch):
    monkeypatch.setattr(submit, "packed", lambda sent: packages(tuple(sent.items())))
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "no-such-file")
    head = Head()
    yield head
    head.close()


@pytest.fixture
def elsewhere(head):
    """The head of a cluster with other machines, perhaps behind a tunnel from loopback."""
    head.machines = [["head-pod", "worker-pod"]]
    return head


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the user is, with a recipe and the pool it names, under either name of the docs."""
    monkeypatch.chdir(tmp_path)
    for name in ("it.yaml", "bench.yaml"):
        (tmp_path / name).write_text(RECIPE)
    (tmp_path / "pool" / "metadata").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def send(clipmill, folder, head):
    """Submits the recipe with more arguments."""

    def submitted(*more: str, out: str = "s3://bucket/run", address: str | None = None):
        at = address or head.address
        return clipmill("submit", "it.yaml", "--address", at, "--out", out, *more)

    return submitted


def run_arguments(head: Head) -> list[str]:
    """What the one job that was made gives `clipmill run`."""
    [job] = head.sent
    program, verb, *arguments = shlex.split(job["entrypoint"])
    assert (program, verb) == ("clipmill", "run")
    return arguments


# What is sent


def test_the_job_is_the_run_that_was_asked_for(head, send):
    said = send("--until", "images", "--retry", "timeout", "--workers", "3", "--keep-going")
    assert (said.code, said.out) == (0, "done\n")
    assert run_arguments(head) == [
        *("recipe/it.yaml", "--out", "s3://bucket/run", "--executor=ray", "--address=auto"),
        *("--until=images", "--retry=timeout", "--keep-going", "--workers=3"),
        f'--set=pool.path="{os.getcwd()}/pool/metadata"',
    ]


def test_what_the_stages_need_is_installed_where_that_is_asked_for(head, send):
    said = send("--install")
    assert said.code == 0
    [job] = head.sent
    assert job["entrypoint"].startswith("python -m clipmill.pipeline.cli run recipe/it.yaml ")
    packages = job["runtime_env"]["pip"]
    assert {"pyarrow>=26", "opencv-python-headless>=4.11", "botocore>=1.36"} <= {*packages}
    assert not [name for name in packages if name.startswith(("ray", "torch", "clipmill"))]
    assert "\n  pyarrow>=26\n" in said.err


def test_what_an_own_stage_imports_of_its_own_is_installed_too(head, send, own):
    with (own / "power.py").open("a") as power:
        power.write("\nfrom . import _helping\n")
    (own / "_helping.py").write_text("def late():\n    import duckdb\n")
    assert send("--install").code == 0
    assert [name for name in head.sent[0]["runtime_env"]["pip"] if name.startswith("duckdb")]


def test_an_override_travels_whatever_is_in_it(head, send):
    assert send("--set", "images.user_agent_token=it's $HOME; exit").code == 0
    assert "--set=images.user_agent_token=it's $HOME; exit" in run_arguments(head)


@pytest.fixture
def own(folder) -> Path:
    """A folder of own stages with files that nobody declared, and the recipe that uses two."""
    copied = folder / "stages" / "toy"
    shutil.copytree(STAGES / "stages" / "toy", copied)
    (copied / "__pycache__").mkdir(exist_ok=True)
    for name in ("__pycache__/power.pyc", ".env", "key.pem", "credentials.json", "photo.png"):
        (copied / name).write_text("not declared")
    (copied / "words.txt").write_text("declared")
    with (copied / "power.py").open("a") as power:
        power.write('\nFILES = ("words.txt",)\n')
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "secret.py").write_text("a link's target")
    (copied / "linked").symlink_to(folder / "elsewhere")
    (folder / "stages" / "pool-0123").mkdir()  # as in a run folder
    (folder / "stages" / "pool-0123" / "000000.parquet").touch()
    (folder / "it.yaml").write_text(
        "stages:\n  numbers: {uses: toy.numbers, path: pool}\n"
        "  square: {uses: toy.power, from: numbers}\n"
    )
    return copied


def test_the_package_holds_the_recipe_the_code_that_planned_it_and_what_it_declares(
    head, send, folder, own
):
    said = send()
    assert said.code == 0
    [(name, data)] = head.packages.items()
    assert head.sent[0]["runtime_env"] == {"working_dir": f"gcs://{name}"}
    package = zipfile.ZipFile(io.BytesIO(data))
    names = set(package.namelist())
    ours = {name for name in names if name.startswith("clipmill/")}
    python = {path.name for path in (STAGES / "stages" / "toy").glob("*.py")}
    theirs = {f"recipe/stages/toy/{it}" for it in (*python, "words.txt")}
    assert names - ours == {"recipe/it.yaml", *theirs}
    listed = (line.split() for line in said.err.splitlines() if "  recipe/" in line)
    assert {name: int(size.replace(",", "")) for size, name in listed} == {
        name: package.getinfo(name).file_size for name in names - ours
    }
    assert f"clipmill/ ({len(ours)} files)" in said.err

    there = folder / "there"
    package.extractall(there)
    program = (
        "import sys\nfrom clipmill import metadata, pipeline\n"
        "from clipmill.pipeline.cli import main\n"
        "print(pipeline.__file__, metadata.__file__)\n"
        "sys.exit(main(['plan', 'recipe/it.yaml']))"
    )
    planned = subprocess.run(
        [sys.executable, "-c", program],
        cwd=there,
        env={**os.environ, "PYTHONPATH": "", own_code.VARIABLE: ""},
        capture_output=True,
        text=True,
    )
    assert planned.returncode == 0, planned.stderr
    files = (f"{there}/clipmill/{it}/__init__.py" for it in ("pipeline", "metadata"))
    assert planned.stdout.startswith(" ".join(files))
    assert "  square   toy.power    from numbers\n" in planned.stdout


def test_equal_code_is_one_package_and_is_sent_once(head, send, folder, monkeypatch):
    monkeypatch.setattr(submit, "packed", PACKED)
    assert send().code == 0
    os.utime(folder / "it.yaml", (0, 0))
    assert send().code == 0
    assert len({job["runtime_env"]["working_dir"] for job in head.sent}) == 1
    assert sum(asked.startswith("PUT") for asked in head.asked) == 1


def test_one_of_our_recipes_goes_by_its_name(head, clipmill, folder):
    arguments = ("--out", "s3://b/run", "--set", "pool.path=/pool")
    assert clipmill("submit", "smoke", "--address", head.address, *arguments).code == 0
    assert run_arguments(head)[0] == "recipe/smoke.yaml"


def test_the_head_is_shown_the_token_that_ray_would_show(head, send, folder, monkeypatch):
    head.token = "open sesame"
    refused = send()
    assert refused.code == 2
    assert "set RAY_AUTH_TOKEN" in refused.err
    (folder / "token").write_text("open sesame\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
    assert send().code == 0
    monkeypatch.setenv("RAY_AUTH_TOKEN", "open sesame")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "no-such-file")
    said = send()
    assert said.code == 0
    assert "sesame" not in said.out + said.err + str(head.sent)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a release has no list of its files")
def test_of_clipmill_all_that_is_in_the_repository_travels_and_nothing_else(folder):
    command = ["git", "ls-files", "metadata", "pipeline", "stages", "clipmill/__init__.py"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = {name.removeprefix("clipmill/") for name in submit.contents(folder / "it.yaml")}
    wanted = {name.removeprefix("clipmill/") for name in tracked.stdout.split()}
    assert names - {"recipe/it.yaml"} == {
        name for name in wanted if not name.startswith("pipeline/pools/")
    }


def test_a_dry_run_prints_each_file_with_its_size_and_asks_nobody(head, send, own):
    said = send("--dry-run")
    assert said.code == 0
    first, *lines = said.out.splitlines()
    assert re.fullmatch(r"\d{3} files travel, [\d,]{7,} bytes:", first)
    assert f"{len('declared'):>13}  recipe/stages/toy/words.txt" in lines
    assert not re.search("pem|credentials|photo|secret|parquet", said.out)
    assert head.asked == []


# What is not sent


@pytest.mark.parametrize("name", ["secret.py", "../toy/words.txt", "/etc/hostname"])
def test_a_file_that_leads_out_of_its_folder_is_refused_by_name(name, head, send, own, folder):
    if name == "secret.py":
        (own / name).symlink_to(folder / "elsewhere" / name)
    else:
        (own / "mine.py").write_text(f"FILES = ({name!r},)")
    said = send()
    assert said.code == 2
    assert f"'{Path(name).name}' leads out of its folder" in said.err
    assert "put a copy in the folder" in said.err
    assert head.asked == []


@pytest.mark.parametrize(
    "wrong",
    [
        *(("--set", "images.tries=3"), ("--set", "nothing.path=1"), ("--until", "embedding")),
        *(("--retry", "hunger"), ("--workers", "-1"), ("--workers", "two")),
    ],
)
def test_what_plan_refuses_is_refused_here_and_the_head_is_not_asked(wrong, head, send):
    assert send(*wrong).code == 2
    assert head.asked == []


@pytest.mark.parametrize("address", ["HOST:8265", "auto", "ray://host:10001", "http://me:pw@host"])
def test_an_address_that_is_no_dashboards_is_refused(address, send):
    said = send(address=address)
    assert said.code == 2
    assert "give http://HOST:8265" in said.err
    assert "pw" not in said.err


def test_where_nobody_listens_is_said_at_once(send):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    said = send(address=f"http://127.0.0.1:{port}")
    assert said.code == 2
    assert f"--address http://127.0.0.1:{port}" in said.err
    assert "no Ray head answers: Cannot connect" in said.err
    assert time.monotonic() - began < 5


def test_who_listens_and_does_not_answer_is_given_up(send, monkeypatch):
    monkeypatch.setattr(submit, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = send(address=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert said.code == 2
    assert "no Ray head answers: TimeoutError" in said.err


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/api/version", (404, "not here")),
        ("/api/version", (200, "<html>a shop</html>")),
        ("/api/jobs/", (500, "No available agent to submit job")),
    ],
)
def test_what_is_no_head_or_no_whole_one_is_told_with_its_words(path, answer, head, send):
    head.broken[path] = answer
    said = send()
    assert said.code == 2
    assert answer[1] in said.err
    assert "ray[default]" in said.err


def test_a_package_that_is_refused_says_what_to_do(head, send):
    head.broken["/api/packages/.*"] = (413, "too large")
    said = send()
    assert said.code == 2
    assert re.search(r"a package of [\d,]+ bytes is refused: 413 too large", said.err)
    assert "keep big files out of your folder of stages" in said.err
    assert head.sent == []


# Keys


@pytest.mark.parametrize("place", ["out", "set", "hidden", "recipe"])
def test_keys_are_refused_wherever_they_stand_and_never_shown(place, head, send, folder):
    uri = "s3://AKIA1:hush+hush@bucket/pool"
    if place == "recipe":
        (folder / "it.yaml").write_text(RECIPE.replace("pool/metadata", f'"{uri}"'))
    said = {
        "out": lambda: send(out=uri),
        "set": lambda: send("--set", f"pool.path={uri}"),
        "hidden": lambda: send("--set", f"pool.path={uri}", "--set", "pool.path=/pool"),
        "recipe": send,
    }[place]()
    assert said.code == 2
    assert re.search("keys in (pool.path=)?s3://bucket/pool\n", said.err)
    assert "AWS_ACCESS_KEY_ID" in said.err
    assert "hush" not in said.out + said.err
    assert head.asked == []


# Paths


def test_where_all_the_cluster_is_this_machine_a_path_means_what_it_means_here(head, send, folder):
    assert send(out="run").code == 0
    arguments = run_arguments(head)
    assert arguments[2] == f"{folder}/run"
    assert f'--set=pool.path="{folder}/pool/metadata"' in arguments


def test_a_head_that_has_not_met_itself_yet_is_asked_again(head, send, folder):
    head.machines = [[], [], *head.machines]
    assert send(out="run").code == 0
    assert run_arguments(head)[2] == f"{folder}/run"


@pytest.mark.parametrize("machines", [["head-pod"], [socket.gethostname(), "worker-pod"]])
def test_a_relative_run_folder_is_refused_where_other_machines_are(machines, head, send):
    head.machines = [machines]
    said = send("--set", "pool.path=/mounted/pool", out="run")
    assert said.code == 2
    assert "where: --out" in said.err
    assert "give a URI" in said.err
    assert head.sent == []


def test_a_relative_path_in_the_recipe_is_refused_where_other_machines_are(elsewhere, send):
    said = send()
    assert said.code == 2
    assert "'pool/metadata' lies in a folder of this machine" in said.err
    assert "where: it.yaml:3, stage 'pool', key 'path'" in said.err
    assert elsewhere.sent == []


def test_a_whole_path_there_is_taken_with_a_warning(elsewhere, send):
    said = send("--set", "pool.path=/mounted/pool", out="/mounted/run")
    assert said.code == 0
    assert "/mounted/run must be mounted by every machine there" in said.err
    assert run_arguments(elsewhere)[2] == "/mounted/run"


# A job of the same run


def test_a_job_that_works_in_the_run_folder_is_told_with_what_to_do(head, send, folder):
    head.jobs = [LISTED | {"metadata": {"clipmill_out": f"{folder}/run"}}]
    said = send(out="run")
    assert said.code == 2
    assert f"job clipmill-it-1 at {head.address} works in this run folder" in said.err
    stop = f"clipmill submit --stop --out {folder}/run --address {head.address}"
    assert stop in said.err
    assert head.sent == []
    assert send(out="other").code == 0


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_job_that_has_ended_is_in_nobodys_way(status, head, send):
    mine = {"clipmill_out": "s3://bucket/run"}
    head.jobs = [
        LISTED | {"metadata": mine, "status": status},
        {"submission_id": None, "type": "DRIVER", "status": "RUNNING", "metadata": None},
        {"submission_id": "another's", "status": "PENDING", "metadata": {}},
    ]
    assert send().code == 0
    assert head.sent[0]["metadata"] == mine


# How it is followed


@pytest.mark.parametrize(
    ("ended", "code", "words"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, ""),
        ({"status": "SUCCEEDED"}, 0, ""),
        ({"status": "FAILED", "driver_exit_code": 1}, 1, ""),
        ({"status": "FAILED", "driver_exit_code": 2}, 2, ""),
        ({"status": "FAILED", "driver_exit_code": 130}, 130, ""),
        ({"status": "FAILED", "driver_exit_code": -9}, 1, "it died, exit code -9"),
        ({"status": "FAILED", "driver_exit_code": 127}, 1, "no `clipmill` there"),
        ({"status": "FAILED", "message": "no room for it"}, 1, "did not start: no room for it"),
        ({"status": "STOPPED"}, 130, "was stopped; submit again to go on"),
    ],
)
def test_the_exit_code_is_that_of_the_run(ended, code, words, head, send):
    head.ended = ended
    said = send()
    assert (said.code, said.out) == (code, "done\n")
    assert words in said.err


@pytest.mark.parametrize(
    "logs",
    [
        [["one\n", "two\n", "three\n"]],
        [["one\n", CUT], ["one\ntw", CUT], [CUT], ["one\n", "two\n", "three\n"]],
        [["one\ntwo\n"], ["one\ntwo\nthree\n"]],  # the head ended it early
    ],
)
def test_a_log_is_printed_whole_and_once_whatever_becomes_of_connections(logs, head, send):
    head.logs = logs
    said = send()
    assert (said.code, said.out) == (0, "one\ntwo\nthree\n")


def test_a_run_that_says_nothing_for_long_is_followed_on(head, send, monkeypatch):
    monkeypatch.setattr(jobs, "ANSWER_S", 0.2)
    monkeypatch.setattr(submit, "LOST_S", 0.0)
    head.pause_s = 0.6
    head.ended = {"status": "SUCCEEDED"}
    assert send().out == "done\n"
    assert sum(asked.endswith("/tail") for asked in head.asked) == 1


def test_a_head_that_is_lost_for_good_ends_it_with_what_to_do(head, send, monkeypatch):
    monkeypatch.setattr(submit, "LOST_S", 0.1)
    head.broken = {"/api/jobs/clipmill-.*": (503, "going down")}
    said = send()
    assert (said.code, said.out) == (1, "")
    assert "the head does not answer any more" in said.err
    assert "a job that still runs is found" in said.err


def test_no_wait_ends_when_the_job_is_made(head, send):
    said = send("--no-wait")
    assert (said.code, said.out) == (0, "")
    follow = f"clipmill submit --logs --out s3://bucket/run --address {head.address}"
    assert f"  follow it: {follow}\n" in said.err
    assert head.asked[-1] == "POST /api/jobs/"


def test_stopped_by_hand_the_job_goes_on_and_it_is_said_how_to_follow_and_stop_it(head, folder):
    head.logs = [["one\n", "two\n"]]
    head.ended = {"status": "RUNNING"}
    command = ["submit", "it.yaml", "--out", "run", "--address", head.address]
    process = subprocess.Popen(
        [sys.executable, "-m", "clipmill.pipeline.cli", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "one\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    _, _, after = err.partition("not followed any more; the job goes on\n")
    at = f"--out {folder}/run --address {head.address}"
    assert f"follow it: clipmill submit --logs {at}\n" in after
    assert f"stop it:   clipmill submit --stop {at}\n" in after
    assert "Traceback" not in err
    assert not [asked for asked in head.asked if "stop" in asked]


# A job that was sent


@pytest.fixture
def ask(clipmill, folder, head):
    """Asks about the job of a run folder."""
    mine = {"clipmill_out": f"{folder}/run"}
    head.jobs = [
        {"submission_id": None, "type": "DRIVER", "status": "RUNNING", "metadata": None},
        LISTED | {"metadata": mine, "submission_id": "clipmill-it-0", "start_time": 10**12},
        LISTED | {"metadata": mine, "start_time": 2 * 10**12},
        LISTED | {"metadata": {"clipmill_out": "s3://other"}, "start_time": 3 * 10**12},
    ]

    def ask(what: str, *more: str):
        return clipmill("submit", what, "--out", "run", "--address", head.address, *more)

    return ask


@pytest.mark.parametrize(
    ("ended", "code", "words"),
    [
        ({"status": "RUNNING", "start_time": 1.8e12}, 0, "running, 2027-01-15 08:00:00 UTC"),
        ({"status": "PENDING"}, 0, "pending, not begun"),
        ({"status": "SUCCEEDED", "start_time": 0, "end_time": 0}, 0, "succeeded"),
        ({"status": "FAILED", "driver_exit_code": 2}, 2, "failed"),
        ({"status": "STOPPED"}, 130, "stopped"),
    ],
)
def test_the_status_of_the_last_job_of_a_run_folder_is_told(ended, code, words, head, ask):
    head.ended = ended
    said = ask("--status")
    assert said.code == code
    assert f"job clipmill-it-1 at {head.address}: {words}" in said.out


def test_its_log_is_followed_from_anywhere_and_its_exit_code_is_the_runs(head, ask):
    head.logs = [["one\n", CUT], ["one\n", "two\n"]]
    head.ended = {"status": "FAILED", "driver_exit_code": 1}
    said = ask("--logs")
    assert (said.code, said.out) == (1, "one\ntwo\n")
    assert "GET /api/jobs/clipmill-it-1/logs/tail" in head.asked


def test_it_is_stopped_and_waited_for(head, ask):
    head.ended = {"status": "RUNNING"}
    said = ask("--stop")
    assert said.code == 0
    assert "clipmill-it-1" in said.out
    assert "stopped; submit again to go on" in said.out
    assert head.asked.count("POST /api/jobs/clipmill-it-1/stop") == 1
    assert head.asked.count("GET /api/jobs/clipmill-it-1") == 2  # the first says that it runs


def test_a_job_that_works_on_though_it_was_stopped_is_told(head, ask, monkeypatch):
    monkeypatch.setattr(submit, "STOP_S", 0.0)
    said = ask("--stop")
    assert said.code == 1
    assert "it works on after 0 s" in said.err


def test_a_run_folder_without_a_job_and_a_recipe_too_many_end_with_2(head, ask, clipmill):
    head.jobs = head.jobs[:1]
    said = ask("--status")
    assert said.code == 2
    assert "no job of this run folder" in said.err
    assert "--out as it was submitted" in said.err
    for wrong in (["it.yaml", "--logs"], []):
        said = clipmill("submit", *wrong, "--out", "run", "--address", head.address)
        assert said.code == 2
        assert "RECIPE, or one of --status, --logs and --stop" in said.err


def test_what_the_documents_submit_can_be_submitted(head, clipmill, folder):
    scripts = [
        block["text"].replace("\\\n", "")
        for document in DOCUMENTS
        for block in BLOCK.finditer(document.read_text())
        if block["language"] == "sh"
    ]
    lines = [line for line in "".join(scripts).splitlines() if line.startswith("clipmill submit")]
    assert len(lines) >= 2
    for line in lines:
        command = line.partition(" #")[0].replace("http://HEAD:8265", head.address)
        said = clipmill(*shlex.split(command)[1:])
        assert (said.code, said.out) == (0, "done\n"), f"{line}\n{said.err}"


def test_submitting_imports_no_ray():
    program = (
        "import sys, clipmill.pipeline.submit; sys.exit(len({'ray', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
