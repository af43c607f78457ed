"""Arrays that took long to make, kept in files: whole or not at all, and made again when damaged."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Literal, Protocol
from uuid import uuid4

import numpy as np

from ..core.errors import UserError, unknown_name_error
from ..core.random import numpy_stream
from .corpus import TRAIN, Corpus


def load_cached_array(file: Path, num_rows: int) -> np.ndarray | None:
    """What an earlier call kept, [rows, E]; None if there is nothing, or nothing sound."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            found: np.ndarray = kept["array"]  # a zip's checksum is compared here
    except Exception:  # damaged bytes raise anything, and so does a file of an older fedrift
        return None
    return found if found.ndim == 2 and len(found) == num_rows and bool(np.isfinite(found).all()) else None


def save_cached_array(file: Path, array: np.ndarray) -> None:
    """Written under another name, then renamed; a folder that takes no files is warned of and done without."""
    draft = file.with_name(f"{file.stem}.{os.getpid()}-{uuid4().hex[:8]}.draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as out:
            np.savez(out, array=array)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        warnings.warn(f"vectors are not kept in {file.parent}: {error}", stacklevel=2)


# Hashed words, randomly projected: an encoder that needs no weights, learns nothing and shares no data.
#
# Words fall into 2^14 buckets by a hash (Weinberger, Dasgupta, Langford, Smola & Attenberg, "Feature Hashing for Large
# Scale Multitask Learning", ICML 2009, arXiv:0902.2206), count 1 + log of how often they stand in the document, and are projected
# to 64 numbers by a Gaussian matrix that everybody draws from the same seed (Johnson & Lindenstrauss 1984). There is no inverse
# document frequency: it would have to be told from all clients' documents together.

HASHING_BUCKETS, HASHING_DIMENSIONS = 2**14, 64


def encode_hashing(texts: Sequence[str]) -> np.ndarray:
    """The texts, each by itself, [D, 64]."""
    from sklearn.feature_extraction.text import HashingVectorizer

    count = HashingVectorizer(
        n_features=HASHING_BUCKETS, stop_words="english", alternate_sign=True, norm=None, token_pattern=r"(?u)[^\W\d_][^\W_]+"
    ).transform(texts)
    count.data = np.sign(count.data) * (1 + np.log(np.maximum(np.abs(count.data), 1)))
    project = numpy_stream(0, "hashing").standard_normal((HASHING_BUCKETS, HASHING_DIMENSIONS)) / np.sqrt(HASHING_DIMENSIONS)
    return np.asarray(count @ project)


# MiniLM sentence embeddings: the usual frozen sentence encoder, 384 numbers, through sentence-transformers.
#
# Wang, Wei, Dong, Bao, Yang & Zhou, "MiniLM", NeurIPS 2020, arXiv:2002.10957; Reimers & Gurevych, "Sentence-BERT", EMNLP 2019,
# arXiv:1908.10084. The weights (90 MB) come from the hub unless they lie in its cache; ``FEDRIFT_MINILM`` may name a folder
# that has them.

MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"


def encode_minilm(texts: Sequence[str]) -> np.ndarray:
    """The texts, each by itself, [D, 384]."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            "the encoder 'minilm' needs a package of its own: pip install sentence-transformers, or choose "
            "the encoder 'wordllama' or 'hashing'"
        ) from None
    place = os.environ.get("FEDRIFT_MINILM", MINILM_ID)
    try:
        model = SentenceTransformer(place, device="cpu")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the weights of the encoder 'minilm' cannot be had from {place}: {error}. Set FEDRIFT_MINILM to a "
            "folder that has them, or choose the encoder 'wordllama' or 'hashing'"
        ) from error
    return np.asarray(model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False), dtype=np.float64)


# Documents as vectors by a frozen encoder: what topics are found in, and what distances between clients are of.
#
# ``lsa`` needs nothing but scikit-learn and learns its directions from the texts themselves, without labels;
# ``wordllama`` is pretrained and frozen, and needs the optional package of that name, which brings its weights (16 MB)
# with it. Neither needs a network. More encoders are in files of their own: ``hashing`` (no weights at all) and ``minilm``
# (sentence-transformers). Agreement of k-means on them with the true topics (normalised mutual
# information): BBC News 0.90 and 0.86, four topics of Reddit 0.38 and 0.50.

Encoder = Literal["lsa", "wordllama"]
LSA_MAX_WORDS = 50_000  # most frequent ones that lsa looks at
LSA_DIMENSIONS = 100  # of lsa
MAX_CHARACTERS = 10_000  # of a document that are read


class FrozenEncoder(Protocol):
    """Any encoder that does not learn: ``texts -> [D, E]``, under a name that no other has."""

    @property
    def name(self) -> str: ...
    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


def embed_texts(texts: Sequence[str], encoder: str | FrozenEncoder = "lsa", *, cache_dir: Path | None = None) -> np.ndarray:
    """The texts as vectors of length one, [D, E] float32; a text without words is the zero vector.

    Kept in the folder ``cache_dir`` under the hash of the texts and the encoder, if there is one.
    """
    if isinstance(encoder, str) and encoder not in ENCODERS:
        raise unknown_name_error("encoder", encoder, ENCODERS)
    name = encoder if isinstance(encoder, str) else encoder.name
    file = cache_dir / f"vectors-{embedding_fingerprint(texts, name)[:32]}.npy" if cache_dir else None
    found = load_cached_array(file, len(texts)) if file else None
    if found is not None:
        return found
    encode = ENCODERS[encoder] if isinstance(encoder, str) else encoder
    vectors = encode([text[:MAX_CHARACTERS] for text in texts])
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0).astype(np.float32)
    if file:
        save_cached_array(file, vectors)
    return vectors


def encode_lsa(texts: Sequence[str]) -> np.ndarray:
    """Latent semantic analysis: TF-IDF in its first 100 singular directions, [D, 100] or fewer.

    Fitted on the texts given: vectors of one call are comparable, of two are not. Deerwester, Dumais, Furnas,
    Landauer & Harshman, J. American Society for Information Science 41(6), 1990.
    """
    from sklearn.decomposition import TruncatedSVD  # a second that no other corpus needs to wait for
    from sklearn.feature_extraction.text import TfidfVectorizer

    weigh = TfidfVectorizer(
        stop_words="english",
        sublinear_tf=True,
        max_features=LSA_MAX_WORDS,
        dtype=np.float32,
        token_pattern=r"(?u)[^\W\d_][^\W_]+",
        min_df=2 if len(texts) >= 50 else 1,
    )
    try:
        weighed = weigh.fit_transform(texts)
    except ValueError:  # no text has a word
        return np.zeros((len(texts), 1))
    most = min(LSA_DIMENSIONS, *weighed.shape)
    seed = int(numpy_stream(0, "lsa").integers(2**31))
    return np.asarray(TruncatedSVD(most, random_state=seed).fit_transform(weighed), dtype=np.float64)


def encode_wordllama(texts: Sequence[str]) -> np.ndarray:
    """Mean of token embeddings distilled from large language models, [D, 256].

    Miller, WordLlama (package ``wordllama``, MIT licence), model l2_supercat.
    """
    try:
        import wordllama as package
    except ImportError:
        raise UserError(
            "the encoder 'wordllama' is a package of its own: pip install 'fedrift[encoder]', or choose "
            "the encoder 'lsa', which needs nothing"
        ) from None
    folder = Path(package.__file__).parent
    model = package.WordLlama.load(cache_dir=folder, disable_download=True)
    return np.asarray(model.embed([text or " " for text in texts]), dtype=np.float64)


ENCODERS: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
    "lsa": encode_lsa,
    "wordllama": encode_wordllama,
    "minilm": encode_minilm,
    "hashing": encode_hashing,
}


def embedding_fingerprint(texts: Sequence[str], encoder: str) -> str:
    """sha256 hex of the texts in their order and of the encoder."""
    said = sha256(f"vectors 1 {encoder}".encode())
    for text in texts:
        said.update(sha256(text.encode()).digest())
    return said.hexdigest()


# Topics for a corpus without labels: clusters of its documents' embeddings.


def label_by_cluster(corpus: Corpus, vectors: np.ndarray, num_clusters: int, rng: np.random.Generator) -> Corpus:
    """The same documents labelled by k-means on their ``vectors`` [D, E] of length one; ``count`` domains.

    Centres are found in the training documents; all documents, of whatever split, go to the nearest one. Cluster 0
    is the largest. Source: MacQueen 1967; seeding of Arthur & Vassilvitskii, "k-means++", SODA 2007.
    """
    if len(vectors) != len(corpus):
        raise ValueError(f"wanted one vector for each of {len(corpus)} documents, got {len(vectors)}")
    train = corpus.split == TRAIN
    if not 1 < num_clusters <= train.sum():
        raise UserError(
            f"corpus {corpus.name!r} of {train.sum()} training documents cannot be cut into {num_clusters} clusters: "
            f"ask for 2 to {train.sum()}"
        )
    from sklearn.cluster import KMeans  # a second that no other corpus needs to wait for

    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    means = KMeans(num_clusters, n_init=4, random_state=int(rng.integers(2**31))).fit(vectors[train])
    found = means.predict(vectors)
    by_size = np.argsort(-np.bincount(found, minlength=num_clusters), kind="stable")
    names = tuple(f"cluster{i:0{len(str(num_clusters - 1))}d}" for i in range(num_clusters))
    return replace(corpus, label=np.argsort(by_size)[found].astype(np.int64), domains=names)


__all__ = ["encode_hashing", "encode_minilm"]
