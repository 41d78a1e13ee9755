"""Items of a batch, each for itself, in threads."""
from __future__ import annotations

import threading

import pytest
import torch

from utils.threads import map_items


@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_the_items_order(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert map_items(lambda a, b: 10 * a + b, range(5), [4, 3, 2, 1, 0]) == [4, 13, 22, 31, 40]
    assert map_items(len, []) == []


def test_items_are_worked_on_at_the_same_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    together = threading.Barrier(2, timeout=30)  # one after the other would wait for ever
    assert sorted(map_items(lambda item: (together.wait() >= 0, item), [1, 2])) == [(True, 1), (True, 2)]


def test_an_items_exception_is_the_callers(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        map_items(lambda item: 1 / item, [1, 0, 2])
