"""What the documents say is done, word for word.

In a document that is followed, blocks are taken in order, in one empty folder:

- a block whose fence names a file after its language is written to that file;
- ```sh is run line by line, `clipmill` and `python` being those of this environment; a line that
  ends in & goes on beside the others once it has said its first word;
- ```text right after ```sh is what it prints: each line must be there, but for a lone `…`;
- a block under `<!-- not run: reason -->` is passed over.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.test_layers import SOURCE, imports

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?P<skip><!-- not run[^>]*-->\n)?"
    r"^```(?P<language>\w+)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLLOWED = [
    ROOT / name
    for name in (
        *("README.md", "docs/adding-a-stage.md", "docs/training.md", "docs/own-data.md"),
        *("docs/troubleshooting.md", "docs/clusters.md", "docs/bench.md", "docs/exports.md"),
        *("docs/evaluating.md", "docs/ledger.md", "docs/python.md", "docs/variants.md"),
        "docs/looking.md",
    )
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    file: str | None
    text: str
    line: int
    is_next: bool  # nothing but empty lines since the block before


def blocks(document: str) -> Iterator[Block]:
    """The blocks that are followed, in order."""
    end = 0
    for found in BLOCK.finditer(document):
        is_next = not document[end : found.start()].strip()
        end = found.end()
        if not found["skip"]:
            line = document.count("\n", 0, found.start("language")) + 1
            yield Block(found["language"], found["file"], found["text"], line, is_next)


class Follower:
    """Does what a document says, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.beside: list[subprocess.Popen] = []
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": "",  # nothing but what is installed, and the folder itself
        }

    def follow(self, document: str, name: str) -> None:
        printed = ""
        for block in blocks(document):
            if block.file:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language == "sh":
                lines = block.text.replace("\\\n", "").splitlines()
                printed = "".join(self.run(line, f"{name}:{block.line}") for line in lines)
            elif block.language == "text" and block.is_next:
                for line in block.text.splitlines():
                    assert line == "…" or line in printed, f"{name}:{block.line}\n{printed}"

    def run(self, line: str, place: str) -> str:
        """What a command prints; it must end well."""
        command = line.partition(" #")[0].strip()
        if command.endswith("&"):
            process = subprocess.Popen(
                ["bash", "-c", command.rstrip("&")],
                start_new_session=True,
                cwd=self.folder,
                env=self.environment | {"PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            self.beside.append(process)
            assert process.stdout is not None
            return process.stdout.readline()
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{place}: {line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def end(self) -> None:
        for process in self.beside:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@pytest.fixture
def follower(tmp_path):
    follower = Follower(tmp_path)
    yield follower
    follower.end()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=mark, id=path.name)
        for path in FOLLOWED
        for mark in [pytest.mark.chaos if path.name == "README.md" else pytest.mark.soak(cpu_s=20)]
    ],
)
def test_a_document_is_true(path, follower):
    follower.follow(path.read_text(encoding="utf-8"), path.name)


def test_documents_that_are_followed_side_by_side_serve_their_pools_at_ports_of_their_own():
    ports = []
    for path in FOLLOWED:
        script = "".join(it.text for it in blocks(path.read_text(encoding="utf-8")))
        if re.search("^clipmill pool serve", script, re.MULTILINE):
            (generated,) = re.findall("^clipmill pool generated.*", script, re.MULTILINE)
            named = re.search(r"--port (\d+)", generated)
            ports.append(int(named[1]) if named else 8765)  # that of `pool generated`
    assert len(set(ports)) == len(ports) >= 3


def test_links_lead_somewhere():
    lost = [
        f"{path.name}: {target}"
        for path in DOCUMENTS
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert lost == []


def the_map() -> dict[str, int]:
    """Every folder and file in design.md's map, with its line."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```text map\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(tree.splitlines()) <= 40
    folders: list[str] = []
    places: dict[str, int] = {}
    for number, line in enumerate(tree.splitlines()):
        names = re.split("  +", line.strip())[0]
        depth = (len(line) - len(line.lstrip())) // 2
        if names.endswith("/"):
            folders[depth:] = [names.split()[-1]]
            places |= {"".join([*folders[:depth], name]): number for name in names.split()}
        else:
            places |= {"".join([*folders[:depth], f"{it}.py"]): number for it in names.split(", ")}
    return places


def place_of(path: str, places: dict[str, int]) -> int:
    """The line of a file, or of the innermost folder that holds it."""
    inner = [path, *(f"{it}/" for it in Path(path).parents)]
    return next(places[it] for it in inner if it in places)


def test_no_figure_is_still_to_be_filled_in():
    places = {
        path.name: re.findall("@[A-Z]+@|TODO|TBD|XXX", path.read_text(encoding="utf-8"))
        for path in DOCUMENTS
    }
    assert not any(places.values()), places


def test_the_map_names_every_folder_and_all_that_lies_between_folders():
    places = the_map()
    there = {
        it.relative_to(SOURCE).as_posix() + "/" * it.is_dir()
        for folder in ("pipeline", "pipeline/ledger", "stages")
        for it in (SOURCE / folder).iterdir()
        if it.is_dir() or (it.suffix == ".py" and it.name != "__init__.py")
    }
    there -= {it for it in there if "__pycache__" in it}
    assert places.keys() == {*there, "pipeline/", "stages/", "metadata/"}


@pytest.mark.slow("reads every module")
def test_imports_go_down_the_map():
    places = the_map()
    for path in sorted((SOURCE / "pipeline").rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        for module, _ in imports(name) if path.name != "__init__.py" else ():
            if module.startswith("pipeline."):
                target = module.replace(".", "/") + ".py"
                line = place_of(target, places)
                assert line >= place_of(name, places), f"{name} imports {module}"


@pytest.mark.slow("reads every module")
def test_no_files_import_each_other_in_a_circle():
    types = {"pipeline/dataset.py", "pipeline/stage.py"}
    unit = {"stages/select/_quotas.py", "stages/select/_quota_path.py"}  # imported when first used
    graph: dict[str, set[str]] = {}
    for folder in ("metadata", "pipeline", "stages"):
        for path in (SOURCE / folder).rglob("*.py"):
            name = path.relative_to(SOURCE).as_posix()
            to = {module.replace(".", "/") + ".py" for module, _ in imports(name)}
            graph[name] = {it for it in to if not any({name, it} <= both for both in (types, unit))}
    TopologicalSorter(graph).prepare()


def test_a_document_is_followed_as_this_file_says(follower, tmp_path):
    document = (
        "```python a/it.py\nprint('one')\nprint('two')\n```\n"
        "```sh\npython a/it.py\necho \\\n  three\n```\n"
        "```text\none\n…\nthree\n```\n"
        "<!-- not run: it would fail -->\n```sh\nfalse\n```\n"
        "```sh\n(echo ready; sleep 60) &   # beside\ntest -f a/it.py\n```\n"
        "```yaml\nnot: a file\n```\n"
        "Nor is this what anything printed:\n```text\nfour\n```\n"
    )
    follower.follow(document, "it.md")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert follower.beside[0].poll() is None


@pytest.mark.parametrize(
    "document", ["```sh\nfalse\n```\n", "```sh\necho one\n```\n\n```text\ntwo\n```\n"]
)
def test_a_document_that_is_not_true_fails(document, follower):
    with pytest.raises(AssertionError, match=r"it\.md:1|it\.md:5"):
        follower.follow(document, "it.md")
