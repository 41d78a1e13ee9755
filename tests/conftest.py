"""What all tests share: one thread a process, and the networks with golden weights."""
from __future__ import annotations

import os

import pytest

# Several test processes (and the workers they start) on few cores: idle threads of each would only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def golden_network():
    """name of a published class -> our network with the golden weights; shared, do not change it."""
    import golden_fill

    return golden_fill.network


@pytest.fixture(scope="session")
def golden_state():
    """name of a published class -> its golden state dict (numpy arrays); shared, do not change it."""
    import golden_fill

    return golden_fill.published_state
