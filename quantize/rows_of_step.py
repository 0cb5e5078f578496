"""Which calibration sequences a step of training sees."""

import torch


def rows_of_step(count: int, step: int, size: int, seed: int) -> list[int]:
    """The sequences of one step: epoch after epoch over the text, each in a new order.

    Args:
        count: Sequences of the text.
        step: From 0 on.
        size: Sequences of a step; a shorter text is seen as a whole.
        seed: Of the orders.
    """

    def row(index: int) -> int:
        generator = torch.Generator().manual_seed(seed + index // count)
        order = torch.randperm(count, generator=generator)
        return int(order[index % count])

    size = min(size, count)
    return [row(index) for index in range(step * size, (step + 1) * size)]
