"""Tars and JSON of an export: byte for byte what tarfile and json write."""

import hashlib
import json
import tarfile
from io import BytesIO

import pytest

from clipmill.stages.export.webdataset import TarWriter, indented, json_of

FILES = {
    "000000000.jpg": bytes(range(256)) * 7,
    "000000000.txt": "ein Häuschen".encode(),
    "empty.json": b"",
    "whole block": bytes(512),
    "ä" * 40: b"of letters that take two bytes",
    "folder/" * 14 + "a name that takes more than a hundred bytes": b"1",
}


@pytest.mark.parametrize("count", range(len(FILES) + 1))
def test_a_tar_is_the_one_that_tarfile_writes(count):
    theirs, ours = BytesIO(), BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in list(FILES.items())[:count]:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, BytesIO(data))
    writer = TarWriter(ours)
    for file in list(FILES.items())[:count]:
        writer.add([file])
    sha256, size_bytes = writer.close()
    assert ours.getvalue() == theirs.getvalue()
    assert sha256 == hashlib.sha256(ours.getvalue()).hexdigest()
    assert size_bytes == len(ours.getvalue())


@pytest.mark.parametrize("row", [
    {"key": "00000", "none": None, "is": True, "size": 512, "score": 0.1, "far": 1e300},
    {'a "name"\n': 'quoted "text"\nin Zürich', "bytes": b"\0\xff"},
    {"list": [1, [], {}], "empty": [], "struct": {"a": "line\nbreak", "b": [None, {"c": b"1"}]}},
])  # fmt: skip
def test_json_is_what_json_indents(row):
    whole = json.dumps(row, indent=4, default=lambda value: value.hex()).encode()
    assert json_of({name: indented(value) for name, value in row.items()}) == whole
