"""With NeMo Curator 0.9: embed, score in the same pass, filter, find duplicates, and write what is left."""

from nemo_curator import ClusteringModel, SemanticClusterLevelDedup, get_client
from nemo_curator.datasets import DocumentDataset, ImageTextPairDataset
from nemo_curator.image.classifiers import AestheticClassifier, NsfwClassifier
from nemo_curator.image.embedders import TimmImageEmbedder

ID_COL = "key"
CLUSTERS = 3

if __name__ == "__main__":
    client = get_client(cluster_type="gpu")
    dataset = ImageTextPairDataset.from_webdataset("./dataset", ID_COL)

    embedding_model = TimmImageEmbedder(
        "vit_large_patch14_clip_quickgelu_224.openai",
        pretrained=True,
        batch_size=1024,
        num_threads_per_worker=16,
        normalize_embeddings=True,
        autocast=False,
        classifiers=[AestheticClassifier(), NsfwClassifier()],
    )
    dataset = embedding_model(dataset)
    dataset.save_metadata("./scored")

    nice = dataset.metadata["aesthetic_score"] > 6
    safe = dataset.metadata["nsfw_score"] < 0.5
    dataset.metadata["passes_checks"] = nice & safe
    dataset.to_webdataset("./curated", filter_column="passes_checks", samples_per_shard=8, max_shards=5)

    embeddings_dataset = DocumentDataset(dataset.metadata)
    clustering_model = ClusteringModel(
        id_column=ID_COL,
        max_iter=10,
        n_clusters=CLUSTERS,
        clustering_output_dir="./semantic_deduplication/clusters",
        embedding_column="image_embedding",
    )
    clustered_dataset = clustering_model(embeddings_dataset)

    semantic_dedup = SemanticClusterLevelDedup(
        n_clusters=CLUSTERS,
        emb_by_clust_dir="./semantic_deduplication/clusters/embs_by_nearest_center",
        id_column=ID_COL,
        which_to_keep="hard",
        sim_metric="cosine",
        output_dir="./semantic_deduplication/duplicates",
        embedding_column="image_embedding",
        batched_cosine_similarity=1024,
    )
    semantic_dedup.compute_semantic_match_dfs()
    duplicate_ids = semantic_dedup.extract_dedup_data(eps_to_extract=0.01)

    is_duplicate = dataset.metadata[ID_COL].isin(duplicate_ids.df[ID_COL].compute())
    dataset.metadata["is_unique"] = ~is_duplicate
    dataset.to_webdataset("./deduplicated", filter_column="is_unique", samples_per_shard=8)

    client.close()
