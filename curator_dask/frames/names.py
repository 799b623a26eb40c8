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
#: Why, in words; of img2dataset and `fetch`.
MESSAGE_COLUMN = "error_message"
#: The vectors of a model, unless another name is given.
EMBEDDING_COLUMN = "image_embedding"
#: Of statistics of images, unless they have a prefix (`curator_dask.image.statistics`): what each is.
STATISTIC_DEFINITIONS = {
    "width": "pixels, of the upright image",
    "height": "pixels, of the upright image",
    "aspect": "width / height",
    "format": "of the file, as Pillow calls it",
    "mode": "of the pixels, as Pillow calls it",
    "bytes": "of the file",
    "orientation": "EXIF's number, 1 to 8; null where there is none",
    "animated": "more than one frame",
    "phash": "perceptual hash of 64 bits, imagehash's, of the upright RGB image",
    "dhash": "difference hash of 64 bits, imagehash's, of the upright RGB image",
    "blurriness": "standard deviation of the edges at 64 pixels, CleanVision's without the outermost pixels: the"
    " smaller, the blurrier",
    "brightness": "0 to 1, CleanVision's",
    "entropy": "bits, Pillow's, of all three channels",
    "colourfulness": "Hasler and Süsstrunk's (2003); 0 is grey",
    "grey": "all channels equal in every pixel",
    "border": "share of the area that plain bars of the first corner's colour take",
}
STATISTIC_COLUMNS = tuple(STATISTIC_DEFINITIONS)
#: The same of what image files say of their origin and rights. A truth is null where something in the file that may say
#: so cannot be read.
METADATA_DEFINITIONS = {
    "has_gps": "the file has coordinates of a place, in EXIF or XMP",
    "taken": "when, by the camera's clock: EXIF's DateTimeOriginal, else XMP's or photoshop:DateCreated",
    "camera": "its maker and model, of EXIF, else XMP",
    "software": "EXIF's Software, else xmp:CreatorTool, else a PNG's, else the generator that its notes are of",
    "creator": "XMP's dc:creator, else IPTC's By-line, else EXIF's Artist, else a PNG's Author",
    "copyright": "XMP's dc:rights, else IPTC's Copyright Notice, else EXIF's Copyright, else a PNG's",
    "license_url": "XMP's cc:license, else xmpRights:WebStatement, else plus:LicensorURL",
    "digital_source": "IPTC's digital source type, of XMP or of a C2PA manifest",
    "ai_claimed": "the file says that a model has made or changed it: by its digital source type, a label of GB"
    " 45438-2025, or a generator's notes",
    "has_c2pa": "a C2PA manifest is in the file; its signature is not checked",
    "data_mining": "what is said of text and data mining: PLUS's word of XMP, else a reservation of TDMRep, else of a"
    " C2PA manifest",
    "data_mining_prohibited": "that forbids it, be it with exceptions",
}
#: The same of the hash in which lists of known images are exchanged.
PDQ_DEFINITIONS = {
    "pdq": "perceptual hash of 256 bits, Facebook's PDQ, of the upright RGB image: 64 hexadecimal digits",
    "pdq_quality": "how much there is to see for `pdq`, 0 (plain) to 100; below 50 the hash is chance",
}
#: All that `ImageStatistics` makes.
IMAGE_DEFINITIONS = {**STATISTIC_DEFINITIONS, **PDQ_DEFINITIONS, **METADATA_DEFINITIONS}
#: Of statistics of texts, without their prefix (`curator_dask.text.measures`): what each is.
TEXT_DEFINITIONS = {
    "words": "parts between white space, DataComp's count",
    "characters": "Unicode's code points, DataComp's count",
    "language": "ISO 639-1, or 639-3 where that has none, fastText's",
    "language_confidence": "0 to 1, fastText's",
    "alphanumeric": "share of characters that are letters or digits, of any script",
    "digits": "share of characters that are digits, of any script",
    "non_ascii": "share of characters that are not ASCII",
    "repeated_characters": "share of pieces of ten characters that the most repeated take, data-juicer's",
    "repeated_words": "share of words that stand in the text before, whatever their case",
    "has_url": "an address is in it: http://, https://, ftp:// or www., and something behind it",
    "is_file_name": "the whole text is what a file is called",
}
#: The same of personal data in texts (`curator_dask.text.personal`).
PERSONAL_DEFINITIONS = {
    "has_email": "an e-mail address is in it",
    "has_phone": "a telephone number is in it: with a plus, parted as in North America, or behind a word as tel.",
    "has_ip": "an address of the public internet is in it, IPv4 or IPv6",
    "has_card_number": "the number of a payment card is in it, right by Luhn's sum",
}
#: All that `TextStatistics` makes.
CAPTION_DEFINITIONS = {**TEXT_DEFINITIONS, **PERSONAL_DEFINITIONS}
#: Ends the name of the folder with the failed rows of an output, where these are not in the output.
ERRORS_SUFFIX = ".errors"
