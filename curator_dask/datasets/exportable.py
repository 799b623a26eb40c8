"""`Exportable`: what a dataset can be written as besides Parquet."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import dask.dataframe as dd

from curator_dask.arguments import called_as
from curator_dask.console import show_in_notebook
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.groups import MOST
from curator_dask.runs.step import Step


class Exportable(ABC):
    """A base of datasets whose rows are samples of tars."""

    metadata: dd.DataFrame
    tar_files: list[str]
    id_col: str
    storage_options: Mapping[str, Any] | None

    @property
    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """What has been applied."""

    @called_as("to_webdataset('/path/to/tars', where='width >= 256', columns=['width'])")
    def to_webdataset(
        self,
        path: str | os.PathLike[str],
        filter_column: str | None = None,
        samples_per_shard: int = 10_000,
        max_shards: int = 5,
        old_id_col: str | None = None,
        *,
        where: str | None = None,
        columns: Sequence[str] | None = None,
        keys: str | None = None,
        layout: str | None = None,
        shard_bytes: int | None = None,
        shards: int | None = None,
        shuffle: int | None = None,
        metadata: str | None = "parquet",
        index: bool = True,
        overwrite: bool = False,
        append: bool = False,
        dry_run: bool = False,
        caption: str | None = None,
        max_side: int | None = None,
        min_side: int | None = None,
        quality: int | None = None,
        image_format: str = "keep",
        image_member: str | None = None,
        splits: Mapping[str, float | int] | None = None,
        split_by: str | None = None,
        split_groups: str | os.PathLike[str] | None = None,
        split_seed: int = 0,
        sizes: bool | None = None,
        card: bool | Mapping[str, Any] = False,
        blur: str | None = None,
        blur_only: Sequence[str] = (),
        blur_strength: float = 1.0,
        blur_keep_unseen: bool = False,
        npy: Sequence[str] | None = None,
        format: str = "webdataset",
        strip_metadata: str | None = None,
        by: str | None = None,
        by_most: int = MOST,
        bucket_size: str | None = None,
        latents: str | Mapping[str, Any] | None = None,
        text_states: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
        samples: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ExportSummary:
        """Compute the metadata, and write the samples of its rows into new tars, every member byte for byte.

        With `max_side` or `min_side` large images are made smaller on the way. Each tar is there whole or not at all.
        The same call again does only what is missing. What is known on the way is kept beside, in `path` and
        ``.export``, where ``manifest`` says where each sample comes from.

        Parameters
        ----------
        path
            Directory or fsspec URL for the tars.
        filter_column
            Of booleans: samples whose value is true are exported.
        samples_per_shard
            Of every tar but the last.
        max_shards
            Digits of the tars' numbers, as in NeMo Curator 0.9.
        old_id_col
            Column, and field of the JSON, that gets the key a sample had. Keys are sequential then.
        where
            A condition besides, as `filter` takes it.
        columns
            Become fields of each sample's ``.json``, whose other bytes stay.
        keys
            ``"original"``, or ``"sequential"``: the tar's number and the sample's in it. None: as `old_id_col` says.
        layout
            ``"original"``: names are as they were. ``"portable"``: such that all readers take them alike, with an empty
            ``.txt`` and ``.json`` where others have one. None: portable with sequential keys.
        shard_bytes
            At most so many bytes a tar, instead of `samples_per_shard`.
        shards
            So many tars instead, whose numbers of samples differ by one at the most. With `splits` the largest has so
            many, and tars of the others are as large or a little smaller.
        shuffle
            Seed of a random order over all samples; None: the order of the rows.
        metadata
            Where all other columns go: ``"parquet"`` beside each tar, ``"json"`` into each sample's, or None.
        index
            Write DALI's ``.idx`` beside each tar.
        overwrite
            Replace what another export has written there.
        append
            Tars that an export has written there stay as they are: samples that pass and are in none of them, by the
            shard and the key of the source, go into new tars behind the last one, which is not filled up. Options that
            make tars what they are must be the same.
        dry_run
            Write no tar: the summary says what would be written, how many bytes that needs, and how many are free.
            Nothing is left, but rows that models made for it, beside `path`: the export takes them over.
        caption
            Column of text that each sample's ``.txt`` holds, in place of the one that is there, or new. Where it is
            null the ``.txt`` is as it was.
        max_side, min_side
            Pixels: images whose longest side, or whose shortest, is longer are made smaller, till it is so long. All
            others are copied. None: all images are copied, however large they are.
        quality
            1 to 100, of images that are made smaller, of JPEG and WebP; None: 90.
        image_format
            ``"keep"``: images that are made smaller keep theirs. ``"jpeg"``, ``"webp"`` or ``"png"``: they get this
            one, as do those of other formats that are small enough.
        image_member
            Suffix of the image that is made smaller, among several of a sample (``"image.png"``). None: ``key.ext``,
            else the first.
        splits
            Names, each with a share (``{"val": 0.01}``) or a number (``{"test": 1000}``) of samples, which go to tars
            in a folder of that name in `path`; all others go to ``train``. A hash of a sample's key decides: it is the
            same whatever other samples there are.
        split_by
            A column, or an expression of columns as in SQL, whose rows of one value go to one split.
        split_groups
            Folder that `SemanticDeduplication` wrote: rows of one group go to one split.
        split_seed
            Of the hash.
        sizes
            Write ``sizes.json`` beside the tars, the samples of each by name, as open_clip reads it. None: where the
            tars have other files beside them.
        card
            Write ``README.md``, a card of the dataset, where there is none; a mapping says what only you know:
            ``license``, ``source``, ``pretty_name``, ``task_categories``, ``language``, ``tags``; of the last three
            lists, or text with commas between.
        blur
            Column of boxes (left, top, right, bottom, as shares of width and height of the upright image), such as
            ``"detected_boxes"`` of `DetectionModel`: what is in them is blurred. Samples that cannot be blurred, and
            rows whose boxes are null, are left out and counted. None: nothing is blurred.
        blur_only
            Labels of the boxes that are blurred, which are in the column ``NAME_labels`` of boxes in ``NAME_boxes``.
        blur_strength
            Sigma, in tenths of a box's longer side.
        blur_keep_unseen
            Rows whose boxes are null are exported as they are.
        npy
            Columns of vectors, or of lists of numbers, that become members, ``key.COLUMN.npy``: a NumPy array of the
            column's dtype, of one dimension. A null vector is no member.
        format
            ``"webdataset"``: tars. ``"parquet"``: Parquet files with the images in them, of which Hugging Face's
            datasets and the viewer of its hub show the images: columns ``image``, ``text`` where captions are in no
            other column, and all others. Of members the images and captions alone go along.
        strip_metadata
            ``"all"``: of all JPEG, PNG and WebP the metadata (EXIF but for the orientation, XMP, IPTC, comments,
            thumbnails, C2PA) is left out, and their pixels stay as they are encoded. ``"location"``: only where they
            were taken. Images of other formats stay as they are, and are counted. None: all stays.
        by
            A column, or an expression of columns as in SQL: rows of each value go to tars of their own, in a folder
            that is called so (``en``; with splits ``train/en``). Null has a folder, too.
        by_most
            More values are refused.
        bucket_size
            Column of sizes, as ``832x1216`` (`curator_dask.image.statistics.AspectBuckets`), or one such size for all:
            images are resized to cover theirs and cropped to it, those that are smaller too. Rows without a size are
            filtered out, and samples whose image cannot be cropped are left out and counted.
        latents
            A VAE of diffusers' (``AutoencoderKL`` or ``AutoencoderDC``: a folder, ``"org/repo"`` or
            ``"org/repo@revision"``, of it or of a pipeline with a ``vae``) that makes latents of the cropped images:
            members ``key.latent.npy`` (channels, height, width), and ``latents.json`` beside the tars, which says what
            they are. Or a mapping with ``model`` and some of: ``form``, ``"mean"`` of the distribution (the default),
            ``"sample"`` (a draw, by the key and ``seed``) or ``"moments"`` (means, then standard deviations);
            ``scaled`` (False), whether they are shifted and scaled as the VAE's configuration says; ``stored``,
            ``"float16"`` or ``"float32"``; ``dtype``, the model's arithmetic (``"float32"``, ``"bfloat16"``,
            ``"float16"``); ``images`` (True), whether the images go along; ``batch_size`` (8); ``model_dir``. Samples
            of which no latent comes are left out and counted.
        text_states
            A text encoder of transformers' (T5, UMT5, CLIP, Gemma, Qwen: a folder, or ``"org/repo@revision"``) that
            makes states of the captions: members ``key.text_states.npy`` (tokens, dim), and ``text_states.json`` beside
            the tars. Or a mapping of ``model`` and, of these, what is not as here: ``name`` (``"text_states"``) of the
            members; ``column`` (``"caption"``); ``max_length`` (None: that of the model); ``layer`` (-1: the last);
            ``padded`` (False): all `max_length` tokens, attended to; ``pooled`` (False): the vector of the caption,
            too; ``stored`` and ``dtype`` as of latents; ``batch_size`` (32); ``model_dir``. Or several of them.
        samples
            Of rows that are images of samples (``each_image``, lists in Parquet): ``"all"``, ``"any"`` or ``"first"``:
            whole samples, byte for byte, all images of which pass, any, or the first. None: each image is a sample of
            its own.
        storage_options
            For fsspec, where `path` is a URL. None: those of the dataset, if it is in the same kind of store.

        Raises
        ------
        ConfigError
            Options that do not fit each other, or the columns.
        DatasetError
            Two samples would have the same key.
        ShardError
            Rows, or a tar, cannot be read. Nothing is written then.
        OutputError
            Something would be replaced without `overwrite`, or cannot be written.
        """
        show_in_notebook()
        from curator_dask.outputs.exporting import export_frame  # 20 modules, for those that export

        return export_frame(
            self.metadata,
            self.steps,
            self.tar_files,
            path,
            ExportOptions(
                filter_column=filter_column,
                samples_per_shard=samples_per_shard,
                max_shards=max_shards,
                old_id_col=old_id_col,
                where=where,
                columns=columns,
                keys=keys,
                layout=layout,
                shard_bytes=shard_bytes,
                shards=shards,
                shuffle=shuffle,
                metadata=metadata,
                index=index,
                overwrite=overwrite,
                append=append,
                dry_run=dry_run,
                caption=caption,
                max_side=max_side,
                min_side=min_side,
                quality=quality,
                image_format=image_format,
                image_member=image_member,
                splits=splits,
                split_by=split_by,
                split_groups=None if split_groups is None else os.fspath(split_groups),
                split_seed=split_seed,
                sizes=sizes,
                card=card,
                blur=blur,
                blur_only=blur_only,
                blur_strength=blur_strength,
                blur_keep_unseen=blur_keep_unseen,
                npy=npy,
                format=format,
                strip_metadata=strip_metadata,
                by=by,
                by_most=by_most,
                bucket_size=bucket_size,
                latents=latents,
                text_states=text_states,
                samples=samples,
            ),
            id_col=self.id_col,
            input_options=self.storage_options,
            output_options=storage_options,
        )
