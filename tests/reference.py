"""The equations as slow, obvious loops: what the fast code is held against.

Legend: K codes, D dimensions, N features, L levels, H heads.
"""

from __future__ import annotations

import math

import numpy as np

# Scores (toc-math, "Scores")


def similarity(codes):
    """S_d = 1/(K(K-1)) sum over ordered pairs i != j of e_id e_jd; codes (K, D) -> (D,)."""
    count, dim = codes.shape
    total = [0.0] * dim
    for d in range(dim):
        column = [float(v) for v in codes[:, d]]
        total[d] = math.fsum(column[i] * column[j] for i in range(count) for j in range(count) if i != j)
    return np.array(total) / (count * (count - 1))


def variance(codes):
    """V_d = 1/(K-1) sum_i (e_id - m_d)^2."""
    count, dim = codes.shape
    result = []
    for d in range(dim):
        mean = math.fsum(codes[:, d]) / count
        result.append(math.fsum((float(v) - mean) ** 2 for v in codes[:, d]) / (count - 1))
    return np.array(result)


def usage_similarity(codes, p):
    """Mean of e_id e_jd over pairs i != j drawn with probability proportional to p_i p_j."""
    count, dim = codes.shape
    result = np.zeros(dim)
    weight = math.fsum(p[i] * p[j] for i in range(count) for j in range(count) if i != j)
    for d in range(dim):
        result[d] = (
            math.fsum(p[i] * p[j] * codes[i, d] * codes[j, d] for i in range(count) for j in range(count) if i != j)
            / weight
        )
    return result


def usage_variance(codes, p):
    """Half the mean of (e_id - e_jd)^2 over pairs i != j drawn with probability proportional to p_i p_j."""
    count, dim = codes.shape
    result = np.zeros(dim)
    weight = math.fsum(p[i] * p[j] for i in range(count) for j in range(count) if i != j)
    for d in range(dim):
        pairs = (p[i] * p[j] * (codes[i, d] - codes[j, d]) ** 2 for i in range(count) for j in range(count) if i != j)
        result[d] = math.fsum(pairs) / weight / 2
    return result


def toc_score(codes, weights=(0.7, 0.3)):
    """J_d = w_var V_d - w_sim S_d."""
    return weights[1] * variance(codes) - weights[0] * similarity(codes)


def select(score, count, most=1, least=0):
    """Kept dimensions, ascending: `most` parts from the top, then `least` parts from the bottom of what is left."""
    top = int(count * most / (most + least) + 0.5)
    left = list(range(len(score)))
    kept = []
    for n in range(count):
        best = left[0]
        for d in left[1:]:
            if (score[d] > score[best]) if n < top else (score[d] < score[best]):
                best = d
        left.remove(best)
        kept.append(best)
    return sorted(kept)


# Assignment (toc-math, "Assignment")


def nearest(x, codes, metric="euclidean"):
    """The index of the code nearest to x (D,), ties to the smaller."""
    best, index = math.inf, -1
    for k, code in enumerate(codes):
        if metric == "euclidean":
            distance = math.fsum((float(a) - float(b)) ** 2 for a, b in zip(x, code, strict=True))
        else:
            distance = -math.fsum(float(a) * float(b) for a, b in zip(x, code, strict=True))
            if metric == "cosine":
                length = math.sqrt(math.fsum(float(b) ** 2 for b in code))
                distance = distance / length if length else 0.0
        if distance < best:
            best, index = distance, k
    return index


def quantise(x, tables, metric="euclidean", kept=None, fill=None):
    """Residual quantisation of one row x (H, D) by tables [L][H] (K, D): tokens [L][H] and the vector (H, D).

    With kept [L][H] and fill (L, H, D): the lookup sees the kept dimensions, the code holds `fill` elsewhere.
    """
    heads, dim = x.shape
    left, vector = x.astype(np.float64), np.zeros((heads, dim))
    tokens = []
    for level, table in enumerate(tables):
        row = []
        for h in range(heads):
            dims = range(dim) if kept is None else [int(d) for d in kept[level][h]]
            row.append(nearest([left[h, d] for d in dims], [[code[d] for d in dims] for code in table[h]], metric))
            code = np.zeros(dim) if fill is None else np.array(fill[level][h], dtype=np.float64)
            for d in dims:
                code[d] = table[h][row[-1]][d]
            vector[h] += code
            left[h] = left[h] - code
        tokens.append(row)
    return tokens, vector


