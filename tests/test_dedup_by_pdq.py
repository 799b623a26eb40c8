"""Copies by hashes of 256 bits, as PDQ is: all of them are found, and plain pictures are left out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from test_dedup import DIM, greedy, linked, mixture, removed_of, unit, write

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.dedup.bands import BANDS, find_in_band
from curator_dask.dedup.hamming import HammingPairs
from curator_dask.dedup.memory import Memory
from curator_dask.dedup.pairing import FEW
from curator_dask.dedup.phases import Phase
from curator_dask.errors import OutputError


def flipped(random, hashes, most):
    """The same with 0 to so many other bits."""
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), -1), axis=1)
    order = random.random(bits.shape).argsort(axis=1)
    bits ^= order < random.integers(0, most + 1, (len(hashes), 1))
    return np.packbits(bits, axis=1).view(np.uint64)


def hashes_with_copies(random, rows):
    """Random ones; of each fifth row some that lie around the limit of 31 bits."""
    hashes = random.integers(0, 2**64, (rows, 4), np.uint64)
    copies = rows // 5
    hashes[-copies:] = flipped(random, hashes[:copies], 45)
    return hashes[random.permutation(rows)]


def differing(hashes):
    """By all pairs."""
    return sum(np.bitwise_count(word[:, None] ^ word[None]).astype(np.int64) for word in hashes.T)


def texts(hashes):
    return [hash_.astype(">u8").tobytes().hex() for hash_ in hashes]


def found_in(hashes, ranks, bits, wanted=None, labels=None):
    rows = np.arange(len(hashes))
    wanted = np.ones(len(rows), bool) if wanted is None else wanted
    pairs, full = [], set()
    for band in range(BANDS):
        for better, worse, more in find_in_band(
            hashes, ranks, wanted, rows if labels is None else labels, band, bits
        ):
            pairs += zip(better.tolist(), worse.tolist(), strict=True)
            full |= set(more.tolist())
    assert len(pairs) == len({*pairs})  # each is written once
    return {*pairs}, full


@pytest.mark.parametrize("bits", [0, 15, 16, 31])
@pytest.mark.parametrize("crowd", ["none", "one band", "all of it"])
def test_pairs_are_those_of_all_with_all(bits, crowd):
    random = np.random.default_rng(bits)
    hashes = hashes_with_copies(random, 1500)
    if crowd == "one band":  # as logos on white have it: many rows that are the same there, and not near
        hashes[:900, 0] &= np.uint64(0xFFFF_FFFF_0000_0000)
    elif crowd == "all of it":
        hashes[:300] = flipped(random, np.repeat(hashes[:1], 300, 0), 20)
    ranks = random.permutation(1500)
    wanted, labels = random.random(1500) < 0.9, random.integers(0, 700, 1500)
    pairs, full = found_in(hashes, ranks, bits, wanted, labels)
    near = (differing(hashes) <= bits) & (labels[:, None] != labels[None])
    right = near & (ranks[:, None] < ranks[None]) & wanted[None]
    assert all(right[pair] for pair in pairs)
    betters = right.sum(axis=0)
    missed = {*zip(*(each.tolist() for each in np.nonzero(right)), strict=True)} - pairs
    assert {worse for _, worse in missed} <= full and all(betters[row] >= FEW for row in full)
    assert (len(full) > 0) == (crowd == "all of it" and bits > 0) and len(pairs) >= 4


def test_what_is_held_is_bounded_where_all_rows_are_near(tmp_path):
    """And the best of a row's betters are written, by whatever memory there is."""
    random = np.random.default_rng(3)
    rows = 400
    hashes = flipped(random, np.repeat(hashes_with_copies(random, 5)[:1], rows, 0), 15)
    order = Phase(str(tmp_path / "order"))
    for name, array in (
        ("hash-ranks", random.permutation(rows)),
        ("hash0", hashes),
        ("hash0-there", np.ones(rows, bool)),
    ):
        order.save(f"{name}.npy", array)
    found = []
    for name, memory in (("small", Memory(1)), ("large", Memory())):
        task = HammingPairs(order, Phase(str(tmp_path / name)), (31,), memory=memory)
        for file in task.names():
            task.make(file)
        files = [np.sort(task.phase.load(f"{file}.npy"), order=["worse", "better"]) for file in task.names()]
        more = {row for file in task.names() for row in task.phase.load(f"{file}-more.npy").tolist()}
        assert sum(map(len, files)) <= BANDS * FEW * rows and rows - FEW >= len(more) > 0.8 * (rows - FEW)
        found.append(np.concatenate(files))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("groups", ["stars", "components"])
