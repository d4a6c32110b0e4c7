"""`clipmill pool`: what it needs to be installed."""

import sys


def test_a_pool_without_its_drawing_library_says_what_to_install(tmp_path, monkeypatch, clipmill):
    monkeypatch.setitem(sys.modules, "resvg_py", None)  # as where it is not installed
    ended = clipmill("pool", "generated", "--out", tmp_path / "pool")
    assert ended.code == 2
    assert "pip install 'clipmill[pool]'" in ended.err
    assert not (tmp_path / "pool").exists()
