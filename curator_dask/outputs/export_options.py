"""What an export is asked to do, checked when it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curator_dask.decode.smaller import DEFAULT_QUALITY, KEEP, SmallerImages
from curator_dask.decode.stripping import check_metadata_out
from curator_dask.errors import ConfigError
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.blurring import Blurring
from curator_dask.outputs.card_fields import check_card
from curator_dask.outputs.cropping import CROPPED, Cropping
from curator_dask.outputs.editing import Edits
from curator_dask.outputs.groups import MOST, GroupBy
from curator_dask.outputs.latents import Latents
from curator_dask.outputs.shrinking import Shrinking
from curator_dask.outputs.splits import SplitBy, Splits
from curator_dask.outputs.text_states import TextStates
from curator_dask.outputs.vector_members import vector_members
from curator_dask.outputs.whole_samples import NEEDED, check_rows, check_samples
from curator_dask.rows.where import Where
from curator_dask.webdataset.layouts import EMPTY
from curator_dask.words import meant, some_of_these


@dataclass(frozen=True)
class ExportOptions:
    """As `ImageTextPairDataset.to_webdataset` explains them.

    Raises
    ------
    ConfigError
        They cannot be carried out.
    """

    filter_column: str | None = None
    samples_per_shard: int = 10_000
    max_shards: int = 5
    old_id_col: str | None = None
    where: str | None = None
    columns: Sequence[str] | None = None
    keys: str | None = None
    layout: str | None = None
    shard_bytes: int | None = None
    shards: int | None = None
    shuffle: int | None = None
    metadata: str | None = "parquet"
    index: bool = True
    overwrite: bool = False
    append: bool = False
    without: str | None = None
    next_best: bool = False
    dry_run: bool = False
    caption: str | None = None
    max_side: int | None = None
    min_side: int | None = None
    quality: int | None = None
    image_format: str = KEEP
    image_member: str | None = None
    splits: Mapping[str, float | int] | None = None
    split_by: str | None = None
    split_groups: str | None = None
    split_seed: int = 0
    sizes: bool | None = None
    card: bool | Mapping[str, Any] = False
    blur: str | None = None
    blur_only: Sequence[str] = ()
    blur_strength: float = 1.0
    blur_keep_unseen: bool = False
    npy: Sequence[str] | None = None
    format: str = "webdataset"
    strip_metadata: str | None = None
    by: str | None = None
    by_most: int = MOST
    bucket_size: str | None = None
    latents: str | Mapping[str, Any] | None = None
    text_states: Any = None
    samples: str | None = None

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "max_shards", "shard_bytes", "shards", "shuffle"):
            _check_number(name, getattr(self, name), 0 if name == "shuffle" else 1)
        _check_one_of("keys", self.keys, ("original", "sequential", None))
        _check_one_of("layout", self.layout, ("original", "portable", None))
        _check_one_of("format", self.format, ("webdataset", "parquet"))
        _check_one_of("metadata", self.metadata, ("parquet", "json", None))
        if self.where is not None:
            Where(self.where)
        for name in ("columns", "npy"):
            if isinstance(given := getattr(self, name), str):
                raise ConfigError(f"{name}={given!r}: expected a list of names")
        if self.old_id_col is not None and not self.sequential:
            raise ConfigError(
                f"old_id_col={self.old_id_col!r}: keys='original' leaves each sample its key: give keys='sequential'"
            )
        member = None if self.is_tables else self.image_member  # which is the image of a row
        check_metadata_out(self.strip_metadata)
        anew = (self.max_side, self.min_side, self.blur, self.bucket_size) != (None, None, None, None)
        if not anew and (self.quality, self.image_format, member) != (None, KEEP, None):
            raise ConfigError(
                "quality, image_format and image_member are of images that are made smaller: give max_side or min_side"
                " (--max-side, --min-side); or that are blurred: give blur (--blur); or cropped: bucket_size"
                " (--bucket-size)"
            )
        if self.is_tables:
            self._check_tables()
        if self.blur is None and (self.blur_only, self.blur_strength, self.blur_keep_unseen) != (
            (),
            1.0,
            False,
        ):
            raise ConfigError(
                "blur_only, blur_strength and blur_keep_unseen say how regions are blurred: give the column of their"
                " boxes as blur (--blur)"
            )
        if self.splits is None and (self.split_by, self.split_groups, self.split_seed) != (None, None, 0):
            raise ConfigError(
                "split_by, split_groups and split_seed say how samples are shared out: give splits, as {'val': 0.01}"
                " (--split val=0.01)"
            )
        _ = (
            self.sharing,
            self.grouping,
            self.cropping,
            self.encoding,
            self.states,
        )  # say what is wrong with them
        if self.by is None and self.by_most != MOST:
            raise ConfigError(
                f"by_most={self.by_most!r} says how many values have a folder: give a column as by (--by)"
            )
        if self.shards is not None and self.shard_bytes is not None:
            raise ConfigError(
                f"shards={self.shards} and shard_bytes={self.shard_bytes}: so many tars of equal size are as large as"
                " they get: give one"
            )
        if self.shards is not None and self.append:
            raise ConfigError(
                f"shards={self.shards} and append: beside tars that stay as they are new ones cannot be of equal size:"
                " give samples_per_shard (--samples-per-shard), or write all anew with overwrite=True (--overwrite)"
            )
        if self.append and self.overwrite:
            raise ConfigError(
                "append and overwrite: one leaves the tars that are there, the other replaces them: give one"
            )
        if self.append and self.is_tables:
            raise ConfigError(
                "append and format='parquet': names of Parquet files say how many there are in all, so none can be"
                " added to them. Write what is new to another path, or all anew with overwrite=True (--overwrite)"
            )
        if self.next_best and self.without is None:
            raise ConfigError(
                "next_best says what stays of duplicates: give their table as without (--without)"
            )
        if self.sizes not in (True, False, None):
            raise ConfigError(f"sizes={self.sizes!r}: expected True, False or None")
        check_card(self.card)
        check_samples(self)

    def _check_tables(self) -> None:
        """Raise ConfigError where something is asked for that Parquet files with images have no place for."""
        of_tars = {
            "columns": self.columns,
            "npy": self.npy,
            "sizes": self.sizes or None,
            "latents": self.latents,
            "text_states": self.text_states or None,
            "metadata": self.metadata if self.metadata == "json" else None,
            "max_shards": None if self.max_shards == 5 else self.max_shards,
        }
        for name, value in of_tars.items():
            if value is not None:
                raise ConfigError(
                    f"{name}={value!r}: is of tars. With format='parquet' all columns, vectors too, are columns of the"
                    " files, whose numbers have five digits: leave it out"
                )

    def check_columns(self, rows: pa.Table, columns: Sequence[str]) -> None:
        """See that rows have what is asked of them.

        Parameters
        ----------
        rows
            None of them are needed, but the columns that are named, with their types.
        columns
            All that there are.

        Raises
        ------
        ConfigError
            There is no such column, or it is of a type that does not fit.
        """
        check_rows(self.samples, columns)
        blurring = self.blurring
        named = [*(self.columns or ()), *(each for each in (self.filter_column, self.caption) if each)]
        named += [] if blurring is None else blurring.columns
        named += [] if self.size_column is None else [self.size_column]
        named += [*(self.npy or ()), *(each.column for each in self.states)]
        if missing := [name for name in dict.fromkeys(named) if name not in columns]:
            hint = ". A condition is where= (--where)" if self.filter_column in missing else ""
            near = meant(missing[0], columns) if len(missing) == 1 else ""
            raise ConfigError(
                f"no such columns {missing}{near}; the rows have {some_of_these(columns, missing[0])}{hint}"
            )
        made_anew = () if self.shrinking is None else self.shrinking.made.names
        if made := [name for name in named if name in made_anew]:
            raise ConfigError(
                f"columns {made} are made anew while the tars are written, of the images that are in them: name others"
            )
        if self.old_id_col in columns:
            raise ConfigError(
                f"old_id_col={self.old_id_col!r}: there is such a column already: give another name"
            )
        if self.filter_column is not None:
            check_boolean(self.filter_column, rows.schema.field(self.filter_column).type)
        if blurring is not None:
            blurring.check(rows)
        if self.size_column is not None:
            check_text(self.size_column, rows.schema.field(self.size_column).type, "of sizes")
        for each in dict.fromkeys(
            [*([self.caption] if self.caption else []), *(one.column for one in self.states)]
        ):
            check_text(each, rows.schema.field(each).type)
        vector_members(self.npy or (), rows.schema, self.portable)  # says what is wrong with them
        if self.where is not None:
            Where(self.where).passes(rows.slice(0, 0), columns)
        if self.sharing is not None and self.sharing.by is not None:
            self.sharing.by.values(rows.slice(0, 0), columns)
        if self.grouping is not None:
            self.grouping.by.values(rows.slice(0, 0), columns)

    def check_made(self, record: FileRecord | None) -> None:
        """Raise ConfigError where boxes or sizes of rows are of images that lie otherwise, or boxes of other things."""
        if record is not None and self.cropping is not None:
            self.cropping.check_made(record)
        if record is not None and self.blurring is not None:
            self.blurring.check_made(record.settings, self.image_member)

    def names(self, columns: Sequence[str]) -> list[str]:
        """The columns that are named, of those that there are."""
        named = {*(self.columns or ()), *(self.npy or ()), self.filter_column, self.caption}
        named |= {self.size_column, *(each.column for each in self.states), *(NEEDED if self.samples else ())}
        named |= set() if self.blurring is None else {*self.blurring.columns}
        named |= set() if self.where is None else {*Where(self.where).columns(columns)}
        if self.sharing is not None and self.sharing.by is not None:
            named |= {*self.sharing.by.columns(columns)}
        if self.grouping is not None:
            named |= {*self.grouping.by.columns(columns)}
        return [name for name in columns if name in named]

    @property
    def sharing(self) -> Splits | None:
        """How samples are shared out; None: they are not."""
        if self.splits is None:
            return None
        by = None if self.split_by is None else SplitBy(self.split_by)
        return Splits(self.splits, by, self.split_groups, self.split_seed)

    @property
    def grouping(self) -> GroupBy | None:
        """What parts samples into folders; None: nothing."""
        return None if self.by is None else GroupBy(SplitBy(self.by, "by"), self.by_most)

    @property
    def tells_sizes(self) -> bool:
        """Whether ``sizes.json`` is written: by default where the tars do not lie there alone.

        Hugging Face's datasets, told that a folder is of the form "webdataset", take every file in it for a tar.
        """
        if self.is_tables:
            return False
        return self.sizes if self.sizes is not None else self.index or self.metadata == "parquet"

    @property
    def whole(self) -> tuple[str, bool] | None:
        """Which samples are exported whole, and whether to Parquet files; None: each row is a sample."""
        return None if self.samples is None else (self.samples, self.is_tables)

    @property
    def is_tables(self) -> bool:
        """Whether samples go into Parquet files."""
        return self.format == "parquet"

    @property
    def sequential(self) -> bool:
        """Whether keys are made anew."""
        return self.keys == "sequential" if self.keys is not None else self.old_id_col is not None

    @property
    def condition(self) -> str | None:
        """Which rows pass, by `where` and by what is to be blurred or cropped; None: all."""
        given = [self.where, *(each.condition for each in (self.blurring, self.cropping) if each is not None)]
        known = [each for each in given if each is not None]
        return " AND ".join(f"({each}\n)" for each in known) if len(known) > 1 else next(iter(known), None)

    @property
    def blurring(self) -> Blurring | None:
        """What is blurred; None: nothing."""
        if self.blur is None:
            return None
        if isinstance(self.blur_only, str):
            raise ConfigError(f"blur_only={self.blur_only!r} (--blur-only): expected a list of labels")
        return Blurring(self.blur, tuple(self.blur_only), self.blur_strength, self.blur_keep_unseen)

    @property
    def cropping(self) -> Cropping | None:
        """Which column says the size that images are cropped to; None: none are."""
        if self.bucket_size is None:
            return None
        if (self.max_side, self.min_side) != (None, None):
            raise ConfigError(
                f"bucket_size={self.bucket_size!r}, and max_side or min_side: a bucket is a size: give one of them"
            )
        return Cropping(self.bucket_size)

    @property
    def size_column(self) -> str | None:
        """The column of the sizes; None: there is none, or one size for all."""
        return None if self.cropping is None else next(iter(self.cropping.columns), None)

    @property
    def encoding(self) -> Latents | None:
        """Which latents are made of images; None: none are."""
        latents = Latents.of(self.latents)
        if latents is not None:
            has_format = (self.quality, self.image_format) != (None, KEEP)
            latents.check(self.bucket_size, self.shard_bytes, self.npy or (), has_format)
        return latents

    @property
    def states(self) -> tuple[TextStates, ...]:
        """Which states of captions are made."""
        return TextStates.all_of(self.text_states, self.shard_bytes)

    @property
    def json_columns(self) -> tuple[str, ...]:
        """Columns that become fields of each sample's JSON, those too that are made on the way."""
        return (*(self.columns or ()), *(() if self.cropping is None else CROPPED.names))

    @property
    def shrinking(self) -> Shrinking | None:
        """Which images are made smaller or blurred, or lose their metadata, and how; None: none."""
        any_size = self.max_side is None and self.min_side is None
        if any_size and (self.blur, self.strip_metadata, self.bucket_size) == (None, None, None):
            return None
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        how = SmallerImages(self.max_side, self.min_side, self.image_format, quality, any_size)
        edits = (self.blurring, self.cropping, self.strip_metadata, self.encoding)
        return Shrinking(how, self.image_member, *edits)

    @property
    def edits(self) -> Edits | None:
        """What cannot be left undone to images; None: nothing."""
        return None if self.shrinking is None else self.shrinking.edits

    def empty(self, fields: Mapping[str, int], samples: int) -> tuple[str, ...]:
        """Suffixes that all samples are to have, where so many of them have each."""
        some = {name for name in EMPTY if 0 < fields.get(name, 0) < samples}
        some |= set() if self.caption is None else {"txt"}
        return tuple(name for name in EMPTY if self.portable and name in some)

    @property
    def portable(self) -> bool:
        """Whether names are made such that all readers take them alike."""
        return self.layout == "portable" if self.layout is not None else self.sequential


def check_boolean(column: str, kind: pa.DataType) -> None:
    """Raise ConfigError where a column to filter by is not of booleans."""
    if not pa.types.is_boolean(kind):
        raise ConfigError(
            f"expected booleans in the column {column!r}, found {kind}: give a condition instead (where=, --where)"
        )


def check_text(column: str, kind: pa.DataType, what: str = "of captions") -> None:
    """Raise ConfigError where a column, of captions or of something else, is not of text."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_null(plain)):
        raise ConfigError(f"expected text in the column {column!r} {what}, found {kind}: name another")


def _check_number(name: str, value: Any, lowest: int) -> None:
    wrong = isinstance(value, bool) or not isinstance(value, int) or value < lowest
    may_lack = name not in ("samples_per_shard", "max_shards")
    if wrong and not (value is None and may_lack):
        raise ConfigError(f"{name}={value!r}: expected a whole number of at least {lowest}")


def _check_one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")
