"""README and docs: every block of code runs or is checked, and what the pages name is there."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import tarfile
import tomllib
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import distributed
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import skimage.data
import timm
import torch
import torchvision
import transformers
import typer
import yaml
from captioners import write_captioner
from colours import write_tar
from detectors import write_detector
from distributed.cli import dask_scheduler, dask_worker
from PIL import Image
from questioners import write_questioner
from s3 import BUCKET, options, s3_server
from safetensors.torch import save_model
from test_clip import make_clip
from test_imports import LAYERS
from test_scripts import load
from text_detectors import write_brightness_detector
from texts import make_pair
from timm.models import save_for_hf
from typer.testing import CliRunner

from curator_dask import get_client
from curator_dask.cli import app
from curator_dask.cli.curate import curate
from curator_dask.curation import Recipe
from curator_dask.curation_of_vectors import VectorRecipe

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}

# What the pages write, and what stands for it here. `folder` is one for each page, with `dataset`, `models` (a small
# CLIP with random weights, where OpenAI's would be fetched to) and `model.safetensors` (a random ResNet-18) in it.
STAND_INS = {
    "vit_large_patch14_clip_quickgelu_224.openai": "local-dir:{model}",  # pretrained EfficientNet-Lite0
    "hf-hub:Marqo/nsfw-image-detection-384": "local-dir:{nsfw}",  # a small one with the same classes
    '"Salesforce/blip-image-captioning-base"': '"{folder}/blip"',  # a tiny one
    '"HuggingFaceTB/SmolVLM-Instruct"': '"{folder}/questioner"',  # a tiny one
    '"PekingU/rtdetr_r50vd", threshold=0.5': '"{folder}/detector", threshold=0.1',  # a tiny one
    '"PaddlePaddle/PP-OCRv5_server_det_safetensors"': '"{folder}/ocr"',  # a tiny one that finds what is bright
    '"resnet50", prefix': '"local-dir:{model}", prefix',
    # LAION's heads are for OpenAI's CLIP alone: any linear one of the class of all heads.
    "heads = [AestheticClassifier()": (
        'heads = [AestheticClassifier.mro()[2]("{folder}/head.pth", "aesthetic_score")'
    ),
    "NsfwClassifier()]": 'NsfwClassifier.mro()[2]("{folder}/head.pth", "nsfw_score")]',
    "/path/to": "{folder}",
    # All pages share one cluster with one worker on the CPU.
    'get_client(cluster_type="gpu")': 'get_client(scheduler_address="{scheduler}")',
    'get_client(cluster_type="auto")': 'get_client(scheduler_address="{scheduler}")',
    'get_client(cluster_type="cpu", n_workers=2, memory_limit="8GiB")': (
        'get_client(scheduler_address="{scheduler}")'
    ),
    "get_client()": 'get_client(scheduler_address="{scheduler}")',
    "tcp://host:8786": "{scheduler}",
    '"key": "…", "secret": "…"': '"key": "key", "secret": "secret"',
    "https://s3.example.org": "{store}",
    "ranks, workers, batch_size = 8, 4, 64": "ranks, workers, batch_size = 1, 1, 3",
    "AspectBuckets(1024,": "AspectBuckets(128,",
    "num_workers=workers": "num_workers=0",  # none are forked from a process with the threads of a client
}

# What must hold when a page has run, in its own names.
HOLDS = {
    "links.md": [
        "summary.rows == 1",
        "summary.left_out == {'without a caption': 1}",
        "summary.complete",
    ],
    "README.md": ["summary.rows == 14", "summary.failed == 2", "summary.complete"],
    "data.md": [
        "len(dataset) == 14",
        "len(one) == 8 and len(some) == len(same) == 14",
        "set(from_tars.metadata.columns) == {'key', 'caption', 'width', '__url__'}",
        "sorted(pq.read_table(FOLDER + '/large')['width'].to_pylist()) == [300, 300, 340, 340]",
        "pq.read_table(FOLDER + '/both').num_rows == len(both) == 14",
        "set(both.columns) >= {'image_embedding', 'second'}",
        "parts.npartitions == 4",
        "vectors.shape == (12, 1280) and len(table) == 12",
        "len(of_files) == 7 and of_files.metadata.columns[1] == 'file_name'",
        "of_documents.metadata['key'].compute().tolist()[:3] == ['page0_0', 'page0_1', 'page1_0']",
        "of_lists.metadata['sample_key'].compute().tolist() == ['a', 'a', 'b', 'b', 'b']",
        "len(in_parquet) == 7 and [*in_parquet.metadata.columns] == ['key', 'text', '__url__']",
    ],
    "fetching.md": [
        "(summary.rows, summary.images, dict(summary.reasons)) == (8, 6, {'empty': 1, 'not found': 1})",
        "sum(pq.read_table(f'{FOLDER}/shards/0000{n}.parquet')['sha256'].null_count for n in (0, 1)) == 2",
    ],
    "models.md": [
        "(summary.rows, summary.failed) == (14, 2)",
        "set(pq.read_schema(FOLDER + '/both/00000.parquet').names) >= {'timm', 'clip', 'image_error'}",
        "set(pq.read_schema(FOLDER + '/in_turn/00000.parquet').names) >= {'timm', 'clip', 'image_error'}",
        "pq.read_schema(FOLDER + '/clip_embeddings/00000.parquet').field('image_embedding').type.list_size == 48",
    ],
    "pipelines.md": [
        "(result.summary.rows, result.summary.failed) == (14, 2)",
        "pq.read_table(FOLDER + '/without_flat_ones').num_rows == 13",
        "'000000005' not in pq.read_table(FOLDER + '/without_flat_ones')['key'].to_pylist()",
        "min(each for each in pq.read_table(FOLDER + '/without_flat_ones')['contrast'].to_pylist() if each) > 5",
    ],
    "faults-and-resuming.md": [
        "(summary.rows, dict(summary.reasons)) == (14, {'empty': 1, 'missing': 1})",
        "'empty (0 bytes)' in ERRORS",
        "f'missing: no sample {GONE!r} in the tar (status: failed_to_download)' in ERRORS",
        "pq.read_table(FOLDER + '/good.errors/00000.parquet').num_rows == 2",
        "sum(pq.read_table(f'{FOLDER}/good/0000{number}.parquet').num_rows for number in (0, 1)) == 12",
        "(rerun.written, rerun.skipped) == (0, 2)",
    ],
    "statistics.md": [
        "pq.read_table(FOLDER + '/embeddings')['phash'].null_count == 2",
        "(summary.rows, summary.failed) == (pq.read_table(FOLDER + '/good').num_rows, 0) and 0 < summary.rows < 14",
        "set(pq.read_table(FOLDER + '/embeddings')['format'].to_pylist()) == {'JPEG', 'PNG', None}",
    ],
    "rights-and-privacy.md": [
        "(summary.rows, cleaned.kept, cleaned.strip_metadata) == (14, 12, 'all')",
        "not any(pq.read_table(FOLDER + '/embeddings')['ai_claimed'].drop_null().to_pylist())",
    ],
    "export.md": [
        "(summary.rows, summary.kept, summary.filtered, summary.missing) == (14, 11, 3, 0)",
        "manifest['key'].to_pylist() == pq.read_table(FOLDER + '/curated/00000.parquet')['key'].to_pylist()",
        "frame['key'].tolist() == manifest['key'].to_pylist()",
        "manifest.num_rows == 11 and mixed.complete and 0 < mixed.kept < 12",
        "len(pairs) == paired.fields['image_embedding.npy'] == 12",
        "all(vector.shape == (1280,) for _, vector in pairs)",
        "pq.read_table(FOLDER + '/parquet/data').num_rows == tables.kept == 12",
        "(whole.rows, whole.kept, whole.filtered) == (4, 3, 1)",
    ],
    "splits.md": [
        "(summary.rows, summary.kept, summary.missing) == (14, 13, 1)",
        "summary.splits['test'].samples == 3 and sum(each.samples for each in summary.splits.values()) == 13",
    ],
    "training.md": [
        "(summary.kept, summary.shards) == (12, 4) and seen == [3] * 8",
        "by_dali == {0: 6, 1: 6} and len({**by_datasets[0], **by_datasets[1]}) == sum(map(len, by_datasets)) == 12",
        "all(text == f'photograph {key[-1]}' for part in by_datasets for key, text in part.items())",
        "total == 24",
        "[sorted(n for _, some in Vectors(rows.files, 'image_embedding', 'width', 3, 1, rank, 2)"
        " for n in some.tolist()) for rank in (0, 1)] == [sorted(each['width'] for each in pq.read_table(file,"
        " columns=['width', 'image_error']).to_pylist() if each['image_error'] is None)"
        " for file in random.Random(0).sample(rows.files, 2)]",
    ],
    "buckets.md": [
        "(summary.rows, summary.kept, summary.filtered, summary.missing) == (14, 12, 2, 0)",
        "len(counts) == len(summary.groups) > 1 and len(shapes) == 4",
        "all(shape[:2] == (3, 3) and (captions, told) == (3, (3, 4)) for shape, captions, told in shapes)",
        "{f'{shape[3]}x{shape[2]}' for shape, *_ in shapes} <= {folder.rpartition('/')[2] for folder in counts}",
    ],
    "latents.md": [],  # tests/test_latents.py runs it: diffusers takes seconds to import
    "curation.md": ["(summary.rows, summary.failed, summary.kept) == (14, 2, 12) and summary.complete"],
    "importing.md": [
        "(summary.rows, summary.failed, chosen.kept, chosen.subset) == (100, 0, 30, 30)",
        "np.load(FOLDER + '/subset.npy').dtype == np.dtype('u8,u8')",
    ],
    "known-images.md": [
        "[len(t or '') for t in pq.read_table(FOLDER + '/hashes')['pdq'].to_pylist()].count(64) == 12",
        "pq.read_table(FOLDER + '/hashes')['known'].to_pylist() == [False] * 14",
    ],
    "removing.md": [
        "[each.samples for each in summary.places] == [2, 2] and summary.complete",
        "sorted(pq.read_table(FOLDER + '/embeddings')['key'].to_pylist())[0] == '000000002'",
        "again.rows == 12",
    ],
    "joining.md": [
        "(summary.rows, summary.found, summary.unasked) == (6, 2, 0)",
        "pq.read_table(FOLDER + '/licensed')['licence'].to_pylist() == ['CC BY 4.0'] * 6",
    ],
    "comparing.md": [
        "(found.a.rows, found.a.vectors, found.a.failed) == (14, 12, 2)",
        "found.b.failed == found.b.rows - found.b.vectors",
        "found.frechet.all > 0 and found.near[1].shares['0'][0] == 1",
    ],
    "retrieving.md": [
        "(summary.pool, summary.queries, summary.pairs, summary.unanswered) == (14, 7, 6, 0)",
        "pq.read_table(FOLDER + '/pairs.parquet').num_rows == summary.pairs",
        "pq.read_table(FOLDER + '/retrieved').num_rows == summary.kept > 3 and summary.nearest > 0.9999",
    ],
    "balancing.md": [
        "(looked.rows, looked.unmatched, looked.never) == (14, 0, 1) and round(looked.choices[5], 6) == 5",
        "pq.read_table(FOLDER + '/rows')['concepts'].to_pylist() == [1] * 14",
        "set(pq.read_table(FOLDER + '/rows')['rarest_concept'].to_pylist()) == {'photograph'}",
        "(told.rows, told.without_vector, told.kept, kept.kept) == (14, 2, None, 6)",
        "sum(each['size'] for each in told.clusters) == 12",
        "(spread.by, spread.kept, [each['clusters'] for each in spread.levels]) == ('levels', 5, [3, 6])",
        "pq.read_table(FOLDER + '/vectors')['balanced'].to_pylist().count(True) == 5",
    ],
    "duplicates.md": [
        "in_a_store.removed == found.removed > 0 and in_a_store.made['pairs'] == 1",
        "found.rows == 14 and found.set_aside['null'] == 2",
        "len(clean.compute()) == 14 - found.removed",
    ],
    "scores.md": [
        "pq.read_table(FOLDER + '/embeddings')['aesthetic_score'].null_count == 2",
        "pq.read_table(FOLDER + '/embeddings')['nsfw_score'].null_count == 2",
        "set(pq.read_table(FOLDER + '/embeddings')['blurry'].to_pylist()) <= {True, False, None}",
        "pq.read_table(FOLDER + '/embeddings')['blurry'].null_count == 2",
    ],
    "labelling.md": [
        "(page.rows, page.failed, page.left) == (14, 2, 12)",
        "0 < sum(page.shown.values()) == page.left - page.near_copies",
        "len(head.rows) == 10 and (rest.labelled, rest.left) == (10, 2)",
    ],
    "classifying.md": [
        "(summary.rows, summary.failed) == (14, 2)",
        "pq.read_table(FOLDER + '/embeddings')['nsfw'].null_count == 2",
        "all(0 < each < 1 for each in pq.read_table(FOLDER + '/embeddings')['nsfw'].to_pylist() if each is not None)",
        "'label' not in pq.read_schema(FOLDER + '/embeddings/00000.parquet').names",
        "len(set(pq.read_table(FOLDER + '/embeddings')['seen_label'].to_pylist())) > 2",
    ],
    "captioning.md": [
        "(summary.rows, summary.failed) == (14, 2)",
        "pq.read_table(FOLDER + '/embeddings')['generated_caption'].null_count == 2",
        "len(set(pq.read_table(FOLDER + '/embeddings')['generated_caption'].to_pylist())) > 2",
    ],
    "asking.md": [
        "(summary.rows, summary.failed) == (14, 2)",
        "pq.read_table(FOLDER + '/embeddings')['fits_yes'].null_count == 2",
        "len(set(pq.read_table(FOLDER + '/embeddings')['fits_yes'].to_pylist())) > 5",
    ],
    "detecting.md": [
        "(summary.rows, summary.failed) == (14, 2)",
        "pq.read_table(FOLDER + '/embeddings')['detected_number'].null_count == 2",
        "0 < sum(n or 0 for n in pq.read_table(FOLDER + '/embeddings')['detected_number'].to_pylist())",
        "(scored.rows, scored.failed) == (14, 2) and 'cover' in str(covered)",
        "0 < sum(n or 0 for n in pq.read_table(FOLDER + '/scored')['text_number'].to_pylist())",
        "pq.read_table(FOLDER + '/scored')['clip_score_covered'].null_count == 2",
    ],
    "watching.md": [
        "len(images) == 10 and images._repr_html_().count('<img ') == 8",
        "(summary.rows, summary.failed) == (14, 2) and 'missing' in summary._repr_html_()",
        "(info.rows, info.failed, info.with_vector) == (14, 2, {'image_embedding': 12})",
    ],
    "text.md": [
        "(summary.rows, summary.failed) == (14, 2)",
        "pq.read_schema(FOLDER + '/embeddings/00000.parquet').field('text_embedding').type.list_size == 24",
        "pq.read_table(FOLDER + '/embeddings')['clip_score'].null_count == 2",
        "measured.complete and pq.read_table(FOLDER + '/embeddings')['text_words'].to_pylist() == [2] * 14",
        "all(abs(row['photo'] + row['screenshot'] - 1) < 1e-5 for row in pq.read_table("
        "FOLDER + '/embeddings', columns=['photo', 'screenshot']).to_pylist() if row['photo'] is not None)",
    ],
    "readers.md": [
        "vectors.shape == by_pandas.shape == by_polars.shape == (12, 1280)",
        "np.array_equal(vectors, by_pandas) and np.array_equal(vectors, by_polars)",
        "len(rows) == 5 and rows[0][0] == table['key'][0].as_py() and rows[0][1] > 0.9999",
        "sorted(wide_frame['width']) == [300, 300, 340, 340]",
        "pq.read_table(FOLDER + '/again').equals(pq.read_table(FOLDER + '/embeddings'))",
        "pq.read_table(FOLDER + '/good')['image_embedding'].null_count == 0",
    ],
    "stores-and-clusters.md": [
        "(summary.rows, summary.failed, summary.written) == (14, 2, 2)",
        "part.part == {'number': 1, 'of': 2, 'shards': part.written, 'all_shards': 2}",
        "(rest.written, rest.skipped) == (0, 2)",
    ],
    "your-own-model.md": [
        "pq.read_schema(FOLDER + '/my_embeddings/00000.parquet').field('image_embedding').type.list_size == 512",
        "pq.read_table(FOLDER + '/squashed')['squashed'].null_count == 2",
        "(summary.written, summary.failed) == (2, 2)",
        "pq.read_table(FOLDER + '/my_embeddings')['score'].null_count == 2",
        "pytest.main([*WITHOUT, SCRIPT + '::TestProbe']) == 0",
    ],
    "coming-from-nemo-curator.md": [
        "len(clustered) == 12",
        "dataset_with_embeddings.metadata['is_unique'].compute().sum() == 14 - len(removed)",
        "pq.read_table(FOLDER + '/embeddings').num_rows == 14",
        "len(result.objects) == 14",
        "all(each.image_data is None for each in result.objects)",
        "all((each.embedding is None) == (each.error is not None) for each in result.objects)",
        "issubclass(ImageEmbeddingStage, ProcessingStage) and isinstance(result.objects[0], ImageObject)",
        "isinstance(result.tasks[0], ImageBatch)",
    ],
}
GONE = "000000007"  # the row without an image
WITHOUT = [word for name in ("cacheprovider", "timeout", "xdist") for word in ("-p", f"no:{name}")]

# Blocks that a comment in the page says are not run, and of which programs may be unknown here.
NOT_RUN = {
    "stores-and-clusters.md": ["needs several machines", "needs Slurm"],
    "export.md": ["needs datasets"],
    "buckets.md": ["is megatron-energon's", "needs megatron-energon"],
    "latents.md": ["here: tests/test_latents.py does"] * 2,
    "training.md": ["needs open_clip"],
    "readers.md": ["needs datasets", "needs lancedb", "needs embedding-reader", "needs embedding-atlas"],
}
# Programs that a page is about, and that need not be here.
NEEDED = {"readers.md": ("duckdb", "polars"), "detecting.md": ("cv2",), "training.md": ("datasets",)}


@dataclass
class Block:
    """A fenced block of a page; `line` is that of its first line of code, `not_run` the reason in the comment."""

    language: str
    code: str
    line: int
    not_run: str | None


@dataclass
class Page:
    """The blocks of a page, and its text without them."""

    blocks: list[Block] = field(default_factory=list)
    text: str = ""


def read_page(path: Path) -> Page:
    page, block, note, fence = Page(), None, None, ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        stripped = line.strip()
        if block is not None:
            if stripped == fence:
                page.blocks.append(block)
                block = None
            else:
                block.code += line + "\n"
        elif match := re.fullmatch(r"(```+|~~~+)(.*)", stripped):
            fence = match[1]
            block, note = Block(match[2], "", number + 1, note), None
        else:
            if stripped or note is None:
                match = re.fullmatch(r"<!-- not run: (.+) -->", stripped)
                note = match[1] if match else None
            page.text += line + "\n"
    assert block is None, f"{path.name}: the last block of code is not closed"
    return page


def blocks_of(name: str, language: str) -> list[Block]:
    return [block for block in read_page(PAGES[name]).blocks if block.language == language]


def as_script(name: str) -> str:
    """The Python of a page that runs here as one script, each line where it is on the page."""
    lines: list[str] = []
    for block in blocks_of(name, "python"):
        if block.not_run is not None:
            compile(block.code, name, "exec")
            continue
        lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
    return "\n".join(lines) + "\n"


PYTHON_PAGES = [name for name in PAGES if blocks_of(name, "python")]


# A dataset, models, a cluster and a store


def write_photographs(folder: Path) -> None:
    """Two shards of photographs, with an image that is flat, one that is empty and a row that has none."""
    photographs = [
        Image.open(Path(skimage.data.__file__).parent / f"{name}.png").convert("RGB")
        for name in ("astronaut", "chelsea", "coffee")
    ]
    for shard, count in enumerate((8, 6)):
        members, rows = [], []
        for number in range(count):
            key, width = f"{shard:05d}{number:04d}", 180 + 40 * (number % 5)
            row = {"key": key, "caption": f"photograph {number}", "width": width, "status": "success"}
            data = io.BytesIO()
            photographs[number % 3].resize((width, 170)).save(data, "JPEG", quality=90)
            if key == "000000005":
                Image.new("RGB", (180, 170), "teal").save(data := io.BytesIO(), "PNG")
            if key == "000000006":
                data = io.BytesIO()
            if key == GONE:
                row |= {"status": "failed_to_download"}
            else:
                members += [
                    (f"{key}.jpg", data.getvalue()),
                    (f"{key}.txt", str(row["caption"]).encode()),
                    (f"{key}.json", json.dumps({"width": width}).encode()),
                ]
            rows.append(row)
        write_tar(folder / f"{shard:05d}.tar", members)
        pq.write_table(pa.Table.from_pylist(rows[::-1]), folder / f"{shard:05d}.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What every page's folder has, and the model."""
    folder = tmp_path_factory.mktemp("made")
    write_photographs(folder / "page" / "dataset")
    with tarfile.open(folder / "page" / "dataset" / "00000.tar") as tar:
        (folder / "page" / "images").mkdir()
        for member in tar:  # `extractall` has no filter before CPython 3.11.4
            (folder / "page" / "images" / Path(member.name).name).write_bytes(tar.extractfile(member).read())
    files = sorted((folder / "page" / "images").glob("*.jpg"))
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    (folder / "page" / "hub").mkdir()
    hub = pa.table({"image": images, "text": [f"text of {file.name}" for file in files]})
    pq.write_table(hub, folder / "page" / "hub" / "train-00000-of-00001.parquet")
    pages = [(f"page{number // 2}.{number % 2}.jpg", each["bytes"]) for number, each in enumerate(images)]
    write_tar(folder / "page" / "documents" / "00000.tar", pages)
    (folder / "page" / "lists").mkdir()
    lists = pa.table({"images": [images[:2], images[2:5]], "id": ["a", "b"]})
    pq.write_table(lists, folder / "page" / "lists" / "00000.parquet")
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18()
    resnet.fc = torch.nn.Identity()
    save_model(resnet, folder / "page" / "model.safetensors")
    torch.save(torch.nn.Linear(1280, 1).state_dict(), folder / "page" / "head.pth")
    np.save(folder / "page" / "probe.npy", np.ones(512, np.float32))
    labels = [
        f"0000{shard}000{number},{number % 2 == 0}" for shard in (0, 1) for number in range(6 - 2 * shard)
    ]
    (folder / "page" / "good.csv").write_text("\n".join(["key,good", *labels]))
    transformers.logging.disable_progress_bar()
    make_clip(folder / "page" / "models" / "openai" / "clip-vit-large-patch14")
    make_pair(folder / "page" / "clip", "clip")
    write_captioner(folder / "page" / "blip", "blip")
    write_questioner(folder / "page" / "questioner", "llava")
    write_detector(folder / "page" / "detector", "yolos")
    write_brightness_detector(folder / "page" / "ocr")
    transformers.logging.enable_progress_bar()
    load("pretrained_efficientnet").write_model_folder(folder / "model")
    names = {"label_names": ["NSFW", "SFW"]}
    classifier = timm.create_model("test_vit", num_classes=2)
    save_for_hf(classifier, folder / "nsfw", model_config=names, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def cluster():
    # Without a `with` block, in which it would stay the current client: those that pages open would not be found.
    client = get_client(cluster_type="cpu", n_workers=1, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def store(made):
    with s3_server() as server:
        files = fsspec.filesystem("s3", **options(server))
        files.put(os.fspath(made / "page" / "dataset"), f"{BUCKET}/shards", recursive=True)
        yield server


@pytest.mark.parametrize("name", PYTHON_PAGES)
def test_the_python_of_a_page_runs(name, made, cluster, store, tmp_path, monkeypatch):
    for needed in NEEDED.get(name, ()):
        pytest.importorskip(needed)
    folder = tmp_path / "page"
    shutil.copytree(made / "page", folder)
    places = {
        "folder": folder,
        "model": made / "model",
        "nsfw": made / "nsfw",
        "scheduler": cluster.scheduler.address,
        "store": store.url,
    }
    code = as_script(name)
    for written, stand_in in STAND_INS.items():
        code = code.replace(written, stand_in.format(**places))
    script = tmp_path / f"{name.removesuffix('.md').replace('-', '_')}.py"
    script.write_text(code, encoding="utf-8")
    # moto's one region; a page need not name it.
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        names = runpy.run_path(os.fspath(script), run_name="__main__")
    finally:
        while (latest := distributed.default_client()) is not cluster:
            latest.close()  # what the page opened
    names |= {"FOLDER": os.fspath(folder), "GONE": GONE, "np": np, "pq": pq}
    names |= {"SCRIPT": os.fspath(script), "pytest": pytest, "WITHOUT": WITHOUT}
    if (folder / "embeddings").exists():
        names["ERRORS"] = pq.read_table(folder / "embeddings")["image_error"].to_pylist()
    for holds in HOLDS[name]:
        assert eval(holds, names), holds


def test_each_page_with_python_says_what_must_hold():
    assert set(HOLDS) == set(PYTHON_PAGES)


def test_what_stands_in_is_on_a_page():
    scripts = "".join(map(as_script, PYTHON_PAGES))
    assert [written for written in STAND_INS if written not in scripts] == []


# Commands


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a bash block as words, without the variables that are set before them."""
    commands = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            commands.append(words)
    return commands


def curator_dask_commands() -> dict:
    return typer.main.get_command(app).commands


def check_curator_dask(words: list[str]) -> None:
    command = curator_dask_commands()[words[1]]
    command.make_context(words[1], words[2:])  # raises where an option is unknown or an argument is missing


def check_dask(words: list[str]) -> None:
    main = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[words[1]]
    context = main.make_context(words[1], words[2:])
    assert not any(word.startswith("-") for word in context.params["preload_argv"]), words


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"^\.\[(.+)\]$", words[3])
    assert words[:3] == ["pip", "install", "-e"] and set(wanted.split(",")) <= set(extras), words


def check_python(words: list[str]) -> None:
    assert words[1] == "-m" and find_spec(words[2]) is not None, words


def check_script(words: list[str]) -> None:
    assert os.access(ROOT / words[0], os.X_OK), words
    for word in words[1:]:
        assert not word.startswith("tests/") or (ROOT / word).exists(), words


def check_export(words: list[str]) -> None:
    assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in words[1:]), words


def check_installed(words: list[str]) -> None:
    assert shutil.which(words[0]), words


CHECKS = {
    "curator-dask": check_curator_dask,
    "dask": check_dask,
    "pip": check_pip,
    "python": check_python,
    "export": check_export,
    "ruff": check_installed,
    "mypy": check_installed,
}


def check_commands(block: Block) -> int:
    """Check all commands of a block; returns how many have no check."""
    subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
    unknown = 0
    for words in commands_of(block):
        check = check_script if words[0].startswith("scripts/") else CHECKS.get(words[0])
        if check is None or (
            words[:2] == ["dask", "cuda"]
        ):  # dask-cuda is there on machines with a GPU alone
            assert block.not_run, f"line {block.line}: {words[0]}: nothing checks this command"
            unknown += 1
        else:
            check(words)
    return unknown


BASH = [(name, block) for name in PAGES for block in blocks_of(name, "bash")]


@pytest.mark.parametrize(("name", "block"), BASH, ids=[f"{name}-{block.line}" for name, block in BASH])
def test_the_commands_of_a_block_are_there(name, block):
    assert commands_of(block), "a block without a command"
    assert check_commands(block) <= 1


@pytest.mark.parametrize(
    "code",
    [
        "curator-dask classify IN OUT",
        "curator-dask embed IN OUT --model m --modell-dir x",
        "curator-dask emded IN OUT --model m",
        "curator-dask embed IN OUT --model m --batch-size many",
        "dask worker tcp://host:8786 --worker 16",
        "scripts/demonstrate.sh",
        "scripts/test.sh tests/test_key.py",
        'pip install -e ".[gpu]"',
        "python -m benchmarks.compared",
        "if true; then",
        "make",
    ],
)
def test_a_command_that_is_not_there_is_found(code):
    with pytest.raises(Exception):  # noqa: B017, each checker has its own
        check_commands(Block("bash", code + "\n", 1, None))


def test_the_commands_of_the_start_lead_to_tars_with_captions(made, cluster, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(made / "page", folder)
    names = sorted(path.name for path in (folder / "images").iterdir() if path.suffix == ".jpg")
    captions = {name: f'a "photo"; of\n{name}' for name in names}
    table = pa.table({"file_name": names, "caption": [captions[name] for name in names]})
    pyarrow.csv.write_csv(table, folder / "captions.csv")
    said = {}
    for block in blocks_of("start.md", "bash"):
        for _, command, *words in commands_of(block):
            words = [word.replace("/path/to", str(folder)).replace("256", "100") for word in words]
            words = [word.replace("clip_score > 0.2", "clip_score > -2") for word in words]
            on = {option for each in curator_dask_commands()[command].params for option in each.opts}
            at = ["--scheduler-address", cluster.scheduler.address]
            done = CliRunner().invoke(app, [command, *words, *(at if "--scheduler-address" in on else [])])
            assert done.exit_code == 0, done.output
            said[command] = done.output
    assert "nothing that would fail" in said["check"] and "without a row" not in said["check"]
    assert (folder / "report.html").stat().st_size > 10_000
    rows = pq.read_table(folder / "shards" / "00000.parquet").to_pylist()
    with tarfile.open(folder / "shards" / "00000.tar") as tar:
        packed = {each.name: tar.extractfile(each).read() for each in tar}
    assert len(rows) > 3
    for row in rows:
        assert json.loads(packed[f"{row['key']}.json"])["clip_score"] == row["clip_score"]
        assert packed[f"{row['key']}.txt"].decode() == captions[row["file_name"]]
        assert packed[f"{row['key']}.jpg"] == (folder / "images" / row["file_name"]).read_bytes()


def test_recipes_are_recipes():
    blocks = [block for page in PAGES.values() for block in read_page(page).blocks if not block.not_run]
    every = [yaml.safe_load(block.code) for block in blocks if block.language == "yaml"]
    of_vectors = [VectorRecipe.of(each) for each in every if "import" in each]
    assert [each.fetches("chosen.parquet") is not None for each in of_vectors] == [True]
    recipes = [Recipe(**each) for each in every if "import" not in each]
    assert len(recipes) == 6 and all(
        each.model or each.join or each.balance or each.fetch for each in recipes
    )
    shown = (curate.__doc__ or "").partition("\b\n")[2].partition("\n\n")[0]
    assert Recipe(**yaml.safe_load(shown)).fetch  # what `curate --help` shows


# What else the pages say


def test_no_block_is_passed_over():
    """Every block is Python or bash, and those that are not run are few and say why."""
    not_run = {}
    for name in PAGES:
        for block in read_page(PAGES[name]).blocks:
            assert block.language in ("python", "bash", "yaml"), (
                f"{name}, line {block.line}: {block.language!r}"
            )
            if block.not_run:
                not_run.setdefault(name, []).append(block.not_run)
    assert not_run == NOT_RUN
    assert len(PYTHON_PAGES) >= 8 and len(BASH) >= 10


def test_readme_is_short():
    assert len(PAGES["README.md"].read_text(encoding="utf-8").splitlines()) <= 150


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", read_page(path).text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", read_page(PAGES[name]).text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = PAGES[name].parent / file if file else PAGES[name]
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_every_page_is_linked_from_the_readme():
    text = read_page(PAGES["README.md"]).text
    assert [name for name in PAGES if name != "README.md" and f"(docs/{name})" not in text] == []


def code_spans(name: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", read_page(PAGES[name]).text)


def test_options_are_those_of_the_commands():
    programs = [*curator_dask_commands().values(), dask_worker.main]
    # The others are of ruff, the tests, hf, open_clip and Slurm.
    known = {"--help", "--check", "--runslow", "--repo-type", "--train-num-samples"}
    known |= {"--array", "--signal", "--cpus-per-task", "--ntasks", "--ntasks-per-node"}
    for program in programs:
        for parameter in program.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    named = {
        (name, option)
        for name in PAGES
        for span in code_spans(name)
        for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", span)
    }
    assert len(named) > 15
    assert {(name, option) for name, option in named if option not in known} == set()


def test_variables_are_read_somewhere():
    sources = "".join(
        path.read_text(encoding="utf-8")
        for pattern in ("curator_dask/**/*.py", "tests/conftest.py", "scripts/*.sh")
        for path in ROOT.glob(pattern)
    )
    named = {
        variable
        for path in PAGES.values()
        for variable in re.findall(r"CURATOR_DASK_[A-Z_]+", path.read_text(encoding="utf-8"))
    }
    assert named and {variable for variable in named if f'"{variable}"' not in sources} == set()


def test_files_that_are_named_are_there():
    """A path in a page is one of the repository or of the package."""
    missing = set()
    for name in PAGES:
        for span in code_spans(name):
            if re.fullmatch(r"[\w./-]+(\.py|\.sh|\.md|/)", span) and not span.startswith("/"):
                places = (ROOT / span, ROOT / "curator_dask" / span)
                if not any(place.exists() for place in places):
                    missing.add(span)
    # Written by curator_dask or by macOS, not in the repository.
    assert missing - {"__MACOSX/"} == set()


def test_the_architecture_has_every_folder_and_file_of_the_house():
    page = read_page(PAGES["architecture.md"]).text
    for entry in LAYERS:
        top = entry.partition(".")[0]
        name = f"{top}.py" if (ROOT / "curator_dask" / f"{top}.py").exists() else f"{top}/"
        assert f"`{name}`" in page, name
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    drawn = {
        name.removesuffix(".py").rstrip("/")
        for names in re.findall(r'<text class="folder"[^>]*>([^<]*)</text>', picture)
        for name in names.split()
    }
    drawn |= {name.rstrip("/") for name in re.findall(r"[a-z]+/", picture.rpartition("beside:")[2])}
    assert {entry.partition(".")[0] for entry in LAYERS} - drawn == {"__main__"}
