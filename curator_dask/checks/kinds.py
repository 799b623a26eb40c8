"""The kinds of what a preflight finds: what each is, whether a run would fail on it, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of finding.

    Attributes
    ----------
    fails
        Whether a run would fail on it: as a whole, or that shard. Else it costs rows, or nothing but time.
    what
        Of which a number is found.
    fix
        What to do about it.
    """

    fails: bool
    what: str
    fix: str


TOO_LARGE = "max_pixels=N (--max-pixels N) takes those that are too large"
"""Of images that cannot be used, where some are above the limit alone."""

_NO_CAPTIONS = (
    "none is needed for embedding images; captions='FILE' (--captions FILE) takes them from a table"
)
"""Of image files beside which no caption lies."""

KINDS = {
    "no-vector": Kind(
        True,
        "row, of which NONE that was looked at would have a vector",
        "the notes say what the images lack; a run would end with 1",
    ),
    "unreadable": Kind(
        True,
        "shard that cannot be read",
        "restore the file, or let it be read (storage_options), or leave it out of INPUT",
    ),
    "not-a-tar": Kind(True, "file that is no tar", "fetch the shard again, or leave it out of INPUT"),
    "damaged": Kind(
        True,
        "tar that is cut or damaged; samples behind the fault are lost",
        "fetch the shard again: a run embeds what lies before the fault, and ends with 1",
    ),
    "name": Kind(
        True, "shard whose name is not UTF-8", "rename the file: its name is a column of the output"
    ),
    "no-companion": Kind(
        True,
        "shard without a .parquet, where others have one",
        "restore these files, or read all rows from the tars with metadata='tar' (--metadata tar)",
    ),
    "companion": Kind(
        True,
        "Parquet file that cannot be used",
        "write it again, or let it be read (storage_options), or read the rows from the tars with metadata='tar'"
        " (--metadata tar)",
    ),
    "captions": Kind(True, "table of captions that cannot be used", "mend the table as its line says"),
    "columns": Kind(
        True,
        "shard whose columns do not fit",
        "give id_col (--id-col) the column whose values are the keys, and all Parquet files the same columns",
    ),
    "ids": Kind(
        True,
        "Parquet file with ids that are null or repeated",
        "give each row the key of its image, once; or give id_col (--id-col) the column that has it. Of images inside"
        " Parquet files rows' numbers are the keys where no column is called 'key'",
    ),
    "no-match": Kind(
        True,
        "shard of which no row finds its image",
        "give id_col (--id-col) the column whose values are the keys, and see that tar and Parquet belong together",
    ),
    "partition": Kind(
        True,
        "shard with more vectors than a partition can hold",
        "use rows_per_partition=1_000_000 (--rows-per-partition)",
    ),
    "disk": Kind(True, "output that does not fit on its disk", "make room, or write to another disk"),
    "not-downloaded": Kind(
        False,
        "row whose image could not be fetched from its URL; its vector will be null",
        "none is needed; fetch --retry-failed tries again what it has fetched, img2dataset incremental_mode='extend'",
    ),
    "missing": Kind(
        False,
        "row without a sample in the tar; its vector will be null",
        "see whether tar and Parquet are of the same version",
    ),
    "orphans": Kind(
        False,
        "sample without a row in the Parquet; it will not be embedded",
        "add rows for them, or read the rows from the tars with metadata='tar' (--metadata tar)",
    ),
    "duplicates": Kind(
        False, "member whose name occurred before in its tar; the first is taken", "give each its own key"
    ),
    "shared-keys": Kind(
        False,
        "sample whose key a sample of another shard has, too, of those looked at",
        "none is needed here, where shard and key tell samples; an export needs keys='sequential' (--keys sequential)",
    ),
    "unread": Kind(
        False,
        "member that cannot be read: a link to what is not in its tar, a sparse file",
        "pack the tar with the files themselves: tar --dereference follows links, and do without --sparse",
    ),
    "no-image": Kind(
        False,
        "sample without an image; its vector will be null",
        "see whether the image's suffix is one of the usual (jpg, png, webp, …)",
    ),
    "null-image": Kind(
        False,
        "row of a Parquet file without the bytes of an image; its vector will be null",
        "write the table with the bytes in it, where it has paths alone: files outside of it are not opened",
    ),
    "several-images": Kind(
        False,
        "sample with several images; only one is embedded, key.ext if there is one, else the first",
        "each_image=True (--each-image) gives each a row; image_member='image.png' (--image image.png) picks one by"
        " what follows the key and its dot; if these are different samples: a key ends at the first dot of"
        " the file's name, so use names without dots",
    ),
    "imageless": Kind(
        False,
        "sample without an image; where each image is a row, it has none",
        "none is needed; export --samples leaves these samples out",
    ),
    "readers": Kind(
        False,
        "sample that not all readers see alike: other fields than the rest of its shard, upper-case suffixes, odd keys",
        "none is needed here; curator-dask export --layout portable writes shards that all take alike",
    ),
    "no-row": Kind(
        False,
        "image without a row in the table of captions; its columns will be null",
        "add rows: file_name is the path below the folder, with the suffix, letter for letter",
    ),
    "no-file": Kind(
        False,
        "row of the table of captions without an image; it is passed over",
        "see whether file_name is the path below the folder, with the suffix, letter for letter",
    ),
    "replaced": Kind(
        False,
        "column of the table of captions with the name that vectors have",
        "name it otherwise, or the vectors (--column): they replace it",
    ),
    "nameless": Kind(
        False, "column of the table of captions without a name; it is left out", "name it, if it is no index"
    ),
    "no-caption": Kind(False, "row without a caption", "none is needed for embedding images"),
    "bad-image": Kind(
        False,
        "image that cannot be used, of those looked at; its vector will be null",
        "fetch them again, or do without their vectors",
    ),
    "turned": Kind(
        False,
        "image that lies on its side or is mirrored, of those looked at: img2dataset dropped its EXIF orientation",
        "images are embedded as they are stored: orientation='exif-column' (--orientation exif-column) turns them by"
        " the 'exif' text of their rows",
    ),
    "gray16": Kind(
        False,
        "grey image of more than 8 bits a sample, of those looked at",
        "none is needed where the files declare how many bits they use: the highest 8 of these are taken, and floats"
        " that stay below 2 are taken as 0 to 1."
        " gray16='pillow' (--gray16 pillow) does as Pillow does: above 255 all is white",
    ),
    "no-samples": Kind(
        False, "tar without a sample", "leave it out, or fetch it again if it should have some"
    ),
    "no-rows": Kind(False, "Parquet file without a row", "none is needed; its output will be empty, too"),
    "stale-idx": Kind(
        False,
        "index file (.idx) that does not fit its tar; the tar is scanned instead",
        "curator-dask index INPUT writes them again",
    ),
}
"""By the name that `Finding.kind` has; in the order in which they are shown."""


def fixes_of(unusable: Mapping[str, int], captions_beside: bool) -> dict[str, str]:
    """What helps, by kind of finding, where `KINDS` says something else.

    Parameters
    ----------
    unusable
        How many images cannot be used, by reason.
    captions_beside
        Captions lie beside image files, if there are any.
    """
    fixes = {"no-caption": _NO_CAPTIONS} if captions_beside else {}
    if "too large" in unusable:
        others = "" if len(unusable) == 1 else f"; the others: {KINDS['bad-image'].fix}"
        fixes["bad-image"] = TOO_LARGE + others
    return fixes
