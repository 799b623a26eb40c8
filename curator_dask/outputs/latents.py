"""Latents of an export: what a VAE makes of the images that are cropped to a size, as members of their samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from curator_dask.cache import ENCODERS
from curator_dask.errors import ConfigError, OutputError
from curator_dask.models.hub import names_folder
from curator_dask.models.latents import LatentEncoder, LatentSpec, npy_file
from curator_dask.outputs.contents import without_members
from curator_dask.outputs.encoded import image_place
from curator_dask.outputs.placing import put
from curator_dask.settings import absolute
from curator_dask.storage import Options, exists, join, read_bytes, remove
from curator_dask.webdataset.writer import Contents
from curator_dask.words import counted, meant

#: Suffix of the members. webdataset, DALI and energon decode them by its last part.
LATENT = "latent.npy"
#: Begins the reason of each sample of which no latent comes.
NOT_ENCODED = "not encoded"
#: Beside the tars: what the latents are. And in the settings of the export.
TOLD, SETTING = "latents.json", "latents_made"

_MADE_BY = "curator-dask export"
_HELD = 1 << 28  # bytes of pixels that wait for others of their shape


@dataclass(frozen=True)
class Latents:
    """What is asked for.

    Attributes
    ----------
    spec
        What makes them.
    batch_size
        Images that go in together, at most.
    images
        The images go along; False: in their place are the latents.
    info
        See `LatentSpec.known`; empty before its files are looked at.
    """

    spec: LatentSpec
    batch_size: int = 8
    images: bool = True
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | None) -> Latents | None:
        """As `ImageTextPairDataset.to_webdataset` takes it; None where none are asked for.

        Raises
        ------
        ConfigError
            A name or a value is none that it can have.
        """
        if given is None:
            return None
        said = {"model": given} if isinstance(given, str) else given
        known = ["model", *(each.name for each in fields(LatentSpec)[1:-1]), "batch_size", "images"]
        if not isinstance(said, Mapping) or not said.get("model"):
            raise ConfigError(
                f"latents={given!r}: expected the VAE, a folder or a repository (org/repo), or a mapping of model and"
                f" {', '.join(known[1:])}"
            )
        for name in said:
            if name not in known:
                raise ConfigError(
                    f"latents: there is no {name!r}{meant(str(name), known)}: expected {', '.join(known)}"
                )
        more: dict[str, Any] = {
            name: said[name] for name in said if name not in ("model", "batch_size", "images")
        }
        batch_size, images = said.get("batch_size", 8), said.get("images", True)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"latents: batch_size={batch_size!r}: expected a whole number of at least 1")
        if not isinstance(images, bool):
            raise ConfigError(f"latents: images={images!r}: expected True or False")
        return cls(LatentSpec(said["model"], **more), batch_size, images)

    def check(
        self, bucket_size: str | None, shard_bytes: int | None, npy: Sequence[str], has_format: bool
    ) -> None:
        """Raise ConfigError where they do not go with other options of an export.

        Parameters
        ----------
        bucket_size, shard_bytes, npy
            See `curator_dask.outputs.export_options.ExportOptions`.
        has_format
            It is said how images are written.
        """
        if bucket_size is None:
            raise ConfigError(
                f"latents={self.spec} (--latents): are of images that are cropped to a size: give the column of sizes"
                " as bucket_size (--bucket-size), as score --bucket makes it"
            )
        if shard_bytes is not None:
            raise ConfigError(
                f"shard_bytes={shard_bytes} (--shard-bytes) and latents: tars are planned before latents are made, so"
                " that they would be larger: give samples_per_shard or shards (--samples-per-shard, --shards)"
            )
        if any(f"{name}.npy".lower() == LATENT for name in npy):
            raise ConfigError(f"npy={[*npy]} (--npy) and latents: both make members .{LATENT}: leave one out")
        if not self.images and has_format:
            raise ConfigError(
                "quality and image_format are of images, and latents take their place: leave them out"
            )

    def told(self) -> str:
        """What the members are, as a card says it."""
        what = {"mean": "the mean", "sample": "a draw", "moments": "means and standard deviations"}
        where = "shifted and scaled for the diffusion model" if self.spec.scaled else "as the VAE gives them"
        return (
            f"`.{LATENT}`: latents of the images, {what[self.spec.form]} of the VAE's distribution, {where}, in"
            f" {self.spec.stored}; `{TOLD}` says of which VAE."
        )

    def ready(self) -> Latents:
        """The same with what its files say; they are fetched where they are nowhere.

        Raises
        ------
        ConfigError, WeightsError
            As `LatentSpec.known`.
        """
        spec, info = self.spec.known()
        return replace(self, spec=spec, info=info)

    @property
    def recipe(self) -> dict[str, Any]:
        """What identifies them, JSON-able."""
        return {**self.info, "images": self.images}

    def check_size(self, width: int, height: int) -> str | None:
        """Why an image of such a size has no latents; None: it has."""
        factor = self.info.get("factor", 1)
        if not (width % factor or height % factor):
            return None
        return (
            f"size: {width}x{height}: sides must be multiples of {factor}, of which the VAE makes one number: else it"
            " leaves the edge out, or fails. Make buckets of such sizes (score --bucket-step)"
        )

    def in_place(
        self,
        contents: Contents,
        ends: list[int],
        keys: Sequence[str],
        image_member: str | None,
        added: Counter[str],
    ) -> tuple[Contents, list[int]]:
        """The members of samples that have latents, without the images where these are not wanted.

        Parameters
        ----------
        contents, ends, keys
            The members of all samples, behind the last of each, after 0, and the samples' keys.
        image_member
            See `Sample.image`.
        added
            Gets, by suffix, how many members there are more, or fewer.
        """
        added[LATENT] += len(keys)
        if self.images:
            return contents, ends
        places = [image_place_of(contents, ends, keys, number, image_member) for number in range(len(keys))]
        gone = [(place, key) for place, key in zip(places, keys, strict=True) if place is not None]
        added.subtract(contents.names[place][len(key) + 1 :] for place, key in gone)
        return without_members(contents, ends, [place for place, _ in gone])


class LatentFiles:
    """The latents of a new tar's images, put away as they are made: of one shape together.

    Parameters
    ----------
    latents
        What is asked for.
    encoder
        Makes them.
    put
        Puts a file away, and says where it lies: start and stop.
    """

    def __init__(
        self, latents: Latents, encoder: LatentEncoder, put: Callable[[bytes], tuple[int, int]]
    ) -> None:
        self._size, self._encoder, self._put_away = latents.batch_size, encoder, put
        self._waiting: dict[tuple[int, ...], list[tuple[int, str, np.ndarray]]] = {}
        self._held = 0
        #: By number of a sample, where its file lies; or why there is none.
        self.found: dict[int, tuple[int, int]] = {}
        self.failed: dict[int, str] = {}

    def add(self, sample: int, key: str, pixels: np.ndarray) -> None:
        """Take the pixels of a sample's image, uint8 (height, width, 3)."""
        waiting = self._waiting.setdefault(pixels.shape, [])
        waiting.append((sample, key, pixels))
        self._held += pixels.nbytes
        if len(waiting) >= self._size:
            self._make(pixels.shape)
        while self._held > _HELD:  # of many shapes: those of which most wait
            self._make(max(self._waiting, key=lambda shape: (len(self._waiting[shape]), shape)))

    def finish(self) -> None:
        """Make those of all images that wait."""
        for shape in [*self._waiting]:
            self._make(shape)

    def _make(self, shape: tuple[int, ...]) -> None:
        some = self._waiting.pop(shape)
        self._held -= sum(pixels.nbytes for _, _, pixels in some)
        made = self._encoder([pixels for _, _, pixels in some], [key for _, key, _ in some])
        for (sample, _, _), latent in zip(some, made, strict=True):
            if isinstance(latent, str):
                kind, _, more = latent.partition(": ")
                kind = "failed" if kind == NOT_ENCODED else kind
                self.failed[sample] = f"{NOT_ENCODED} ({kind}): {more}"
            else:
                self.found[sample] = self._put_away(npy_file(latent))


