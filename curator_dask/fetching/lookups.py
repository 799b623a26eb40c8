"""Addresses of hosts: each host is asked for once, few at a time, so that a list of many hosts overloads no DNS."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from curator_dask.cache import POSSESSIONS

_THREADS = 32  # lookups at a time, of a worker
_KNOWN = 200_000  # hosts that a worker remembers
_SECONDS = 600.0  # for so long

#: Of a lookup: there is no such host. Others (`EAI_AGAIN`, say) may pass.
NO_SUCH_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


class KnownHosts:
    """What lookups of this process have found, for all shards that it fetches."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[float, list[tuple[int, str]] | socket.gaierror]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, host: str) -> list[tuple[int, str]] | socket.gaierror | None:
        """Families and addresses of a host, or that there is none; None where that is not known."""
        with self._lock:
            since, found = self._found.get(host, (0.0, None))
            return found if time.monotonic() - since < _SECONDS else None

    def put(self, host: str, found: list[tuple[int, str]] | socket.gaierror) -> None:
        """Remember it."""
        with self._lock:
            self._found[host] = time.monotonic(), found
            while len(self._found) > _KNOWN:
                self._found.popitem(last=False)

    def in_use(self) -> int:
        """None is held."""
        return 0

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._found.clear()


KNOWN_HOSTS = POSSESSIONS.add("hosts", KnownHosts())
"""Those of this process."""


class Lookups(AbstractResolver):
    """The resolver of one event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="curator-lookup")
        self._asked: dict[str, asyncio.Task[list[tuple[int, str]]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host.

        Raises
        ------
        socket.gaierror
            There is none, or it cannot be found out now.
        """
        known = KNOWN_HOSTS.get(host)
        if known is None:
            if host not in self._asked:
                task = asyncio.ensure_future(self._ask(host))
                task.add_done_callback(lambda done: self._forget(host, done))
                self._asked[host] = task
            # Who waits may run out of time; the lookup goes on for the next.
            known = await asyncio.shield(self._asked[host])
        if isinstance(known, socket.gaierror):
            raise socket.gaierror(*known.args)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, address in known
            if family in (socket.AF_UNSPEC, kind)
        ]

    def _forget(self, host: str, done: asyncio.Task[list[tuple[int, str]]]) -> None:
        self._asked.pop(host, None)
        if not done.cancelled():
            done.exception()  # perhaps nobody waits for it any more, of which asyncio would complain

    async def _ask(self, host: str) -> list[tuple[int, str]]:
        try:
            infos = await asyncio.get_running_loop().run_in_executor(self._pool, _addresses, host)
        except socket.gaierror as error:
            if error.errno in NO_SUCH_HOST:
                KNOWN_HOSTS.put(host, error)
            raise
        KNOWN_HOSTS.put(host, infos)
        return infos

    async def close(self) -> None:
        """Let the threads go; a lookup that hangs is left behind."""
        for task in [*self._asked.values()]:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _addresses(host: str) -> list[tuple[int, str]]:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError:  # no name that a host can have: IDNA's own, of a part that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "no name that a host can have") from None
    found = [(int(family), str(address[0])) for family, _, _, _, address in infos]
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return list(dict.fromkeys(found))
