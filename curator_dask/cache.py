"""One live object a worker process for a given full spec.

A spec is small, frozen and hashable; it travels in the Dask graph. The object it describes (a model on its
device, a DALI pipeline) is built on the worker, once, and shared by all tasks that carry an equal spec. Specs
that differ in anything never share an object. When more than `capacity` objects of a kind are alive, the one
that was used longest ago is closed, as soon as nobody is using it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from curator_dask.backend import current, is_out_of_memory
from curator_dask.errors import CuratorError

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while the object is being built
    value: T | None = None
    users: int = 0
    doomed: bool = False  # to be closed by the last who uses it
    dropped: bool = False  # the same, and another may have its place by now
    state: Any = None  # of the files that the object was built of
    used: float = 0.0  # when the last lease ended


#: Seconds after which what nobody has used goes where another finds no memory. What takes turns with it stays: two
#: models that made room for one another would be loaded for each batch.
LONG_UNUSED = 30.0


class SpecCache(Generic[T]):
    """Least-recently-used cache of live objects, safe to use from several threads.

    Parameters
    ----------
    capacity
        How many objects stay alive. Those in use count, but are never closed, however many.

    A spec may have a ``source_state``, which tells the files that its object is built of from others in their place
    (`curator_dask.models.sources.files_state`); then `refresh` notices that they have changed.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def lease(self, spec: Hashable, build: Callable[[], T]) -> Iterator[T]:
        """Lend the object of `spec`, made by `build` if there is none yet.

        The object is not closed while a lease lasts. Two threads that ask for the same spec at once get the
        same object: the second waits until the first has built it. If `build` fails nothing is kept.
        """
        with self._lock:
            entry = self._entries.setdefault(spec, _Entry())
            entry.users += 1
            self._entries.move_to_end(spec)
            closing = self._overdue()
        try:
            _close_all(closing)
            with entry.lock:
                if entry.value is None:
                    entry.state = _source_state(spec)  # before: what changes meanwhile is noticed
                    entry.value = self._built(build)
                    if entry.state is None:  # the files have been fetched
                        entry.state = _source_state(spec)
            yield entry.value
        finally:
            with self._lock:
                entry.users -= 1
                entry.used = time.monotonic()
                if not entry.dropped and entry.value is not None:
                    self._entries.move_to_end(spec)
                elif not entry.dropped and not entry.users:
                    del self._entries[spec]
                closing = self._overdue()
                if not entry.users and (entry.dropped or (entry.doomed and self._take_out(spec, entry))):
                    closing.append(entry.value)
            _close_all(closing)

    def reserve(self, count: int) -> None:
        """Keep at least so many alive: those that one task uses at once would else be made again for each task."""
        with self._lock:
            self.capacity = max(self.capacity, count)

    def specs(self) -> list[Hashable]:
        """The specs whose objects are alive, the one used longest ago first."""
        with self._lock:
            return [spec for spec, entry in self._entries.items() if entry.value is not None]

    def in_use(self) -> int:
        """How many leases last."""
        with self._lock:
            return sum(entry.users for entry in self._entries.values())

    def forget(self, spec: Hashable) -> None:
        """Close the object of `spec`, now or, while it is in use, with the last lease of it."""
        with self._lock:
            entry = self._entries.get(spec)
            if entry is None:
                return
            entry.doomed = True
            closing = [] if entry.users else [self._entries.pop(spec).value]
        _close_all(closing)

    def refresh(self, spec: Hashable) -> bool:
        """Let go the object of `spec` if the files that it was built of have changed: the next lease builds it anew.

        Who is using it keeps it to the end of the lease. Files that cannot be looked at have not changed.

        Returns
        -------
        Whether it was let go.
        """
        with self._lock:
            entry = self._entries.get(spec)
        if entry is None:
            return False
        with entry.lock:  # one that is being built is waited for
            now = _source_state(spec)
            if entry.value is None or now is None or now == entry.state:
                return False
        with self._lock:
            if not self._take_out(spec, entry):
                return False
            entry.dropped = True
            closing = [] if entry.users else [entry.value]
        del entry
        _close_all(closing)
        return True

    def has_idle(self) -> bool:
        """Whether there is an object that nobody is using."""
        with self._lock:
            return any(not entry.users for entry in self._entries.values())

    def make_room(self, unused_for: float = 0.0) -> bool:
        """Close every object that nobody has used for so many seconds; whether there was one."""
        before = time.monotonic() - unused_for
        with self._lock:
            idle = [spec for spec, entry in self._entries.items() if not entry.users and entry.used <= before]
            closing = [self._entries.pop(spec).value for spec in idle]
        _close_all(closing)
        return bool(idle)

    def _built(self, build: Callable[[], T]) -> T:
        """What `build` makes, once more without what nobody is using where there was no memory for it."""
        try:
            return build()
        except Exception as error:
            # Of our own what it says is known: torch, which knows its kind of this, is not loaded for them.
            if isinstance(error, CuratorError) or not is_out_of_memory(error):
                raise
            room = [kept for kept in (self, ENCODERS) if kept.has_idle()]
            if not room:
                raise
        for kept in room:
            kept.clear()
        current().release_memory()
        return build()

    def clear(self) -> None:
        """Close every object that is not in use."""
        self.make_room()

    def _take_out(self, spec: Hashable, entry: _Entry[T]) -> bool:
        """Whether an entry was there, and is not any more. The caller holds the lock."""
        found = self._entries.get(spec) is entry
        if found:
            del self._entries[spec]
        return found

    def _overdue(self) -> list[T | None]:
        """Take out what is above capacity and not in use. The caller holds the lock."""
        above = len(self._entries) - self.capacity
        idle = [spec for spec, entry in self._entries.items() if not entry.users]
        return [self._entries.pop(spec).value for spec in idle[: max(above, 0)]]