@contextmanager
def making(
    latents: Latents | None, put: Callable[[bytes], tuple[int, int]], count: int
) -> Iterator[LatentFiles | None]:
    """Take images of a new tar in the block, at whose end all of their latents are made; None where there are none.

    Parameters
    ----------
    latents
        What is asked for; None: nothing.
    put
        As `LatentFiles` takes it.
    count
        Images that will come: for none no model is loaded.
    """
    if latents is None or not count:
        yield None
        return
    with ENCODERS.lease(latents.spec, latents.spec.build) as encoder:
        files = LatentFiles(latents, encoder, put)
        yield files
        files.finish()


def check_no_latents(latents: Latents | None, found: Iterable[Mapping[str, int]]) -> None:
    """Raise ConfigError where samples have such members already: by suffix, how many, of each file of rows."""
    if latents is None:
        return
    count = sum(n for some in found for suffix, n in some.items() if suffix.lower() == LATENT)
    if count:
        raise ConfigError(
            f"latents: {counted(count, 'sample')} of the source have a member .{LATENT} already: export shards"
            " without latents"
        )


def settings_of_latents(path: str, before: Mapping[str, Any], latents: Latents | None) -> dict[str, Any]:
    """What is noted of an export's latents.

    Parameters
    ----------
    path
        Of the tars.
    before
        The settings of tars that stay; empty where none do.
    latents
        What is asked for.

    Raises
    ------
    OutputError
        Those of the tars that stay are of another model.
    """
    if latents is None:
        return {}
    said = json.loads(json.dumps(latents.recipe))
    was = before.get(SETTING, said) or {}
    if other := {name: (was.get(name), value) for name, value in said.items() if was.get(name) != value}:
        listed = ", ".join(f"{name}={old!r}, now {new!r}" for name, (old, new) in other.items())
        raise OutputError(
            f"{path}: the latents of its tars were made otherwise: {listed}. Latents of two VAEs do not go together:"
            " give the same, or write to another path"
        )
    return {SETTING: said}