# Assignment: toc-math.md "Assignment", by two plain loops


def nearest_two(
    x: np.ndarray, codes: np.ndarray, metric: str = "euclidean"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest code of each row, its distance and the second best: float64, dimension by dimension, ties to the smaller."""
    x, codes = x.astype(np.float64), codes.astype(np.float64)
    index, best, second = np.zeros(len(x), np.int64), np.zeros(len(x)), np.full(len(x), np.inf)
    for i, row in enumerate(x):
        distance = np.zeros(len(codes))
        square = np.zeros(len(codes))
        for d in range(x.shape[1]):
            distance += (row[d] - codes[:, d]) ** 2 if metric == "euclidean" else -(row[d] * codes[:, d])
            square += codes[:, d] * codes[:, d]
        if metric == "cosine":
            norm = np.sqrt(square)
            distance = np.where(norm == 0, 0.0, distance / np.where(norm == 0, 1.0, norm))
        index[i] = int(np.argmin(distance))
        best[i] = distance[index[i]]
        if len(codes) > 1:
            second[i] = np.delete(distance, index[i]).min()
    return index, best, second


# Criteria that read features and tokens (x (N, D), tokens (N,) of all dimensions)


def scatters(x, codes, tokens):
    """B (D, D), the covariance of the codes counted by use, and W (D, D), the mean of (x - e)(x - e)^T."""
    p = [sum(1 for t in tokens if t == k) / len(tokens) for k in range(len(codes))]
    dim = codes.shape[1]
    mean = [math.fsum(p[k] * codes[k, d] for k in range(len(codes))) for d in range(dim)]
    between, within = np.zeros((dim, dim)), np.zeros((dim, dim))
    for i in range(dim):
        for j in range(dim):
            between[i, j] = math.fsum(
                p[k] * (codes[k, i] - mean[i]) * (codes[k, j] - mean[j]) for k in range(len(codes))
            )
            within[i, j] = math.fsum(
                (row[i] - codes[t, i]) * (row[j] - codes[t, j]) for row, t in zip(x, tokens, strict=True)
            ) / len(x)
    return between, within


def reciprocal_rank(x, codes, tokens, kept):
    """Mean over rows of 1 / (1 + codes nearer than the token's on the dimensions `kept`, ties counted half)."""
    total = 0.0
    for row, token in zip(x, tokens, strict=True):
        distance = [sum((row[d] - code[d]) ** 2 for d in kept) for code in codes]
        nearer = sum(1 for k, u in enumerate(distance) if k != token and u < distance[token])
        level = sum(1 for k, u in enumerate(distance) if k != token and u == distance[token])
        total += 1 / (1 + nearer + level / 2)
    return total / len(x)


def greedy_agreement(x, codes, tokens):
    """Dimensions in the order of a greedy choice by `reciprocal_rank`, ties to the larger variance by use."""
    variance = np.diag(scatters(x, codes, tokens)[0])
    left = sorted(range(codes.shape[1]), key=lambda d: (-variance[d], d))
    order = []
    while left:
        values = [reciprocal_rank(x, codes, tokens, [*order, d]) for d in left]
        order.append(left.pop(values.index(max(values))))
        if max(values) == 1:
            break
    return order + left


def log_likelihood(x, codes, tokens, weights, temperature):
    """Mean over rows of log softmax_k(-sum_d w_d (x_d - e_kd)^2 / (2 t)) at the token."""
    total = 0.0
    for row, token in zip(x, tokens, strict=True):
        logits = [
            -sum(w * (a - b) ** 2 for w, a, b in zip(weights, row, code, strict=True)) / (2 * temperature)
            for code in codes
        ]
        top = max(logits)
        total += logits[token] - top - math.log(sum(math.exp(v - top) for v in logits))
    return total / len(x)