def _source_state(spec: Hashable) -> Any:
    return getattr(spec, "source_state", None)


def _close_all(values: list[Any]) -> None:
    """Close the objects and forget them: the caller's list must not keep them alive through its lease."""
    while values:
        close = getattr(values.pop(), "close", None)
        if close is not None:
            close()


class Remembered(Generic[T]):
    """Answers that were dear to find, the last so many of them; safe to use from several threads.

    Parameters
    ----------
    limit
        How many are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._answers: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, question: Hashable, find: Callable[[], T]) -> T:
        """The answer, found if it is not known; two threads may both find it."""
        with self._lock:
            if question in self._answers:
                return self._answers[question]
        answer = find()
        with self._lock:
            self._answers[question] = answer
            while len(self._answers) > self._limit:
                self._answers.popitem(last=False)
        return answer

    def in_use(self) -> int:
        """Nobody holds an answer."""
        return 0

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._answers.clear()


class Held(Protocol):
    """Something that a process keeps for its tasks."""

    def in_use(self) -> int:
        """How many of its things tasks are holding now."""

    def clear(self) -> None:
        """Let go what nobody holds."""


H = TypeVar("H", bound=Held)


class Possessions:
    """All that a process keeps for its tasks: models, loaders, stages, local copies, turns, answers.

    On a Dask worker a plugin clears them when the worker ends (`curator_dask.cluster.setup`).
    """

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}

    def add(self, name: str, thing: H) -> H:
        """Take something in, by a name; gives it back."""
        self._held[name] = thing
        return thing

    def forget(self, name: str) -> None:
        """Let go what nobody holds of one thing, which need not be there."""
        if name in self._held:
            self._held[name].clear()

    def in_use(self) -> dict[str, int]:
        """By name, how many things tasks are holding now; only what is not 0."""
        return {name: count for name, thing in self._held.items() if (count := thing.in_use())}

    def clear(self) -> None:
        """Let go what nobody holds, the last that came in first."""
        for thing in reversed(self._held.values()):
            thing.clear()


#: Name of what stores' folders hold, which is old when a run begins.
LISTINGS = "listings"
#: Those of this process.
POSSESSIONS = Possessions()

#: Models of this process. Two, so that a graph that embeds with two models does not reload them in turns.
ENCODERS: SpecCache[Any] = POSSESSIONS.add("models", SpecCache(capacity=2))
#: Loaders (decoders and their threads) of this process.
LOADERS: SpecCache[Any] = POSSESSIONS.add("loaders", SpecCache(capacity=2))
