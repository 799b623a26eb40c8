"""Export with ``max_side`` against the loop that users write with Pillow.

    python -m benchmarks.smaller

Tars of large JPEGs (photographs at 12 megapixels, *enlarged* ones and *montages* as of `benchmarks.decode_scale`), each
with a caption and a JSON, become tars of images of at most 512 pixels, on as many processes as there are cores.

- ``Pillow``: ``thumbnail`` with Lanczos and ``save``, in a loop over `tarfile`; it waits for no disk, and has no index,
  no Parquet and no way on when it is interrupted. Each of the same workers has tars of its own.
- ``export``: `curator_dask.outputs.exporting.export_output` with ``max_side=512``, on a cluster that is there.

How near the smaller images are to Lanczos of all their pixels (``PSNR``) is that of the pixels before they are encoded,
by way of PNG, and of the files.
"""

from __future__ import annotations

import io
import random
import tarfile
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client
from PIL import Image

from benchmarks.decode_scale import QUALITY, SIZES, enlarged, montage
from benchmarks.export import remove
from benchmarks.harness import (
    Case,
    case_rows,
    cores,
    machine,
    parser,
    per_round,
    ranged,
    run_interleaved,
    write_result,
    write_tables,
)
from benchmarks.photographs import SEED
from curator_dask import get_client
from curator_dask.decode.smaller import SmallerImages, make_smaller
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.webdataset.ranges import Ranges
from curator_dask.webdataset.writer import Contents, write_tar

_SIDE = 512
_LANCZOS = Image.Resampling.LANCZOS
_DIFFERENT = 4  # pictures of each kind: making them takes longer than all else


def make_dataset(folder: Path, pictures: list[bytes], shards: int, samples: int) -> None:
    """Write tars, and the rows of an output that were made of them."""
    for name in ("data", "rows"):
        (folder / name).mkdir()
    for shard in range(shards):
        keys = [f"{shard:05d}{sample:04d}" for sample in range(samples)]
        members = []
        for number, key in enumerate(keys):
            members.append((f"{key}.jpg", pictures[(shard + number) % len(pictures)]))
            members += [(f"{key}.txt", b"a caption of some words"), (f"{key}.json", b"{}")]
        tar = folder / "data" / f"{shard:05d}.tar"
        with tar.open("wb") as file:
            write_tar(file.fileno(), Contents.of_bytes(members), Ranges({}))
        rows = {"key": keys, "__url__": [str(tar)] * samples}
        pq.write_table(pa.table(rows), folder / "rows" / f"{shard:05d}.parquet")


def by_pillow(folder: Path, part: int, parts: int) -> int:
    """A worker's share of the tars, by the plain loop."""
    images = 0
    for path in sorted((folder / "data").glob("*.tar"))[part::parts]:
        with tarfile.open(path) as source, tarfile.open(folder / "pillow" / path.name, "w") as target:
            for member in source:
                file = source.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".jpg"):
                    image = Image.open(io.BytesIO(data))
                    image.thumbnail((_SIDE, _SIDE), _LANCZOS)
                    made = io.BytesIO()
                    image.save(made, "JPEG", quality=90, subsampling=0)
                    data, images = made.getvalue(), images + 1
                info = tarfile.TarInfo(member.name)
                info.size = len(data)
                target.addfile(info, io.BytesIO(data))
    return images


def on_workers(client: Client, folder: Path) -> int:
    """All tars, by the plain loop on each worker."""
    workers = list(client.scheduler_info()["workers"])
    shares = [
        client.submit(by_pillow, folder, part, len(workers), workers=[worker], pure=False)
        for part, worker in enumerate(workers)
    ]
    return sum(client.gather(shares))


def by_export(folder: Path, samples: int) -> int:
    """All tars, by this package."""
    options = ExportOptions(samples_per_shard=samples, max_side=_SIDE)
    summary = export_output(folder / "rows", folder / "export", options)
    assert summary.complete and summary.images_smaller == summary.kept, summary
    return summary.kept


def nearness(pictures: list[bytes]) -> tuple[float, float]:
    """The least PSNR of the pixels, and of the files, to Lanczos of all pixels; dB."""
    lowest = []
    for form in ("png", "keep"):
        found = []
        for data in pictures:
            made = make_smaller(data, SmallerImages(_SIDE, image_format=form))
            assert made.data is not None
            exact = Image.open(io.BytesIO(data)).resize((made.width, made.height), _LANCZOS)
            small = np.asarray(Image.open(io.BytesIO(made.data)), np.float64)
            error = max(((small - np.asarray(exact)) ** 2).mean(), 1e-6)  # none where no edge is halved
            found.append(float(10 * np.log10(255**2 / error)))
        lowest.append(min(found))
    return lowest[0], lowest[1]


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--shards", type=int, help="tars (default 4)")
    arguments.add_argument("--samples", type=int, help="of each (default 40)")
    options = arguments.parse_args(given)
    shards = options.shards or (2 if options.quick else 4)
    samples = options.samples or (2 if options.quick else 40)
    repeats = options.repeats or (1 if options.quick else 5)
    described = machine()

    rng = random.Random(SEED)
    pictures = []
    for _ in range(1 if options.quick else _DIFFERENT):
        for make in (enlarged, montage):
            file = io.BytesIO()
            make(*SIZES[0 if options.quick else 1], rng).save(file, "JPEG", quality=QUALITY)
            pictures.append(file.getvalue())
    with (
        tempfile.TemporaryDirectory() as place,
        get_client("cpu", n_workers=cores(), verbose=False) as client,
    ):
        folder = Path(place)
        make_dataset(folder, pictures, shards, samples)
        (folder / "pillow").mkdir()
        pids = [each.process.pid for each in client.cluster.workers.values()]
        cases = {
            "Pillow": Case(partial(on_workers, client, folder), pids),
            "export": Case(partial(by_export, folder, samples), pids, partial(remove, folder, "export")),
        }
        found = run_interleaved(cases, repeats)
        before, after = (
            sum(path.stat().st_size for path in (folder / name).glob("*.tar")) for name in ("data", "export")
        )
    ratio = per_round(lambda one, other: one / other, found["export"], found["Pillow"])
    pixels, files = nearness(pictures)
    notes = [
        f"export ÷ Pillow: **{ranged(ratio)}**",
        f"bytes of the tars before ÷ after: **{before / after:.1f}**",
        f"the least PSNR to Lanczos of all pixels: **{pixels:.1f} dB** of the pixels, {files:.1f} dB of the files",
    ]
    print("\n".join(notes))
    width, height = SIZES[0 if options.quick else 1]
    results = {
        "what": f"{shards} tars of {samples} JPEGs of {width} x {height}, median of {repeats} interleaved runs.",
        "settings": {"shards": shards, "samples": samples, "repeats": repeats, "side": _SIDE},
        "cases": found,
        "ratios": {"export ÷ Pillow": ratio},
        "psnr": {"pixels": pixels, "files": files},
        "table": case_rows(found),
        "notes": notes,
    }
    if write_result("smaller", options, described, results) and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
