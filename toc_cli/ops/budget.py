"""One budget over several codebooks: by what each needs, or by what each further part of it is worth."""

from __future__ import annotations

from collections.abc import Sequence


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
