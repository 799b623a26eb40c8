"""Other programs that read an output: each sees its good rows, and no more."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, write_dataset

from curator_dask.datasets import ImageTextPairDataset

pytestmark = pytest.mark.usefixtures("in_this_process")

BAD = {"000000001": b"", "000010003": b"no image"}


@pytest.fixture
def out(tmp_path):
    write_dataset(tmp_path / "data", shards=3, samples=5, bad=BAD)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out", drop_failed=True)
    assert f"13 rows in 3 files, 2 more in {tmp_path / 'out'}.errors; 2 failed images" in str(summary)
    return tmp_path / "out"


def by_polars(pattern):
    def read(folder):
        polars = pytest.importorskip("polars")
        return polars.read_parquet(f"{folder}{pattern}").to_dicts()

    return read


def by_duckdb(pattern):
    def read(folder):
        found = pytest.importorskip("duckdb").connect().execute(f"select * from '{folder}{pattern}'")
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    return read


def by_datasets(folder):
    """Hugging Face's, whose batches of good rows are tensors."""
    import datasets

    options = {"split": "train", "cache_dir": str(folder.parent / "cache")}
    train = datasets.load_dataset("parquet", data_dir=str(folder), **options)
    rows = train.with_format("torch", columns=["image_embedding"], output_all_columns=True)[:]
    assert rows["image_embedding"].shape == (13, 3)
    return [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]


READERS = {
    "pyarrow": lambda folder: pq.read_table(folder).to_pylist(),
    "a dataset of pyarrow": lambda folder: pyarrow.dataset.dataset(folder).to_table().to_pylist(),
    "pandas": lambda folder: pd.read_parquet(folder).to_dict("records"),
    "Dask": lambda folder: dd.read_parquet(folder).compute().to_dict("records"),
    "all files below": lambda folder: pq.read_table(sorted(folder.rglob("*.parquet"))).to_pylist(),
    "Polars": by_polars(""),
    "Polars, all below": by_polars("/**/*.parquet"),
    "Hugging Face's datasets": by_datasets,
    "DuckDB": by_duckdb("/*.parquet"),
    "DuckDB, all below": by_duckdb("/**/*.parquet"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_the_folder_sees_good_rows_only(out, name):
    rows = READERS[name](out)
    assert len(rows) == 13 and not {row["key"] for row in rows} & set(BAD)
    check_colours([row["key"] for row in rows], [np.asarray(row["image_embedding"]) for row in rows])
    assert len(pq.read_table(f"{out}.errors")) == 2
