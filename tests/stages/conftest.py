"""What tests of stages share: the engine's calls in memory, and evaluation tasks."""

from pathlib import Path

import pytest

from tests.memory import MemoryContext, MemoryShards
from tests.stages.task_folders import write_tasks


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder of two good evaluation tasks."""
    write_tasks(tmp_path / "tasks")
    return tmp_path / "tasks"


@pytest.fixture(scope="session")
def open_clip():
    """The package. Its import takes seconds: those of no test."""
    import open_clip

    return open_clip


@pytest.fixture
def memory_shards():
    return MemoryShards


@pytest.fixture
def memory_context(tmp_path):
    """A new context with a folder of its own, by seed."""
    made = []

    def make(seed: int = 0) -> MemoryContext:
        made.append(MemoryContext(tmp_path / f"stage-{len(made)}", seed))
        return made[-1]

    return make
