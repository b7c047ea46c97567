"""Simulated studies with a known truth: right and wrong answers of two methods, [studies, seeds, examples].

A probit model: method m, seed s, example i is right where z + e_i + m_mi + t_ms + r_msi > 0. e is how easy the example is, the
same for both methods (variance 1); m what the method makes of it (variance 0.08); t how well the training went; r the rest. z is
set so that the expected accuracy, over new seeds and new examples, is exact; so a null is a true null.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

METHOD_BY_EXAMPLE = 0.08


@dataclass(frozen=True, slots=True)
class Noise:
    """How trainings of one method differ, on the scale of the probit model where examples have standard deviation 1."""

    seed: float
    """Standard deviation of how well a training went as a whole."""
    rest: float
    """Standard deviation of a training on one example, beyond that."""

    @property
    def total(self) -> float:
        """Standard deviation of everything that decides one answer."""
        return float((1 + METHOD_BY_EXAMPLE + self.seed**2 + self.rest**2) ** 0.5)


NOISES = {
    "calm": Noise(seed=0.03, rest=0.3),
    "noisy": Noise(seed=0.15, rest=0.3),
    "wild": Noise(seed=0.4, rest=0.5),
    "no seed effect": Noise(seed=0.0, rest=0.1),
    "rest only": Noise(seed=0.0, rest=1.0),
}


def simulate(
    draw: np.random.Generator,
    studies: int,
    seeds: tuple[int, int],
    n: int,
    noise: Noise,
    *,
    accuracy: float = 0.7,
    difference: float = 0.0,
    shared_seed: float = 0.0,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Right or wrong of A [studies, S_A, n] and B [studies, S_B, n]; B's expected accuracy is `difference` higher.

    shared_seed: the correlation of what equal seeds do to A and B; needs equal numbers of seeds where it is not 0.
    """

    def normal(*shape: int) -> NDArray[np.float32]:
        return draw.standard_normal((studies, *shape), dtype=np.float32)

    easy = normal(1, n)
    common = normal(max(seeds), 1) * np.float32(shared_seed**0.5)
    sides: list[NDArray[np.bool_]] = []
    for count, level in zip(seeds, (accuracy, accuracy + difference), strict=True):
        latent = np.float32(noise.rest) * normal(count, n)
        latent += np.float32(stats.norm.ppf(level) * noise.total) + easy
        latent += np.float32(METHOD_BY_EXAMPLE**0.5) * normal(1, n)
        own = normal(count, 1) * np.float32((1 - shared_seed) ** 0.5)
        latent += np.float32(noise.seed) * (own + common[:, :count])
        sides.append(latent > 0)
    return sides[0], sides[1]