def test_rows_near_by_pdq_or_by_vector_are_those_of_all_pairs(tmp_path, in_this_process, groups):
    random = np.random.default_rng(40)
    vectors, hashes = mixture(random, 500), hashes_with_copies(random, 500)
    hashes[:90] = flipped(
        random, np.repeat(hashes[:1], 90, 0), 24
    )  # more than a row's betters that are written
    quality = random.integers(30, 100, 500)
    quality[:80] = 50
    keys = [f"{number:05}" for number in random.permutation(500)]
    hashed = [None if row % 7 == 0 else text for row, text in enumerate(texts(hashes))]
    name = "pdq" if groups == "stars" else "image_pdq"  # as statistics with a prefix have it
    write(tmp_path / "vectors", vectors, keys, **{name: hashed, f"{name}_quality": quality.tolist()})
    find = SemanticDeduplication(eps=0.05, recall=1, exact={name: 31}, groups=groups)
    summary = find(tmp_path / "vectors").save(tmp_path / "out")
    table, removed = removed_of(tmp_path / "out")

    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    differ = differing(hashes)
    plain = quality < 50
    for none in (np.arange(500) % 7 == 0, plain):
        differ[none] = differ[:, none] = 256
    near = {"image_embedding": cosines >= 0.95, name: differ <= 31}
    whole = np.logical_or.reduce([*near.values()])
    place = {key: number for number, key in enumerate(keys)}
    order = np.argsort(keys)
    if groups == "stars":
        kept = greedy(whole, order, 0.5)
    else:
        kept = {int(order[each]) for each in {*linked(whole[np.ix_(order, order)]).tolist()}}
    assert removed == {keys[row] for row in range(500) if row not in kept}
    gone = table[~table["kept"]]
    for row in gone.itertuples():
        one, other = place[row.id], place[row.duplicate_of]
        by = next((each for each, is_near in near.items() if is_near[one, other]), None)
        assert row.found_by == by or (by is None and groups == "components")
    assert summary.by == {each: (gone["found_by"] == each).sum() for each in near} and summary.by[name] > 10
    assert summary.plain == (plain & (np.arange(500) % 7 > 0)).sum() > 50
    assert f"  {name} left out: of {summary.plain} rows with a {name}_quality below 50" in str(summary)
    assert not any(find(tmp_path / "vectors").save(tmp_path / "out").made.values())
    for file in (tmp_path / "out.work").glob("hashes-*/0-[37].npy"):  # as an interruption leaves it
        file.unlink()
    made = find(tmp_path / "vectors").save(tmp_path / "out").made
    assert {label: count for label, count in made.items() if count} == {"hashes": 2}
    assert removed_of(tmp_path / "out")[0].equals(table)


def test_pdq_without_vectors_against_earlier_rows_and_out_of_an_export(tmp_path, in_this_process):
    """The same hashes as text and as bytes; one file says nothing of quality."""
    random = np.random.default_rng(41)
    hashes = hashes_with_copies(random, 200)
    hashes[150:] = flipped(random, hashes[:50], 31)
    quality = np.full(200, 80)
    quality[[160, 170]] = 49
    raw = pa.array([hash_.astype(">u8").tobytes() for hash_ in hashes], pa.binary(32))
    for name, rows, column in (
        ("old", slice(0, 150), pa.array(texts(hashes))),
        ("new", slice(150, 200), raw),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / "shards").mkdir(exist_ok=True)
        keys = [f"{row:04}" for row in range(200)][rows]
        write_tar(tmp_path / "shards" / f"{name}.tar", [(f"{key}.png", b"") for key in keys])
        urls = [str(tmp_path / "shards" / f"{name}.tar")] * len(keys)
        table = {"key": keys, "__url__": urls, "pdq": column[rows]}
        table |= {"pdq_quality": quality[rows]} if name == "new" else {}
        pq.write_table(pa.table(table), tmp_path / name / "0.parquet")
    find = SemanticDeduplication(exact={"pdq": 31}, against=tmp_path / "old")
    summary = find(tmp_path / "new").save(tmp_path / "out")
    _, removed = removed_of(tmp_path / "out")
    near = differing(hashes)[150:] <= 31
    near[[10, 20]] = False
    right = {f"{150 + row:04}" for row in np.flatnonzero(near[:, :150].any(axis=1))}
    assert removed == right and len(right) == summary.by["pdq"] == 48 and summary.plain == 2
    dataset = ImageTextPairDataset.from_webdataset(str(tmp_path / "shards/new.tar"))
    assert dataset.without(tmp_path / "out").to_webdataset(tmp_path / "tars", dry_run=True).kept == 2
    alone = SemanticDeduplication(exact={"pdq": 31})(tmp_path / "old").save(tmp_path / "alone")
    assert alone.plain is None and "no column pdq_quality" in str(alone)


def test_hashes_that_do_not_fit_are_told(tmp_path, in_this_process):
    vectors = unit(np.random.default_rng(7).normal(size=(4, DIM)))
    good = texts(np.arange(16, dtype=np.uint64).reshape(4, 4))
    columns = {
        "pdq": good,
        "short": [text[:16] for text in good],
        "bad": [*good[:3], "xyz"],
        "none": [None] * 4,
    }
    folder = write(tmp_path / "vectors", vectors, files=1, **columns)
    for exact, message in (
        ({"short": 9}, "'short' has hashes of 64 bits: within more than 8"),
        ({"bad": 31}, r"0000.parquet: 'bad' \(exact\) has no hash in row 3.*'xyz'"),
    ):
        with pytest.raises(OutputError, match=message):
            SemanticDeduplication(exact=exact)(folder).save(tmp_path / "out")
    # Of 16 digits those of 0 and 4, of 8 and 12 differ in one bit; where no row has a hash nothing is near.
    find = SemanticDeduplication(eps=0.01, exact={"short": 1, "none": 31})
    assert find(folder).save(tmp_path / "out").by == {"image_embedding": 0, "short": 2, "none": 0}
    write(folder, vectors, files=1, pdq=good, pdq_quality=["high"] * 4)
    with pytest.raises(OutputError, match=r"'pdq_quality' is of type string.*0 to 100"):
        SemanticDeduplication(exact={"pdq": 31})(folder).save(tmp_path / "other")
