"""Where a large pool is cut, so low that the rows of tests/every_stage.py are: on import."""

from importlib import import_module

LIMITS = {
    "clipmill.pipeline.engine.context": {"PARTITION_ROWS": 60},
    "clipmill.pipeline.engine.states": {"MERGED": 2, "BY_DRIVER_BYTES": 512},
    "clipmill.stages.caption.retrieve": {"BLOCK": 50},
    "clipmill.stages.dedup._copies": {"ROWS": 50},
    "clipmill.stages.dedup._minhash": {"BLOCK_BYTES": 1_000},
    "clipmill.stages.dedup._pairs": {"RANGE_ROWS": 30},
    "clipmill.stages.dedup.minhash": {"PARTITION_BYTES": 6_000, "BLOCK_BYTES": 1_000},
    "clipmill.stages.export._groups": {"BATCH_ROWS": 7, "TALLIED_ROWS": 20},
    "clipmill.stages.export._map": {"BATCH_ROWS": 7, "BLOCK_ROWS": 50},
    "clipmill.stages.export.map": {"RANGE_ROWS": 100},
    "clipmill.stages.export.pixels": {"BATCH_ROWS": 7},
    "clipmill.stages.export.table": {"BATCH_ROWS": 7},
    "clipmill.stages.export.uid_list": {"RANGE_ROWS": 30, "BATCH_ROWS": 20, "AT_ONCE": 2},
    "clipmill.stages.select.sample": {"SLICE_ROWS": 30, "BUCKETS": 3},
    "clipmill.stages.select._tree": {"PART": 2},
    "clipmill.stages.select.prototypes": {"GROUP_ROWS": 50},
    "clipmill.stages.ops.vectors.targets": {"ROWS": 50},
    "clipmill.stages.select._targets": {"ROWS": 50},
    "clipmill.stages.select._cut": {"FEW": 20},
}

for _module, _values in LIMITS.items():
    for _name, _value in _values.items():
        assert hasattr(import_module(_module), _name), f"{_module} has no {_name}"
        setattr(import_module(_module), _name, _value)
