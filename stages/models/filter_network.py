"""A data filtering network: linear heads that map images and captions into one space.

The image head reads frozen features; the text head reads frozen features and hashed words.
A cross-fitted network has several pairs of heads, each learnt without one fold of the drawings.

Source: Data Filtering Networks (Fang et al. 2023). We depart in size and in the fit: heads on
frozen features instead of CLIP, found in one step by canonical correlation (Hotelling 1936) with a
ridge (Vinod 1976), so that a CPU learns in seconds from all pairs. Signed square roots of image
features, at unit length, are Perronnin et al.'s (2010). Each row scored by a model that did not
learn from it is Stone's (1974) cross-validation.
"""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import DUPLICATE_OF, UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.errors import StageError
from clipmill.stages.models.saved import built, read_model
from clipmill.stages.models.text_features import in_batches

# Shapes: N rows or texts, D width of the embedding, I and T widths of image and text features, V
# word buckets in use, S = T + V, B a batch, R directions, W words of all texts, K folds.

KIND = "filter_network"
WORDS = 4096  # buckets; AUC of the full pool .713, with half as many .707, with twice .716
# In units of the mean variance, added to each feature's variance. It grows with fewer pairs, which
# would be overfitted otherwise. docs/measured/filter-network.md compares other values.
IMAGE_RIDGE, TEXT_RIDGE, WORD_RIDGE = 5.0, 1.0, 3.0
FEW = 5_000  # pairs at which the ridge is twice that
ROUNDING = 1e-12  # of a variance, against the mean's square
LEAST = 1e-6  # share of the greatest correlation; smaller ones are rounding
ROWS = 64  # of a batch when embedding: one shape, so that no value depends on its neighbours
SUMMED = 4096  # rows in float64 at a time

Texts: TypeAlias = pa.ChunkedArray | pl.Series | list[str]
Rows: TypeAlias = slice | NDArray[np.intp]


class FilterNetwork(nn.Module):
    """A network that gives unit vectors of images and captions.

    Without `words`, as in versions 1 and 2, both heads read the plain features.
    """

    def __init__(self, image_width: int, text_width: int, width: int, words: int = 0) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, width)
        self.text = nn.Linear(text_width, width)
        self.words = nn.EmbeddingBag(words, width, mode="sum") if words else None

    def embed_images(self, image_NI: Tensor) -> Tensor:
        """Returns (N, D) unit vectors of image features."""
        return functional.normalize(self.image(rooted(image_NI) if self.words else image_NI), dim=1)

    def embed_texts(self, text_NT: Tensor, captions: Texts) -> Tensor:
        """Returns (N, D) unit vectors of text features and the captions' words."""
        return self.with_words(self.text(text_NT), captions)

    def with_words(self, text_ND: Tensor, captions: Texts) -> Tensor:
        """Adds the words to the text head's (N, D) output; returns unit vectors."""
        if self.words is not None:
            bags = word_bags(captions, self.words.num_embeddings)
            index_W, start_N, weight_N = (
                torch.from_numpy(array).to(text_ND.device)
                for array in (bags.bucket_W, bags.starts(), _weights(bags))
            )
            text_ND = text_ND + self.words(index_W, start_N) * weight_N.float()[:, None]
        return functional.normalize(text_ND, dim=1)


class CrossFitted(nn.Module):
    """Networks of which the k-th has not met the k-th fold, and each one's line to one scale."""

    line_K2: Tensor  # slope and intercept of a cosine

    def __init__(
        self, folds: int, image_width: int, text_width: int, width: int, words: int
    ) -> None:
        super().__init__()
        sizes = image_width, text_width, width - ENDS, words
        self.heads = nn.ModuleList(FilterNetwork(*sizes) for _ in range(folds))
        self.register_buffer("line_K2", torch.zeros(folds, 2, dtype=torch.float64))


ENDS = 2  # numbers at a vector's end that move its cosine to one scale


