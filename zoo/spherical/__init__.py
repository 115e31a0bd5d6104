"""JoSE: spherical words and documents (https://kexue.fm/archives/7063, arXiv 1911.01196)."""

from zoo.spherical.embeddings import JoseEmbeddings, load_embeddings, save_embeddings
from zoo.spherical.estimation import fit_von_mises_fisher, frechet_mean
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
from zoo.spherical.objective import jose_loss
from zoo.spherical.optimizers import riemannian_sgd
from zoo.spherical.trainer import JoseTrainer, train_jose
from zoo.spherical.word2vec import load_word2vec

__all__ = [
    "JoseEmbeddings",
    "JoseTrainer",
    "embed_documents",
    "exponential_map",
    "fit_von_mises_fisher",
    "frechet_mean",
    "geodesic_distance",
    "jose_loss",
    "load_embeddings",
    "load_word2vec",
    "logarithmic_map",
    "normalize",
    "parallel_transport",
    "random_uniform",
    "retract",
    "riemannian_sgd",
    "save_embeddings",
    "tangent_projection",
    "train_jose",
]
