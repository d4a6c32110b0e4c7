"""What the documents say is done, word for word.

In a document that is followed, blocks are taken in order, in one empty folder:

- a block whose fence names a file after its language is written to that file;
- ```sh is run line by line, `clipmill` and `python` being those of this environment; a line that
  ends in & goes on beside the others once it has said its first word;
- ```text right after ```sh is what it prints: each line must be there, but for a lone `…`;
- a block under `<!-- not run: reason -->` is passed over.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from clipmill.pipeline.planning.settings import known_uses
from tests.test_layers import SOURCE, imports

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?P<skip><!-- not run[^>]*-->\n)?"
    r"^```(?P<language>\w+)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLLOWED = [
    ROOT / name
    for name in (
        "README.md",
        *(f"docs/start/{name}.md" for name in ("folder", "links", "metadata", "captions")),
        *(f"docs/adding/{kind}-stage.md" for kind in ("row", "server", "dataset")),
        *(f"docs/adding/{name}.md" for name in ("select", "model", "loss")),
        *("docs/training.md", "docs/own-data.md", "docs/troubleshooting.md", "docs/clusters.md"),
        *("docs/bench.md", "docs/exports.md", "docs/evaluating.md"),
        *("docs/python.md", "docs/variants.md", "docs/looking.md"),
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
        pytest.param(path, marks=mark, id=path.relative_to(ROOT).as_posix())
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


def anchors(path: Path) -> set[str]:
    """What a link may name in a document: its headings, as GitHub and mkdocs write them."""
    headings = re.findall(
        r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", it.strip()).lower().replace(" ", "-") for it in headings}


def test_links_lead_somewhere():
    lost = []
    for path in DOCUMENTS:
        for target, anchor in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
            to = path.parent / target if target else path
            is_there = to.exists() and (not anchor or anchor in anchors(to))
            lost += [] if is_there else [f"{path.relative_to(ROOT)}: {target}#{anchor}"]
    assert lost == []


def test_the_documents_can_be_read_in_an_evening():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    pages = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCUMENTS]
    words = {it.relative_to(ROOT).as_posix(): len(it.read_text("utf-8").split()) for it in pages}
    assert sum(words.values()) <= 60_000, words


def test_each_way_in_ends_in_a_training_set_and_shows_a_picture():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    ways = sorted((ROOT / "docs" / "start").glob("*.md"))
    assert len(ways) == 4
    for way in ways:
        page = way.read_text(encoding="utf-8")
        assert f"(start/{way.name})" in index
        assert way in FOLLOWED
        assert re.search(r"export\.webdataset|--to webdataset", page), way.name
        assert f"]({way.stem}.png)" in page  # of what comes out of this kind of data


PAPER = re.compile(r"((?:[A-Z][\w-]+(?:, | and | & )?)+(?: et al\.)?),? \(?((?:19|20)\d\d)\b")


def papers_of(path: Path) -> set[str]:
    """Authors and year of what the `Source:` lines of a file name."""
    text = re.sub(r"\s*\n[ #]*", " ", path.read_text(encoding="utf-8"))
    sources = re.findall(
        r"Source: (.*?)(?:\"\"\"| (?:Error|Example|Run|Departs|Measured|Expects):)", text
    )
    return {" ".join(paper) for it in sources for paper in PAPER.findall(it[:900])}


TRAINERS = """\
A-CLIP, ALIP, CLIP-MoE, CLIP-rocket, CLOC, CLOOB, CWCL, Cross the Gap, DreamLIP, FLAME, FLIP,
LLM2CLIP, LaCLIP, LiT, LightCLIP, Long-CLIP, MLCD, MobileCLIP, Mod-X, ProtoCLIP, SLIP,
Structure-CLIP, TempNet, TinyCLIP, VR-LwF, ZSCL"""


def test_every_paper_on_training_has_a_row_or_is_not_yet():
    listed = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert [name for name in re.split(r",\s", TRAINERS) if name not in listed] == []


def test_every_paper_that_the_source_follows_is_in_the_list_of_papers():
    listed = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    has = {" ".join(paper) for paper in PAPER.findall(listed)}
    missing = {}
    for folder in ("metadata", "pipeline", "stages"):
        for end in ("py", "yaml"):
            for path in (SOURCE / folder).rglob(f"*.{end}"):
                if lost := papers_of(path) - has:
                    missing[path.name] = lost
    assert missing == {}
    assert len(has) >= 50
    tests = re.findall(r"`(tests/[\w/]+\.py)`", listed)
    assert [it for it in tests if not (ROOT / it).is_file()] == []
    for recipe in (SOURCE / "pipeline" / "recipes").glob("*.yaml"):
        name = recipe.stem
        assert (
            f"`{name}`" in listed or name.startswith("datacomp-") or name in ("smoke", "selections")
        )


def test_the_site_shows_every_document_once():
    site = yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8"))

    def files(nav: list | dict | str) -> Iterator[str]:
        if isinstance(nav, str):
            yield nav
        else:
            for it in nav if isinstance(nav, list) else nav.values():
                yield from files(it)

    shown = sorted(it for it in files(site["nav"]) if not it.startswith("stages/"))
    there = {it.relative_to(ROOT / "docs").as_posix() for it in DOCUMENTS[1:]}
    assert shown == sorted(there - {"description.md"})
    kinds = {f"stages/{uses.partition('.')[0]}.md" for uses in known_uses()}
    assert {it for it in files(site["nav"]) if it.startswith("stages/")} == kinds


def test_the_site_links_stages_and_leads_nowhere_outside(tmp_path):
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "export.md").write_text("# export\n\n## export.map\n")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="start/it.md"))
    made = hooks.on_page_markdown(
        "# `export.map`\n`export.map`, `export.none`, [a](../../tests/b.py), [c](../c.md#d)\n"
        "```yaml it.yaml\nuses: `export.map`\n```\n",
        page,
        {"docs_dir": str(tmp_path)},
        None,
    )
    assert made == (
        "# `export.map`\n"
        "[`export.map`](../stages/export.md#exportmap), `export.none`, a, [c](../c.md#d)\n"
        '```yaml title="it.yaml"\nuses: `export.map`\n```\n'
    )


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
