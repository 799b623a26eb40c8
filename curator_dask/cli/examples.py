"""What ``--help`` shows besides options: a line a command, and commands to copy."""

from __future__ import annotations

from typing import Any

from curator_dask.cli.once import OnceCommand

#: Of each command a line for the list of all, and examples.
SHOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "links": (
        "Find images and captions in a crawl: a table for fetch.",
        (
            "links wat.paths.gz /data/urls --prefix https://data.commoncrawl.org/ --first 10 --languages en",
            "links s3://mine/crawl/ s3://mine/urls --min-words 3",
            "links site.warc.gz /data/urls",
        ),
    ),
    "fetch": (
        "Turn a table of image URLs into shards.",
        (
            "fetch urls.parquet /data/shards --url-column URL --caption-column TEXT",
            "fetch metadata/ /data/shards --caption-column text --id-column uid --sha256-column sha256",
            "fetch urls.parquet /data/shards --caption-column text --retry-failed",
        ),
    ),
    "check": (
        "Look a dataset over first: seconds, no model.",
        ("check /data/shards", "check /data/photos --captions captions.csv"),
    ),
    "import": (
        "Take vectors that others have made, before images.",
        (
            "import metadata/ /data/out --id-column uid --image-vectors l14_img --text-vectors l14_txt --model"
            " openai/clip-vit-large-patch14",
            "import laion/ /data/out --model open_clip/ViT-H-14",
            "import /data/out /data/with_images --rows /data/shards --on uid",
        ),
    ),
    "embed": (
        "Make a vector of every image; one Parquet file a shard.",
        (
            "embed /data/shards /data/out --model vit_large_patch14_clip_quickgelu_224.openai",
            "embed /data/photos /data/out --model resnet50 --captions captions.csv",
            "embed /data/shards /data/out --model resnet50 --statistics width,height,phash",
            "embed /data/shards /data/out --text-statistics words,language",
            "embed /data/documents /data/out --model resnet50 --each-image",
        ),
    ),
    "classify": (
        "Add the classes that a model sees in images.",
        (
            "classify /data/shards /data/out --model Falconsai/nsfw_image_detection --class nsfw=nsfw",
            "classify /data/shards /data/out --model hf-hub:Marqo/nsfw-image-detection-384 --class nsfw=NSFW",
            "classify --model resnet50 --list",
        ),
    ),
    "caption": (
        "Add captions that a model writes about images.",
        (
            "caption /data/shards /data/out --model Salesforce/blip-image-captioning-base",
            "caption /data/shards /data/out --model HuggingFaceTB/SmolVLM-Instruct --prompt 'Describe this image.'",
        ),
    ),
    "detect": (
        "Add what a model finds in images, and where.",
        (
            "detect /data/shards /data/out --model PekingU/rtdetr_r50vd --only person,car",
            "detect /data/shards /data/out --model google/owlv2-base-patch16-ensemble --prompt 'a human face'",
        ),
    ),
    "ask": (
        "Ask a model about images; the answers' probabilities.",
        (
            "ask /data/shards /data/out --model HuggingFaceTB/SmolVLM-Instruct --question 'Is there a watermark?"
            " Answer yes or no.' --answer Yes --answer No --column watermark",
            "ask /data/shards /data/out --model Qwen/Qwen2-VL-2B-Instruct --column fits --answer Yes --answer No"
            " --question 'Does this figure show \"{text}\"? Please answer yes or no.'",
        ),
    ),
    "retry": ("Try only the images that failed again.", ("retry /data/out",)),
    "info": (
        "Say what is in an output: rows, failures, columns.",
        ("info /data/out", "info /data/out --columns aesthetic_score,width"),
    ),
    "score": (
        "Score vectors: by heads, clusters; or measure captions.",
        (
            "score /data/out --aesthetic default --nsfw default",
            "score /data/out --head quality=quality.pt",
            "score /data/out --near like_mine=/data/reference",
            "score /data/out --cluster-number cluster=/data/centroids.safetensors",
            "score /data/out --text-statistics words,language --same-captions",
            "score /data/out --text-statistics words --text generated_caption --text-prefix new_",
        ),
    ),
    "join": (
        "Add columns of a table of yours, found by key.",
        (
            "join /data/out recaptions.parquet --on key=id --columns recaption",
            "join /data/out optout.txt --on url --mark optout",
        ),
    ),
    "filter": (
        "Count, or write, the rows that pass a condition.",
        (
            "filter /data/out --where 'width >= 256 and height >= 256'",
            "filter /data/out /data/best --where 'width >= 256' --top aesthetic_score=0.3",
            "filter /data/out /data/balanced --at-most cluster=1000 --by aesthetic_score",
        ),
    ),
    "centroids": (
        "Cluster the vectors, so that each image has a number.",
        (
            "centroids /data/out /data/centroids.safetensors --number 1000",
            "centroids /data/out /data/levels.safetensors --levels 10000,1000,100",
        ),
    ),
    "balance": (
        "Balance the rows by the concepts in their captions.",
        (
            "balance /data/out --concepts concepts.txt",
            "balance /data/out --concepts concepts.txt --most 20000",
            "balance /data/out --clusters /data/levels.safetensors --keep 0.3",
        ),
    ),
    "label": (
        "Write a page to label images by looking.",
        (
            "label /data/out good.html --name good",
            "label /data/out good-2.html --name good --by good --labels good.csv",
            "label /data/out pets.html --name pets --classes cat,dog,other",
        ),
    ),
    "fit": (
        "Make a head of your own, from labels of some images.",
        ("fit /data/out /data/good.safetensors --labels labels.csv --label good",),
    ),
    "dedup": (
        "Find images that are nearly the same.",
        ("dedup /data/out /data/duplicates --eps 0.07 --sheet groups.png",),
    ),
    "search": (
        "Find images by a text, or by an image.",
        (
            "search /data/out 'a cat' --model openai/clip-vit-large-patch14 --sheet found.png",
            "search /data/out --like 000000012",
            "search /data/out --like 000000012 --index /data/index",
        ),
    ),
    "browse": (
        "Look at an output on a page: search, order, choose.",
        (
            "browse /data/out",
            "browse /data/out --model openai/clip-vit-large-patch14 --index /data/index --open",
        ),
    ),
    "retrieve": (
        "Find the rows of a pool that are like a curated set.",
        (
            "retrieve /data/pool /data/curated /data/retrieved --top 4",
            "retrieve /data/pool /data/curated /data/retrieved --similarity 0.6 --pairs pairs.parquet",
        ),
    ),
    "compare": (
        "Say how far two datasets are apart.",
        ("compare /data/out /data/filtered", "compare /data/real /data/generated compared.html"),
    ),
    "export": (
        "Write the images of chosen rows into new tars.",
        (
            "export /data/out /data/new --where 'width >= 256' --dry-run",
            "export /data/out /data/new --where 'width >= 256' --without /data/duplicates",
            "export /data/out /data/small --max-side 512",
            "export /data/out /data/blurred --blur detected_boxes --blur-only face",
        ),
    ),
    "remove": (
        "Remove samples from all that was made of them.",
        (
            "remove /data/shards /data/curated --list optout.txt --on url --dry-run",
            "remove /data/shards /data/curated --list optout.txt --on url --not-found unknown.txt",
            "remove /data/out /data/new --list known.txt --on pdq --within 31",
        ),
    ),
    "report": ("Write one HTML page about an output.", ("report /data/out report.html",)),
    "curate": (
        "Do all steps, as a YAML file says.",
        ("curate /data/shards /data/curated --config recipe.yaml",),
    ),
    "index": ("Write DALI's .idx files beside local tars.", ("index /data/shards",)),
}

BEGIN = "\b\nTo begin:\n" + "\n".join(
    f"  curator-dask {SHOWN[name][1][0]}" for name in ("check", "embed", "report", "curate")
)


def shown(name: str) -> dict[str, Any]:
    """Arguments of `typer.Typer.command` for a command."""
    short, examples = SHOWN[name]
    return {
        "name": name,
        "cls": OnceCommand,
        "short_help": short,
        "epilog": "\b\nFor example:\n" + "\n".join(f"  curator-dask {each}" for each in examples),
    }
