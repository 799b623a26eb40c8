"""Names that mean something to curator_dask: of columns, and of the folder of failed rows."""

from __future__ import annotations

#: The shard of a row, as webdataset calls it.
URL_COLUMN = "__url__"
#: Why a row has no vector, or another column that steps make; null where nothing failed.
ERROR_COLUMN = "image_error"
#: The caption, where rows come from a tar.
CAPTION_COLUMN = "caption"
#: The image's file below a folder of such files.
FILE_COLUMN = "file_name"
#: The class of webdataset's ``.cls``, where rows come from a tar.
CLASS_COLUMN = "cls"
#: Column of img2dataset that says what became of a download.
STATUS_COLUMN = "status"
#: The vectors of a model, unless another name is given.
EMBEDDING_COLUMN = "image_embedding"
#: Of statistics of images, unless they have a prefix (`curator_dask.image.statistics`).
STATISTIC_COLUMNS = (
    *("width", "height", "aspect", "format", "mode", "bytes", "orientation", "animated"),
    *("phash", "dhash", "blurriness", "brightness", "entropy", "colourfulness", "grey", "border"),
)
#: Ends the name of the folder with the failed rows of an output, where these are not in the output.
ERRORS_SUFFIX = ".errors"
