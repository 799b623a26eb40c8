"""Sketches never say that a near pair is not near, whatever the vectors are like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_dedup import check_promise, greedy, removed_of, unit, write

from curator_dask.dedup import SemanticDeduplication, running, sides
from curator_dask.dedup.layout import Layout
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.places import Places, Reader
from curator_dask.dedup.products import Block, margin_of, products
from curator_dask.dedup.sides import Finder, Side
from curator_dask.dedup.sketches import SKETCH_MARGIN, axes_of, file_of, save_in_order, sketch, widths_of


def kinds(random, rows, dim):
    """Vectors of several kinds, by name."""
    means = random.normal(size=(20, dim))
    of = means[random.integers(20, size=rows)]
    return {
        "alike": unit(of + 0.3 * random.normal(size=(rows, dim))),
        "of few directions": unit(of + random.normal(size=(rows, 12)) @ random.normal(size=(12, dim))),
        "nearly one": unit(1 + 1e-3 * random.normal(size=(rows, dim))),
        "apart": unit(random.normal(size=(rows, dim))),
    }


@pytest.mark.parametrize("dim", [128, 200, 512])
def test_the_product_of_sketches_is_not_less_than_the_cosine(dim):
    random = np.random.default_rng(0)
    for name, vectors in kinds(random, 400, dim).items():
        vectors = np.concatenate([vectors, -vectors[:50], vectors[:50]])
        axes = axes_of(vectors[:300] - vectors[:300].mean(axis=0), 0)
        assert np.abs(axes.T @ axes - np.eye(axes.shape[1])).max() < 1e-5
        sketches = sketch(vectors, axes)
        assert [*sketches] == [*widths_of(dim)] and sketches
        cosines = vectors.astype(float) @ vectors.T.astype(float)
        for width, some in sketches.items():
            assert some.shape == (len(vectors), width)
            upper = some.astype(float) @ some.T.astype(float)
            assert (upper - cosines).min() > -SKETCH_MARGIN, (name, width)
    assert widths_of(100) == () and axes_of(np.ones((5, 100), np.float32), 0).shape == (100, 0)


def test_axes_of_vectors_that_hardly_differ_are_at_right_angles():
    random = np.random.default_rng(6)
    few = random.normal(size=(300, 5)) @ random.normal(size=(5, 256))
    for apart in (np.zeros((300, 256)), few, 1e-18 * few, few[:1]):
        axes = axes_of(apart.astype(np.float32), 0)
        assert axes.shape == (256, 127) and np.abs(axes.T @ axes - np.eye(127)).max() < 1e-5


def test_no_product_is_off_by_more_than_its_margin():
    # Each coordinate is a little less than what lies in the middle of two numbers in bf16: all are rounded down.
    for count in (250, 254):
        vectors = np.zeros((2, 512))
        vectors[:, :count] = 2**-4 * (1 + 2**-8 - 2**-12)
        vectors[:, count] = np.sqrt(1 - np.square(vectors[0]).sum())
        vectors[1, count + 1] = 1e-4
        vectors = unit(vectors)
        for kind in (torch.bfloat16, torch.float16, torch.float32):
            block = Block(vectors, torch.from_numpy(np.pad(vectors, ((0, 126), (0, 0)))).to(kind))
            off = 1 - products(block, block, slice(0, 2))[0, 1].item()
            assert off < margin_of(block, block) and (kind != torch.bfloat16 or off > 0.0078)


def test_a_twin_is_found_among_many_rows_that_are_almost_as_near(tmp_path, in_this_process):
    # All are a little farther apart than eps, so that fast products say of each pair that it may be near.
    eps, rows = 0.04, 300
    near, far = np.sqrt(1 - eps - 5e-4), np.sqrt(eps + 5e-4)
    vectors = np.zeros((rows + 1, 512))
    vectors[:, 0] = near
    vectors[np.arange(rows), np.arange(rows) + 1] = far
    vectors[rows, 201] = far  # of row 200
    vectors[rows, 500] = 1e-3
    folder = write(tmp_path / "vectors", unit(vectors))
    SemanticDeduplication(eps=eps, recall=1)(folder).save(tmp_path / "out")
    table, removed = removed_of(tmp_path / "out")
    assert removed == {f"{rows:06}"} and set(table.loc[table["kept"], "id"]) == {"000200"}


def test_axes_are_those_along_which_vectors_differ():
    random = np.random.default_rng(1)
    scale = np.where(np.arange(256) < 40, 5, 0.1)
    turn = np.linalg.qr(random.normal(size=(256, 256)))[0]
    apart = ((random.normal(size=(3000, 256)) * scale) @ turn).astype(np.float32)
    axes = axes_of(apart, 0)
    assert np.square(apart @ axes[:, :40]).sum() > 0.99 * np.square(apart).sum()


@pytest.fixture
def stored(tmp_path):
    """Puts vectors and their sketches where a finder reads them."""

    def store(vectors):
        scan, distinct, assigned, order = (
            Phase(str(tmp_path / name)) for name in ("scan", "distinct", "assign", "order")
        )
        dim, half = vectors.shape[1], len(vectors) // 2
        axes = axes_of(vectors - vectors.mean(axis=0), 0)
        for name, part in {"a": vectors[:half], "b": vectors[half:]}.items():
            with scan.writing(f"{name}.vectors") as file:
                file.write(part.tobytes())
            distinct.save(f"{name}.npy", np.arange(len(part)))
            for width, some in sketch(part, axes).items():
                assigned.save(file_of(width, name), some)
        distinct.save("firsts.npy", np.array([0, half]))
        numbers = np.random.default_rng(2).permutation(len(vectors))
        places = np.argsort(numbers)
        order.save("order.npy", numbers)
        save_in_order(assigned, ["a", "b"], order, places, dim)
        return Places(order, Layout(scan, distinct, ("a", "b"), dim), apart=True), vectors[numbers]

    return store


# A cluster's spread decides which sketches are of use: one of few directions, of some, and one without any.
@pytest.mark.parametrize(("directions", "width", "begin"), [(20, 0.5, 0), (250, 0.5, 1), (512, 0.35, 2)])
def test_what_is_near_is_found_by_whichever_sketches_are_of_use(stored, directions, width, begin):
    random = np.random.default_rng(3)
    rows, dim, eps = 1500, 512, 0.05
    spread = random.normal(size=(rows, directions)) @ np.linalg.qr(random.normal(size=(dim, directions)))[0].T
    of = unit(random.normal(size=(1, dim))) * np.sqrt(directions)
    vectors = unit(of + width * spread)
    some = random.choice(rows, 60, replace=False)
    vectors[some[:30]] = unit(vectors[some[30:]] + 0.009 * random.normal(size=(30, dim)))
    where, vectors = stored(vectors)
    finder = Finder(Reader(where), where, eps, 1 << 20)
    near = vectors.astype(float) @ vectors.T.astype(float) >= 1 - eps
    for active in (np.arange(500), np.arange(0, 500, 3)):
        mine, theirs = Side(finder.reader, np.arange(200, 700)), Side(finder.reader, np.arange(rows))
        found = [np.column_stack(part) for part in finder.near(mine, theirs, 1400, active, True)]
        wanted = np.zeros((500, 1400), bool)
        wanted[active] = near[200:700][active, :1400]
        mask = np.zeros_like(wanted)
        mask[tuple(np.concatenate(found).T)] = True
        assert wanted.sum() > len(active) and (wanted == mask).all()
    assert finder._begin == {True: begin, False: 0}


def test_sketches_change_nothing_that_is_found(tmp_path, in_this_process, monkeypatch):
    monkeypatch.setattr(running, "SMALL", 500)
    monkeypatch.setattr(sides, "_WORTH", 1)
    random = np.random.default_rng(4)
    base = kinds(random, 700, 128)["of few directions"]
    vectors = np.concatenate(
        [base, unit(base[:400] + 0.03 * random.normal(size=(400, 128)) * random.random((400, 1)))]
    )
    vectors = vectors[random.permutation(len(vectors))]
    folder = write(tmp_path / "vectors", vectors)
    keys = [f"{number:06}" for number in range(len(vectors))]
    for clusters, recall in ((1, 1), (8, 0.999)):
        out = tmp_path / f"out{clusters}"
        SemanticDeduplication(eps=0.05, n_clusters=clusters, recall=recall)(folder).save(out)
        assert [*tmp_path.glob(f"out{clusters}.work/order-*/sketch64.npy")]
        table, removed = removed_of(out)
        check_promise(table, vectors, keys, 0.05)
        if recall == 1:
            kept = greedy(vectors.astype(float) @ vectors.T.astype(float), range(len(vectors)), 0.05)
            assert (
                removed == {keys[row] for row in range(len(vectors)) if row not in kept}
                and len(removed) > 300
            )
            all_pairs = removed
    assert len(removed ^ all_pairs) <= 0.01 * len(all_pairs)
