"""Latents of an export: they are what diffusers' own code makes of the same pixels, and each lies with its image."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from colours import colour_of, write_tar
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import load_file, save_file
from test_buckets import samples_in
from test_hub import contents, server  # noqa: F401 - a fixture
from test_smaller import exif, opened, photograph, saved
from typer.testing import CliRunner
from vaes import dc, write_vae

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.smaller import SmallerImages, make_smaller
from curator_dask.errors import ConfigError, OutputError, WeightsError
from curator_dask.image.statistics import AspectBuckets, ImageStatistics
from curator_dask.models.latents import LatentSpec, draw
from curator_dask.models.vae_files import WEIGHTS, find_vae

pytestmark = pytest.mark.usefixtures("in_this_process")

SIZES = [(160, 120), (120, 160), (100, 99), (64, 40), (200, 90)]
KEYS = [f"{number:05d}" for number in range(0, 200_000, 13_337)]


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """As SD's; its numbers are not near one another, and it shifts as SD3's."""
    return write_vae(tmp_path_factory.mktemp("models") / "vae", shift_factor=0.0609, scaling_factor=1.5305)


def picture(key: str, size: tuple[int, int]) -> bytes:
    """Of the colour of its key, with noise: of flat pixels a VAE's normalisation makes noise of rounding."""
    noise = np.random.default_rng(int(key)).normal(0, 30, (size[1], size[0], 3))
    return saved(Image.fromarray(np.clip(noise + colour_of(key), 0, 255).astype(np.uint8)), "PNG")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for shard in range(2):
        members = []
        for number, key in enumerate(KEYS[shard::2]):
            members += [(f"{key}.png", picture(key, SIZES[number % 5])), (f"{key}.txt", key.encode())]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


@pytest.fixture
def dataset(data):
    dataset = ImageTextPairDataset.from_webdataset(data)
    return AspectBuckets(96, step=32)(ImageStatistics(["width", "height"])(dataset))


HOW = {"by": "bucket", "bucket_size": "bucket", "samples_per_shard": 3}


def latents_in(folder: Path) -> dict[str, np.ndarray]:
    """By key."""
    found = {name.rpartition("/")[2]: each for name, each in samples_in(folder).items()}
    return {key: np.load(io.BytesIO(each["latent.npy"]), allow_pickle=False) for key, each in found.items()}


def by_diffusers(folder: Path, data: bytes, kind=AutoencoderKL):
    """What diffusers makes of an image file: with its own processor, of this image alone."""
    model = kind.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        found = model.encode(VaeImageProcessor().preprocess(opened(data).convert("RGB")))
    return model.config, found


