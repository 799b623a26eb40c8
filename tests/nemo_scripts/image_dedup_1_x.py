"""With NeMo Curator 1.x: embed images, find semantic duplicates, and write the dataset without them."""

import argparse

from nemo_curator.core.client import RayClient
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.deduplication.semantic import SemanticDeduplicationWorkflow
from nemo_curator.stages.file_partitioning import FilePartitioningStage
from nemo_curator.stages.image.deduplication.removal import ImageDuplicatesRemovalStage
from nemo_curator.stages.image.embedders.clip_embedder import ImageEmbeddingStage
from nemo_curator.stages.image.io.convert import ConvertImageBatchToDocumentBatchStage
from nemo_curator.stages.image.io.image_reader import ImageReaderStage
from nemo_curator.stages.image.io.image_writer import ImageWriterStage
from nemo_curator.stages.text.io.writer.parquet import ParquetWriter


def read_images(name, args):
    pipeline = Pipeline(name=name)
    pipeline.add_stage(
        FilePartitioningStage(file_paths=args.input, files_per_partition=1, file_extensions=[".tar"])
    )
    pipeline.add_stage(
        ImageReaderStage(
            dali_batch_size=args.batch_size, verbose=args.verbose, num_threads=16, num_gpus_per_worker=0.25
        )
    )
    return pipeline


def embed(args):
    pipeline = read_images("embed", args)
    pipeline.add_stage(
        ImageEmbeddingStage(
            model_dir=args.model_dir,
            num_gpus_per_worker=0.25,
            model_inference_batch_size=32,
            verbose=args.verbose,
        )
    )
    pipeline.add_stage(ConvertImageBatchToDocumentBatchStage(fields=["image_id", "embedding"]))
    pipeline.add_stage(ParquetWriter(path=args.embeddings))
    return pipeline


def find_duplicates(args):
    return SemanticDeduplicationWorkflow(
        input_path=args.embeddings,
        output_path=args.removal,
        id_field="image_id",
        embedding_field="embedding",
        n_clusters=args.n_clusters,
        eps=args.eps,
        read_kwargs={"storage_options": {}},
        write_kwargs={"storage_options": {}},
        verbose=args.verbose,
    )


def remove_duplicates(args):
    pipeline = read_images("remove duplicates", args)
    pipeline.add_stage(
        ImageDuplicatesRemovalStage(
            removal_parquets_dir=args.removal + "/duplicates",
            duplicate_id_field="id",
            verbose=args.verbose,
        )
    )
    pipeline.add_stage(ImageWriterStage(output_dir=args.output, remove_image_data=True, verbose=args.verbose))
    return pipeline


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--embeddings", required=True)
    parser.add_argument("--removal", required=True)
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--n-clusters", type=int, default=100)
    parser.add_argument("--eps", type=float, default=0.01)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()

    ray_client = RayClient()
    ray_client.start()
    embed(args).run()
    find_duplicates(args).run()
    remove_duplicates(args).run()
    ray_client.stop()
