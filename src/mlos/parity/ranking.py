"""How good a ranking is, and how alike two are: what an error of embeddings means to a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_AT = 10


def ndcg(scores: NDArray[np.float64], relevance: Sequence[int], at: int = _AT) -> float:
    """Normalised discounted cumulative gain of the ``at`` best-scored entries, from 0 to 1.

    The sum of (2^relevance - 1) / log2(rank + 1), over its value for the best order (Burges et al., "Learning
    to Rank using Gradient Descent", 2005). Of equal scores the earlier entry comes first.
    """
    gains = 2.0 ** np.asarray(relevance, dtype=np.float64) - 1
    discounts = 1 / np.log2(np.arange(2, len(gains) + 2))
    discounts[at:] = 0
    found = gains[np.argsort(-scores, kind="stable")] @ discounts
    best = np.sort(gains)[::-1] @ discounts
    return float(found / best) if best else 1.0


def order_agreement(scores: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Kendall's tau-b of two scorings of the same entries: 1 for the same order, -1 for its reverse.

    Kendall, "The treatment of ties in ranking problems", 1945; 0 where one of them ranks nothing.
    """
    upper = np.triu_indices(len(scores), 1)
    one, other = (np.sign(each[:, None] - each[None, :])[upper] for each in (scores, others))
    ranked = float(np.count_nonzero(one)) * float(np.count_nonzero(other))
    return float(one @ other) / ranked**0.5 if ranked else 0.0
