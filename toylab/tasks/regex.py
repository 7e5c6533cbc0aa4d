"""Regular expressions to automata, by derivatives (Brzozowski 1964).

1. Parse into a tree of union, concatenation and star over letters.
2. The derivative of E by a letter a denotes the words w with a w in E; a tree is a state, its derivatives are where the
   letters lead, and it accepts iff it holds the empty word.
3. Unions are kept as sets (associative, commutative, idempotent), so there are finitely many trees.
   `monoid.minimise` merges those that mean the same.

Syntax: letters, ( ), | or, * any number, + at least one, ? at most one; spaces are ignored. Came from: nothing.
Read next: automata.py.
"""

from __future__ import annotations

import torch

from toylab.errors import UserError, require
from toylab.tasks.monoid import minimise

SPECIAL = "()|*+?"
MAX_STATES = 2000
Tree = tuple  # ("empty",), ("unit",), ("letter", a), ("cat", left, right), ("or", frozenset), ("star", inner)
EMPTY: Tree = ("empty",)
UNIT: Tree = ("unit",)


def cat(left: Tree, right: Tree) -> Tree:
    if EMPTY in (left, right):
        return EMPTY
    if left == UNIT:
        return right
    if right == UNIT:
        return left
    return cat(left[1], cat(left[2], right)) if left[0] == "cat" else ("cat", left, right)


def union(*parts: Tree) -> Tree:
    flat = frozenset(p for part in parts for p in (part[1] if part[0] == "or" else (part,)) if p != EMPTY)
    return ("or", flat) if len(flat) > 1 else next(iter(flat), EMPTY)


def star(inner: Tree) -> Tree:
    if inner in (EMPTY, UNIT):
        return UNIT
    return inner if inner[0] == "star" else ("star", inner)


def nullable(e: Tree) -> bool:
    """Whether the empty word is in E."""
    if e[0] == "cat":
        return nullable(e[1]) and nullable(e[2])
    if e[0] == "or":
        return any(map(nullable, e[1]))
    return e[0] in ("unit", "star")


def derivative(e: Tree, a: str) -> Tree:
    """The words w with a w in E."""
    if e[0] == "letter":
        return UNIT if e[1] == a else EMPTY
    if e[0] == "or":
        return union(*(derivative(p, a) for p in e[1]))
    if e[0] == "star":
        return cat(derivative(e[1], a), e)
    if e[0] == "cat":
        first = cat(derivative(e[1], a), e[2])
        return union(first, derivative(e[2], a)) if nullable(e[1]) else first
    return EMPTY


def parse(text: str) -> Tree:
    """The tree of an expression; raises UserError saying where it goes wrong."""
    source, at = text.replace(" ", ""), 0

    def wrong(what: str) -> UserError:
        return UserError(f"/{source}/: {what} at character {at + 1}; letters, ( ), |, *, + and ? are understood")

    def alternatives(depth: int) -> Tree:
        nonlocal at
        parts = [sequence(depth)]
        while at < len(source) and source[at] == "|":
            at += 1
            parts.append(sequence(depth))
        return union(*parts)

    def sequence(depth: int) -> Tree:
        nonlocal at
        result = UNIT
        while at < len(source) and source[at] != "|":
            if source[at] == ")":
                if not depth:
                    raise wrong('")" without "("')
                break
            result = cat(result, repeated(depth))
        return result

    def repeated(depth: int) -> Tree:
        nonlocal at
        if source[at] in "*+?":
            raise wrong(f'nothing before "{source[at]}"')
        if source[at] == "(":
            at += 1
            e = alternatives(depth + 1)
            if at == len(source):
                raise wrong('"(" without ")"')
        else:
            e = ("letter", source[at])
        at += 1
        while at < len(source) and source[at] in "*+?":
            e = {"*": star(e), "+": cat(e, star(e)), "?": union(UNIT, e)}[source[at]]
            at += 1
        return e

    return alternatives(0)


def compile_regex(text: str) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], int, tuple[int, ...]]:
    """(letters, table [state][letter], start, accepting) of the minimal automaton, dead state included.

    Raises UserError for bad syntax, an expression without letters, an empty language and more than MAX_STATES states.
    """
    start = parse(text)
    letters = tuple(sorted({c for c in text if c not in SPECIAL and not c.isspace()}))
    require(len(letters) > 0, f"/{text}/ has no letters: the only word it could accept is the empty one")
    states, rows = {start: 0}, []
    for e in (todo := [start]):
        row = []
        for d in (derivative(e, a) for a in letters):
            if d not in states:
                states[d] = len(states)
                todo.append(d)
            row.append(states[d])
        rows.append(row)
        require(len(states) <= MAX_STATES, f"/{text}/ needs more than {MAX_STATES:,} states; take a shorter expression")
    accepting = torch.tensor([nullable(e) for e in states]).long()
    table, first, outputs = minimise(torch.tensor(rows), 0, accepting)
    accepted = tuple(outputs.nonzero().squeeze(1).tolist())
    return letters, tuple(map(tuple, table.tolist())), first, accepted
