"""What `curator_dask.curation` has chosen and written: a note beside its folders, and its summary.

Beside the folders a note says by what choice of rows the tars were made, so that another one is refused before anything
is replaced.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curator_dask.errors import OutputError
from curator_dask.frames.parquet import read_footer, read_record
from curator_dask.frames.record import BALANCE
from curator_dask.outputs.curated_names import BALANCED, EMBEDDINGS, FETCHED, NOTE, PASSING, SHARDS, stay_in
from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.placing import locate, put
from curator_dask.outputs.saving import check_apart, remove_empty
from curator_dask.outputs.selecting import Folder
from curator_dask.storage import Options, is_remote, join, read_bytes, remove
from curator_dask.webdataset.shards import ShardSet
from curator_dask.words import counted

_REPLACES = "replaces"  # of the note: which export is overwritten
_APPEND = "Use append=True (--append), by which its tars stay and what is new is added, write"


def check_places(read: Iterable[str], written: Collection[str], options: Options = None) -> None:
    """Raise OutputError where a step would write among what is read, before hours go into images.

    Parameters
    ----------
    read
        Folders and URLs. Of a pattern, of files and of what is not there yet no more than the names are compared.
    written
        Folders of the steps.
    options
        For fsspec, of what is read.
    """
    for source in (locate(each, options) for each in read):
        for place in written:
            check_apart(source, place)


def remove_gone(place: str, found: ShardSet, options: Options) -> None:
    """Remove the rows of shards of a folder that are there no more, as of a fetch of fewer rows."""
    urls = {shard.url for shard in found}
    for path in (join(place, name) for name in output_files(place, options)):
        record = read_record(path, options)
        url = "" if record is None or record.url is None else record.url
        if url not in urls and posixpath.dirname(url) == found.root:
            remove(path, options)


class Choice:
    """By what the rows of an output are chosen, and whether tars of another choice are there.

    Parameters
    ----------
    folder
        Of the output, or its URL.
    digest
        Of all that decides which rows are exported, but for the rows themselves.
    overwrite
        What another choice has left may be replaced.
    append
        Tars stay as they are, and others are added: what lies between may be replaced, by the same choice.
    options
        For fsspec, where it is a URL.
    """

    def __init__(
        self, folder: str, digest: str, overwrite: bool, append: bool = False, options: Options = None
    ) -> None:
        self._folder, self._note, self._digest = folder, join(folder, NOTE), digest
        self._options = options
        self._shards = join(folder, SHARDS)
        #: Whether files of the steps may be replaced: no tars are there that were made of them, or they may go, too.
        self._place = place = ExportPlace(Folder(self._shards, options))
        has_tars, self._is_added_to = place.has_tars, place.is_added_to
        self.replaces = overwrite or append or not has_tars
        #: Whether there are tars that stay.
        self.adds = append and has_tars

    def check(self) -> None:
        """Raise OutputError where another choice is noted, whose tars must stay."""
        # Without a note the steps see to themselves.
        if (self.adds or not self.replaces) and self._noted() not in (None, self._digest):
            self._refuse("was made by a recipe that chooses other rows")
        if not self.replaces and self._is_added_to:
            self._refuse("has tars that were added since", first=_APPEND)

    def check_new(self, names: Iterable[str] | None) -> None:
        """Raise OutputError where tars that must stay were made without some shards: before these are embedded.

        Parameters
        ----------
        names
            Of all shards; None: it is a table that has rows whose images are yet to be fetched.
        """
        if self.replaces:
            return
        if names is None:
            self._refuse("was made before the table had rows that are not fetched yet", first=_APPEND)
        there = {*output_files(join(self._folder, PASSING), self._options)}
        for each in (f"{name}.parquet" for name in names or ()):
            if each not in there:
                self._refuse(
                    f"was made without {EMBEDDINGS}/{each}: no rows of it are in {PASSING}", first=_APPEND
                )

    def check_rows(self, names: Collection[str]) -> None:
        """Raise OutputError where tars that must stay were made of rows that lack some, or some of their columns.

        Parameters
        ----------
        names
            Of the files of all rows.
        """
        for each in () if self.replaces else names:
            now, then = (
                read_footer(join(self._folder, f"{place}/{each}"), self._options).columns
                for place in (EMBEDDINGS, PASSING)
            )
            if not then:
                self._refuse(
                    f"was made without {EMBEDDINGS}/{each}: no rows of it are in {PASSING}",
                    first=_APPEND,
                )
            if lacks := [name for name in now if name not in then]:
                self._refuse(
                    f"lacks {', '.join(map(repr, lacks))}, which {EMBEDDINGS} has got since. It may stay so",
                    "which writes its tars anew, with all columns",
                )

    def write(self, stay: int | None = None) -> None:
        """Note it, before tars are made of it; and then how many samples stay in them that are not among its rows."""
        noted = self._noted()
        if noted != self._digest or (stay is not None and stay_in(self._folder, self._options) != stay):
            note = {"choice": self._digest, **({"stay": stay} if stay else {})}
            if stay is None and noted is not None:  # while these tars are there, it is not by this choice
                note[_REPLACES] = self._place.told.get("export")
            put(self._note, json.dumps(note).encode(), self._options)

    def clear(self, name: str, keep: Collection[str] = (), balance: Collection[str] = ()) -> None:
        """Remove the files that an earlier run of a step has left, and that are not of this one; its folder, if empty.

        Parameters
        ----------
        name
            Of the folder.
        keep
            Names of the files of this run.
        balance
            Columns of a balance that these may have.

        Raises
        ------
        OutputError
            They are rows of tars that must stay.
        """
        folder = join(self._folder, name)
        for each in output_files(folder, self._options):
            record = read_footer(join(folder, each), self._options).record
            if record is None:  # something else's
                continue
            gone = each not in keep
            if not gone and all(
                column in balance
                for column, said in record.scores.items()
                if said.get(BALANCE) in ("concepts", "clusters")
            ):
                continue
            if gone and keep and not self.replaces:
                self._refuse(f"was made of {name}/{each} too, whose rows are gone from {EMBEDDINGS}")
            remove(join(folder, each), self._options)
        if not is_remote(folder):
            remove_empty([Path(folder)])

    def _noted(self) -> Any:
        """The choice that the tars are of: None where none is noted, True where these are yet to be replaced."""
        try:
            note = json.loads(read_bytes(self._note, self._options))
            replaces = note.get(_REPLACES)
            return True if replaces and replaces == self._place.told.get("export") else note["choice"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def _refuse(self, why: str, overwrite: str = "by which its tars go", first: str = "Write") -> None:
        raise OutputError(
            f"{self._shards}: is there, and {why}; nothing was replaced. {first} to another path, or use overwrite=True"
            f" (--overwrite), {overwrite}"
        )


@dataclass
class CurationSummary:
    """What became of a dataset's rows; all counts but ``rows``, ``earlier`` and ``stay`` add up to it.

    Attributes
    ----------
    path
        Of the output.
    rows
        Of the dataset.
    failed
        Whose image cannot be used.
    unfetched
        Of these, those whose image was not fetched, where a table of URLs was the beginning: its rows are `rows`.
    filtered
        That do not pass the condition, or are not among the best (``top``), and have not failed.
    unbalanced
        That pass, and were not drawn: there are more of their concepts than are wanted.
    duplicates
        That are left then, and have a better twin.
    missing
        That would be kept, but whose sample is in no tar.
    kept
        In the shards.
    earlier
        Of the kept, those that are in tars of earlier calls, which stay as they are.
    stay
        Samples in these tars that are not among the kept: their rows would not pass today, or are gone.
    steps
        The summaries of the steps, by folder.
    joined
        Of each table that was joined, how many rows it has, as `curator_dask.tables.TableColumns.found_in` counts them.
    complete
        Every shard was read and written.
    seconds
        Of this call.
    """

    path: str
    rows: int = 0
    failed: int = 0
    unfetched: int = 0
    filtered: int = 0
    unbalanced: int = 0
    duplicates: int = 0
    missing: int = 0
    kept: int = 0
    earlier: int = 0
    stay: int = 0
    steps: dict[str, Any] = field(default_factory=dict)
    joined: list[Any] = field(default_factory=list)
    complete: bool = True
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, the steps as their own `to_dict` gives them."""
        steps = {name: each.to_dict() for name, each in self.steps.items()}
        return {**vars(self), "steps": steps, "joined": [vars(each) for each in self.joined]}

    def __str__(self) -> str:
        lines = [
            f"{join(self.path, SHARDS)}: {self.kept:,} of {counted(self.rows, 'row')}; {self.seconds:.0f} s"
        ]
        if SHARDS in self.steps and self.steps[SHARDS].earlier_shards:
            new, tars = self.kept - self.earlier, self.steps[SHARDS].shards
            lines.append(
                f"  of these {new:,} new, in {counted(tars, 'tar')}, and {self.earlier:,} in earlier tars, which stay"
                " as they are"
            )
        if self.stay:
            lines.append(
                f"  {self.stay:,} more in earlier tars, whose rows would not pass today or are gone: they stay; another"
                " path, or overwrite=True (--overwrite), is without them"
            )
        for name in ("failed", "filtered", "unbalanced", "duplicates", "missing"):
            if name == "unbalanced" and BALANCED not in self.steps:
                continue
            count = getattr(self, name)
            lines += [f"  {name:10} {count:>9,} ({count / max(1, self.rows):.1%})"]
            if name == "failed" and FETCHED in self.steps:
                lines[-1] += f", {self.unfetched:,} of them not fetched"
        lines += [f"  joined {each.table} on {each.on}: {each}" for each in self.joined]
        return "\n".join(lines)