def put_latents(folder: str, options: Options, latents: Latents | None, is_wanted: bool) -> None:
    """Write what the latents are beside the tars, where it is not there; or remove what another export has said.

    Parameters
    ----------
    folder, options
        Of the tars, for fsspec.
    latents
        Which; None: there are none.
    is_wanted
        The tars do not lie there alone.
    """
    path = join(folder, TOLD)
    if latents is None or not is_wanted:
        remove_latents(folder, options)
        return
    name = latents.spec.model_name  # of a folder its name alone, as all else is nobody else's
    name = absolute(name).name if names_folder(name) else name
    said = {"made_by": _MADE_BY, "source": name, **latents.recipe}
    content = f"{json.dumps(said, indent=1)}\n".encode()
    if not exists(path, options) or read_bytes(path, options) != content:
        put(path, content, options)


def remove_latents(folder: str, options: Options) -> None:
    """Remove what an export has said of its latents; a file of that name that is somebody's own stays."""
    path = join(folder, TOLD)
    try:
        said = json.loads(read_bytes(path, options)) if exists(path, options) else None
    except (OSError, ValueError):
        return
    if isinstance(said, dict) and said.get("made_by") == _MADE_BY:
        remove(path, options)


def image_place_of(
    contents: Contents, ends: Sequence[int], keys: Sequence[str], number: int, image_member: str | None
) -> int | None:
    """Place of the image of a sample, by its number, among all members; None where it has none."""
    first, stop = ends[number], ends[number + 1]
    place = image_place(keys[number], contents.names[first:stop], image_member)
    return None if place is None else first + place


def asked_of(latents: Latents | None) -> dict[str, Any] | None:
    """Of the options what must be the same of all tars, JSON-able; the model itself is in `settings_of_latents`."""
    if latents is None:
        return None
    said = asdict(latents.spec)
    left = ("model_name", "model_dir", "weights", *(() if latents.spec.form == "sample" else ("seed",)))
    return {**{name: value for name, value in said.items() if name not in left}, "images": latents.images}
