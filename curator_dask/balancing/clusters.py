"""`balance_clusters`: balancing a dataset over the clusters of its vectors."""

from __future__ import annotations

import logging
import numbers
import os
import posixpath
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from curator_dask.balancing.choosing import DRAWN, FAR, NEAR, RANDOM, DrawClusters, find_ends, order_of
from curator_dask.balancing.counting import count_clusters
from curator_dask.balancing.levels import figures, shared
from curator_dask.balancing.quotas import BY, LEVELS, Clusters, distances_between
from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.frames.names import EMBEDDING_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import whole_footers
from curator_dask.image.classifiers import ClusterDistance, ClusterNumber, score_output
from curator_dask.image.classifiers.levels import Levels, read_levels
from curator_dask.outputs.adding import add_columns
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.given import given_files
from curator_dask.outputs.placing import locate
from curator_dask.rows.best import count_best, is_number
from curator_dask.runs.summary import SaveSummary, installed_versions
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

#: Columns that it adds, before a prefix: each row's cluster, how far it is from the centroid, and whether it is kept.
NUMBER, DISTANCE = "cluster", "cluster_distance"
COLUMNS = (NUMBER, DISTANCE, DRAWN)
_SHOWN = 12  # clusters that a summary names


@dataclass
class ClusterBalanceSummary:
    """What the clusters are like, and what came of them.

    Attributes
    ----------
    rows, without_vector
        All rows, and those without a vector, or without a value of the column that decides.
    clusters
        Of each cluster, by its number: ``size``, rows that may be kept; ``within``, the mean distance to the centroid;
        ``between``, that of the centroid to the nearest others; ``complexity``, their product; and ``keep``, how many
        rows are to be kept. What is not known, or was not asked for, is None.
    levels
        Of a file of several levels what each has, the highest first (`curator_dask.balancing.levels.figures`).
    by, order
        What decides how many are kept of each, and which.
    kept
        Rows that are kept; None: nothing was asked for.
    output
        What was written, if anything was.
    seconds
        Of this call.
    """

    rows: int = 0
    without_vector: int = 0
    clusters: list[dict[str, Any]] = field(default_factory=list)
    levels: list[dict[str, Any]] = field(default_factory=list)
    by: str = BY[0]
    order: str = FAR
    kept: int | None = None
    output: SaveSummary | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, ``output`` as `SaveSummary.to_dict` gives it, and the versions of what ran."""
        output = None if self.output is None else self.output.to_dict()
        return {**vars(self), "output": output, "versions": installed_versions()}

    def __str__(self) -> str:
        empty = sum(not each["size"] for each in self.clusters)
        lines = [
            f"{counted(self.rows, 'row')}: {self.without_vector:,} without a vector, the others in"
            f" {counted(len(self.clusters) - empty, 'cluster')}"
            + (f" ({empty:,} more are empty)" if empty else "")
        ]
        if self.kept is not None:
            how = {FAR: "the farthest from the centroid first", RANDOM: "drawn within each"}.get(
                self.order, f"{self.order} first"
            )
            share = f"{self.kept / self.rows:.1%}" if self.rows else "-"
            lines.append(f"  {self.kept:,} rows balanced ({share}) by {self.by}, {how}")
        for each in self.levels:
            kept = (
                ""
                if each["kept"] is None
                else "; keeps {:,} to {:,}, median {:,}".format(
                    each["kept"][0], each["kept"][2], each["kept"][1]
                )
            )
            least, median, most = each["rows"]
            empty_too = f" ({each['empty']:,} empty)" if each["empty"] else ""
            lines.append(
                f"  level {each['level']}: {counted(each['clusters'], 'cluster')}{empty_too} of {least:,} to {most:,}"
                f" rows, median {median:,}{kept}"
            )
        lines.append(
            f"  {'cluster':>7} {'rows':>11} {'within':>8} {'between':>8} {'complexity':>10} {'kept':>11}"
        )
        order = sorted(range(len(self.clusters)), key=lambda number: (-self.clusters[number]["size"], number))
        for number in order[:_SHOWN]:
            each = self.clusters[number]
            keep = "-" if each["keep"] is None else f"{each['keep']:,}"
            figures = [_figure(each[name]) for name in ("within", "between", "complexity")]
            lines.append(
                f"  {number:>7} {each['size']:>11,} {figures[0]:>8} {figures[1]:>8} {figures[2]:>10} {keep:>11}"
            )
        if len(order) > _SHOWN:
            lines.append(f"  and {counted(len(order) - _SHOWN, 'other')}, of fewer rows")
        return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def balance_clusters(
    path: str | os.PathLike[str],
    clusters: str | os.PathLike[str],
    keep: float | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    by: str | None = None,
    order: str | None = None,
    temperature: float = 0.1,
    neighbours: int = 20,
    seed: int = 0,
    column: str = EMBEDDING_COLUMN,
    prefix: str = "",
    check: bool = True,
    overwrite: bool = False,
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> ClusterBalanceSummary:
    """Balance a dataset over the clusters of its vectors; no tar is opened, no vector changed.

    Rows get three columns: ``cluster`` (int32, as of `ClusterNumber`), ``cluster_distance`` (float32, the cosine
    distance to its centroid) and ``balanced`` (bool, whether the row is kept).

    By complexity it is density-based pruning (Abbas et al., ICLR 2024, arXiv 2401.04578): the share of a cluster is the
    softmax, with a temperature, of its complexity, which is the mean distance of its rows to their centroid times the
    mean distance of the centroid to the nearest others; numbers of rows are the nearest to these shares that the sizes
    of the clusters allow (`curator_dask.balancing.quotas`). By size as many are kept of each cluster, or all that it
    has (the flat sampling of Vo et al. 2024, arXiv 2405.15613). By levels it is that paper's hierarchical sampling: as
    many of each cluster of the highest level, of these as many of each cluster in them, and so on
    (`curator_dask.balancing.levels`).

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of float32.
    clusters
        File of centroids, as `ClusterNumber` takes it; this process and all workers must see it.
    keep
        A share of the rows that may be kept, above 0 and at most 1, or a whole number of rows from 2 on. None: clusters
        are counted alone, and nothing is written.
    output
        Where the files go with their columns; None: in the place of those that are there.
    by
        ``"complexity"``, ``"size"`` or ``"levels"``. None: by levels where the file has several
        (`curator_dask.image.classifiers.hierarchical.find_hierarchy`), else by complexity.
    order
        Which rows of a cluster are kept: ``"far"`` from the centroid; ``"near"`` it; ``"random"``; or the name
        of a column of numbers whose largest are, such as ``"clip_score"``. Rows without a value there are
        not. Rows of one value go by a digest of their keys and shards. None: as the papers have it, by levels
        random, else far.
    temperature, neighbours
        Of the softmax, and how many other centroids the second distance is of.
    seed
        Of the draw: of rows, and by levels of clusters that keep one row more. With the same a larger `keep` keeps by
        levels all rows of a smaller one.
    column
        Of the vectors.
    prefix
        Before the columns' names.
    check
        Refuse vectors of another model than those that the centroids are of.
    overwrite
        Replace columns and files that something else has made.
    storage_options, output_storage_options
        For fsspec, where `path` and `output` are URLs; without the second the first.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have, or the vectors are of another model.
    OutputError
        There are no such files or columns, or something would be replaced.
    ShardError
        A file could not be read: without it the numbers would be wrong.
    WeightsError
        The centroids cannot be read.
    """
    started = time.monotonic()
    check_cluster_balance(
        keep=keep, by=by, order=order, temperature=temperature, neighbours=neighbours, seed=seed
    )
    if output is not None and keep is None:
        raise ConfigError(f"output={output!r}: nothing is written without keep, such as 0.5")
    levels = read_levels(clusters)
    centroids = levels.centroids[0]
    by, order = how_of(by, order, len(levels))
    if by == LEVELS and len(levels) < 2:
        raise ConfigError(
            f"by={by!r}: {clusters} has one level. Make one of several (centroids --levels 10000,1000,100), or balance"
            " by size"
        )
    if by == LEVELS and keep is not None:  # of so many centroids it takes long, and decides nothing
        between = np.full(len(centroids), np.nan)
    else:
        between = distances_between(centroids, neighbours)
    summary = ClusterBalanceSummary(by=by, order=order)
    number, distance, drawn = (prefix + name for name in COLUMNS)
    if keep is None:
        sizes, sums, summary.rows = count_clusters(path, clusters, column, check, storage_options, workers)
        _say(summary, Clusters(sizes, _means(sums, sizes), between), None, levels)
        summary.seconds = time.monotonic() - started
        logger.info("%s", summary)
        return summary
    target_options = storage_options if output_storage_options is None else output_storage_options
    target = locate(os.fspath(path if output is None else output), target_options)
    if order not in (FAR, NEAR, RANDOM):
        _check_column(path, order, storage_options)
    heads = [
        ClusterNumber(clusters, number, column, check=check),
        ClusterDistance(clusters, distance, column, check=check),
    ]
    with when_needed(workers) as start:
        scored = score_output(
            path,
            heads,
            output,
            overwrite=overwrite,
            storage_options=storage_options,
            output_storage_options=output_storage_options,
            workers=lambda: nullcontext(start()),
        )
        for name, reason in scored.failed_shards.items():
            raise ShardError(
                f"{name}: its rows have no clusters, and nothing was balanced: {reason}. Run again"
            )
        paths = [join(target, name) for name in given_files(target, target_options)]
        footers = whole_footers(paths, target_options)
        found = order_of(order, number, distance, next(iter(footers.values())).columns, seed)

        def look(each: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
            table = read_rows(each, target_options, [*dict.fromkeys([number, distance, *found.columns])])
            groups, _ = found.of(table)
            of = pc.fill_null(table.column(number), -1).to_numpy()
            far = pc.fill_null(table.column(distance), 0).to_numpy().astype(np.float64)
            size = np.bincount(groups[groups >= 0], minlength=len(centroids))
            there = of >= 0
            every = np.bincount(of[there], minlength=len(centroids))
            return size, every, np.bincount(of[there], far[there], len(centroids)), len(table)

        looked = in_threads(look, paths)
        sizes, every, sums = (
            np.sum(each, axis=0) for each in zip(*(each[:3] for each in looked), strict=True)
        )
        summary.rows = sum(each[3] for each in looked)
        known = Clusters(sizes.astype(np.int64), _means(sums, every), between)
        wanted = count_best(keep, int(sizes.sum()))
        if by == LEVELS:
            quotas = shared(levels.numbers, known.sizes, levels.parents, wanted, seed)
            how = f"{keep:g} by levels, {order} first, seed {seed}"
        else:
            quotas = known.quotas(wanted, by, temperature)
            how = f"{keep:g} by {by}, {order} first, temperature {temperature:g}, {neighbours} neighbours"
            how += f", seed {seed}" if order == RANDOM else ""
        _say(summary, known, quotas, levels)
        ids = {each: (footer.record and footer.record.id_col) or "key" for each, footer in footers.items()}
        step = DrawClusters(
            drawn,
            found,
            find_ends(paths, target_options, found, quotas, ids),
            next(iter(ids.values())),
            all(URL_COLUMN in footer.columns for footer in footers.values()),
            how,
        )
        summary.output = add_columns(
            target,
            lambda records: [step],
            overwrite=overwrite,
            options=target_options,
            workers=lambda: nullcontext(start()),
        )
    failed = summary.output.failed_shards
    done = [each for each in paths if posixpath.basename(each).removesuffix(".parquet") not in failed]
    kept = in_threads(
        lambda each: pc.sum(read_rows(each, target_options, [drawn]).column(0)).as_py() or 0, done
    )
    summary.kept = sum(kept)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def how_of(by: str | None, order: str | None, levels: int) -> tuple[str, str]:
    """By what, and in which order, rows are kept where that is not said, of a file of so many levels."""
    by = by or (LEVELS if levels > 1 else BY[0])
    return by, order or (RANDOM if by == LEVELS else FAR)


def check_cluster_balance(
    *,
    keep: Any = None,
    by: Any = None,
    order: Any = None,
    temperature: Any = 0.1,
    neighbours: Any = 20,
    seed: Any = 0,
) -> None:
    """Raise ConfigError where an argument of `balance_clusters` has a value that it cannot have."""
    if keep is not None and not (is_number(keep) and (0 < keep <= 1 or (keep >= 2 and keep == int(keep)))):
        raise ConfigError(
            f"keep={keep!r}: expected a share above 0 and at most 1, or a whole number of rows of at least 2"
        )
    if by is not None and by not in BY:
        raise ConfigError(f"by={by!r}: expected one of {', '.join(BY)}")
    if order is not None and (not isinstance(order, str) or not order):
        raise ConfigError(f"order={order!r}: expected far, near, random or the name of a column")
    if not is_number(seed, numbers.Integral):
        raise ConfigError(f"seed={seed!r}: expected a whole number")
    if not is_number(temperature) or not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature={temperature!r}: expected a number above 0, such as 0.1")
    check_counts(neighbours=neighbours)


def _check_column(path: str | os.PathLike[str], name: str, options: Options) -> None:
    """Raise OutputError where a file lacks the column that decides, before anything is written."""
    folder = locate(os.fspath(path), options)
    for each, footer in whole_footers(
        [join(folder, n) for n in given_files(folder, options)], options
    ).items():
        if name not in footer.columns:
            raise OutputError(
                f"{each}: has no column {name!r}, whose largest are kept; it has {footer.columns}. Give far, near,"
                " random or one of these (order, --order)"
            )


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return means


def _say(summary: ClusterBalanceSummary, known: Clusters, quotas: np.ndarray | None, levels: Levels) -> None:
    if len(levels) > 1:
        summary.levels = figures(levels.numbers, known.sizes, levels.parents, quotas)
    each_has = zip(
        known.sizes.tolist(), *(each.tolist() for each in (known.within, known.between)), strict=True
    )
    for number, (size, within, between) in enumerate(each_has):
        near, apart = within == within, between == between
        summary.clusters.append(
            {
                "size": size,
                "within": within if near else None,
                "between": between if apart else None,
                "complexity": within * between if near and apart else None,
                "keep": None if quotas is None else int(quotas[number]),
            }
        )
    summary.without_vector = summary.rows - int(known.sizes.sum())
