"""How a stack is cut for an engine."""


def spans(total: int, limit: int) -> list[tuple[int, int]]:
    """First and last output slice of every run, all of one length, so that an engine is set up once for all of them.

    The last run reaches back into the one before where the lengths do not come out even.

    >>> spans(10, 4), spans(4, 4), spans(3, 10)
    ([(0, 4), (4, 8), (6, 10)], [(0, 4)], [(0, 3)])
    >>> spans(9, 8)
    [(0, 5), (4, 9)]
    """
    runs = -(-total // limit)
    length = -(-total // runs)
    starts = [min(run * length, total - length) for run in range(runs)]
    return [(start, start + length) for start in starts]
