"""Scripts for NeMo Curator run here: of 0.9 with the package's name changed, of 1.x with its import lines changed."""

from __future__ import annotations

import ast
import io
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import timm
import torch
import transformers
from colours import members_of, write_tar
from PIL import Image
from test_clip import make_clip, spread
from test_heads import PlainNsfw
from test_nemo_dedup import by_brute_force
from test_writer_stage import samples_in

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.image.embedders import ClipImageEmbedder, TimmImageEmbedder
from curator_dask.outputs.failed import output_files

SCRIPTS = Path(__file__).parent / "nemo_scripts"
PAGE = Path(__file__).parent.parent / "docs/coming-from-nemo-curator.md"
BAD = "000010003"
AESTHETIC, NSFW = "sa_0_4_vit_l_14_linear.pth", "clip_autokeras_binary_nsfw.pth"


def with_new_imports(source):
    """A script for 1.x with its import lines changed as the page says."""
    table = dict(
        re.findall(r"^\| `nemo_curator\.([\w.]+)` \| `([\w.]+)` \|$", PAGE.read_text(encoding="utf-8"), re.M)
    )
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("nemo_curator"):
            changed = []
            for name in (alias.name for alias in node.names):
                module, _, ours = table[f"{node.module}.{name}".partition(".")[2]].rpartition(".")
                changed.append(f"from {module} import {ours} as {name}")
            lines[node.lineno - 1] = "; ".join(changed)
    return "\n".join(lines)


def test_every_name_of_the_page_is_there():
    rows = re.findall(r"^\| `nemo_curator\.[\w.]+` \| `([\w.]+)` \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(rows) > 15
    for row in rows:
        module, _, name = row.rpartition(".")
        exec(f"from {module} import {name}")


def test_the_names_of_0_9_are_where_it_has_them(made):
    """Imports of its documentation, and of its tutorials for images."""
    names: dict = {}
    for line in (
        "import ClusteringModel, SemanticClusterLevelDedup, Sequential, get_client",
        ".datasets import DocumentDataset, ImageTextPairDataset",
        ".image.classifiers import AestheticClassifier, NsfwClassifier",
        ".image.embedders import ImageEmbedder, TimmImageEmbedder",
        ".utils.distributed_utils import get_client",
    ):
        module, _, rest = line.rpartition("import")
        exec(f"from curator_dask{module.strip()} import{rest}", names)
    folder = made[0]
    head = folder / "timm" / AESTHETIC
    steps = names["Sequential"](
        [
            names["TimmImageEmbedder"](f"local-dir:{folder / 'timm'}"),
            names["AestheticClassifier"](model_path=head, check=False),
        ]
    )
    dataset = names["ImageTextPairDataset"].from_webdataset(folder / "dataset")
    made_by = [next(iter(step.columns)) for step in steps(dataset).steps]
    assert made_by == ["image_embedding", "aesthetic_score"]
    with pytest.raises(ConfigError, match="modules: expected embedders and classifiers, found 'timm'"):
        names["Sequential"](["timm"])


def run(folder, source, stand_ins, monkeypatch, *arguments):
    for text, stand_in in stand_ins.items():
        assert text in source, text
        source = source.replace(text, stand_in)
    script = folder / "script.py"
    script.write_text(source, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    runpy.run_path(str(script), run_name="__main__")


def write_photographs(folder):
    """Three shards of eight: five noises, each several times with a little more noise, and a file that is no image."""
    random = np.random.default_rng(4)
    noises = random.integers(0, 256, (5, 8, 8, 3))
    for shard in range(3):
        members = []
        for sample in range(8):
            key, data = f"{shard:05d}{sample:04d}", io.BytesIO()
            small = noises[(3 * shard + sample) % 5] + random.normal(0, 12, (8, 8, 3))
            image = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))
            image.resize((40, 40)).save(data, "PNG")
            members += members_of(key, b"no image" if key == BAD else data.getvalue())
        write_tar(folder / f"{shard:05d}.tar", members)


def tuned(head, last, vectors, least, share):
    """A head whose scores of so large a share of vectors are below `least`, before the sigmoid if there is one."""
    with torch.no_grad():
        last.weight *= 20
        scores = head(torch.from_numpy(vectors))
        scores = torch.logit(scores) if head is not last else scores
        last.bias += least - torch.quantile(scores, share)
    return head.eval()


