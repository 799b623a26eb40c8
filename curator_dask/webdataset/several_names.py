"""What says that the images of a shard are samples of their own: a mark behind its url, and keys with a number."""

from __future__ import annotations

#: Behind the url of a tar, and at the end of what stands behind that of a Parquet file.
EACH = "each"
#: Columns of rows: the sample that an image is of, which image of this it is, of how many, and what it is called.
SAMPLE, NUMBER, COUNT, NAME = COLUMNS = ("sample_key", "image_number", "image_count", "image_name")
_DIGITS = 18  # that every int64 can have


def is_each(url: str) -> bool:
    """Whether images of this shard are samples of their own."""
    return url.endswith((f"#{EACH}", f"&{EACH}"))


def with_each(url: str) -> str:
    """The url of a tar whose images are samples of their own."""
    return f"{url}#{EACH}"


def without_each(url: str) -> str:
    """The url of the tar itself."""
    return url.removesuffix(f"#{EACH}")


def split_key(key: str) -> tuple[str, int] | None:
    """Key of the sample and number of the image; None for what is no key of an image."""
    sample, mark, number = key.rpartition("_")
    is_number = (
        number.isascii() and number.isdigit() and len(number) <= _DIGITS and str(int(number)) == number
    )
    return (sample, int(number)) if mark and is_number else None
