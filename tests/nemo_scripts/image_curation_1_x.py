"""With NeMo Curator 1.x: embed images, leave out those that are not pleasing or not safe, and write the others."""

import argparse

from nemo_curator.backends.xenna import XennaExecutor
from nemo_curator.core.client import RayClient
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.file_partitioning import FilePartitioningStage
from nemo_curator.stages.image.embedders.clip_embedder import ImageEmbeddingStage
from nemo_curator.stages.image.filters.aesthetic_filter import ImageAestheticFilterStage
from nemo_curator.stages.image.filters.nsfw_filter import ImageNSFWFilterStage
from nemo_curator.stages.image.io.image_reader import ImageReaderStage
from nemo_curator.stages.image.io.image_writer import ImageWriterStage


def make_pipeline(args):
    pipeline = Pipeline(name="image_curation", description="Pleasing and safe images")
    pipeline.add_stage(
        FilePartitioningStage(
            file_paths=args.input,
            files_per_partition=args.tar_files_per_partition,
            file_extensions=[".tar"],
        )
    )
    pipeline.add_stage(
        ImageReaderStage(
            dali_batch_size=args.batch_size, verbose=args.verbose, num_threads=16, num_gpus_per_worker=0.25
        )
    )
    pipeline.add_stage(
        ImageEmbeddingStage(
            model_dir=args.model_dir,
            num_gpus_per_worker=0.25,
            model_inference_batch_size=32,
            remove_image_data=False,
            verbose=args.verbose,
        )
    )
    pipeline.add_stage(
        ImageAestheticFilterStage(
            model_dir=args.model_dir,
            num_gpus_per_worker=0.25,
            model_inference_batch_size=32,
            score_threshold=args.aesthetic_threshold,
            verbose=args.verbose,
        )
    )
    pipeline.add_stage(
        ImageNSFWFilterStage(
            model_dir=args.model_dir,
            num_gpus_per_worker=0.25,
            model_inference_batch_size=32,
            score_threshold=args.nsfw_threshold,
            verbose=args.verbose,
        )
    )
    pipeline.add_stage(
        ImageWriterStage(
            output_dir=args.output,
            images_per_tar=args.images_per_tar,
            remove_image_data=True,
            verbose=args.verbose,
        )
    )
    return pipeline


def main(args):
    ray_client = RayClient()
    ray_client.start()
    pipeline = make_pipeline(args)
    print(pipeline.describe())
    executor = XennaExecutor()
    pipeline.run(executor, checkpoint_path=args.checkpoint)
    ray_client.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--tar-files-per-partition", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--aesthetic-threshold", type=float, default=0.5)
    parser.add_argument("--nsfw-threshold", type=float, default=0.5)
    parser.add_argument("--images-per-tar", type=int, default=100)
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--verbose", action="store_true")
    main(parser.parse_args())
