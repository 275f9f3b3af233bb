"""Ward's clustering of weighted points, exact, without the table of all distances.

Ward is reducible: no merge brings a third cluster nearer than the nearer of the two was. So a pair of clusters that are each other's
cheapest partner merges in the greedy order whatever happens before, all such pairs can merge at once, and what was a bound below a
cluster's costs stays one. The order of the greedy choice is put back at the end.

Bounds come from a search in float32 that errs on the side of nearness (`_Search.low`); every cost that decides is then computed in
float64, as the sum of squared differences.

Legend: N clusters left, D dimensions, T columns of a tile, G columns of a group.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from toc_cli.ops.pool import Pool

PARTNERS = 4
"""Partners that a cluster knows: where one merges away, the next may still be known for certain."""
LEAST_LOOKED, MOST_LOOKED = 256, 1024
"""Clusters whose cheapest partners are looked up at once."""
TILE, GROUP = 2048, 16
"""Columns of a product, and of a bound."""
SAFE = 1 - 1e-12
"""What float64 may have rounded a bound up by, taken off again."""
EPS = float(np.finfo(np.float32).eps)


Costs: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The exact costs (n,) of joining places (n,) with places (n,)."""


@dataclass(frozen=True)
class Found:
    """Of n clusters the places (n, P) of the cheapest partners by rising cost, the costs, and a bound (n,) below that of any other."""

    partners: np.ndarray
    costs: np.ndarray
    rest: np.ndarray


def ward(points: np.ndarray, weights: np.ndarray, merges: int) -> list[tuple[int, int]]:
    """The first `merges` merges of points (N, D) with positive weights (N,), cheapest first: the smaller index of either cluster, the
    smaller of the two first; ties to the smaller ones.

    Joining clusters of weights n_a and n_b and means a and b costs n_a n_b / (n_a + n_b) |a - b|^2.
    """
    if merges < 1:
        return []
    with Pool() as pool:
        clusters = _Clusters(points, weights, pool)
        while not clusters.enough(merges):
            if not clusters.join(merges):
                clusters.look()
    return in_order(clusters.done)[:merges]


def in_order(done: list[tuple[float, int, int]]) -> list[tuple[int, int]]:
    """Merges (cost, a, b) in the order of the greedy choice: the cheapest of those whose clusters exist by then. `done` holds every
    merge after those that its clusters came of."""
    last: dict[int, int] = {}
    needs, opens = [0] * len(done), [[] for _ in done]  # type: list[int], list[list[int]]
    for at, (_, a, b) in enumerate(done):
        for name in (a, b):
            if name in last:
                needs[at] += 1
                opens[last[name]].append(at)
        last[a] = at
    ready = [(*done[at], at) for at, count in enumerate(needs) if not count]
    heapq.heapify(ready)
    found = []
    while ready:
        _, a, b, at = heapq.heappop(ready)
        found.append((a, b))
        for following in opens[at]:
            needs[following] -= 1
            if not needs[following]:
                heapq.heappush(ready, (*done[following], following))
    return found


