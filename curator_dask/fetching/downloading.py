"""All URLs of a shard, many at a time: retries, hosts that do not answer, and a network that is not there."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from yarl import URL

from curator_dask.errors import ConfigError, NetworkError
from curator_dask.fetching.asking import Asking, host_of, url_of
from curator_dask.fetching.descriptors import TooManyFilesError, connections_for
from curator_dask.fetching.failures import FailedError, Failure, kind_of, without_credentials
from curator_dask.fetching.looking import Look
from curator_dask.fetching.options import FetchOptions
from curator_dask.fetching.queueing import HostQueues
from curator_dask.words import counted, ranked

#: Failures of one host in a row, of those that may pass, after which its other rows are not tried.
GIVE_UP = 32
#: Rows in a row that no server has answered for, and of how many hosts, after which a run stops.
SILENT_ROWS, SILENT_HOSTS = 200, 20
_CROWDED = 60  # times, half a second apart, that a download waits for a file
_THREADS = min(4, os.cpu_count() or 1)  # that look at images


@dataclass
class _Job:
    number: int
    url: URL
    left: float  # seconds, of this try
    origin: str = ""  # the host of the table's URL
    hops: int = 0
    tries: int = 0
    crowded: int = 0  # times that there was no file for its connection


class Downloads:
    """The URLs of a shard, each once.

    Parameters
    ----------
    urls
        As the table has them.
    options
        Limits, and what is allowed.
    take
        Looks at what came for a URL, of its number and its bytes, and keeps it; called in threads.
    tell
        Is told of each URL that is done, whether it failed.
    is_first
        Says whether no shard is there yet: then nobody has answered before.
    """

    def __init__(
        self,
        urls: Sequence[str | None],
        options: FetchOptions,
        take: Callable[[int, bytes | bytearray], Look],
        tell: Callable[[int, bool], None],
        is_first: Callable[[], bool],
    ) -> None:
        self._urls, self._options, self._take, self._tell = urls, options, take, tell
        self._is_first, self._heard = is_first, False
        self._silent: list[tuple[str, str]] = []  # hosts and reasons, since a server has answered
        self._in_a_row: Counter[str] = Counter()  # failures of a host that may pass
        self._given_up: dict[str, Failure] = {}
        self.failures: dict[int, Failure] = {}
        self.hosts: Counter[str] = Counter()  # whose URLs failed
        self.received = 0  # bytes

    def run(self) -> None:
        """Do all of them; `failures` then has those that failed, by their numbers.

        Raises
        ------
        NetworkError
            No server answers.
        ConfigError
            There are more connections than files that may be open.
        OutputError
            What came cannot be kept.
        """
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="curator-fetch")
        self._queues: HostQueues[_Job] = HostQueues(len(self._urls), self._options.per_host)
        try:
            async with Asking(self._options) as self._asking:
                for number, text in enumerate(self._urls):
                    self._begin(number, text)
                count = min(connections_for(self._options.connections), len(self._urls))
                workers = [asyncio.create_task(self._work()) for _ in range(count)]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _begin(self, number: int, text: str | None) -> None:
        job = _Job(number, URL(), self._options.timeout)
        try:
            job.url = url_of(text)
        except FailedError as error:
            self._end(job, error.failure)
            return
        job.origin = host_of(job.url)
        self._queues.put(job.origin, job)

    async def _work(self) -> None:
        while (found := await self._queues.next()) is not None:
            host, job = found
            try:
                await self._try(host, job)
            finally:
                self._queues.leave(host)

    async def _try(self, host: str, job: _Job) -> None:
        if host in self._given_up:
            self._end(job, self._given_up[host])
            return
        loop, body = asyncio.get_running_loop(), self._asking.body()
        begun = loop.time()
        try:
            try:
                answer = await self._asking.ask(job.url, body, job.left)
            except TooManyFilesError:
                await self._wait_for_files(host, job)
                return
            self.received += body.received
            if answer is None:
                try:
                    await loop.run_in_executor(self._pool, self._take, job.number, body.data)
                except FailedError as error:
                    answer = error.failure
        finally:
            body.close()
        if isinstance(answer, URL):
            self._in_a_row[host] = 0
            job.left -= loop.time() - begun
            self._redirect(job, answer)
        elif answer is not None and answer.may_pass:
            self._fail(host, job, answer)
        else:
            self._in_a_row[host] = 0
            self._end(job, answer)

    async def _wait_for_files(self, host: str, job: _Job) -> None:
        """Come again when other connections have ended: it is not the host."""
        job.crowded += 1
        if job.crowded > _CROWDED:
            raise ConfigError(
                f"connections={self._options.connections}: more files than may be open here: give fewer"
                " (--connections), or raise the limit (ulimit -n) of what runs the workers"
            )
        await asyncio.sleep(0.5 * random.uniform(0.8, 1.2))  # and takes no other meanwhile
        self._queues.put(host, job, first=True)

    def _redirect(self, job: _Job, url: URL) -> None:
        job.hops += 1
        if job.hops > self._options.max_redirects:
            self._end(job, Failure(f"too many redirects: more than {job.hops - 1}", answered=True))
            return
        job.url, job.left = url, max(job.left, 0.001)
        self._queues.put(host_of(url), job, first=True)

    def _fail(self, host: str, job: _Job, failure: Failure) -> None:
        """Try again, if it may pass; or give the host up."""
        self._in_a_row[host] += 1
        if self._in_a_row[host] >= GIVE_UP and host not in self._given_up:
            said = (
                f"host given up: {host}: failed {GIVE_UP} times in a row, last by {kind_of(failure.reason)!r}"
            )
            self._given_up[host] = Failure(said, answered=failure.answered)
            for other in self._queues.take_all(host):
                self._end(other, self._given_up[host])
        wait = failure.wait or 0.0
        if job.tries >= self._options.retries or host in self._given_up:
            self._end(job, failure)
        elif wait > self._options.max_wait:
            more = f"{failure.reason}: to be asked again in {wait:.0f} s, which is too long"
            self._end(job, Failure(more, answered=True))
        else:
            job.tries += 1
            job.left = self._options.timeout
            if wait:
                self._queues.pause(host, wait)
            self._queues.later(host, job, max(wait, 0.5 * 2**job.tries * random.uniform(0.8, 1.2)))

    def _end(self, job: _Job, failure: Failure | None) -> None:
        """A URL has its image, or has failed."""
        if failure is not None:
            self.failures[job.number] = failure
            if job.origin:
                self.hosts[job.origin] += 1
        self._tell(job.number, failure is not None)
        self._queues.end()
        if failure is None or (failure.answered and job.origin):
            self._heard = True
            self._silent.clear()
        elif job.origin:
            self._silent.append((job.origin, failure.reason))
            self._check_silence()

    def _check_silence(self) -> None:
        if len(self._silent) < SILENT_ROWS or self._options.keep_going:
            return
        hosts = {host for host, _ in self._silent}
        if len(hosts) < SILENT_HOSTS and (self._heard or not self._is_first()):
            return
        kinds = ranked(Counter(kind_of(reason) for _, reason in self._silent))
        said = ", ".join(f"{count:,} x {kind}" for kind, count in kinds)
        raise NetworkError(
            f"no server answers: of the last {len(self._silent):,} URLs, on {counted(len(hosts), 'host')}, each failed"
            f" without one ({said}; for example {without_credentials(self._silent[-1][1])}). Is there a network, does"
            " DNS answer, is a proxy needed (proxy=, --proxy)? Finished shards are kept: run again when it is there, or"
            " with keep_going=True (--keep-going) to count such rows as failed"
        )
