"""The loads that peers are compared on, and whether what they wrote is right."""

from __future__ import annotations

import functools
import io
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

LEAST_COSINE = 0.99
"""Between a peer's vector and the reference, for every row."""

_NULL_DATA = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
"""As `benchmarks.bare.TRANSFORM`, in timm's terms."""

_REFERENCE_BATCH = 32


class CheckError(Exception):
    """A peer's output is not what it should be."""


@dataclass(frozen=True)
class Load:
    """A model to embed with.

    Attributes
    ----------
    images
        Photographs a job, enough for some seconds of work on two cores.
    tried
        Photographs of a job that only tries a peer's settings.
    model
        Gives its name for timm, ``local-dir:`` and a folder; None is the null model.
    """

    images: int
    tried: int
    model: Callable[[], str] | None


def _efficientnet() -> str:
    from benchmarks.end_to_end import pretrained_efficientnet

    return pretrained_efficientnet()


def _random_vit() -> str:
    """ViT-B/32 with random weights, written once to the temporary directory, since no package carries its own."""
    import timm
    import torch
    from timm.models import save_for_hf

    folder = Path(tempfile.gettempdir()) / "curator-dask-vit-b-32-random"
    if not (folder / "finished").exists():
        torch.manual_seed(0)
        save_for_hf(timm.create_model("vit_base_patch32_224"), str(folder), safe_serialization=True)
        (folder / "finished").touch()
    return f"local-dir:{folder}"


LOADS = {
    "null": Load(4096, 4096, None),
    "efficientnet-lite0": Load(1024, 384, _efficientnet),
    "vit-b-32": Load(1024, 384, _random_vit),
}
"""By name. The null model runs at some hundred images a second, which is why it gets more."""


@functools.cache
def load_of(name: str) -> dict[str, Any]:
    """What a peer is told of a load: ``name``, ``model``, ``data`` (timm's configuration) and ``dim``, the outputs.

    ``folds`` says whether it has batch normalisation, which the package folds into the convolutions.
    """
    import timm
    from timm.data import resolve_data_config

    from curator_dask.models.compiling import has_batch_norm

    write = LOADS[name].model
    if write is None:
        return {"name": name, "model": None, "data": _NULL_DATA, "dim": 3, "folds": False}
    model_name = write()
    model: Any = timm.create_model(model_name, pretrained=True, num_classes=0)
    return {
        "name": name,
        "model": model_name,
        "data": resolve_data_config({}, model=model),
        "dim": model.num_features,
        "folds": has_batch_norm(model),
    }


def keys_of(folder: Path) -> dict[str, list[str]]:
    """The keys of every shard, in the tar's order, by the tar's stem."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.stem] = [name.removesuffix(".jpg") for name in tar.getnames() if name.endswith(".jpg")]
    return found


def reference(load: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """The vector of each key by timm's transform under Pillow and the bare model, kept in the temporary directory.

    Parameters
    ----------
    load
        Of `load_of`.
    folder
        Of shards from `benchmarks.photographs`, whose name says what is in them.
    """
    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform

    kept = (
        Path(tempfile.gettempdir())
        / f"curator-dask-reference-{load['name']}-{folder.name}-timm{timm.__version__}.npz"
    )
    if kept.exists():
        with np.load(kept) as file:
            return dict(zip(file["keys"].tolist(), file["vectors"], strict=True))
    transform: Any = create_transform(**load["data"], is_training=False)
    model: Any = None
    if load["model"] is not None:
        model = timm.create_model(load["model"], pretrained=True, num_classes=0).eval()
    keys: list[str] = []
    vectors: list[np.ndarray] = []
    print(f"  reference for {load['name']}, once", flush=True)
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar, torch.inference_mode():
            members = [member for member in tar if member.name.endswith(".jpg")]
            keys += [member.name.removesuffix(".jpg") for member in members]
            for start in range(0, len(members), _REFERENCE_BATCH):
                pixels = torch.stack(
                    [
                        transform(Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB"))  # type: ignore[union-attr]
                        for member in members[start : start + _REFERENCE_BATCH]
                    ]
                )
                vectors.append((pixels.mean(dim=(2, 3)) if model is None else model(pixels)).numpy())
    matrix = np.concatenate(vectors)
    partial = kept.with_name(f".{kept.name}")
    np.savez(partial, keys=np.array(keys), vectors=matrix)
    partial.rename(kept)
    return dict(zip(keys, matrix, strict=True))


def count_rows(out: Path) -> int:
    """Rows of all Parquet files under a folder."""
    return sum(pq.read_metadata(path).num_rows for path in out.rglob("*.parquet"))


def check(out: Path, folder: Path, expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compare what a peer wrote with the reference.

    Parameters
    ----------
    out
        Folder that a peer wrote into.
    folder
        Of the shards.
    expected
        Of `reference`.

    Returns
    -------
    dict
        ``rows``, ``least_cosine`` and ``mean_cosine`` of a row's vector with the reference's.

    Raises
    ------
    CheckError
        Other ids than those of the shards, twice the same, a vector missing, or one that is too far off.
    """
    keys, matrix = _read(out, folder)
    if sorted(keys) != sorted(expected):
        missing, unknown = set(expected) - set(keys), set(keys) - set(expected)
        raise CheckError(
            f"expected {len(expected)} ids, found {len(keys)}: {len(missing)} missing, {len(unknown)} unknown"
            f" ({', '.join(sorted(unknown)[:3])}), {len(keys) - len(set(keys))} twice"
        )
    cosines = _cosines(matrix, np.stack([expected[key] for key in keys]))
    least = float(cosines.min())
    if not least > LEAST_COSINE:
        raise CheckError(
            f"other vectors than timm's: least cosine {least:.4f}, expected more than {LEAST_COSINE}"
        )
    return {
        "rows": len(keys),
        "least_cosine": round(least, 6),
        "mean_cosine": round(float(cosines.mean()), 6),
    }


def alikeness(expected: dict[str, np.ndarray]) -> float:
    """Median cosine of one key's vector with the next one's: near 1 a comparison of vectors would tell little."""
    matrix = np.stack(list(expected.values()))
    return float(np.median(_cosines(matrix[1:], matrix[:-1])))


def _read(out: Path, folder: Path) -> tuple[list[str], np.ndarray]:
    """Keys and vectors of an output, in the form of any of the peers."""
    keys: list[str] = []
    matrices: list[np.ndarray] = []
    by_position = None
    for path in sorted(out.rglob("*.parquet")):
        table = pq.read_table(path)
        if "image_path" in table.column_names:  # clip-retrieval: vectors in a file of their own
            keys += table["image_path"].to_pylist()
            beside = path.name.replace("metadata_", "img_emb_").replace(".parquet", ".npy")
            matrices.append(np.load(out / "img_emb" / beside))
        elif "image_id" in table.column_names:  # NeMo Curator: "<shard>_<position>"
            by_position = by_position or keys_of(folder)
            named = [name.rpartition("_") for name in table["image_id"].to_pylist()]
            keys += [by_position[shard][int(position)] for shard, _, position in named]
            matrices.append(_matrix(table["embedding"]))
        else:
            keys += table["key"].to_pylist()
            matrices.append(_matrix(table["image_embedding"]))
    if not matrices:
        raise CheckError("no Parquet files were written")
    return keys, np.concatenate(matrices)


def _matrix(column: Any) -> np.ndarray:
    if column.null_count:
        raise CheckError(f"{column.null_count} vectors are missing")
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return flat.reshape(len(column), -1)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
