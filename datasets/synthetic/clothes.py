"""What is worn below the neck, as colours of the head mesh's shoulders: a pullover, a shirt, a jacket with a tie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fields import random_colour, smoothstep

_COATS = np.float32([[.04, .04, .05], [.07, .08, .13], [.16, .16, .17], [.20, .16, .12], [.35, .33, .30]])


@dataclass(frozen=True)
class Outfit:
    """Colours are albedo (3,), lengths are in mm on the mean head.

    colour: of the outer garment; collar: of the band of `band` mm along the neckline; inner: what shows in a V that is
    `opening` wide (to each side) at the neckline and `depth` deep (0: closed); tie: of a strip `tie_width` wide in the
    middle of the V (0: none). neckline: how far under the chin it lies in front, and its slope towards the sides.
    """

    colour: np.ndarray
    collar: np.ndarray
    band: float
    inner: np.ndarray
    opening: float
    depth: float
    tie: np.ndarray
    tie_width: float
    neckline: tuple[float, float]

    def albedo(self, below: np.ndarray, sideways: np.ndarray) -> np.ndarray:
        """Colours (n, 3) of points `below` the neckline and `sideways` from the middle, both (n, 1) in mm."""
        colour = self.colour + (self.collar - self.colour) * smoothstep(self.band + 1.5, self.band - 1.5, below)
        if self.depth > 0:
            edge = self.opening * (1 - below / self.depth)
            colour = colour * (1 - 0.35 * np.exp(-((sideways - edge) / 2.5) ** 2))  # the lapel's shadow
            colour = colour + (self.inner - colour) * smoothstep(edge + 1.0, edge - 1.0, sideways)
            tie_edge = self.tie_width * (0.6 + 0.4 * np.minimum(below / 30, 1))
            shown = smoothstep(tie_edge + 0.8, tie_edge - 0.8, sideways) * (sideways < edge) * (below > 4)
            colour = colour + (self.tie - colour) * shown * (self.tie_width > 0)
        return colour

    def gray(self) -> "Outfit":
        """The same for a black and white photo."""
        toned = {name: np.full(3, getattr(self, name).mean(), np.float32)
                 for name in ("colour", "collar", "inner", "tie")}
        return Outfit(**{**self.__dict__, **toned})


def sample_outfit(rng: np.random.Generator) -> Outfit:
    """A pullover (half of them with a ribbed neck), a shirt or blouse with a collar, or a jacket over a shirt."""
    kind = rng.choice(["pullover", "shirt", "jacket"], p=[0.5, 0.2, 0.3])
    colour = random_colour(rng, 0.5)
    closed = {"inner": colour, "opening": 0.0, "depth": 0.0, "tie": colour, "tie_width": 0.0}
    if kind == "pullover":
        ribbed = colour * np.float32(rng.uniform(0.75, 1.1))
        neckline = (float(rng.uniform(25, 80)), float(rng.uniform(0.0, 0.45)))
        return Outfit(colour, ribbed, float(rng.uniform(5, 14)) * (rng.random() < 0.5), neckline=neckline, **closed)
    neckline = (float(rng.uniform(14, 36)), float(rng.uniform(0.15, 0.5)))
    if kind == "shirt":
        return Outfit(colour, np.minimum(colour * np.float32(rng.uniform(1.0, 1.25)), 1), float(rng.uniform(18, 30)),
                      neckline=neckline, **closed)
    coat = _COATS[int(rng.integers(len(_COATS)))] if rng.random() < 0.75 else colour
    shirt = np.float32([0.88, 0.88, 0.9]) if rng.random() < 0.6 else random_colour(rng, 0.3)
    tie_width = float(rng.uniform(12, 20)) * (rng.random() < 0.6)
    return Outfit(coat, shirt, float(rng.uniform(6, 16)), shirt, float(rng.uniform(38, 65)),
                  float(rng.uniform(90, 200)), random_colour(rng, 0.9), tie_width, neckline)
