"""JoSE: spherical words and documents (https://kexue.fm/archives/7063, arXiv 1911.01196)."""

from zoo.spherical.corpus import (
    EncodedCorpus,
    JoseVocabulary,
    build_vocabulary,
    encode_corpus,
    letters,
)
from zoo.spherical.embeddings import (
    JoseEmbeddings,
    load_embeddings,
    load_word2vec,
    save_embeddings,
    save_word2vec,
)
from zoo.spherical.evaluation import (
    WordSimilarity,
    classify_documents,
    cluster_documents,
    draw_map,
    read_word_pairs,
    word_similarity,
)
from zoo.spherical.geometry import (
    exponential_map,
    geodesic_distance,
    logarithmic_map,
    normalize,
    parallel_transport,
    random_uniform,
    retract,
    tangent_projection,
)
from zoo.spherical.inference import embed_documents
from zoo.spherical.objective import JoseTriple, jose_loss, two_hinges_update
from zoo.spherical.optimizers import (
    RiemannianAdamState,
    RiemannianMomentumState,
    RiemannianSgdState,
    riemannian_adam,
    riemannian_momentum,
    riemannian_sgd,
)
from zoo.spherical.trainer import JoseTrainer, train_jose
from zoo.spherical.von_mises_fisher import random_von_mises_fisher, von_mises_fisher_log_density

__all__ = [
    "EncodedCorpus",
    "JoseEmbeddings",
    "JoseTrainer",
    "JoseTriple",
    "JoseVocabulary",
    "RiemannianAdamState",
    "RiemannianMomentumState",
    "RiemannianSgdState",
    "WordSimilarity",
    "build_vocabulary",
    "classify_documents",
    "cluster_documents",
    "draw_map",
    "embed_documents",
    "encode_corpus",
    "exponential_map",
    "geodesic_distance",
    "jose_loss",
    "letters",
    "load_embeddings",
    "load_word2vec",
    "logarithmic_map",
    "normalize",
    "parallel_transport",
    "random_uniform",
    "random_von_mises_fisher",
    "read_word_pairs",
    "retract",
    "riemannian_adam",
    "riemannian_momentum",
    "riemannian_sgd",
    "save_embeddings",
    "save_word2vec",
    "tangent_projection",
    "train_jose",
    "two_hinges_update",
    "von_mises_fisher_log_density",
    "word_similarity",
]
