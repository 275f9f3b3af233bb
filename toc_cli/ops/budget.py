"""One budget over several codebooks: by what each needs, or by what each further part of it is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def by_need(needs: Sequence[int], budget: int) -> list[int]:
    """Each in its order takes `min(need, what is left)`, but leaves one to each that follows.

    Needs from 1; the budget is at least their number. What nobody needs is left over.
    """
    taken: list[int] = []
    for at, need in enumerate(needs):
        following = len(needs) - at - 1
        taken.append(min(need, budget - sum(taken) - following))
    return taken


Points = Sequence[tuple[int, float]]
"""What sizes cost and lose, by rising cost: the loss is what the size leaves undone, less is better."""


def by_gain(curves: Sequence[Points], budget: int) -> list[int]:
    """The point of each curve that is taken: from the cheapest on, always the step that saves most loss for what it costs and still
    fits, ties to the earlier curve and the cheaper step; a step may skip points, so that a curve need not be convex.

    The cheapest points together must fit. A step that saves nothing is not taken.
    """
    at = [0] * len(curves)
    left = budget - sum(curve[0][0] for curve in curves)
    if left < 0:
        raise ValueError("the cheapest points together exceed the budget")
    while True:
        steps = []
        for which, curve in enumerate(curves):
            cost, loss = curve[at[which]]
            for to in range(at[which] + 1, len(curve)):
                more, less = curve[to][0] - cost, loss - curve[to][1]
                if more <= left and less > 0:
                    steps.append((less / more, -which, -to, more))
        if not steps:
            return at
        _, which, to, more = max(steps)
        at[-which] = -to
        left -= more


def by_exchange(
    sizes: Sequence[int],
    costs: Sequence[int],
    most: Sequence[int],
    budget: int,
    losses: Callable[[Sequence[tuple[int, ...]]], Sequence[float]],
    tries: int,
) -> tuple[int, ...]:
    """Sizes from 1 to `most` that cost `budget` at most and lose no more than `sizes` do, of parts whose losses hang together.

    From `sizes` on, one part gives units and another takes what they pay for, as long as that loses less: half of the largest size
    at first, then half of that, down to one. `losses` measures many splits at once; about `tries` are, not more than twice.
    """
    at, step, seen = tuple(sizes), max(1, max(sizes) // 2), 0
    if _cost(at, costs) > budget:
        raise ValueError("the sizes exceed the budget")
    least = losses([at])[0]
    parts = range(len(at))

    def moved(part: int, by: int) -> tuple[int, ...]:
        return (*at[:part], at[part] + by, *at[part + 1 :])

    while seen < tries:
        spare = budget - _cost(at, costs)
        fewer = {part: moved(part, -step) for part in parts if at[part] > step}
        room = {part: min(most[part] - at[part], max(step, spare // costs[part])) for part in parts}
        more = {part: moved(part, by) for part, by in room.items() if by > 0}
        alone = [*fewer.values(), *more.values()]
        lost = dict(zip(alone, losses(alone), strict=True)) if alone else {}
        free = [split for split in more.values() if _cost(split, costs) <= budget]
        pairs = []
        for gives, left in fewer.items():
            for takes in (part for part in more if part != gives):
                by = min(room[takes], (spare + step * costs[gives]) // costs[takes])
                both = tuple(left[part] + (by if part == takes else 0) for part in parts)
                hoped = lost[left] + lost[more[takes]]
                pairs += [(hoped, gives, takes, both)] if by > 0 else []
        tried = [*free, *(both for *_, both in sorted(pairs)[:LIKELY])]
        found = sorted(zip(losses(tried), tried, strict=True)) if tried else []
        seen += len(alone) + len(tried)
        if found and found[0][0] < least:
            least, at = found[0]
        elif step == 1:
            break
        else:
            step //= 2
    return at


LIKELY = 4
"""Exchanges that are measured together, of those whose two halves promise most."""


def _cost(sizes: Sequence[int], costs: Sequence[int]) -> int:
    return sum(size * cost for size, cost in zip(sizes, costs, strict=True))
