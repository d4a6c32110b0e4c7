"""Loads a user's own stages, models and losses from folders `stages/`.

A folder lies beside the recipe, or is named by `--stages`, by CLIPMILL_STAGES, or by a package's
entry point of the group `clipmill.stages`. Its files are modules of the package `clipmill_own`, so
that other packages named `stages` do not matter. They import one another relatively: `from .other
import it`. They are read once, like a recipe; workers and clusters get the bytes that were read.
Other files travel, too, if a module beside them declares them, `FILES = ("words.txt",)`; it reads
them by `pkgutil.get_data(__name__, "words.txt")` on every machine.
"""

import ast
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.extras import install

NAME = "clipmill_own"
VARIABLE = "CLIPMILL_STAGES"  # folders, as in PATH
GROUP = "clipmill.stages"  # of entry points; each names a package with stages
OURS = Path(__file__).parents[1] / "stages"
MOST_BYTES = 16 * 2**20  # of all files together: they travel to every worker
OLD_NAME = re.compile(r"\s*(?:from|import) +((?:pipeline|stages|metadata)[\w.]*)")


@dataclass(frozen=True)
class File:
    """A file of code: a user's own, as it was read, or clipmill's."""

    path: Path  # on the machine that read it
    held: bytes | None = None  # None for clipmill's

    @property
    def is_own(self) -> bool:
        return self.held is not None

    def read(self) -> bytes:
        return self.path.read_bytes() if self.held is None else self.held

    @property
    def digest(self) -> str:
        """Returns the SHA-256 in hex."""
        return hashlib.sha256(self.read()).hexdigest()


Files = dict[str, File]  # by path below their folder: `score/shouting.py`


@dataclass
class _Held:
    added: list[Path] = field(default_factory=list)
    read_from: tuple[object, ...] | None = None
    files: Files = field(default_factory=dict)


_held = _Held()


def add(folder: Path) -> None:
    """Adds a folder, if there is one and it does not hold clipmill's own stages, here or in a
    checkout; reads all folders again on next use."""
    ours = [place for place in (OURS, folder.parent / "clipmill" / "stages") if place.is_dir()]
    if folder.is_dir() and not any(map(folder.samefile, ours)):
        _held.added.append(folder.resolve())
    _held.read_from = None


def own() -> Files:
    """Returns all Python files of a user's folders and the files they declare; workers get them."""
    if _held.read_from != _named():
        receive(_read(folders()))
    return _held.files


def receive(files: Files) -> None:
    """Sets the user's own code; if a file has changed, own modules are imported anew."""
    before = _held.files
    if any(before[name].held != files[name].held for name in before.keys() & files.keys()):
        for module in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[module]
    _held.read_from, _held.files = _named(), files


def files(kind: str = "*") -> Files:
    """Returns every file `<kind>/<name>.py` of clipmill and own folders, by `kind.name`.

    Error: RecipeError if an own file has the name of one of clipmill's.
    """
    by_name = {_kind_and_name(path): File(path) for path in OURS.glob(f"{kind}/[!_]*.py")}
    for below, file in own().items():
        its_kind, _, name = below.partition("/")
        is_module = name.endswith(".py") and "/" not in name and not name.startswith("_")
        if kind in ("*", its_kind) and is_module:
            name = _kind_and_name(Path(below))
            if name in by_name:
                raise _twice(name, by_name[name].path, file.path)
            by_name[name] = file
    return by_name


def find(name: str) -> File | None:
    """Returns the file of `kind.name` or None; RecipeError if there are two."""
    below = name.replace(".", "/") + ".py"
    own_file = own().get(below)
    if not (OURS / below).is_file():
        return own_file
    if own_file:
        raise _twice(name, OURS / below, own_file.path)
    return File(OURS / below)


def imported(names: Iterable[str]) -> Files:
    """Returns own files of `kind.name`s and all they import relatively or declare, by path."""
    files_by_path: Files = {}
    waiting = [name.replace(".", "/") + ".py" for name in names]
    while waiting:
        below = waiting.pop()
        file = own().get(below)
        if file and below not in files_by_path:
            files_by_path[below] = file
            waiting += _needs(below, file.read()) if below.endswith(".py") else ()
    return files_by_path


