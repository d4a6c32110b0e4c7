"""Parts of small exports, as the trainer's own tests have them."""

from tests.stages.clip.conftest import batches, cached, one_thread

__all__ = ["batches", "cached", "one_thread"]
