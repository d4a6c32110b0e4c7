"""X-Robots-Tag: whether a server asks that its images not be used."""

import re
from collections.abc import Collection, Iterable, Iterator

AGENT = re.compile(r"\*|[a-z][^\s]*")  # a date's "06 Nov 1994 08" before its colon is none
WITH_VALUE = ("max-", "unavailable_after")  # their colon ends no agent's name


def opts_out(values: Iterable[str], agents: Collection[str], rules: Collection[str]) -> bool:
    """Whether one of the headers gives one of the rules to all, or to one of the agents.

    `none` stands for noindex and nofollow. Agents and rules are given in lower case.

    Source: Google's specification of the header: rules between commas, in any case; a name before
    a colon says for whom they are, up to the next name; every header begins with those for all.
    Error: two headers that a proxy joined with a comma are read as one, so that what was for all
    may be taken to be for the agent named before it.
    """
    none = {"none"} if {"noindex", "nofollow"} & set(rules) else set()
    wanted = none.union(rules)
    return any(rule in wanted for value in values for rule in _rules(value, agents))


def _rules(value: str, agents: Collection[str]) -> Iterator[str]:
    """The names of the rules that are for all or for one of the agents."""
    is_for_us = True
    for part in value.lower().split(","):
        name, colon, rest = (piece.strip() for piece in part.partition(":"))
        if colon and AGENT.fullmatch(name) and not name.startswith(WITH_VALUE):
            is_for_us = name == "*" or name in agents
            name = rest.partition(":")[0].strip()
        if is_for_us:
            yield name
