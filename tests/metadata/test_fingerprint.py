"""Digests of settings: canonical, blind to `location()` settings and to `later()` defaults."""

from dataclasses import dataclass

from clipmill.metadata.fingerprint import digest, fingerprint, plain, settings_of
from clipmill.pipeline.stage import later, location


@dataclass(frozen=True, kw_only=True)
class Inner:
    top: float = 0.5
    threads: int = location(1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    names: tuple[str, ...] = ("a", "b")
    inner: Inner = Inner()
    path: str = location("here")


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert len(digest(None)) == 32


def test_settings_are_plain_json_without_locations_at_any_depth():
    assert settings_of(Settings()) == {"names": ["a", "b"], "inner": {"top": 0.5}}
    assert settings_of(Settings(path="there", inner=Inner(threads=9))) == settings_of(Settings())
    assert plain({1: (Inner(top=2.0),)}) == {"1": [{"top": 2.0}]}


def test_a_setting_that_came_later_counts_once_it_is_not_at_its_default():
    @dataclass(frozen=True, kw_only=True)
    class Grown(Settings):
        scale: str = later("full")

    assert settings_of(Grown()) == settings_of(Settings())
    assert settings_of(Grown(scale="half")) == settings_of(Settings()) | {"scale": "half"}


def test_every_part_moves_the_fingerprint():
    base = ("kind.name", 1, {"a": 1}, {"root": "x"})
    others = [
        ("kind.other", *base[1:]),
        (base[0], 2, *base[2:]),
        (*base[:2], {"a": 2}, base[3]),
        (*base[:3], {"root": "y"}),
    ]
    prints = [fingerprint(*parts) for parts in (base, *others)]
    assert len(set(prints)) == 5
    assert all(len(mark) == 12 for mark in prints)
    assert fingerprint(*base) == prints[0]
