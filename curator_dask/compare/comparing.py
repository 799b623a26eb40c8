"""`compare_outputs`: how far two outputs are from one another."""

from __future__ import annotations

import logging
import math
import numbers
import os
import time
from collections.abc import Sequence
from itertools import product

import numpy as np

from curator_dask.compare.columns import compare_columns
from curator_dask.compare.comparison import Comparison
from curator_dask.compare.figures import Cmmd, Compared, Frechet, Near, Shared
from curator_dask.compare.kernel import discrepancies
from curator_dask.compare.moments import Gaussian, frechet
from curator_dask.compare.neighbours import Neighbours, neighbours, radii
from curator_dask.compare.page import write_page
from curator_dask.compare.reading import Drawn, Seen, Side, nearest_in, read_side
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import unit
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.info.failures import failures_in
from curator_dask.info.footers import FileFacts, Footers
from curator_dask.models.families import said_of, unchecked
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.placing import locate
from curator_dask.report.making import check_page
from curator_dask.rows.best import is_number
from curator_dask.runs.step import how_read
from curator_dask.storage import Options
from curator_dask.threads import in_threads
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

#: Rows of a sample of each output, of which all pairs are looked at.
SAMPLE = 10_000
#: Of the nearest neighbours: Naeem et al. (2020) take 5.
K = 5
PERMUTATIONS = 100
#: Rows of each output whose nearest is looked for in all of the other, and how near is told of.
ASKED = 1024
EPS = (0.0, 0.01, 0.03, 0.05, 0.1)
_ROUNDING = 1e-6  # of the cosine of a vector and itself, in float32
_LEAST = 4  # vectors: two in each part
_Z = 1.96  # of an interval of 95 %
#: What must be equal of the vectors, in what their files say of them; the name by which a model was asked for need not.
_SAME = ("model", "weights", "output", "transform", "dtype", "normalized", "dim")