def drawing_of(rows: pa.Table) -> pa.ChunkedArray:
    """Returns (N,) the uid of the copy that stays, or the row's own if it names none."""
    return pc.coalesce(rows[DUPLICATE_OF.name], rows[UID.name])


def fold_of(drawing: pa.ChunkedArray | pa.Array, folds: int, seed: int) -> NDArray[np.int64]:
    """Returns (N,) the fold of each drawing, by hash: whatever the pool, its order or shards."""
    hash_N = coin_hash(drawing, seed=seed, stage=KIND, purpose="fold")
    return (hash_N % np.uint64(folds)).astype(np.int64)


def lines(
    score_N: NDArray[np.floating], fold_N: NDArray[np.int64], weight_N: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Returns (K, 2) slope and intercept by which each fold gets equal mean and deviation.

    All slopes are scaled alike, so that slope + |intercept| <= 1, as `ends` needs. ValueError if
    all scores of a fold are equal.
    """

    def means(x_N: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.bincount(fold_N, weight_N * x_N) / np.bincount(fold_N, weight_N)

    mean_K = means(score_N)
    deviation_K = np.sqrt(means((score_N - mean_K[fold_N]) ** 2))
    if not deviation_K.min() > ROUNDING:
        raise ValueError("the scores of a fold are all equal")
    slope_K = deviation_K.mean() / deviation_K
    line_K2 = np.stack([slope_K, mean_K.mean() - slope_K * mean_K], axis=1)
    return line_K2 / np.abs(line_K2).sum(1).max()


def ends(line_K2: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns (K, 2) ends of image and of text vectors.

    Behind unit vectors times the slope's root they give unit vectors whose cosine is the line's.
    """
    rest_K = np.sqrt(np.maximum(1 - line_K2[:, 0], 0))
    move_K = line_K2[:, 1] / np.maximum(rest_K, ROUNDING)
    left_K = np.sqrt(np.maximum(rest_K**2 - move_K**2, 0))
    return np.stack([rest_K, 0 * rest_K], axis=1), np.stack([move_K, left_K], axis=1)


def rooted(x_NI: Tensor) -> Tensor:
    """Returns signed square roots at unit length, so that no few large features dominate."""
    size_NI = x_NI.abs()
    length_N1 = size_NI.sum(1, keepdim=True).sqrt().clamp(min=ROUNDING)  # of the roots
    size_NI.clamp_(min=1e-30)  # most are 0, whose root takes MKL five times as long
    return size_NI.sqrt_().copysign_(x_NI).div_(length_N1)


class WordBags(NamedTuple):
    """The buckets of all texts' words, concatenated."""

    bucket_W: NDArray[np.int64]
    count_N: NDArray[np.int64]  # words of each text; 0 for null

    def starts(self) -> NDArray[np.int64]:
        """Returns (N,) the index of each text's first word."""
        return np.cumsum(self.count_N) - self.count_N


def _weights(bags: WordBags) -> NDArray[np.float64]:
    """Returns (N,) the weight of each word of a text, so that long captions weigh no more."""
    return 1 / np.sqrt(np.maximum(bags.count_N, 1))


def cross_fitted(
    image_NI: NDArray[np.float32],
    text_NT: NDArray[np.float32],
    captions: pa.ChunkedArray,
    width: int,
    fold_N: NDArray[np.int64],
    weight_N: NDArray[np.floating],
) -> CrossFitted:
    """Fits a network without each fold in turn, and their lines to one scale on the left-out rows.

    ValueError if features are constant.
    """
    score_N, heads = np.empty(len(fold_N)), []
    for fold in range(int(fold_N.max()) + 1):
        learnt, out = (np.flatnonzero(part_N) for part_N in (fold_N != fold, fold_N == fold))
        texts = captions.take(pa.array(learnt))
        heads.append(
            fitted(image_NI[learnt], text_NT[learnt], texts, width - ENDS, weight_N[learnt])
        )
        image_BI, text_BT = (torch.from_numpy(x_NF[out]) for x_NF in (image_NI, text_NT))
        with torch.inference_mode():
            text_BD = heads[-1].embed_texts(text_BT, captions.take(pa.array(out)))
            score_N[out] = (heads[-1].embed_images(image_BI) * text_BD).sum(1).numpy()
    network = CrossFitted(len(heads), image_NI.shape[1], text_NT.shape[1], width, WORDS)
    network.heads = nn.ModuleList(heads)
    network.line_K2 = torch.from_numpy(lines(score_N, fold_N, weight_N))
    return network


def fitted(
    image_NI: NDArray[np.float32],
    text_NT: NDArray[np.float32],
    captions: Texts,
    width: int,
    weight_N: NDArray[np.floating] | None = None,
) -> FilterNetwork:
    """Fits the network whose directions correlate most; raises ValueError if features are constant.

    A direction's weight is its correlation. Mismatched pairs cost little: a caption beside pictures
    of all kinds correlates with none. Rows count by `weight_N`, else 1 each.
    """
    from scipy.sparse import csr_array

    (rows, images), texts = image_NI.shape, text_NT.shape[1]
    bags = word_bags(captions, WORDS)
    met_V, column_W = np.unique(bags.bucket_W, return_inverse=True)  # other buckets' weights are 0
    ends_N = np.append(bags.starts(), len(column_W))
    weight_W = np.repeat(_weights(bags), bags.count_N)
    word_NV = csr_array((weight_W, column_W, ends_N), shape=(rows, len(met_V)))
    if weight_N is None:
        weight_N = np.ones(rows)
    mean_I, mean_S, image_II, text_SS, both_IS = _covariances(image_NI, text_NT, word_NV, weight_N)
    more = 1 + FEW / weight_N.sum()
    for block_FF, mean_F, size, ridge in (
        (image_II, mean_I, images, IMAGE_RIDGE),
        (text_SS[:texts, :texts], mean_S[:texts], texts, TEXT_RIDGE),
        (text_SS[texts:, texts:], None, WORDS, WORD_RIDGE),  # captions may have no word
    ):
        variance_F = block_FF.diagonal()
        mean = variance_F.sum() / size
        if mean_F is not None and not mean > ROUNDING * mean_F.square().mean():
            raise ValueError("the features of all rows are alike")
        variance_F += ridge * more * mean.clamp(min=ROUNDING)
    image_II, text_SS = (torch.linalg.cholesky(matrix) for matrix in (image_II, text_SS))
    both_IS = torch.linalg.solve_triangular(image_II, both_IS, upper=False)
    both_IS = torch.linalg.solve_triangular(text_SS, both_IS.T, upper=False).T
    # The singular values of both_IS are the correlations. I is mostly less than S.
    square_R, image_IR = (part.flip(-1) for part in torch.linalg.eigh(both_IS @ both_IS.T))
    correlation_R = square_R.clamp(min=0).sqrt()
    directions = min(width, int((correlation_R > LEAST * correlation_R[0]).sum()))
    correlation_R, image_IR = correlation_R[:directions], image_IR[:, :directions]
    text_SR = both_IS.T @ image_IR / correlation_R
    image_RI, text_RS = (
        torch.linalg.solve_triangular(root.T, way * correlation_R.sqrt(), upper=True).T
        for root, way in ((image_II, image_IR), (text_SS, text_SR))
    )
    image_DI, text_DS = (
        functional.pad(head, (0, 0, 0, width - directions)) for head in (image_RI, text_RS)
    )
    words_VD = torch.zeros(WORDS, width, dtype=text_DS.dtype)
    words_VD[met_V] = text_DS[:, texts:].T
    network = FilterNetwork(images, texts, width, WORDS)
    network.load_state_dict(
        {
            "image.weight": image_DI,
            "image.bias": -image_DI @ mean_I,
            "text.weight": text_DS[:, :texts],
            "text.bias": -text_DS @ mean_S,
            "words.weight": words_VD,
        }
    )
    return network.eval()


def _covariances(
    image_NI: NDArray[np.float32],
    text_NT: NDArray[np.float32],
    word_NV: Any,
    weight_N: NDArray[np.floating],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns means (I,) and (S,), and covariances (I, I), (S, S) and (I, S).

    I are roots of image features, S text features and words. (S, S) has its lower half only.
    """
    (rows, images), texts = image_NI.shape, text_NT.shape[1]
    both = texts + word_NV.shape[1]
    mean_I, mean_S, image_II, text_SS, both_IS = (
        torch.zeros(size, dtype=torch.float64)
        for size in ((images,), (both,), (images, images), (both, both), (images, both))
    )
    for start in range(0, rows, SUMMED):
        part = slice(start, start + SUMMED)
        image_BI, text_BT = (
            torch.from_numpy(rows_N[part].astype(np.float64)) for rows_N in (image_NI, text_NT)
        )
        image_BI, word_BV = rooted(image_BI), word_NV[part]
        image_IB, text_TB, word_VB = image_BI.T, text_BT.T, word_BV.T
        weight_B = weight_N[part]  # of one factor of each product
        image_BI, text_BT = (
            x_BF * torch.from_numpy(weight_B)[:, None] for x_BF in (image_BI, text_BT)
        )
        word_BV.data = word_BV.data * np.repeat(weight_B, np.diff(word_BV.indptr))
        mean_I += image_BI.sum(0)
        mean_S[:texts] += text_BT.sum(0)
        mean_S[texts:] += torch.from_numpy(word_BV.sum(0))
        image_II += image_IB @ image_BI
        text_SS[:texts, :texts] += text_TB @ text_BT
        text_SS[texts:, :texts] += torch.from_numpy(word_VB @ text_BT.numpy())
        text_SS[texts:, texts:] += torch.from_numpy((word_VB @ word_BV).toarray())
        both_IS[:, :texts] += image_IB @ text_BT
        both_IS[:, texts:] += torch.from_numpy(word_VB @ image_BI.numpy()).T
    for sums in (mean_I, mean_S, image_II, text_SS, both_IS):
        sums.div_(weight_N.sum())  # in place: (S, S) may have 160 MB
    image_II -= torch.outer(mean_I, mean_I)
    text_SS -= torch.outer(mean_S, mean_S)
    both_IS -= torch.outer(mean_I, mean_S)
    return mean_I, mean_S, image_II, text_SS, both_IS


class Embedder:
    """A trained network, applied to columns of features; NaN in, NaN out."""

    def __init__(self, uri: str, device: str = "cpu", threads: int = 1, folds: int = 1) -> None:
        torch.set_num_threads(threads)
        card, weights = read_model(uri, KIND)
        sizes: dict[str, Any] = {
            name: card.get(name) for name in ("image_width", "text_width", "width")
        }
        sizes["words"] = card.get("words", 0)
        if (found := card.get("folds", 1)) != folds:
            raise StageError(
                found=f"a network of {found} folds, where {folds} was planned",
                where=f"{redacted(uri)}, model.json",
                do=f"write folds: {found}, or where there is no such setting train with folds: 1",
            )
        self.folds, self.seed = folds, card.get("seed", 0)
        self.width: int = sizes["width"]
        self.sha256: str = card["sha256"]
        self.device = device
        if "log_scale" in weights:  # of version 1, trained by gradient steps
            del weights["log_scale"]
            weights = {name.replace(".1.", "."): weight for name, weight in weights.items()}
        where = f"{redacted(uri)}, model.json"
        if folds == 1:
            self.heads = [built(partial(FilterNetwork, **sizes), weights, where).to(device)]
            return
        network = built(partial(CrossFitted, folds, **sizes), weights, where).to(device)
        self.heads = [head for head in network.heads if isinstance(head, FilterNetwork)]
        self.ends = ends(network.line_K2.cpu().numpy())

    def fold_of(self, rows: pa.Table) -> NDArray[np.int64]:
        """Returns (N,) the fold of each row's drawing, whose heads have not met it."""
        return fold_of(drawing_of(rows), self.folds, self.seed)

    def embed_images(
        self, image_NI: NDArray[np.float32], fold_N: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Returns (N, D) unit vectors of image features, by the heads of each row's fold."""

        def embed(head: FilterNetwork, rows: Rows) -> NDArray[np.float32]:
            return self._in_batches(head.embed_images, image_NI[rows])

        return self._by_fold(embed, fold_N, 0)

    def embed_texts(
        self, text_NT: NDArray[np.float32], captions: Texts, fold_N: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Returns (N, D) unit vectors of captions and their features, by the heads of the fold."""
        texts = pl.Series(captions, dtype=pl.String)

        def embed(head: FilterNetwork, rows: Rows) -> NDArray[np.float32]:
            text_ND = torch.from_numpy(self._in_batches(head.text, text_NT[rows])).to(self.device)
            with torch.inference_mode():
                return head.with_words(text_ND, texts[rows]).cpu().numpy()

        return self._by_fold(embed, fold_N, 1)

    def _by_fold(
        self,
        embed: Callable[[FilterNetwork, Rows], NDArray[np.float32]],
        fold_N: NDArray[np.int64] | None,
        image_or_text: int,
    ) -> NDArray[np.float32]:
        if fold_N is None:
            return embed(self.heads[0], slice(None))
        end_K2 = self.ends[image_or_text]
        root_K = np.sqrt(1 - np.vecdot(end_K2, end_K2))  # of the slope
        out_ND = np.empty((len(fold_N), self.width), np.float32)
        for fold, head in enumerate(self.heads):
            rows = np.flatnonzero(fold_N == fold)
            out_ND[rows, :-ENDS] = embed(head, rows) * root_K[fold]
            out_ND[rows, -ENDS:] = end_K2[fold]
        return out_ND

    def probes(self) -> tuple[NDArray[Any], ...]:
        """Returns random image features, to test whether the network gives vectors."""
        image_width = self.heads[0].image.in_features
        image_NI = np.random.default_rng(0).random((ROWS, image_width), np.float32)
        return image_NI, *self._probed_folds()

    def probed_texts(self) -> tuple[Any, ...]:
        """Returns random text features and captions, to test whether the network gives vectors."""
        text_width = self.heads[0].text.in_features
        text_NT = np.random.default_rng(0).standard_normal((ROWS, text_width), np.float32)
        return text_NT, [f"a photo, number {n}" for n in range(ROWS)], *self._probed_folds()

    def _probed_folds(self) -> Iterator[NDArray[np.int64]]:
        if self.folds > 1:
            yield np.arange(ROWS) % self.folds

    def _in_batches(self, head, row_NF: NDArray[np.float32]) -> NDArray[np.float32]:
        def call(row_BF: NDArray[np.float32]) -> Tensor:
            with torch.inference_mode():
                return head(torch.tensor(row_BF, device=self.device))

        return in_batches(call, row_NF, ROWS, self.heads[0].text.out_features)


WORD = r"\w+"


def word_bags(texts: Texts, buckets: int) -> WordBags:
    """Hashes lower-case words to buckets by CRC-32; repeated words count again."""
    words = pl.Series(texts, dtype=pl.String).str.to_lowercase().str.extract_all(WORD)
    count_N = words.list.len().fill_null(0).to_numpy().astype(np.int64)
    spoken = words.explode().drop_nulls().to_arrow().dictionary_encode()  # many words repeat
    hash_U = [zlib.crc32(word.encode()) % buckets for word in spoken.dictionary.to_pylist()]
    return WordBags(np.array(hash_U, np.int64)[spoken.indices.to_numpy()], count_N)
