"""The persistent containers behave as the ordinary ones do, and every old version stays what it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.kernel.persistent import Heap, Map

keys = st.integers(0, 6)
steps = st.lists(
    st.tuples(st.sampled_from(["set", "set", "without", "go back", "read"]), keys, st.integers(0, 50)), min_size=1, max_size=40
)


@given(steps)
def test_a_map_is_a_dict_whose_old_versions_can_be_read_and_branched_from(story: list[tuple[str, int, int]]) -> None:
    versions: list[tuple[Map[int, int], dict[int, int]]] = [(Map({0: 1, 1: 2}), {0: 1, 1: 2})]
    newest, model = versions[0]

    for what, key, number in story:
        match what:
            case "set":
                newest, model = newest.set(key, number), model | {key: number}
            case "without":
                newest, model = newest.without(key), {other: value for other, value in model.items() if other != key}
            case "go back":
                newest, model = versions[number % len(versions)]
            case _:
                old, old_model = versions[number % len(versions)]
                assert old.get(key) == old_model.get(key)
        versions.append((newest, model))

    for version, expected in [*versions, *reversed(versions), *versions[::3]]:
        assert dict(version.items()) == expected
        assert len(version) == len(expected)
        assert {key: version.get(key, "none") for key in range(7)} == {key: expected.get(key, "none") for key in range(7)}
        assert [key in version for key in range(7)] == [key in expected for key in range(7)]
        assert sorted(version) == sorted(expected)
    first, second = versions[0], versions[-1]
    assert (first[0] == second[0]) == (first[1] == second[1])


def test_taking_away_what_is_not_there_is_the_same_map() -> None:
    some = Map({"a": 1})

    assert some.without("b") is some
    with pytest.raises(KeyError):
        some["b"]


def test_a_map_is_unlike_other_things_and_cannot_be_hashed() -> None:
    some: Map[str, int] = Map([("a", 1)])

    assert some != {"a": 1}
    assert repr(some) == "Map({'a': 1})"
    with pytest.raises(TypeError):
        hash(some)


def test_a_long_chain_of_versions_neither_recurses_nor_loses_anything() -> None:
    first: Map[int, int] = Map()
    newest = first
    for n in range(50_000):
        newest = newest.set(n, n)

    assert len(first) == 0
    assert len(newest) == 50_000
    del first, newest


@given(st.lists(st.integers(0, 20)), st.lists(st.none() | st.integers(0, 20), max_size=60))
def test_a_heap_gives_the_least_first_and_keeps_its_old_versions(start: list[int], story: list[int | None]) -> None:
    heap, model = Heap(start), sorted(start)
    versions = [(heap, model)]

    for step in story:
        if step is not None:
            heap, model = heap.push(step), sorted([*model, step])
        elif model:
            heap, model = heap.pop(), model[1:]
        versions.append((heap, model))

    for version, expected in versions:
        assert len(version) == version.size == len(expected)
        assert drained(version) == expected


def drained(heap: Heap[Any]) -> list[Any]:
    items = []
    while (least := heap.least) is not None:
        items.append(least)
        heap = heap.pop()
    return items


@pytest.mark.parametrize("items", [range(3_000), range(3_000, 0, -1), [n * 7919 % 3_001 for n in range(3_000)]])
def test_a_heap_stays_shallow_in_any_order_of_pushes(items: Any) -> None:
    heap: Heap[int] = Heap()
    for item in items:
        heap = heap.push(item)

    assert drained(heap) == sorted(items)