def parsed(source: bytes | str) -> ast.Module:
    """Parses Python code; SyntaxError or ValueError if it is none.

    No garbage is collected meanwhile: Python 3.11 ends in SystemError where a finalizer parses too.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collects:
            gc.enable()


@lru_cache(1024)
def _needs(below: str, source: bytes) -> tuple[str, ...]:
    """Returns paths that a Python file may import relatively or declares; they may not exist."""
    parts = below.split("/")
    paths: list[str] = []
    with suppress(SyntaxError, ValueError):  # reported by the import
        code = parsed(source)
        paths += ["/".join([*parts[:-1], name]) for name in _declared(code)]
        for node in ast.walk(code):
            if isinstance(node, ast.ImportFrom) and node.level:
                module = [*parts[: -node.level], *(node.module.split(".") if node.module else ())]
                modules = [module, *([*module, alias.name] for alias in node.names)]
                bases = ["/".join(names) for names in modules]
                paths += [f"{base}{end}" for base in bases for end in (".py", "/__init__.py")]
    return tuple(paths)


def load(name: str, where: str) -> ModuleType:
    """Imports the module of `kind.name`, which has a file.

    Error: RecipeError with file and line if it cannot be imported.
    """
    file = find(name)
    assert file is not None
    try:
        return importlib.import_module(f"{NAME if file.is_own else 'clipmill.stages'}.{name}")
    except (Exception, SystemExit) as error:  # a user's file may hold anything
        raise _broken(name, file, error, where) from error


def _broken(name: str, file: File, error: BaseException, where: str) -> RecipeError:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    files_by_path = {str(own_file.path): own_file for own_file in (*own().values(), file)}
    if isinstance(error, SyntaxError):
        frames = [(error.filename or "", error.lineno or 0)]
    else:
        frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    path, number = (
        [frame for frame in frames if frame[0] in files_by_path] or [(str(file.path), 0)]
    )[-1]
    lines = files_by_path[path].read().decode("utf-8", "replace").splitlines()
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    place = f"{path}:{number}" if number else path
    old = OLD_NAME.match(line) if isinstance(error, ImportError) else None
    if old and importlib.util.find_spec(f"clipmill.{old[1]}"):
        new = line.replace(old[1], f"clipmill.{old[1]}", 1).strip()
        return RecipeError(f"{place} imports '{old[1]}', an old name", where, f"write `{new}`")
    if missing and missing.partition(".")[0] not in ("clipmill", NAME):
        what = f"'{name}' needs the package '{missing.partition('.')[0]}'"
        what += f": {place}" if file.is_own else ""
        return RecipeError(what, where, install(missing) or "install it")
    what = f"{place} cannot be imported: {type(error).__name__}: {error}"
    return RecipeError(what, where, "mend the file, or install what it imports")


def _kind_and_name(path: Path) -> str:
    return f"{path.parent.name}.{path.stem}"


def _twice(name: str, first: Path, second: Path) -> RecipeError:
    do = "give your own file another name"
    return RecipeError(f"two files of the name '{name}'", f"{first}, {second}", do)


# Reading


def _named() -> tuple[object, ...]:
    """Returns the values that `folders` depends on."""
    return (*_held.added, os.environ.get(VARIABLE), os.getcwd())


def folders() -> list[Path]:
    """Returns the added folders and those of CLIPMILL_STAGES."""
    named = (Path(p).resolve() for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p)
    return list(dict.fromkeys([*_held.added, *named]))


def _read(folders: Sequence[Path]) -> Files:
    """Reads all Python files of folders and installed packages, and the files they declare.

    Error: RecipeError if two folders have different files of one name, if the files are too large,
    if one leads out of its folder, or a declared one is missing.
    """
    files_by_path: Files = {}
    size = 0
    for folder in dict.fromkeys([*folders, *_installed(tuple(sys.path))]):
        waiting = _python_files(folder)
        while waiting:
            path = waiting.pop()
            _check_inside(folder, path)
            below = path.relative_to(folder).as_posix()
            size += path.stat().st_size
            if size > MOST_BYTES:
                do = "keep in it what your stages import or declare, and no more"
                raise RecipeError(f"more than {MOST_BYTES:,} bytes", str(folder), do)
            file = File(path, path.read_bytes())
            if below in files_by_path and files_by_path[below].held != file.held:
                raise _twice(below, files_by_path[below].path, path)
            files_by_path.setdefault(below, file)
            if path.suffix == ".py" and b"FILES" in (file.held or b""):
                with suppress(SyntaxError, ValueError):  # reported by the import
                    waiting += [path.parent / name for name in _declared(parsed(file.read()))]
    return files_by_path


def _declared(code: ast.Module) -> list[str]:
    """Returns the names in a module's `FILES`, parsed, not executed; none if it is no literal."""
    for node in code.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if ast.unparse(target) == "FILES":
                with suppress(TypeError, ValueError):
                    names = ast.literal_eval(node.value)
                    return [names] if isinstance(names, str) else list(map(str, names))
    return []