def make_heads(folder, vectors):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    dim = vectors.shape[1]
    aesthetic = torch.nn.Linear(dim, 1)
    aesthetic = tuned(aesthetic, aesthetic, vectors, 6, 0.4)
    nsfw = PlainNsfw(dim)
    nsfw.norm.variance[0] = nsfw.norm.variance[1] = 1
    nsfw = tuned(nsfw, nsfw.linear_4, vectors, 0, 0.6)
    torch.save(aesthetic.state_dict(), folder / AESTHETIC)
    torch.save(nsfw.state_dict(), folder / NSFW)

    def score(matrix):
        with torch.inference_mode():
            return tuple(each(torch.from_numpy(matrix)).numpy().reshape(-1) for each in (aesthetic, nsfw))

    return score


def vectors_in(folder, column):
    """By key, the vectors of an output; the bad one has none."""
    table = pq.read_table(folder).sort_by("key")
    matrix, valid = list_to_matrix(table.column(column))
    keys = [key for key, good in zip(table.column("key").to_pylist(), valid, strict=True) if good]
    assert len(keys) == 23 and BAD not in keys
    return keys, matrix[valid]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset, two small models with random weights, and heads for the vectors of each."""
    folder = tmp_path_factory.mktemp("made")
    write_photographs(folder / "dataset")
    dataset = ImageTextPairDataset.from_webdataset(folder / "dataset")
    torch.manual_seed(5)  # biases, which `spread` leaves as they are
    model = spread(timm.create_model("test_vit", num_classes=0, img_size=64))
    timm.models.save_for_hf(model, folder / "timm", model_args={"img_size": 64})
    transformers.logging.disable_progress_bar()
    make_clip(folder / "models/openai/clip-vit-large-patch14")
    transformers.logging.enable_progress_bar()
    scores = {}
    for name, embedder in (
        (
            "timm",
            TimmImageEmbedder(f"local-dir:{folder / 'timm'}", normalize_embeddings=True, autocast=False),
        ),
        ("models", ClipImageEmbedder(model_dir=folder / "models")),
    ):
        embedder(dataset).save_metadata(folder / f"{name}.vectors")
        vectors = vectors_in(folder / f"{name}.vectors", "image_embedding")[1]
        scores[name] = make_heads(folder / name, vectors)
    return folder, scores


def test_images_of_0_9(made, client, tmp_path, monkeypatch):
    folder, scores = made
    (tmp_path / "dataset").symlink_to(folder / "dataset")
    source = (SCRIPTS / "image_curation_0_9.py").read_text(encoding="utf-8")
    stand_ins = {
        "vit_large_patch14_clip_quickgelu_224.openai": f"local-dir:{folder / 'timm'}",
        "AestheticClassifier()": f'AestheticClassifier(model_path="{folder / "timm" / AESTHETIC}", check=False)',
        "NsfwClassifier()": f'NsfwClassifier(model_path="{folder / "timm" / NSFW}", check=False)',
        'get_client(cluster_type="gpu")': f'get_client(scheduler_address="{client.scheduler.address}")',
    }
    run(tmp_path, source.replace("nemo_curator", "curator_dask"), stand_ins, monkeypatch)

    keys, vectors = vectors_in(tmp_path / "scored", "image_embedding")
    aesthetic, nsfw = scores["timm"](vectors)
    rows = pq.read_table(tmp_path / "scored").to_pandas().set_index("key")
    np.testing.assert_allclose(rows.loc[keys, "aesthetic_score"], aesthetic, atol=1e-3)
    np.testing.assert_allclose(rows.loc[keys, "nsfw_score"], nsfw, atol=1e-4)
    before = samples_in(tmp_path / "dataset")[0]
    curated, sizes = samples_in(tmp_path / "curated")
    passing = [key for key, good in zip(keys, (aesthetic > 6) & (nsfw < 0.5), strict=True) if good]
    assert 1 < len(passing) < 20 and sizes == [
        len(passing[start : start + 8]) for start in range(0, len(passing), 8)
    ]
    assert curated == {key: before[key] for key in passing}

    clusters = pd.read_parquet(tmp_path / "semantic_deduplication/clusters/embs_by_nearest_center")
    assert sorted(clusters["key"]) == keys and clusters["nearest_cent"].nunique() == 3
    removed, _ = by_brute_force(clusters, "hard", 0.01)
    assert 1 < len(removed) < 22
    assert samples_in(tmp_path / "deduplicated")[0] == {
        key: value for key, value in before.items() if key not in removed
    }


def arguments_of(made, tmp_path, client):
    folder, _ = made
    address = {"RayClient()": f'RayClient(scheduler_address="{client.scheduler.address}")'}
    given = ["--input", folder / "dataset", "--output", tmp_path / "out", "--model-dir", folder / "models"]
    return address, [str(each) for each in given]


def test_curation_of_1_x(made, client, tmp_path, monkeypatch):
    address, arguments = arguments_of(made, tmp_path, client)
    source = with_new_imports((SCRIPTS / "image_curation_1_x.py").read_text(encoding="utf-8"))
    # Heads refuse vectors that are not OpenAI's.
    small = {
        f"        {name}(\n": f"        {name}(\n            check=False,\n"
        for name in ("ImageAestheticFilterStage", "ImageNSFWFilterStage")
    }
    arguments += ["--aesthetic-threshold", "6", "--images-per-tar", "3"]
    run(tmp_path, source, address | small, monkeypatch, *arguments)
    folder, scores = made
    keys, vectors = vectors_in(folder / "models.vectors", "image_embedding")
    aesthetic, nsfw = scores["models"](vectors)
    passing = [key for key, good in zip(keys, (aesthetic >= 6) & (nsfw < 0.5), strict=True) if good]
    before = samples_in(folder / "dataset")[0]
    after, sizes = samples_in(tmp_path / "out")
    assert after == {key: before[key] for key in passing} and 1 < len(passing) < 20
    assert set(sizes[:-1]) == {3}


def test_deduplication_of_1_x(made, client, tmp_path, monkeypatch):
    address, arguments = arguments_of(made, tmp_path, client)
    source = with_new_imports((SCRIPTS / "image_dedup_1_x.py").read_text(encoding="utf-8"))
    arguments += ["--embeddings", str(tmp_path / "vectors"), "--removal", str(tmp_path / "removal")]
    arguments += ["--n-clusters", "3"]
    run(tmp_path, source, address, monkeypatch, *arguments)
    clusters = pd.read_parquet(tmp_path / "removal/kmeans_results")
    keys, vectors = vectors_in(made[0] / "models.vectors", "image_embedding")
    assert sorted(clusters["image_id"]) == keys and clusters["centroid"].nunique() == 3
    found = np.stack(clusters.set_index("image_id").loc[keys, "embedding"])
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    named = {"image_id": "key", "embedding": "image_embedding", "centroid": "nearest_cent"}
    removed, _ = by_brute_force(clusters.rename(columns=named), "hard", 0.01)
    assert 1 < len(removed) < 22
    assert {*pd.read_parquet(tmp_path / "removal/duplicates")["id"]} == removed
    before = samples_in(made[0] / "dataset")[0]
    assert samples_in(tmp_path / "out")[0] == {
        key: value for key, value in before.items() if key not in {*removed, BAD}
    }
    assert len(output_files(str(tmp_path / "removal/pairwise_results"), None)) == 3


def test_stages_of_ones_own_of_1_x(made, client, tmp_path, monkeypatch, capsys):
    """A stage for two, `process_batch`, `Resources` and `with_`: as of a pipeline of single stages, and of NumPy."""
    address, arguments = arguments_of(made, tmp_path, client)
    source = with_new_imports((SCRIPTS / "own_stages_1_x.py").read_text(encoding="utf-8"))
    folder, _ = made
    keys, vectors = vectors_in(folder / "models.vectors", "image_embedding")
    least, most = np.quantile(vectors[:, 0], [0.3, 0.7])
    arguments += ["--least", str(least), "--most", str(most)]
    run(tmp_path, source, address, monkeypatch, *arguments)
    passing = [key for key, first in zip(keys, vectors[:, 0], strict=True) if least <= first <= most]
    before = samples_in(folder / "dataset")[0]
    assert samples_in(tmp_path / "out")[0] == {key: before[key] for key in passing} and 1 < len(passing) < 20
    told = capsys.readouterr().out
    assert re.findall(r"^  \d\. (\w+):", told, re.M) == [
        *("file_partitioning", "image_reader", "image_embedding", "not_below", "not_above", "writer")
    ]
    assert "which takes 0.5 of a GPU" in told
