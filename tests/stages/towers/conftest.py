"""One thread, as the trainer's own tests have it."""

from tests.stages.clip.conftest import one_thread

__all__ = ["one_thread"]