def test_they_are_those_of_diffusers_and_each_lies_with_its_image(vae, dataset, tmp_path):
    every = {}
    for form, scaled in (("mean", False), ("moments", True), ("sample", True)):
        said = {"model": str(vae), "form": form, "scaled": scaled, "stored": "float32", "seed": 3}
        summary = dataset.to_webdataset(tmp_path / form, **HOW, latents=said, shuffle=len(form))
        assert (summary.kept, summary.missing, summary.fields["latent.npy"]) == (len(KEYS), 0, len(KEYS))
        every[form] = latents_in(tmp_path / form)
    oracles = {}
    for name, members in samples_in(tmp_path / "mean").items():
        bucket, _, key = name.split("/")
        width, height = map(int, bucket.split("x"))
        config, made = by_diffusers(vae, members["png"])  # PNG holds the very pixels
        mean, std = made.latent_dist.mode()[0], made.latent_dist.std[0]
        oracles[key] = mean.numpy()
        scaled = (mean - config.shift_factor) * config.scaling_factor
        assert every["mean"][key].shape == (4, height // 8, width // 8)
        close = {"rtol": 0, "atol": 1e-3}  # rounding: of a batch, and of one
        np.testing.assert_allclose(every["mean"][key], mean, **close)
        moments = torch.cat([scaled, std * config.scaling_factor])
        np.testing.assert_allclose(every["moments"][key], moments, **close)
        noise = draw(key, 3, mean.shape)
        drawn = (mean + std * noise - config.shift_factor) * config.scaling_factor
        np.testing.assert_allclose(every["sample"][key], drawn, **close)
        told = json.loads(members["json"])
        assert {*told} == {
            f"exported_{n}" for n in ("original_width", "original_height", "crop_top", "crop_left")
        }
    for key, mine in every["mean"].items():  # no other sample's is as near
        alike = {other: each for other, each in oracles.items() if each.shape == mine.shape}
        assert min(alike, key=lambda other: np.abs(alike[other] - mine).max()) == key
    assert draw("a", 3, (4,)).tolist() != draw("b", 3, (4,)).tolist() != draw("b", 4, (4,)).tolist()
    said = json.loads((tmp_path / "sample/latents.json").read_text())
    assert {
        "form": "sample",
        "scaled": True,
        "scaling_factor": 1.5305,
        "seed": 3,
        "factor": 8,
    }.items() <= said.items()
    check_a_rerun(dataset, tmp_path, vae)
    check_what_is_added(dataset, tmp_path, vae)


def check_a_rerun(dataset, tmp_path, vae):
    """The same call does nothing, the same anew gives the same bytes, and other latents do not go beside them."""
    mean = {"model": str(vae), "stored": "float32"}
    how = {**HOW, "shuffle": 4}
    again = dataset.to_webdataset(tmp_path / "mean", **how, latents=mean)
    assert (again.written, again.kept) == (0, len(KEYS)) and again.fields["latent.npy"] == len(KEYS)
    before = {path: path.read_bytes() for path in (tmp_path / "mean").rglob("*.tar")}
    next(iter(before)).unlink()
    assert dataset.to_webdataset(tmp_path / "mean", **how, latents=mean).written == 1
    moved = shutil.copytree(vae, tmp_path / "moved")  # the same model elsewhere
    assert dataset.to_webdataset(tmp_path / "mean", **how, latents=mean | {"model": str(moved)}).written == 0
    dataset.to_webdataset(tmp_path / "mean", **how, latents=mean, overwrite=True)
    assert {path: path.read_bytes() for path in before} == before
    other = write_vae(tmp_path / "other", seed=1, shift_factor=0.0609, scaling_factor=1.5305)
    for latents in ({**mean, "model": str(other)}, {**mean, "scaled": True}, str(vae), None):
        with pytest.raises(OutputError, match="made of other samples, or by other settings"):
            dataset.to_webdataset(tmp_path / "mean", **how, latents=latents)
    dataset.to_webdataset(tmp_path / "mean", **how, overwrite=True)
    assert not (tmp_path / "mean/latents.json").exists()


def check_what_is_added(dataset, tmp_path, vae):
    some = dataset.filter("width > 110")
    first = some.to_webdataset(tmp_path / "grown", **HOW, latents=str(vae))
    assert 0 < first.kept < len(KEYS)
    for latents, said in (
        (str(tmp_path / "other"), "Latents of two VAEs do not go together"),
        ({"model": str(vae), "form": "moments"}, "'form': 'moments'"),
        (None, "latents=None"),
    ):
        with pytest.raises(OutputError, match=said):
            dataset.to_webdataset(tmp_path / "grown", **HOW, latents=latents, append=True)
    grown = dataset.to_webdataset(
        tmp_path / "grown", **HOW, latents={"model": str(vae), "batch_size": 1}, append=True
    )
    assert (grown.earlier, grown.kept) == (first.kept, len(KEYS) - first.kept)
    found = latents_in(tmp_path / "grown")
    assert {*found} == {*KEYS} and {each.dtype for each in found.values()} == {np.dtype("float16")}


def test_what_has_no_latent_is_left_out(vae, tmp_path):
    members = [("a.png", saved(photograph(), "PNG")[:900]), ("b.png", saved(photograph(), "PNG"))]
    members += [("b.mask.png", saved(photograph(64, 64), "PNG")), ("c.txt", b"none")]
    members += [("d.gif", saved(photograph(80, 80), "GIF")), ("e.png", saved(photograph(), "PNG"))]
    members += [("f.jpg", saved(photograph(64, 64), "JPEG", exif=exif(1)))]
    write_tar(tmp_path / "data/00000.tar", members)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    summary = dataset.to_webdataset(tmp_path / "out", bucket_size="64x64", latents=str(vae))
    assert (summary.rows, summary.kept, summary.missing) == (6, 3, 3)
    kinds = ("truncated", "missing", "format")
    assert summary.reasons == {f"not cropped ({kind})": 1 for kind in kinds}
    # Without images no format need hold what they are; other images of a sample stay.
    alone = {"model": str(vae), "images": False, "stored": "float32"}
    summary = dataset.to_webdataset(
        tmp_path / "alone", bucket_size="64x64", latents=alone, strip_metadata="all"
    )
    assert (summary.kept, summary.missing) == (4, 2)
    found = {name.rpartition("/")[2]: [*each] for name, each in samples_in(tmp_path / "alone").items()}
    assert found["b"] == ["mask.png", "json", "latent.npy"] and found["f"] == ["json", "latent.npy"]
    assert +summary.fields == {"latent.npy": 4, "json": 4, "mask.png": 1}
    table = pq.read_table(tmp_path / "alone/00000.parquet")
    assert table["exported_width"].to_pylist() == [64] * 4 and table["exported_bytes"].null_count == 4
    stays, _ = samples_in(tmp_path / "out")["00000.tar/f"], None
    _, made = by_diffusers(vae, stays["jpg"])  # one that has the size is copied, and encoded as it is
    np.testing.assert_allclose(
        latents_in(tmp_path / "alone")["f"], made.latent_dist.mode()[0], rtol=0, atol=1e-3
    )
    summary = dataset.to_webdataset(tmp_path / "odd", bucket_size="60x64", latents=str(vae))
    assert summary.kept == 0 and [*summary.reasons] == ["not cropped (size)"]
    assert "60x64: sides must be multiples of 8" in str(summary)
    # Numbers that float16 does not hold, and NaN.
    weights = load_file(vae / WEIGHTS)
    large = shutil.copytree(vae, tmp_path / "large")
    for name, factor, said in (
        ("quant_conv.weight", 1e7, "too large for float16"),
        ("quant_conv.bias", np.nan, "NaN"),
    ):
        save_file({**weights, name: weights[name] * factor}, large / WEIGHTS)
        summary = dataset.to_webdataset(tmp_path / said, bucket_size="64x64", latents=str(large))
        assert (summary.kept, summary.reasons["not encoded (not finite)"]) == (0, 3) and said in str(summary)
    save_file({**weights, "quant_conv.weight": weights["quant_conv.weight"] * 1e7}, large / WEIGHTS)
    more = {"model": str(large), "stored": "float32"}
    assert dataset.to_webdataset(tmp_path / "held", bucket_size="64x64", latents=more).kept == 3


@pytest.mark.parametrize("form", ["CMYK", "I;16", "LA", "P", "L"])
def test_pixels_are_those_of_the_image_that_is_written(form):
    image = photograph(90, 70)
    image = (
        Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
        if form == "I;16"
        else image.convert(form)
    )
    data = saved(image, "JPEG" if form == "CMYK" else "PNG")
    for size in ((32, 40), image.size):
        for write in (True, False):
            made = make_smaller(data, SmallerImages(any_size=True), size=size, pixels=True, write=write)
            assert made.pixels.shape == (size[1], size[0], 3) and made.pixels.dtype == np.uint8
            if write and made.data is not None and form != "CMYK":
                wanted = opened(made.data)
                wanted = np.asarray(wanted) / 257 if form == "I;16" else np.asarray(wanted.convert("RGB"))
                assert (
                    np.abs(made.pixels.mean(2) - (wanted if wanted.ndim == 2 else wanted.mean(2))).max() <= 1
                )


def test_a_deterministic_autoencoder(dataset, tmp_path):
    folder = write_vae(tmp_path / "pipeline/vae", dc)
    latents = {"model": str(tmp_path / "pipeline"), "scaled": True, "stored": "float32", "batch_size": 2}
    summary = dataset.to_webdataset(tmp_path / "out", **HOW, latents=latents)
    assert summary.kept == len(KEYS)
    found = latents_in(tmp_path / "out")
    for name, members in [*samples_in(tmp_path / "out").items()][::4]:
        config, made = by_diffusers(folder, members["png"], AutoencoderDC)
        wanted = made.latent[0] * config.scaling_factor
        np.testing.assert_allclose(found[name.rpartition("/")[2]], wanted, rtol=0, atol=1e-3)
    with pytest.raises(ConfigError, match="AutoencoderDC, which gives one latent and no distribution"):
        dataset.to_webdataset(tmp_path / "no", **HOW, latents={**latents, "form": "sample"})
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latents": "m"}, "cropped to a size: give the column of sizes as bucket_size"),
        ({"latents": {"form": "mean"}}, "expected the VAE"),
        ({"latents": {"model": "m", "from": "mean"}}, "no 'from'"),
        ({"latents": {"model": "m", "form": "mode"}}, "form='mode': expected one of 'mean'"),
        ({"latents": {"model": "m", "stored": "bfloat16"}}, "stored='bfloat16'"),
        ({"latents": {"model": "m", "batch_size": 0}}, "batch_size=0"),
        ({"latents": {"model": "m", "seed": -1}}, "seed=-1"),
        (
            {"latents": {"model": "m", "images": False}, "bucket_size": "64x64", "quality": 80},
            "are of images",
        ),
        ({"latents": "m", "bucket_size": "64x64", "shard_bytes": 10**6}, "shard_bytes=1000000"),
        ({"latents": "m", "bucket_size": "64x64", "npy": ["latent"]}, "both make members .latent.npy"),
        ({"latents": "m", "bucket_size": "64x64", "format": "parquet"}, "is of tars"),
        ({"bucket_size": "0x64"}, "'0x64': expected width and height"),
        ({"latents": "./nowhere", "bucket_size": "64x64"}, "no folder"),
    ],
)
def test_what_cannot_be_asked(data, tmp_path, given, said):
    with pytest.raises((ConfigError, WeightsError), match=said):
        ImageTextPairDataset.from_webdataset(data).to_webdataset(tmp_path / "no", **given)
    assert not (tmp_path / "no").exists()


