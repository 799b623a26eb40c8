"""Settings of Dask that hold while a client of ours is open, and are as they were found once it is closed.

Dask reads these two in the client's process, at times that are not ours to choose: so they are in its configuration
for so long. Everything else that a cluster needs is there while it starts, and its nannies keep it for their workers.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    import distributed


class Held:
    """A setting that holds from its first `take` to the last `give_back`, in whatever order its users come and go.

    Parameters
    ----------
    name
        Of the setting.
    value
        What it is then.
    over_user
        Whether also where the user's configuration has a value of its own.
    """

    def __init__(self, name: str, value: Any, over_user: bool) -> None:
        self.name, self.value, self.over_user = name, value, over_user
        self._users = 0
        self._change: Any = None  # that puts the setting back
        self._lock = threading.Lock()

    def take(self) -> None:
        """Have the setting hold for one user more."""
        import dask

        with self._lock:
            self._users += 1
            free = self.over_user or dask.config.get(self.name, None) is None
            if self._change is None and free:
                self._change = dask.config.set({self.name: self.value})
                self._get = dask.config.get  # when Python ends nothing can be imported any more

    def give_back(self) -> None:
        """The end of a `take`: with the last one the setting is what it was, unless it was changed meanwhile."""
        with self._lock:
            self._users -= 1
            if self._users or self._change is None:
                return
            change, self._change = self._change, None
            if self._get(self.name, None) == self.value:
                change.__exit__(None, None, None)


# So long after a worker died the cluster looks if it is there again, and if it happens to be just starting once
# more, ends its nanny for good: where workers die repeatedly, or start slowly, none would be left.
LOST_WORKER = Held("distributed.deploy.lost-worker-timeout", "10000 days", over_user=True)

# Frames with vectors can be shuffled and merged so: distributed's own way (p2p) knows no list columns.
SHUFFLE = Held("dataframe.shuffle.method", "tasks", over_user=False)


def hold(settings: Iterable[Held]) -> ExitStack:
    """Take settings; closing the stack gives them back, once."""
    stack = ExitStack()
    for each in settings:
        each.take()
        stack.callback(each.give_back)
    return stack


_opened: WeakSet[Any] = WeakSet()  # clients of `client_class` that nobody has closed
_closed: list[str] = []  # the scheduler's address of the one closed last, unless another was opened since


def open_clients() -> list[Any]:
    """The clients of `client_class` that nobody has closed."""
    return list(_opened)


def closed_client() -> str | None:
    """The scheduler's address of the client closed last, if no other was opened since; told once."""
    return _closed.pop() if _closed else None


@functools.cache
def client_class() -> type[distributed.Client]:
    """A Client that gives settings back when it is closed; made on first use, because distributed loads then."""
    import distributed

    class Client(distributed.Client):
        """A `distributed.Client` that holds settings of Dask while it is open.

        Parameters
        ----------
        held
            From `hold`; the rest as for `distributed.Client`.
        """

        def __init__(self, *args: Any, held: ExitStack, **kwargs: Any) -> None:
            self._held_settings = held
            try:
                distributed.Client.__init__(self, *args, **kwargs)
            except BaseException:
                # Else the garbage collector closes it, perhaps in a thread that holds the lock which closing takes:
                # seen to wait for ever with distributed 2026.7.1.
                with suppress(Exception):
                    distributed.Client.close(self)
                raise
            _closed.clear()
            _opened.add(self)

        def close(self, *args: Any, **kwargs: Any) -> Any:
            self.forget()
            with self._held_settings:
                return distributed.Client.close(self, *args, **kwargs)

        def forget(self) -> None:
            """Note that it is closed, once."""
            if self in _opened and self.scheduler is not None:
                _opened.discard(self)
                _closed[:] = [self.scheduler.address]

        def shutdown(self) -> Any:
            self.forget()
            with self._held_settings:
                return distributed.Client.shutdown(self)

    return Client
