"""Rows of a file in the order of the tars that they go to: a file of Arrow's, of which a tar reads its own alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from curator_dask.frames.committing import Commits
from curator_dask.outputs.placing import being_written
from curator_dask.outputs.selecting import Folder
from curator_dask.storage import RemoteFile, is_remote, local_path

#: In the schema's metadata: by tar, the first of its batches, and the one behind its last.
_TARS = b"curator_dask_tars"


def put_mixed(folder: Folder, name: str, table: pa.Table, tars: Sequence[str], ends: Sequence[int]) -> None:
    """Write the rows of a file.

    Parameters
    ----------
    folder, name
        Where, and of which file they are.
    table
        The rows, those of a tar side by side.
    tars, ends
        Names of the tars, and behind the last row of each.

    Raises
    ------
    pyarrow.ArrowException, OutputError, OSError
        There is no such file of these types, or it cannot be written.
    """
    batches: list[pa.RecordBatch] = []
    places = {}
    start = 0
    table = table.unify_dictionaries()  # such a file has one of each column
    for tar, end in zip(tars, ends, strict=True):
        some = table.slice(start, end - start).to_batches()
        places[tar] = [len(batches), len(batches) + len(some)]
        batches += some
        start = end
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), _TARS: json.dumps(places).encode()})
    path = folder.file(f"{name}.arrow")
    if not is_remote(path):
        Path(local_path(path)).parent.mkdir(parents=True, exist_ok=True)
    # Straight to the disk: the rows of a file are in memory twice already.
    with (
        Commits() as commits,
        being_written(path, folder.options, commits) as (descriptor, _),
        open(descriptor, "wb", closefd=False) as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def read_mixed(folder: Folder | None, name: str, tar: str) -> pa.Table | None:
    """The rows of a file that go to a tar; None where they are to be read from the file itself.

    Parameters
    ----------
    folder
        As of `put_mixed`; None: nothing was written.
    name, tar
        Of the file of rows and of the tar.
    """
    if folder is None:
        return None
    path = folder.file(f"{name}.arrow")
    with contextlib.suppress(OSError, pa.ArrowException, KeyError), contextlib.ExitStack() as stack:
        if is_remote(path):
            file = stack.enter_context(pa.PythonFile(RemoteFile(path, folder.options), "r"))
        else:
            file = stack.enter_context(pa.OSFile(local_path(path)))
        reader = stack.enter_context(pa.ipc.open_file(file))
        metadata = dict(reader.schema.metadata)
        first, stop = json.loads(metadata.pop(_TARS))[tar]
        batches = [reader.get_batch(number) for number in range(first, stop)]
        return pa.Table.from_batches(batches, reader.schema).replace_schema_metadata(metadata)
    return None