def test_weights_that_do_not_fit(vae, tmp_path):
    """diffusers itself warns of tensors that are missing, and goes on with random ones."""
    folder = shutil.copytree(vae, tmp_path / "vae")
    weights = load_file(folder / WEIGHTS)
    only = {name: each for name, each in weights.items() if not name.startswith("decoder.")}
    save_file(only, folder / WEIGHTS)
    LatentSpec(str(folder)).build()  # it needs no decoder
    save_file({name: each for name, each in only.items() if name != "encoder.conv_in.bias"}, folder / WEIGHTS)
    with pytest.raises(WeightsError, match=r"lack 1 tensors of AutoencoderKL: encoder\.conv_in\.bias"):
        LatentSpec(str(folder)).build()
    save_file({**only, "encoder.conv_in.bias": torch.zeros(9)}, folder / WEIGHTS)
    with pytest.raises(WeightsError, match=r"cannot be loaded: RuntimeError: .*"):
        LatentSpec(str(folder)).build()
    with pytest.raises(WeightsError, match="expected the weights with SHA-256 00"):
        LatentSpec(str(folder), weights="00").build()
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="Only safetensors is read, as a pickle can run code"):
        LatentSpec(str(folder)).build()
    (folder / WEIGHTS).touch()
    (folder / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(ConfigError, match="_class_name 'VQModel'; expected one of"):
        LatentSpec(str(folder)).known()


def test_it_is_fetched_alone_or_out_of_a_pipeline(server, vae, tmp_path):  # noqa: F811
    shutil.copytree(vae, server.folder / "someone/vae")
    shutil.copytree(vae, server.folder / "someone/pipeline/vae")
    (server.folder / "someone/pipeline/model_index.json").write_text("{}")
    (server.folder / "someone/pipeline/vae/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    for name in ("someone/vae", f"someone/pipeline@{server.commit}"):
        for model_dir in (None, str(tmp_path / "models")):
            found = find_vae(name, model_dir)
            assert contents(found) == contents(vae)
            before = len(server.log)
            assert find_vae(name, model_dir) == found and len(server.log) == before
    assert "diffusion_pytorch_model.bin" not in "".join(map(str, server.log))
    server.spoil = lambda name, data: data[:-1] + b"x" if name.endswith(WEIGHTS) else data
    with pytest.raises(WeightsError, match="SHA-256"):
        find_vae("someone/vae", str(tmp_path / "spoiled"))
    with pytest.raises(ConfigError, match=r"someone/clip: has no config\.json nor vae/config\.json"):
        find_vae("someone/clip")
    server.broken = True
    with pytest.raises(WeightsError, match="HF_TOKEN"):
        find_vae("someone/other")


def test_the_command(vae, data, tmp_path, client):
    """On a cluster, whose worker gets the model by its spec; the tars are those of this process."""
    shutil.copy(data / "00000.tar", (tmp_path / "data").mkdir() or tmp_path / "data")
    args = [
        "export",
        str(tmp_path / "data"),
        str(tmp_path / "out"),
        "--bucket-size",
        "64x64",
        "--latents",
        str(vae),
    ]
    args += ["--latents-form", "moments", "--latents-stored", "float32", "--latents-only", "--card"]
    done = CliRunner().invoke(app, [*args, "--scheduler-address", client.scheduler.address])
    assert done.exit_code == 0, done.output
    latents = {"model": str(vae), "form": "moments", "stored": "float32", "images": False}
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    dataset.to_webdataset(tmp_path / "here", bucket_size="64x64", latents=latents)
    assert (tmp_path / "out/00000.tar").read_bytes() == (tmp_path / "here/00000.tar").read_bytes()
    card = (tmp_path / "out/README.md").read_text()
    assert "`.latent.npy`: latents of the images, means and standard deviations" in card
    assert "cropped to 64x64" in card and str(tmp_path) not in card
    done = CliRunner().invoke(
        app, ["export", str(tmp_path / "data"), str(tmp_path / "no"), "--latents-scaled"]
    )
    assert done.exit_code == 2 and "--latents" in done.output


def test_the_recipe_and_the_loader_of_the_page(vae, data, tmp_path):
    """The blocks of docs/latents.md, which test_docs leaves to this file: diffusers takes seconds to import."""
    (tmp_path / "recipe.yaml").write_text(
        "statistics: [width, height]\nbuckets: {resolution: 96, step: 32}\n"
        f"export: {{by: bucket, bucket_size: bucket, latents: {{model: {vae}, form: moments}}}}\n"
    )
    summary = curate(data, tmp_path / "curated", Recipe.read(tmp_path / "recipe.yaml"))
    assert (summary.rows, summary.kept) == (len(KEYS), len(KEYS)) and summary.complete
    names: dict = {}
    page = (Path(__file__).parent.parent / "docs/latents.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        code = code.replace("/path/to/dataset", str(data)).replace("/path/to", str(tmp_path))
        for text, stand_in in {
            "stabilityai/sdxl-vae": str(vae),
            "AspectBuckets(1024)": "AspectBuckets(96, step=32)",
            "ranks, workers, batch_size = 8, 4, 64": "ranks, workers, batch_size = 1, 1, 2",
            "num_workers=workers": "num_workers=0",
        }.items():
            code = code.replace(text, stand_in)
        exec(compile(code, "latents.md", "exec"), names)
    assert names["summary"].kept == len(KEYS) and len(names["shapes"]) > 3
    assert {shape[:2] for shape, _, _ in names["shapes"]} == {(2, 4)}
    folders = {tuple(map(int, path.name.split("x"))) for path in (tmp_path / "latents").glob("*x*")}
    sizes = {(8 * wide, 8 * high) for (_, _, high, wide), _, _ in names["shapes"]}
    assert sizes <= folders and len(folders) > 1  # which of them come is drawn


def test_shards_that_have_latents_get_no_others(vae, data, tmp_path):
    with tarfile.open(data / "00000.tar") as tar:
        members = [(each.name, tar.extractfile(each).read()) for each in tar][:2]
    write_tar(tmp_path / "data/00000.tar", [*members, (f"{KEYS[0]}.latent.npy", b"")])
    with pytest.raises(ConfigError, match=r"1 sample of the source have a member \.latent\.npy already"):
        ImageTextPairDataset.from_webdataset(tmp_path / "data").to_webdataset(
            tmp_path / "out", bucket_size="64x64", latents=str(vae)
        )
