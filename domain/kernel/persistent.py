"""Containers that behave as values and cost as little as mutable ones.

:class:`Map` is a dict whose old versions stay valid: the newest version owns a real dict, an older one remembers the
single difference to its successor and takes the dict back when it is read again (Baker, "Shallow binding makes
functional arrays fast", 1991). Undo therefore costs nothing until it is used. Not for threads.

:class:`Heap` is a leftist heap (Crane, 1972): insertion and removal of the least cost O(log n) and share structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

_ABSENT: Any = object()


class Map(Generic[Key, Value]):
    """An immutable mapping with O(1) reads and writes at the newest version."""

    __slots__ = ("_dict", "_key", "_next", "_old")

    def __init__(self, items: dict[Key, Value] | Iterable[tuple[Key, Value]] = ()) -> None:
        self._dict: dict[Key, Value] | None = dict(items)
        self._key: Any = None
        self._old: Any = None
        self._next: Map[Key, Value] | None = None

    def _own(self) -> dict[Key, Value]:
        """Take the dict back from the version that has it, undoing one difference after the other."""
        path: list[Map[Key, Value]] = []
        version: Map[Key, Value] = self
        while version._next is not None:
            path.append(version)
            version = version._next
        owned = version._dict
        assert owned is not None
        for older in reversed(path):
            key, old = older._key, older._old
            version._key, version._old, version._dict, version._next = key, owned.get(key, _ABSENT), None, older
            if old is _ABSENT:
                del owned[key]
            else:
                owned[key] = old
            older._dict, older._next, older._key, older._old = owned, None, None, None
            version = older
        return owned

    def _step(self, owned: dict[Key, Value], key: Key, value: Any) -> Map[Key, Value]:
        newer: Map[Key, Value] = Map.__new__(Map)
        newer._key = newer._old = newer._next = None
        newer._dict = owned
        self._key, self._old, self._dict, self._next = key, owned.get(key, _ABSENT), None, newer
        if value is _ABSENT:
            del owned[key]
        else:
            owned[key] = value
        return newer

    def set(self, key: Key, value: Value) -> Map[Key, Value]:
        """This mapping with ``key`` bound to ``value``."""
        owned = self._dict
        return self._step(self._own() if owned is None else owned, key, value)

    def without(self, key: Key) -> Map[Key, Value]:
        """This mapping without ``key``; the same mapping when it was not there."""
        owned = self._dict
        if owned is None:
            owned = self._own()
        return self._step(owned, key, _ABSENT) if key in owned else self

    def get(self, key: Key, default: Any = None) -> Any:
        """The value bound to ``key``, or ``default``."""
        owned = self._dict
        return (self._own() if owned is None else owned).get(key, default)

    def items(self) -> list[tuple[Key, Value]]:
        """All pairs, as a list of its own."""
        return list(self._own().items())

    def __getitem__(self, key: Key) -> Value:
        return self._own()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._own()

    def __len__(self) -> int:
        owned = self._dict
        return len(self._own() if owned is None else owned)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._own()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Map):
            return NotImplemented
        return dict(self._own()) == other._own()

    __hash__ = None  # type: ignore[assignment]  # equal by content, and content may be large

    def __repr__(self) -> str:
        return f"Map({self._own()!r})"


_Node = tuple[int, Any, Any, Any]
"""(rank, item, left, right)"""


def _merge(a: _Node | None, b: _Node | None) -> _Node | None:
    if a is None:
        return b
    if b is None:
        return a
    if b[1] < a[1]:
        a, b = b, a
    left, right = a[2], _merge(a[3], b)
    assert right is not None
    if left is None or left[0] < right[0]:
        left, right = right, left
    return ((right[0] if right else 0) + 1, a[1], left, right)


class Heap(Generic[Key]):
    """An immutable priority queue of comparable items."""

    __slots__ = ("_root", "size")

    def __init__(self, items: Iterable[Key] = ()) -> None:
        self._root: _Node | None = None
        self.size = 0
        queue: list[_Node] = [(1, item, None, None) for item in sorted(items)]  # type: ignore[type-var]  # comparable by contract
        self.size = len(queue)
        while len(queue) > 1:  # merging neighbours level by level builds in linear time
            merged = [_merge(queue[i], queue[i + 1]) for i in range(0, len(queue) - 1, 2)]
            queue = [node for node in merged if node] + ([queue[-1]] if len(queue) % 2 else [])
        if queue:
            self._root = queue[0]

    def push(self, item: Key) -> Heap[Key]:
        """This heap with ``item`` in it."""
        return self._made(_merge(self._root, (1, item, None, None)), self.size + 1)

    def pop(self) -> Heap[Key]:
        """This heap without its least item; the heap must not be empty."""
        assert self._root is not None
        return self._made(_merge(self._root[2], self._root[3]), self.size - 1)

    @property
    def least(self) -> Key | None:
        """The least item, or None when empty."""
        return None if self._root is None else self._root[1]

    def _made(self, root: _Node | None, size: int) -> Heap[Key]:
        made: Heap[Key] = Heap.__new__(Heap)
        made._root, made.size = root, size
        return made

    def __len__(self) -> int:
        return self.size
