"""Nested dictionaries, lists and tuples of a pickle: walked without recursion, edited by place."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from toc_cli.errors import InputError
from toc_cli.io.checkpoint.rebuild import PickledArray, TypeName
from toc_cli.io.checkpoint.strided import Strided

DEPTH_LIMIT = 32
REVISIT_LIMIT = 10_000
"""Times that a dictionary or list may be met again: a few copies of a section, not the 2^n paths of nested sharing."""
PLAIN = (str, int, float, bool, bytes, type(None), TypeName)


def leaves(tree: object) -> Iterator[tuple[tuple[Hashable, ...], object]]:
    """Arrays (`Strided`) and plain values with their place, in file order; a list of plain values is one leaf.

    Foreign objects are none. InputError for a tree that is too deep or, through shared parts, too wide to walk.
    """
    stack: list[tuple[tuple[Hashable, ...], object]] = [((), tree)]
    seen: set[int] = set()
    revisits = 0
    while stack:
        place, node = stack.pop()
        if isinstance(node, PickledArray):
            if node.array is not None:
                yield place, node.array
                continue
            node = node.objects
        if isinstance(node, (Strided, *PLAIN)):
            yield place, node
        elif isinstance(node, (list, tuple)) and all(isinstance(child, PLAIN) for child in node):
            yield place, list(node)
        elif isinstance(node, (dict, list, tuple)):
            revisits += id(node) in seen
            seen.add(id(node))
            if revisits > REVISIT_LIMIT or len(place) > DEPTH_LIMIT:
                raise InputError("The file nests its dictionaries too deep, or one inside of itself.")
            children = node.items() if isinstance(node, dict) else enumerate(node)
            stack.extend(reversed([((*place, key), child) for key, child in children]))


def at(tree: Any, place: tuple[Hashable, ...]) -> Any:
    """The node at a place."""
    for part in place:
        tree = tree[part]
    return tree


def put(tree: Any, place: tuple[Hashable, ...], value: object) -> Any:
    """The tree with the node at a place set: dictionaries and lists in place, tuples made anew, missing sections added."""
    if not place:
        return tuple(value) if isinstance(tree, tuple) and isinstance(value, list) else value
    part, rest = place[0], place[1:]
    if isinstance(tree, tuple):
        return tuple(put(child, rest, value) if i == part else child for i, child in enumerate(tree))
    tree[part] = put(tree.get(part, {}) if isinstance(tree, dict) else tree[part], rest, value)
    return tree


def drop(tree: Any, place: tuple[Hashable, ...]) -> Any:
    """The tree without the entry of a dictionary at a place."""
    if len(place) == 1:
        return {key: value for key, value in tree.items() if key != place[0]} if isinstance(tree, dict) else tree
    return put(tree, place[:1], drop(tree[place[0]], place[1:]))
