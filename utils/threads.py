"""Work on the items of a batch that libraries outside PyTorch do one after another."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterable, TypeVar

Result = TypeVar("Result")


def map_items(work: Callable[..., Result], *items: Iterable) -> list[Result]:
    """[work(*item) for item in zip(*items)], by as many threads at once as PyTorch uses.

    Pays where most of the work is done by functions that let go of the interpreter, as OpenCV's and NumPy's do. The
    first exception of an item is raised once the items before it are done.
    """
    import torch

    together = list(zip(*items))
    count = min(torch.get_num_threads(), len(together))
    if count <= 1:
        return [work(*item) for item in together]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda item: work(*item), together))