class _Clusters:
    """The clusters that are left, and what is known of their cheapest partners. A cluster has the name of its first member, and places
    ascend with names."""

    def __init__(self, points: np.ndarray, weights: np.ndarray, pool: Pool) -> None:
        scale = np.abs(points).max(initial=0)
        exponent = np.frexp(scale)[1] if scale else 0
        self.points = np.ldexp(
            np.ascontiguousarray(points, dtype=np.float64), -int(exponent)
        )  # exact: no cost overflows
        self.weights = weights.astype(np.float64) / weights.min()
        count = len(points)
        self.names, self.alive = np.arange(count), np.ones(count, dtype=bool)
        self.partners, self.nearby = np.full((count, PARTNERS), -1), np.full((count, PARTNERS), np.inf)
        """Places of the cheapest partners by rising cost, and the costs; -1 and inf for none."""
        self.rest = np.zeros(count)
        """Below the cost of every other partner."""
        self.sure = np.zeros(count, dtype=bool)
        """Whether the first partner is the cheapest whatever `rest` says: of equals, a look tells the smallest."""
        self.done: list[tuple[float, int, int]] = []
        self.search = _Search(self.points, self.weights, pool)

    @property
    def known(self) -> np.ndarray:
        """(N,) whether the cheapest partner is known for certain."""
        return self.alive & (self.sure | (self.nearby[:, 0] < self.rest))

    @property
    def bound(self) -> np.ndarray:
        """(N,) below the cost of any partner."""
        return np.where(self.alive, np.minimum(self.nearby[:, 0], self.rest), np.inf)

    def enough(self, merges: int) -> bool:
        """Whether no merge that is still to come is among the first `merges`."""
        return len(self.done) >= merges and bool(self.bound.min() > self._last(merges))

    def _last(self, merges: int) -> float:
        """No merge of the first ones costs more."""
        if len(self.done) < merges:
            return np.inf
        return float(np.partition([cost for cost, *_ in self.done], merges - 1)[merges - 1])

    def join(self, merges: int) -> bool:
        """Merge all pairs that are each other's cheapest partner; whether there were any."""
        at, best = np.flatnonzero(self.known), np.full(len(self.alive), -1)
        best[at] = self.partners[at, 0]
        one = at[(best[best[at]] == at) & (at < best[at]) & (self.nearby[at, 0] <= self._last(merges))]
        if not len(one):
            return False
        two = best[one]
        cost, na, nb = self.nearby[one, 0], self.weights[one], self.weights[two]
        self.done += list(zip(cost.tolist(), self.names[one].tolist(), self.names[two].tolist(), strict=True))
        a, b = (np.minimum(self.nearby[which, 1], self.rest[which]) for which in (one, two))
        # a third cluster is so far from either, and by Lance and Williams' formula so far from both together
        least = np.maximum(cost * SAFE, SAFE * np.minimum((na * a + nb * b) / (na + nb), a + b - cost))
        both = (na + nb)[:, None]
        self.points[one] = (na[:, None] * self.points[one] + nb[:, None] * self.points[two]) / both
        self.weights[one] = na + nb
        self.alive[two] = False
        self.partners[one], self.nearby[one], self.rest[one], self.sure[one] = -1, np.inf, least, False
        self.search.update(one, two)
        self._follow(one, two)
        if 4 * len(self.search.dead) > len(self.alive):
            self._compact()
        return True

    def _follow(self, one: np.ndarray, two: np.ndarray) -> None:
        """Clusters of which a known partner went into another: that one is theirs now."""
        into = np.full(len(self.alive) + 1, -1)  # the last for no partner
        into[one] = into[two] = one
        moved = into[self.partners] >= 0
        rows = np.flatnonzero(self.alive & moved.any(1))
        partners, nearby, moved = self.partners[rows], self.nearby[rows], moved[rows]
        self.sure[rows] &= ~moved[:, 0]
        partners[moved] = into[partners[moved]]
        nearby[moved] = self.costs(np.repeat(rows, moved.sum(1)), partners[moved])
        for at in range(1, PARTNERS):  # both of a pair
            twice = (partners[:, :at] == partners[:, at : at + 1]).any(1)
            nearby[twice, at] = np.inf
            partners[twice, at] = -1
        order = np.lexsort((partners, nearby), axis=1)
        self.partners[rows] = np.take_along_axis(partners, order, 1)
        self.nearby[rows] = np.take_along_axis(nearby, order, 1)

    def look(self) -> None:
        """Look up the partners of clusters whose partner is not certain: first those that others want for theirs, as the chain of
        nearest neighbours does, since only they can bring a merge; where these are few, the ones of the least bounds as well."""
        known = self.known
        bound = np.where(known, np.inf, self.bound)
        wanted = np.zeros(len(known), dtype=bool)
        wanted[self.partners[known, 0]] = True
        wanted &= self.alive & ~known
        count = min(int((self.alive & ~known).sum()), max(LEAST_LOOKED, min(MOST_LOOKED, int(wanted.sum()))))
        bound[wanted] = -1 / (1 + bound[wanted])  # before all others, in the same order
        rows = np.sort(np.argpartition(bound, count - 1)[:count])
        found = self.search.nearest(rows, self.costs)
        self.partners[rows], self.nearby[rows], self.rest[rows] = found.partners, found.costs, found.rest
        self.sure[rows] = True

    def costs(self, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """The cost (n,) of joining places (n,) with places (n,); inf with a dead one or itself."""
        apart = self.points[one] - self.points[two]
        na, nb = self.weights[one], self.weights[two]
        cost = na * nb / (na + nb) * np.einsum("nd,nd->n", apart, apart)
        return np.where(self.alive[two] & (one != two), cost, np.inf)

    def _compact(self) -> None:
        new = np.append(np.where(self.alive, np.cumsum(self.alive) - 1, -1), -1)
        self.partners = new[self.partners]
        for name in ("names", "points", "weights", "partners", "nearby", "rest", "sure"):
            setattr(self, name, getattr(self, name)[self.alive])
        self.alive = np.ones(len(self.names), dtype=bool)
        self.search = _Search(self.points, self.weights, self.search.pool)


class _Search:
    """Bounds below all costs of some clusters, by groups of partners: one float32 product of [-2 a, |a|^2, 1] and [b, 1, |b|^2], which
    is |a - b|^2 less what rounding may have added, over 1 / n_a + 1 / n_b."""

    def __init__(self, points: np.ndarray, weights: np.ndarray, pool: Pool) -> None:
        self.pool = pool
        self.count, dim = points.shape
        self.shrink = 1 - 4 * (dim + 8) * EPS
        whole = -(-self.count // TILE) * TILE
        self.table = torch.zeros(dim + 2, whole)
        self.inverse = torch.ones(whole)
        self.dead: set[int] = set()
        self.points, self.weights = points, weights
        self.table[dim + 1] = torch.inf
        self._put(np.arange(self.count))

    def _put(self, places: np.ndarray) -> None:
        points = self.points[places]
        at = torch.from_numpy(places)
        self.table[:-2, at] = torch.from_numpy(points.T).float()
        self.table[-2, at] = 1
        self.table[-1, at] = torch.from_numpy(np.einsum("nd,nd->n", points, points) * self.shrink).float()
        self.inverse[at] = torch.from_numpy(1 / self.weights[places]).float()

    def update(self, changed: np.ndarray, dead: np.ndarray) -> None:
        """Take over what became of some places."""
        self._put(changed)
        self.table[-1, torch.from_numpy(dead)] = torch.inf
        self.dead.update(dead.tolist())

    def low(self, rows: np.ndarray) -> np.ndarray:
        """(n, groups): no partner in a group costs less; places (n,) ascend."""
        at = torch.from_numpy(rows)
        left = torch.cat([-2 * self.table[:-2, at], self.table[-1:, at], self.table[-2:-1, at]]).T.contiguous()
        inverse = self.inverse[at, None]
        tiles = self.table.shape[1] // TILE
        found = torch.empty(len(rows), tiles, TILE // GROUP)

        def some(first: int) -> None:
            squares, over = torch.empty(len(rows), TILE), torch.empty(len(rows), TILE)
            for tile in range(first, tiles, self.pool.threads):
                columns = slice(tile * TILE, (tile + 1) * TILE)
                torch.mm(left, self.table[:, columns], out=squares)
                squares.div_(torch.add(inverse, self.inverse[columns], out=over))
                low, high = np.searchsorted(rows, (columns.start, columns.stop))
                squares[range(low, high), rows[low:high] - columns.start] = torch.inf  # not with itself
                torch.amin(squares.view(len(rows), -1, GROUP), 2, out=found[:, tile])

        self.pool.run(some)
        return found.flatten(1).numpy()

    def nearest(self, rows: np.ndarray, costs: Costs) -> Found:
        """The cheapest partners of places (n,), the smaller of equals: exact within every group that may hold the cheapest."""
        low = self.low(rows)
        first = low.argmin(1)
        places, found = self._exact(rows, first, costs)
        low[np.arange(len(rows)), first] = np.inf
        which, group = np.nonzero(low <= found.min(1)[:, None])
        more = self._exact(rows[which], group, costs)
        low[which, group] = np.inf
        partners, nearby, rest = _least(places, found)
        for at in np.unique(which):
            own = which == at
            there = np.concatenate([partners[at], *more[0][own]])
            cost = np.concatenate([nearby[at], *more[1][own]])
            order = np.lexsort((there, cost))
            partners[at], nearby[at] = there[order[:PARTNERS]], cost[order[:PARTNERS]]
            rest[at] = min(rest[at], cost[order[PARTNERS]])
        partners[np.isinf(nearby)] = -1
        return Found(partners, nearby, SAFE * np.minimum(rest, low.min(1)))

    def _exact(self, rows: np.ndarray, group: np.ndarray, costs: Costs) -> tuple[np.ndarray, np.ndarray]:
        """Places (m, G) of groups (m,) and their costs with places `rows` (m,), inf beyond the last."""
        places = group[:, None] * GROUP + np.arange(GROUP)
        inside = np.minimum(places, self.count - 1)
        found = costs(np.repeat(rows, GROUP), inside.ravel()).reshape(places.shape)
        return inside, np.where(places < self.count, found, np.inf)


def _least(places: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of costs (n, m) at ascending places the PARTNERS least, by rising cost and place, and the one after."""
    order = np.argsort(costs, axis=1, kind="stable")[:, : PARTNERS + 1]
    places, costs = np.take_along_axis(places, order, 1), np.take_along_axis(costs, order, 1)
    return places[:, :PARTNERS], costs[:, :PARTNERS], costs[:, PARTNERS]
