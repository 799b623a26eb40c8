"""Which download is next: many hosts at a time, few downloads of each, and none of a host that is to be left alone."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from typing import Generic, TypeVar

Job = TypeVar("Job")


class HostQueues(Generic[Job]):
    """Jobs by host, within one event loop.

    A job is put in, handed out by `next`, and then put in again, or ended by `end`; either way `leave` says that its
    host is asked no more. So a host that is slow, or has said when to come again, holds up no other.

    Parameters
    ----------
    count
        Of all jobs that there will be.
    per_host
        Jobs of one host that are handed out at a time.
    """

    def __init__(self, count: int, per_host: int) -> None:
        self._left, self._per_host = count, per_host
        self._waiting: defaultdict[str, deque[Job]] = defaultdict(deque)
        self._active: Counter[str] = Counter()
        self._ready: deque[str] = deque()  # hosts with a job that may be handed out, each once
        self._is_ready: set[str] = set()
        self._paused: dict[str, float] = {}  # until when, in the loop's time
        self._idle: deque[asyncio.Future[None]] = deque()

    def put(self, host: str, job: Job, *, first: bool = False) -> None:
        """Take a job of a host; `first` before others that wait."""
        if first:
            self._waiting[host].appendleft(job)
        else:
            self._waiting[host].append(job)
        self._offer(host)

    def later(self, host: str, job: Job, seconds: float) -> None:
        """Take a job of a host after a pause."""
        asyncio.get_running_loop().call_later(seconds, self.put, host, job)

    def pause(self, host: str, seconds: float) -> None:
        """Hand out no job of a host for so long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if until > self._paused.get(host, 0.0):
            self._paused[host] = until
            loop.call_at(until, self._resume, host)

    def take_all(self, host: str) -> list[Job]:
        """All jobs of a host that wait."""
        found = [*self._waiting[host]]
        self._waiting[host].clear()
        return found

    async def next(self) -> tuple[str, Job] | None:
        """A host and its next job; None: all jobs have ended."""
        while self._left:
            while self._ready:
                host = self._ready.popleft()
                self._is_ready.discard(host)
                if not self._may(host):
                    continue
                job = self._waiting[host].popleft()
                self._active[host] += 1
                self._offer(host)
                return host, job
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle
        return None

    def leave(self, host: str) -> None:
        """A job of the host that was handed out asks it no more."""
        self._active[host] -= 1
        if not self._active[host]:
            del self._active[host]
        self._offer(host)

    def end(self) -> None:
        """A job has ended."""
        self._left -= 1
        if not self._left:
            while self._idle:
                self._wake()

    def _may(self, host: str) -> bool:
        return bool(self._waiting[host] and self._active[host] < self._per_host and host not in self._paused)

    def _offer(self, host: str) -> None:
        if self._may(host) and host not in self._is_ready:
            self._is_ready.add(host)
            self._ready.append(host)
            self._wake()

    def _resume(self, host: str) -> None:
        if asyncio.get_running_loop().time() >= self._paused.get(host, 0.0) - 1e-3:
            self._paused.pop(host, None)
            self._offer(host)

    def _wake(self) -> None:
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return