def compare_outputs(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    column: str = EMBEDDING_COLUMN,
    b_column: str | None = None,
    columns: Sequence[str] | None = None,
    page: str | os.PathLike[str] | None = None,
    sample: int = SAMPLE,
    k: int = K,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    check: bool = True,
    storage_options: Options = None,
    b_storage_options: Options = None,
) -> Comparison:
    """Compare two outputs by their vectors, and by the columns that both have.

    Every vector counts for the Fréchet distance: mean and covariance are summed in float64 in one pass, and what is
    held does not grow with the rows. All else of vectors is of a sample. Each figure stands beside those of two random
    parts of one output, of as many rows: what is as small as these is no difference.

    Parameters
    ----------
    a, b
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files. A is the reference.
    column, b_column
        Of the vectors; None: that of B has the same name.
    columns
        Other columns to compare; None: all that both have. Of many rows those of some row groups are read.
    page
        An HTML file to write with the tables, histograms and pictures of what one output has alone; tars are opened for
        these.
    sample
        Rows of each output of which all pairs are looked at, at most: for CMMD and for neighbours.
    k
        Of precision, recall, density and coverage: how many neighbours.
    permutations
        For CMMD's p; 0: none.
    seed
        Of what is drawn: the same files, sizes and seed give the same rows.
    check
        Refuse vectors of two models, or preprocessed in two ways.
    storage_options, b_storage_options
        For fsspec, where `a` and `b` are URLs; without the second the first is that of B, too.

    Raises
    ------
    ConfigError
        The vectors are not of one model or length, or too few.
    NoColumnError
        One of `columns` is not in both.
    OutputError
        There are no such vectors, or a file cannot be read.
    """
    started = time.monotonic()
    check_counts(sample=sample, k=k)
    target = None if page is None else check_page(page)
    for name, value in (("permutations", permutations), ("seed", seed)):
        if not is_number(value, numbers.Integral) or value < 0:
            raise ConfigError(f"{name}={value!r}: expected a whole number of at least 0")
    options = (storage_options, storage_options if b_storage_options is None else b_storage_options)
    paths = (locate(os.fspath(a), options[0]), locate(os.fspath(b), options[1]))
    names = (column, b_column or column)
    files = tuple(
        VectorFiles.find(each, name, some) for each, name, some in zip(paths, names, options, strict=True)
    )
    notes: list[str] = []
    model = _one_model(files, paths, notes) if check else None
    facts = tuple(_facts(each) for each in files)
    sides = _sides(files, facts, sample, seed)
    outputs, seen = [], []
    for path, side, each in zip(paths, sides, facts, strict=True):
        found = read_side(side)
        rows = sum(file.rows for file in each)
        failed = failures_in(each, side.options, {}).counts.total()
        count = rows - found.aside.total()
        outputs.append(Compared(path, len(each), rows, count, dict(sorted(found.aside.items())), failed))
        seen.append(found)
    _check(outputs, seen, names)
    taken = [[found.sample(part) for part in (0, 1, 2)] for found in seen]
    rows = min(max(1, sample // 2), *(len(each.order) for both in taken for each in both[:2]))
    draws = [[each.lowest(rows) for each in both[:2]] for both in taken]
    if min(found.moments[part].count for found in seen for part in (0, 1)) <= seen[0].dim:
        notes.append(
            f"a part has no more rows than a vector has values ({seen[0].dim}): its covariance is singular, and the"
            " Fréchet distance is of chance in a large part. Believe CMMD, or take more rows"
        )
    comparison = Comparison(
        outputs[0],
        outputs[1],
        column if names[0] == names[1] else " and ".join(names),
        seen[0].dim,
        model,
        _frechet(seen),
        _cmmd(draws, permutations, seed),
        _shared(draws, k) if rows > k else None,
        (_near(taken[0], sides[1]), _near(taken[1], sides[0])),
        compare_columns(facts, columns, options, paths),  # type: ignore[arg-type]
        seed,
        notes,
    )
    if rows <= k:
        notes.append(f"a part has {rows} rows, too few for neighbours: expected more than k={k}")
    if paths[0] == paths[1]:
        notes.append("A and B are the same folder")
    comparison.seconds = time.monotonic() - started
    if target is not None:
        write_page(target, comparison, draws, files, k)
        logger.info("%s", target)
    return comparison


def _one_model(files: Sequence[VectorFiles], paths: Sequence[str], notes: list[str]) -> str:
    """What made both outputs' vectors, in words.

    Raises
    ------
    ConfigError
        Two models did, or one way of preprocessing and another, or nothing says what.
    DatasetError
        Those of one output are of several.
    """
    found = [one_origin(each.column, each.records).info() for each in files]
    override = unchecked("they can be compared", *((each or {}).get("dim") for each in found))
    for info, each, path in zip(found, files, paths, strict=True):
        if info is None:
            raise ConfigError(f"{path}: nothing says what made {each.column!r}{override}")
    one, other = found
    assert one is not None and other is not None
    differing = [name for name in _SAME if one.get(name) != other.get(name)]
    if differing:
        said = "; ".join(f"{name}: {one.get(name)}, and {other.get(name)}" for name in differing)
        raise ConfigError(
            f"the vectors of {paths[0]} are of {said_of(one)}, those of {paths[1]} of {said_of(other)}. {said}."
            f" Distances say nothing then: embed both with one model in one way{override}"
        )
    ways = [
        {
            how_read(record.read_by.get(each.column, ""))
            for record in each.records.values()
            if record is not None
        }
        for each in files
    ]
    ways = [{_pixels_by(way) for way in some if way} for some in ways]  # files of an export do not say it
    if all(ways) and ways[0] != ways[1]:
        notes.append(
            f"images were decoded in two ways (A: {', '.join(sorted(ways[0]))}; B: {', '.join(sorted(ways[1]))}), which"
            " differ in last digits: the Fréchet distance sees that"
        )
    return said_of(one)


def _pixels_by(way: str) -> str:
    """What `how_read` gave, without the column of keys and the most pixels: these change no vector."""
    parts = way.split(" ")
    return " ".join([*parts[1:2], *parts[3:]])


def _facts(files: VectorFiles) -> list[FileFacts]:
    """By footers, in order.

    Raises
    ------
    OutputError
        One cannot be read.
    """
    footers = Footers(files.options)
    found = in_threads(lambda path: footers.read(path, os.path.basename(path)), list(files.records))  # noqa: PTH119
    for each in found:
        if each.fault:
            raise OutputError(f"{each.path}: {each.fault}")
    return found


def _sides(
    files: Sequence[VectorFiles], facts: Sequence[Sequence[FileFacts]], sample: int, seed: int
) -> tuple[Side, Side]:
    """How rows are drawn, so that the parts of both have as many vectors, and their samples too."""
    counts = []
    for each, some in zip(files, facts, strict=True):
        filled = [file.filled.get(each.column) for file in some]
        known = [file.rows if count is None else count for file, count in zip(some, filled, strict=True)]
        counts.append(max(1, sum(known)))
    part = min(counts) / 2
    taken = min(part, max(1, sample // 2))
    # How many rows draw a number that is low enough is a matter of chance: so some more, of which the lowest are taken.
    taken += 6 * math.sqrt(taken) + 16
    sides = []
    for number, (each, count) in enumerate(zip(files, counts, strict=True)):
        share = part / count
        paths, drawn = tuple(each.records), min(share, taken / count)
        lacking = max(0.0, ASKED - 2 * drawn * count)  # where the other output is small
        spare = min(1.0, (lacking + 6 * math.sqrt(lacking) + 16) / count) if lacking else 0.0
        sides.append(Side(paths, each.column, each.options, (seed, number), share, drawn, spare))
    return sides[0], sides[1]


def _check(outputs: Sequence[Compared], seen: Sequence[Seen], names: Sequence[str]) -> None:
    # What one has too few of is found of the smaller first: the parts of both are as large as its.
    for output, found, name in sorted(
        zip(outputs, seen, names, strict=True), key=lambda each: each[0].vectors
    ):
        if output.vectors < _LEAST or min((each.count for each in found.moments[:2]), default=0) < 2:
            said = ", ".join(f"{count} {fault}" for fault, count in output.aside.items())
            raise ConfigError(
                f"{output.path}: {name!r} has {counted(output.vectors, 'vector')} in {counted(output.rows, 'row')}"
                f"{f' ({said})' if said else ''}: expected some dozens at least"
            )
    if seen[0].dim != seen[1].dim:
        raise ConfigError(
            f"{outputs[0].path}: has vectors of {seen[0].dim} values, {outputs[1].path} of {seen[1].dim}: expected both"
            " from one model"
        )


def _frechet(seen: Sequence[Seen]) -> Frechet:
    logger.info("Fréchet distances of vectors of %d values", seen[0].dim)
    parts = [Gaussian(each.moments[part]) for each in seen for part in (0, 1)]
    across = float(np.mean([frechet(parts[left], parts[right]) for left, right in product((0, 1), (2, 3))]))
    within = [frechet(parts[0], parts[1]), frechet(parts[2], parts[3])]
    del parts
    double = frechet(*(Gaussian(each.moments[0] + each.moments[1]) for each in seen))
    has_rest = any(each.moments[2].count for each in seen)
    every = frechet(*(Gaussian(each.whole) for each in seen)) if has_rest else double
    rows = min(each.moments[part].count for each in seen for part in (0, 1))
    # A distance of n rows is off by about c / n: of twice as many by half of that.
    return Frechet(across, within[0], within[1], rows, every, 2 * double - across)


def _cmmd(draws: Sequence[Sequence[Drawn]], permutations: int, seed: int) -> Cmmd:
    sets = [unit(each.vectors) for both in draws for each in both]
    logger.info("CMMD of %s of each", counted(2 * len(sets[0]), "row"))
    found = discrepancies(sets, permutations, seed)
    across = float(np.mean([found.biased([left], [right]) for left, right in product((0, 1), (2, 3))]))
    whole = found.biased([0, 1], [2, 3])
    larger = int((found.chance >= whole).sum())
    return Cmmd(
        across,
        found.biased([0], [1]),
        found.biased([2], [3]),
        found.rows,
        whole,
        found.unbiased([0, 1], [2, 3]),
        (1 + larger) / (1 + permutations) if permutations else None,
        permutations,
    )


def _shared(draws: Sequence[Sequence[Drawn]], k: int) -> Shared:
    sets = [each.vectors for both in draws for each in both]
    logger.info("neighbours of %s of each", counted(len(sets[0]), "row"))
    wide = [radii(each, k) for each in sets]

    def of(one: int, other: int) -> Neighbours:
        return neighbours(sets[one], wide[one], sets[other], wide[other], k)

    return Shared(k, len(sets[0]), of(0, 2), of(0, 1), of(2, 3))


def _near(draws: Sequence[Drawn], side: Side) -> Near:
    """Of rows of one output, the nearest in all of the other."""
    some = [each.lowest(ASKED // 2).vectors for each in draws[:2]]
    some.append(draws[2].lowest(ASKED - sum(map(len, some))).vectors)
    best = nearest_in(side, unit(np.concatenate(some)))
    shares = {f"{eps:g}": _wilson(int((best >= 1 - max(eps, _ROUNDING)).sum()), len(best)) for eps in EPS}
    return Near(len(best), float(np.median(best)), shares)


def _wilson(found: int, of: int) -> tuple[float, float, float]:
    """A share, and Wilson's interval of 95 %."""
    p = found / of
    middle = (p + _Z**2 / (2 * of)) / (1 + _Z**2 / of)
    half = _Z / (1 + _Z**2 / of) * math.sqrt(p * (1 - p) / of + _Z**2 / (4 * of**2))
    return p, max(0.0, middle - half), min(1.0, middle + half)