def _check_inside(folder: Path, path: Path) -> None:
    """Raises RecipeError if a file is missing, or a link or `..` leads out of the folder."""
    if not path.is_file():
        raise RecipeError(
            f"no file '{path.name}'", str(path), "mend `FILES` of the stage beside it"
        )
    if not path.resolve().is_relative_to(folder.resolve()) or ".." in path.parts:
        do = "put a copy in the folder; what others can read there travels to every machine"
        raise RecipeError(f"'{path.name}' leads out of its folder", str(path), do)


@lru_cache
def _installed(path: tuple[str, ...]) -> tuple[Path, ...]:
    """Returns the folders of packages that declare stages, without importing them."""
    package_folders = []
    for point in importlib.metadata.entry_points(group=GROUP):
        top, *below = point.value.split(".")
        spec = PathFinder.find_spec(top)
        places = spec.submodule_search_locations if spec else None
        package_folders += [Path(place, *below) for place in places or ()]
    return tuple(package_folders)


def _python_files(folder: Path) -> list[Path]:
    """Returns the folder's Python files; a run folder's `stages/` has none (no identifiers)."""
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(d for d in folders if d.isidentifier() and d != "__pycache__")
        paths += [Path(parent, name) for name in sorted(names) if name.endswith(".py")]
    return paths


# Importing


class _Importer(MetaPathFinder, ExecutionLoader):
    """Imports the modules of own code from the files in memory."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != NAME:
            return None
        file = self._file(fullname)
        if file is None and not self.is_package(fullname):
            return None
        spec = ModuleSpec(fullname, self, is_package=self.is_package(fullname))
        if file is not None:
            spec.origin, spec.has_location = str(file.path), True
        return spec

    def is_package(self, fullname: str) -> bool:
        below = _below(fullname)
        return not below or any(name.startswith(f"{below}/") for name in own())

    def get_filename(self, fullname: str) -> str:
        file = self._file(fullname)
        return str(file.path) if file else f"<{fullname}>"

    def get_source(self, fullname: str) -> str:
        file = self._file(fullname)
        return importlib.util.decode_source(file.read()) if file else ""

    def get_data(self, path: str) -> bytes:
        """Returns a declared file's bytes as they were read, for `pkgutil.get_data`."""
        by_path = {str(file.path): file for file in own().values()}
        if path not in by_path:
            do = 'declare it: FILES = ("words.txt",)'
            raise OSError(f"'{path}' was not sent with your stages; {do}")
        return by_path[path].read()

    def _file(self, fullname: str) -> File | None:
        below = _below(fullname)
        names = (f"{below}.py", f"{below}/__init__.py") if below else ("__init__.py",)
        return next((own()[name] for name in names if name in own()), None)


def _below(fullname: str) -> str:
    return fullname.partition(".")[2].replace(".", "/")


sys.meta_path.insert(0, _Importer())  # before the importer that reads folders
