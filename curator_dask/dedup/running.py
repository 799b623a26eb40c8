"""One deduplication from files of vectors to pairs, phase by phase."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.dedup.assigning import Assign
from curator_dask.dedup.components import components, heads_of, spread
from curator_dask.dedup.found import Found
from curator_dask.dedup.grouping import Groups, stars
from curator_dask.dedup.hamming import BY_HASH, HammingPairs, first_near
from curator_dask.dedup.kmeans import SAMPLE as PER_CLUSTER
from curator_dask.dedup.kmeans import Cluster
from curator_dask.dedup.layout import Layout
from curator_dask.dedup.memory import NO_LIMIT, SAMPLE, Memory
from curator_dask.dedup.pairing import Again, Pairs
from curator_dask.dedup.phases import Job, Phase, run_phases
from curator_dask.dedup.places import PART, Places, Reader, Sort
from curator_dask.dedup.products import exact_dots
from curator_dask.dedup.rows import Rows, gather_rows
from curator_dask.dedup.sampling import EPS, CompareSample, choose_gap, share, share_going
from curator_dask.dedup.scanning import Scan, Source, look_over
from curator_dask.dedup.settings import COMPONENTS, Settings
from curator_dask.dedup.sketches import WIDTHS, save_in_order
from curator_dask.dedup.summary import DedupSummary
from curator_dask.dedup.visits import Visits
from curator_dask.dedup.work import Work
from curator_dask.fingerprint import fingerprint
from curator_dask.words import counted

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("curator_dask")

#: Of what is in the files of phases: another number makes all of them anew.
VERSION = 3
#: Distinct vectors up to which all are compared with all.
SMALL = 8192
_LEAST, _FIRST = 1e-3, 2048  # of k-means, see `Cluster`: to know where to look is enough
_PARTS = "part {} of the rows in the order of clusters".format


class Deduplication:
    """The phases, in their order; what earlier calls have finished is not done again.

    Parameters
    ----------
    settings
        What is asked for.
    sources
        Files of vectors.
    output
        Where the result goes.
    work
        Where the files of phases go.
    workers
        Gives the client of the cluster to work on.
    memory
        What a task may hold, and what the client may.
    stay
        By name of a source, rows that stay whatever they are like.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[Source],
        output: str,
        work: Work,
        workers: Callable[[], Client | None],
        memory: tuple[Memory, Memory] = (NO_LIMIT, NO_LIMIT),
        stay: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.settings, self.sources, self.output, self.work = settings, tuple(sources), output, work
        self.memory, self.client_memory = memory
        self._workers, self._stay = workers, stay
        self.summary = DedupSummary(output, settings.eps)
        self.rows: Rows
        self.ranks: np.ndarray  # of rows
        self.groups: Groups  # of distinct rows
        self.found_by: np.ndarray  # of distinct rows that go; 0: vectors, else a hash
        self.identity = ""

    def run(self) -> None:
        """All phases."""
        settings = self.settings
        scan = self.work.phase(
            "scan",
            version=VERSION,
            column=settings.column,
            keep=settings.keep.identity,
            normalize=settings.normalize,
            **({"exact": settings.exact.identity} if settings.exact.radii else {}),
        )
        names = [source.name for source in self.sources]
        task = Scan(
            scan,
            self.sources,
            settings.column,
            settings.keep,
            settings.normalize,
            settings.exact,
            self.memory,
        )
        with scan.listed():
            look_over(self.sources, task.finished)
        self._do(self._job("scan", task, names, task.finished))
        self.rows = rows = gather_rows(scan, self.sources, self.output, self._stay)
        self.summary.rows, self.summary.stay = rows.total, int((rows.fixed & ~rows.apart).sum())
        self.summary.set_aside = {name: count for name, count in rows.counts.items() if name != "good"}
        self.summary.unknown = settings.keep.unknown(rows.table.filter(~rows.fixed))
        fixed = [source.fixed for source in self.sources]
        distinct = self.work.phase("distinct", scan=scan.folder, names=names, fixed=fixed)
        layout = Layout.of(scan, distinct, names, rows)
        if len(rows.carriers):
            sampled, labels, centres = self._clusters(layout)
        else:  # hashes alone: there is nothing to cluster
            self._eps, self._assigned, self._near = settings.eps, distinct, np.zeros((0, len(EPS)), np.int64)
            self._numbers, sampled = np.zeros(0, np.int64), np.zeros((0, 3))
            self._visits = Visits(distinct)
            labels, centres = np.zeros(0, np.int64), np.zeros(0, np.int64)
        places, numbers = self._order(layout, labels, centres)
        self._pairs(places, numbers)
        self._measure(sampled, labels)
        self._explain(layout)

    def _job(self, label: str, task: Any, names: Sequence[str], finished: Callable[[str], bool]) -> Job:
        """Of a phase whose files are named after those of vectors."""
        paths = {source.name: source.path for source in self.sources}
        return Job(label, task, names, finished, paths.__getitem__, task.phase)

    def _do(self, *jobs: Job) -> None:
        started = time.monotonic()
        made = run_phases(jobs, self.output, self._workers, self.work.folder)
        seconds = time.monotonic() - started
        if any(made.values()):
            files = ", ".join(
                f"{job.label}: {made[job.label]} of {counted(len(job.names), 'file')}" for job in jobs
            )
            logger.info("%s, %.1f s", files, seconds)
        self.summary.made |= made
        self.summary.seconds[" and ".join(made)] = seconds

    def _clusters(self, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of the sample; and of each distinct vector its cluster, and how near that is."""
        count, settings = len(self.rows.carriers), self.settings
        wanted = settings.clusters
        if wanted is None:
            wanted = 1 if count <= SMALL or settings.recall == 1 else round(0.75 * math.sqrt(count))
        wanted = min(wanted, count)
        self.memory.check(settings.memory_limit, layout.dim, wanted)
        phase = self.work.phase("clusters", distinct=layout.distinct.folder, clusters=wanted, sketches=WIDTHS)
        if not phase.has("numbers.npy"):
            size = min(count, max(SMALL, PER_CLUSTER * wanted))
            phase.save("numbers.npy", np.sort(np.random.default_rng(0).choice(count, size, replace=False)))
        self._compared(phase)
        sampled = self.work.phase("sample", distinct=layout.distinct.folder, eps=self._eps, counts=EPS)
        if not sampled.has("numbers.npy"):
            numbers = np.sort(np.random.default_rng(1).choice(count, min(count, SAMPLE), replace=False))
            layout.save_some(sampled, "sample.vectors", numbers)
            sampled.save("numbers.npy", numbers)
        cluster = Cluster(
            phase, layout, wanted, memory=self.memory, least=_LEAST, first=_FIRST, sketch=count > SMALL
        )
        compare = CompareSample(layout, sampled, self._eps)
        self._do(  # k-means has one core busy, the sample the others
            Job("k-means", cluster, ["centroids.npy"], phase.has, f"{wanted} clusters".format, phase),
            self._job("sample", compare, layout.names, lambda name: sampled.has(f"{name}.npy")),
        )
        said = phase.load("said.npy").tolist()
        self.summary.clusters = wanted
        self.summary.iterations, self.summary.converged, self.summary.filled = said[0], bool(said[1]), said[2]
        return self._assign(layout, phase, sampled)

    def _compared(self, clusters: Phase) -> None:
        """By which eps pairs are looked for: a larger one, where that has been done."""
        settings = self.settings
        known = {"clusters": clusters.folder, "keep": settings.keep.identity, "recall": settings.recall}
        self.identity = fingerprint({**known, **self.rows.stays})
        done = [
            float(said["eps"])
            for said in self.work.told("pairs", "done.json")
            if said["identity"] == self.identity and said["eps"] >= settings.eps
        ]
        self._eps = min(done, default=settings.eps)

    def _assign(
        self, layout: Layout, clusters: Phase, sampled: Phase
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._numbers = sampled.load("numbers.npy")
        sampled.fetch([f"{name}{suffix}.npy" for name in layout.names for suffix in ("", "-counts")])
        pairs = np.concatenate([sampled.load(f"{name}.npy") for name in layout.names])
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        self._near = np.sum([sampled.load(f"{name}-counts.npy") for name in layout.names], axis=0)
        centroids = np.array(clusters.load("centroids.npy"))
        gap = 0.0
        if len(centroids) > 1:
            sample = np.array(sampled.vectors("sample.vectors", layout.dim))
            gap = choose_gap(pairs, sample, layout, centroids, self._eps, self.settings.recall)
        centres = self.settings.keep.centre is not None
        self._assigned = assigned = self.work.phase(
            "assign", clusters=clusters.folder, gap=gap, centres=centres
        )
        assign = Assign(layout, assigned, clusters, gap, centres, self.memory)
        self._do(self._job("assign", assign, layout.names, lambda name: assigned.has(f"{name}.npy")))
        self._visits = Visits(assigned, layout.names)
        assigned.fetch(
            [f"{name}{suffix}.npy" for name in layout.names for suffix in ("", "-centre", "-near")]
        )
        labels, own = (
            np.concatenate([assigned.load(f"{name}{suffix}.npy") for name in layout.names])
            for suffix in ("", "-centre")
        )
        return pairs, labels, own

    def _order(self, layout: Layout, labels: np.ndarray, centres: np.ndarray) -> tuple[Places, np.ndarray]:
        """The vectors in the order of clusters, in each of them in the order of who stays."""
        rows, keep = self.rows, self.settings.keep
        of_rows = None
        if keep.centre is not None:
            apart = np.full(len(rows.first) - len(centres), np.nan)
            of_rows = np.concatenate([centres, apart])[rows.distinct]
        self.ranks = keep.order(rows.table, rows.fixed, of_rows)
        ranks = np.full(len(rows.first), len(self.ranks))
        # Of each distinct row, that of the best that is the same.
        np.minimum.at(ranks, rows.distinct, self.ranks)
        self._ranks = ranks
        phase = self.work.phase("order", assigned=self._assigned.folder, keep=keep.identity, **rows.stays)
        order = np.lexsort((ranks[: len(labels)], labels))
        if not phase.has("order.npy"):
            counts = self.summary.clusters
            places = np.empty(len(order), np.int64)
            places[order] = np.arange(len(order))
            phase.save("ranks.npy", ranks[order])
            phase.save("bounds.npy", np.searchsorted(labels[order], np.arange(counts + 1)))
            self._visits.save_by_cluster(phase, places, counts)
            save_in_order(self._assigned, layout.names, phase, places, layout.dim)
            phase.save("order.npy", order)
        where = Places.of(phase, layout, len(order), max(1, self.summary.clusters))
        if names := where.parts:
            sort = Sort(where, self.memory)
            self._do(Job("sort", sort, names, lambda name: phase.has(f"{name}.vectors"), _PARTS, phase))
        order = np.concatenate([order, np.arange(len(order), len(rows.first))])  # those without a vector
        for number, (values, there) in enumerate(rows.hashes):
            if not phase.has(f"hash{number}-there.npy"):
                of = rows.first[order]
                phase.save("hash-ranks.npy", ranks[order])
                phase.save(f"hash{number}.npy", values[of])
                phase.save(f"hash{number}-there.npy", there[of])
        return where, order

    def _pairs(self, places: Places, numbers: np.ndarray) -> None:
        """Find pairs, and decide; rows with more betters than are written down are looked at again."""
        fixed, order, eps = int(self.rows.fixed.sum()), places.order, self._eps
        radii = tuple(bits for _, bits in self.settings.exact.radii)
        asked: dict[str, Any] = {"radii": radii} if radii else {}
        phase = self.work.phase("pairs", order=order.folder, eps=eps)
        found, more = self._find("pairs", Pairs(places, phase, eps, fixed, self.memory))
        searches = [found]
        if radii:
            limits, hashes = (
                (radii, fixed, self.memory),
                self.work.phase("hashes", order=order.folder, **asked),
            )
            by_hash, more_by_hash = self._find("hashes", HammingPairs(order, hashes, *limits))
            searches, more = [found, by_hash], more | more_by_hash
        if not phase.has("done.json"):
            with phase.writing("done.json") as file:
                file.write(json.dumps({"identity": self.identity, "eps": eps}).encode())
        least, ranks = 1 - self.settings.eps, self._ranks[numbers]
        pairs = Found(tuple(searches), ranks, self.client_memory.joined)
        groups = self._decide(pairs, least)
        by_components = self.settings.groups == COMPONENTS
        asked |= {"groups": COMPONENTS} if by_components else {}
        again = 0
        while (open_ := more if by_components else groups.kept & more).any():
            again += 1
            looked = self.work.phase("again", pairs=phase.folder, eps=self.settings.eps, again=again, **asked)
            labels = heads_of(groups) if by_components else None
            Again(open_, None if by_components else groups.kept, labels).save(looked)
            task = Pairs(places, looked, self.settings.eps, fixed, self.memory)
            extra = [self._find("pairs again", task)[0]]
            if radii:
                extra.append(self._find("hashes again", HammingPairs(order, looked, *limits))[0])
            if not any(len(found) for files in extra for found in files):
                break
            pairs = Found((*pairs.searches, *extra), ranks, self.client_memory.joined)
            groups = self._decide(pairs, least)
        if by_components:
            summary = self.summary
            reader = Reader(places)
            summary.diameter, summary.diameter_exact = spread(reader, groups, len(self.rows.carriers))
        self.summary.pairs = pairs.count(least)
        self._found, self._more = pairs, more
        self._numbers_of = numbers
        count = len(numbers)
        kept, star, cosine = np.empty(count, bool), np.empty(count, np.int64), np.empty(count)
        kept[numbers], cosine[numbers] = groups.kept, groups.cosine
        star[numbers] = np.where(groups.star < 0, -1, numbers[groups.star])
        self.groups = Groups(kept, star, cosine)

    def _find(self, label: str, task: Pairs | HammingPairs) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """The pairs that tasks have found, and bool (rows,): which rows have more betters."""
        phase, names = task.phase, task.names()
        self._do(Job(label, task, names, lambda name: phase.has(f"{name}.npy"), _PARTS, phase))
        phase.fetch([f"{name}{suffix}.npy" for name in names for suffix in ("", "-more")])
        more = np.zeros(len(self.rows.first), bool)
        for name in names:
            more[phase.load(f"{name}-more.npy")] = True
        return tuple(phase.load(f"{name}.npy") for name in names), more

    def _explain(self, layout: Layout) -> None:
        """Of each row that goes, what makes it a duplicate, and its cosine where that is not it."""
        rows, groups, exact = self.rows, self.groups, self.settings.exact
        self.found_by = np.zeros(len(rows.first), np.int64)
        within = (groups.cosine >= 1 - self.settings.eps) & (groups.cosine != BY_HASH)
        gone = np.flatnonzero(~groups.kept & ~within)
        bare = np.arange(len(rows.carriers), len(rows.first))  # rows that are the same without a vector
        for of, other in ((bare, bare), (gone, groups.star[gone])):
            self.found_by[of] = 1 + first_near(rows.hashes, exact.radii, rows.first[of], rows.first[other])
        groups.cosine[gone] = np.nan
        both = gone[(gone < len(rows.carriers)) & (groups.star[gone] < len(rows.carriers))]
        for start in range(0, len(both), PART):
            part = both[start : start + PART]
            groups.cosine[part] = exact_dots(layout.gather(part), layout.gather(groups.star[part]))
        self.found_by[both[groups.cosine[both] >= 1 - self.settings.eps]] = 0

    def _decide(self, pairs: Found, least: float) -> Groups:
        """By the pairs with at least such a cosine."""
        count, parts = len(pairs.ranks), pairs.parts(least)
        if self.settings.groups == COMPONENTS:
            return components(count, parts, pairs.ranks, int(self.rows.fixed.sum()))
        return stars(count, parts, pairs.ranks)

    def _measure(self, pairs: np.ndarray, labels: np.ndarray) -> None:
        """What share of the sample's pairs was compared, and the table of eps."""
        settings, clusters = self.settings, self.summary.clusters
        some = pairs[(pairs[:, 2] >= 1 - settings.eps) & ((pairs[:, 0] % 2 == 1) | (clusters == 1))]
        of, other = some[:, 0].astype(np.int64), some[:, 1].astype(np.int64)
        mine = np.asarray(self._numbers)[of]
        known = self._visits.of(np.concatenate([mine, other]), clusters)
        compared = labels[mine] == labels[other]
        for left, right in ((mine, other), (other, mine)):
            wanted = left * clusters + labels[right]
            at = np.minimum(np.searchsorted(known, wanted), max(0, len(known) - 1))
            compared |= known[at] == wanted if len(known) else False
        self.summary.recall = share(of, compared)
        self._tabulate(pairs)

    def _tabulate(self, pairs: np.ndarray) -> None:
        rows, least = self.rows, 1 - self.settings.eps
        free = ~rows.fixed
        ranks = self._ranks[self._numbers_of]
        copies = int((free & (self.ranks != self._ranks[rows.distinct])).sum())
        # Of each distinct row, whether one that may go is its best.
        going = ranks >= int(rows.fixed.sum())
        by_components = self.settings.groups == COMPONENTS
        ordered = not by_components and bool(free.all())
        own = np.bincount(pairs[pairs[:, 2] >= least, 0].astype(np.int64), minlength=len(self._near))
        known, removed = (
            share_going(own, ordered),
            copies + int((~self.groups.kept[self._numbers_of] & going).sum()),
        )
        table: dict[float, int] = {self.settings.eps: removed}
        about = []
        for eps, near in zip(EPS, self._near.T, strict=True):
            sampled = share_going(near, ordered) * len(rows.carriers)
            if eps < self.settings.eps:
                groups = self._decide(self._found, 1 - eps)
                table[eps] = copies + int((~groups.kept & going).sum())
                # Their nearer betters are not written down: how many of them go is not known.
                if (self._more if by_components else groups.kept & self._more).any():
                    table[eps] = min(removed, max(table[eps], copies + round(sampled)))
                    about.append(eps)
            elif eps > self.settings.eps:
                more = max(0, round(sampled - known * len(rows.carriers)))
                table[eps] = min(rows.total, removed + more)
                about.append(eps)
        self.summary.table = {f"{eps:g}": table[eps] for eps in sorted(table)}
        self.summary.about = [f"{eps:g}" for eps in about]
