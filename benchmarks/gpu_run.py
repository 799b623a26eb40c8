"""A run of `benchmarks.gpu`: its clock, its processes and clusters, what it measured, the JSON after each section."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from functools import partial
from typing import Any

from benchmarks.gpu_cluster import start_cluster
from benchmarks.gpu_report import Monitor, judge, notes_of
from benchmarks.harness import Case, Team, case_rows, machine, run_interleaved, summary, write_result


class Skipped(Exception):
    """Why a section, or a case of it, was not run."""


def short(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class Run:
    """One run: its options, its clock, and what it has found so far; a ``with`` block ends what it has started.

    Parameters
    ----------
    options
        Of the command line of `benchmarks.gpu`.

    Attributes
    ----------
    results
        JSON-able: ``models``, ``cases``, ``through`` (what the cluster of a case was made with), ``sweeps``,
        ``traces``, ``sections`` and ``not_run``.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.end = time.monotonic() + 60 * options.minutes
        self.described = machine()
        self.monitor = Monitor()
        self.results: dict[str, Any] = {
            "models": options.models,
            "cases": {},
            "through": {},
            "sweeps": {"forward": [], "decode": []},
            "traces": {},
            "sections": {},
            "not_run": {},
        }
        self._teams: dict[str, Team] = {}
        self._clusters: dict[int, tuple[Any, str]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Run:
        self._stack.callback(self._close_teams)
        self._stack.enter_context(self.monitor)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close_teams(self) -> None:
        for team in self._teams.values():
            team.close()

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def require(self, seconds: float) -> None:
        """Raise Skipped if less than so many seconds are left."""
        if self.left() < seconds:
            raise Skipped(f"{max(0, self.left()):.0f} s left, {seconds:.0f} s needed")

    def section(self, name: str, needs: float, work: Callable[[], None]) -> None:
        """Run a section, unless less than `needs` seconds are left; then write down what there is."""
        started = time.monotonic()
        print(f"{name} ({self.left():.0f} s left)", flush=True)
        state = {"state": "done"}
        try:
            self.require(needs)
            work()
        except Skipped as why:
            state = {"state": "skipped", "why": str(why)}
        except Exception as error:
            state = {"state": "failed", "why": short(error)}
        self.results["sections"][name] = {**state, "seconds": round(time.monotonic() - started, 1)}
        if "why" in state:
            print(f"  {name}: {state['state']}: {state['why']}", flush=True)
        self.write()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of a section without which the others go on."""
        try:
            yield
        except Exception as error:
            self.results["not_run"][name] = short(error)
            print(f"  {name}: not run: {short(error)}", flush=True)

    def bare(self, team: str, *work: Any) -> Case:
        """Work of `benchmarks.bare_gpu` as a case of `in_team`."""
        return Case(partial(self.in_team, team, *work), self._team(team).pids)

    def in_team(self, name: str, *work: Any) -> int:
        """As `Team.run`, in the one process of this name, which lasts as the run does; a new one if it has died."""
        try:
            return self._team(name).run(*work)
        except BrokenExecutor:
            self._teams.pop(name).close()
            raise

    def _team(self, name: str) -> Team:
        if name not in self._teams:
            self._teams[name] = Team(1, self.options.decode_threads)
        return self._teams[name]

    def cluster(self, tasks: int) -> tuple[Any, str]:
        """`start_cluster`, once for each number of tasks; it lasts as the run does."""
        if tasks not in self._clusters:
            self._clusters[tasks] = start_cluster(self.options.device, tasks, self._stack)
        return self._clusters[tasks]

    def measure(self, cases: dict[str, Case], seconds: float) -> None:
        """Run cases in turns, as many rounds as fit into so many seconds and at most ``--repeats``."""
        ready: dict[str, Case] = {}
        limit = min(self.end, time.monotonic() + seconds)
        for name, case in cases.items():
            with self.part(name):
                if ready and time.monotonic() > limit:
                    raise Skipped("no time was left")
                watched = Case(self.monitor.watched(name, case.run), case.pids)
                watched.run()
                ready[name] = watched
        rounds: list[dict[str, Any]] = []
        longest = 0.0
        while ready and len(rounds) < self.options.repeats:
            if rounds and time.monotonic() + longest > limit:
                break
            started = time.monotonic()
            order = list(ready) if len(rounds) % 2 == 0 else list(reversed(ready))
            try:
                rounds.append(run_interleaved({name: ready[name] for name in order}, 1, warm_up=False))
            except Exception as error:
                if not rounds:
                    raise
                self.results["not_run"][f"round {len(rounds) + 1} of {', '.join(ready)}"] = short(error)
                break
            longest = max(longest, time.monotonic() - started)
        for name in ready:
            figures = ("items_per_second", "seconds", "cpu_ms_per_item")
            self.results["cases"][name] = {
                figure: summary([each[name][figure]["median"] for each in rounds]) for figure in figures
            } | {"peak_rss_mib": max(each[name]["peak_rss_mib"] for each in rounds)}

    def timed(self, team: str, *work: Any) -> dict[str, float]:
        """Rate of work that is called with a number of images, in a team, for about ``sweep_seconds``.

        The work does at least so many images and gives how many it did; each call is longer than the one before.

        Returns
        -------
        dict
            ``images_per_second``, and ``warm_up_seconds`` of the first call.
        """
        seconds = self.options.sweep_seconds
        done, spent = _timed(partial(self.in_team, team, *work), 1)
        found = {"warm_up_seconds": round(spent, 3)}
        for _ in range(6):
            images = done if spent >= seconds else max(2 * done, int(done / spent * seconds))
            done, spent = _timed(partial(self.in_team, team, *work), images)
            if spent >= 0.6 * seconds:
                break
        print(f"    {done / spent:.1f}/s, {found['warm_up_seconds']:.1f} s to begin with", flush=True)
        return {"images_per_second": float(f"{done / spent:.4g}"), **found}

    def notes(self) -> list[str]:
        """What was last written, in words."""
        return notes_of(self.results)

    def write(self) -> None:
        """The JSON with all that there is so far; of a small case only where ``--out`` says so."""
        options, results = self.options, self.results
        results["ratios"], results["goals"] = judge(options.device, self.described["gpus"], results)
        results["utilisation"] = self.monitor.utilisation()
        names = ("batch_size", "decode_threads", "images", "photographs", "repeats", "minutes")
        whole = {
            "what": f"{', '.join(options.models.values())} with random weights, batches of {options.batch_size},"
            f" {options.decode_threads} decode threads, {options.photographs} photographs again and again; at most"
            f" {options.repeats} interleaved runs.",
            "settings": {name: getattr(options, name) for name in names},
            **results,
            "table": case_rows(results["cases"]),
            "notes": self.notes(),
        }
        if options.out is not None or (options.device == "gpu" and not options.quick):
            write_result("gpu", options, self.described, whole)


def _timed(work: Callable[[int], int], images: int) -> tuple[int, float]:
    """Images done, and seconds."""
    started = time.perf_counter()
    return work(images), time.perf_counter() - started
