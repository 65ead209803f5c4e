"""Layer budgets that fall from the first layer to the last (PyramidKV, arXiv 2406.02069, sec. 3).

The last layer gets ``average // beta`` tokens and the first layer ``2 * average`` minus that; a
first budget above the tokens there are (``ceiling``) is cut to them, and the last one raised by as
much. ``average`` is at most ``ceiling``.
"""


def pyramid_budgets(average: int, num_layers: int, beta: int, ceiling: int) -> list[int]:
    """An arithmetic series of layer budgets with an exact sum.

    Returns:
        ``num_layers`` non-increasing budgets in ``[0, ceiling]`` that sum to
        ``num_layers * average``.
    """
    if num_layers == 1:
        return [average]
    highest, lowest = _ends(average, beta, ceiling)
    # In units of 1/(num_layers - 1), so that nothing is rounded before the remainder is shared out.
    parts = num_layers - 1
    scaled = [highest * (parts - layer) + lowest * layer for layer in range(num_layers)]
    budgets = [value // parts for value in scaled]
    by_fraction = sorted(range(num_layers), key=lambda layer: -(scaled[layer] % parts))
    for layer in by_fraction[: num_layers * average - sum(budgets)]:
        budgets[layer] += 1
    return budgets


def published_pyramid(average: int, num_layers: int, beta: int, ceiling: int) -> list[int]:
    """The same as the published SCOPE code rounds it; the sum is not ``num_layers * average``."""
    highest, lowest = _ends(average, beta, ceiling)
    step = (highest - lowest) // num_layers
    return [highest - layer * step for layer in range(num_layers)]


def _ends(average: int, beta: int, ceiling: int) -> tuple[int, int]:
    highest = min(2 * average - average // beta, ceiling)
    return highest, 2 * average - highest


def prompt_pyramid(
    capacity: int, window: int, prompt_length: int, num_layers: int, *, every_length: bool
) -> list[int] | None:
    """Tokens that each layer keeps of a prompt when C is spread over the layers with beta 20.

    Args:
        capacity: C, the average over the layers.
        window: w, kept in every layer.
        prompt_length: tokens of the prompt.
        num_layers: number of layers.
        every_length: spread exactly wherever the prompt is longer than C; if false, only from
            2(C - w) tokens on and with the published code's rounding.

    Returns:
        One budget per layer, or None where the prompt is too short to be spread.
    """
    average, ceiling, beta = capacity - window, prompt_length - window, 20
    if prompt_length <= capacity or (not every_length and prompt_length < 2 * average):
        return None
    spread = pyramid_budgets if every_length else published_pyramid
    return [budget + window for budget in spread(average, num_layers, beta, ceiling)]
