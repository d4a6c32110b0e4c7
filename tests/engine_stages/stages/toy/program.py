"""Whatever a test wants of the engine's calls."""

from dataclasses import dataclass
from importlib import import_module

import pyarrow as pa

from clipmill.metadata.schema import Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage, location

VALUE = Column("value", pa.int64(), "", "What the test's function makes of the row.")
NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Program(DatasetStage):
    """The value that `function`, written `module:name`, gives each row; it gets inputs and ctx."""

    function: str = location()

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (VALUE,)
    reasons = ("odd",)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        module, _, name = self.function.partition(":")
        getattr(import_module(module), name)(inputs, ctx)
