"""Nominal 95 % intervals hold the truth in at least 90 % of simulated studies: 3 and 5 seeds at 4 and 5 sizes.

Noise of a point is five times as large at one end of the sizes as at the other, normal or with the tails of Student's t of 4
degrees of freedom, and a seed has a part of it at all sizes. Of 400 studies a share of 0.95 has a standard error of 0.011.
"""

import math

import numpy as np
import pytest
from scipy import special

from infini_jax.analysis.fits import floor_law, power_law
from infini_jax.analysis.half_points import half_point, half_point_interval
from infini_jax.analysis.intervals import mean_of_seeds, mean_over_seeds, paired_difference, share_over_seeds

STUDIES, LEAST = 400, 0.90
DESIGNS = [(seeds, sizes, tails) for seeds in (3, 5) for sizes in (4, 5) for tails in (4.0, math.inf)]
designs = pytest.mark.parametrize(("seeds", "sizes", "tails"), DESIGNS)


def noise(random: np.random.Generator, shape: tuple[int, ...], tails: float) -> np.ndarray:
    """Noise of variance one."""
    normal = random.standard_normal(shape)
    return normal if tails == math.inf else normal / np.sqrt(random.chisquare(tails, shape) / (tails - 2))


def studies(seeds: int, sizes: int, tails: float, scale: float = 0.1):
    """x, the seed of each point, and the noise of each point, study by study."""
    random = np.random.default_rng([seeds, sizes, int(min(tails, 99))])
    x_N, spread_N = 1024.0 * 2.0 ** np.arange(sizes), scale * np.geomspace(1.0, 0.2, sizes)
    for _ in range(STUDIES):
        e_SxN = spread_N * noise(random, (seeds, sizes), tails) + scale / 2 * noise(random, (seeds, 1), tails)
        yield np.tile(x_N, seeds), np.repeat(np.arange(seeds), sizes), e_SxN.ravel()


def covered(intervals, truth: float) -> float:
    """The share of intervals that hold the truth; a study without one counts as one that does not."""
    return float(np.mean([one is not None and one[0] <= truth <= one[1] for one in intervals]))


@designs
def test_exponents_and_prefactors(seeds, sizes, tails):
    laws = [power_law(x, 0.02 * x**0.9 * np.exp(e), seed) for x, seed, e in studies(seeds, sizes, tails)]
    assert covered([law.exponent.interval for law in laws], 0.9) >= LEAST
    assert covered([law.prefactor.interval for law in laws], 0.02) >= LEAST


@designs
def test_means_over_sizes_and_seeds(seeds, sizes, tails):
    found = [mean_over_seeds(x, 0.8 + 0.1 * np.log2(x / 1024) + e, seed) for x, seed, e in studies(seeds, sizes, tails)]
    truth = 0.8 + 0.1 * (sizes - 1) / 2
    assert covered([one.interval for one in found], truth) >= LEAST


@designs
def test_differences_of_paired_means(seeds, sizes, tails):
    """Two mechanisms share what their seed's data are like, and each has noise of its own."""
    found, alone = [], []
    random = np.random.default_rng(1)
    for _, seed, e in studies(seeds, sizes, tails):
        other = e + 0.05 + 0.03 * noise(random, e.shape, tails)
        a, b = ({s: float(y[seed == s].mean()) for s in range(seeds)} for y in (other, e))
        found.append(paired_difference(a, b))
        alone.append(mean_of_seeds(b))
    assert covered([one.interval for one in found], 0.05) >= LEAST
    widths, of_one = (np.median([np.ptp(one.interval) for one in each]) for each in (found, alone))
    assert widths < of_one  # what the two share has no part in it


@designs
@pytest.mark.parametrize("scale", [0.01, pytest.param(0.05, marks=pytest.mark.slow)])
def test_parameters_of_a_decay_to_a_floor(seeds, sizes, tails, scale):
    every = list(studies(seeds, sizes, tails, scale))[::4]
    unit = math.exp(np.log(every[0][0]).mean())
    laws = [floor_law(x, 1.5 + 0.4 * (x / unit) ** -0.5 + e, seed) for x, seed, e in every]
    for name, truth in (("floor", 1.5), ("scale", 0.4), ("power", 0.5)):
        assert covered([getattr(law, name).interval for law in laws], truth) >= LEAST, name


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("asked", [64, 1000])
def test_half_points_over_seeds(seeds, asked):
    """The n50 of each seed is found from counts; the true ones spread by 15 %."""
    random, pairs, found = np.random.default_rng([seeds, asked]), np.geomspace(5, 90, 7), []
    for _ in range(STUDIES // 2):
        half_S = 20 * np.exp(0.15 * noise(random, (seeds,), 4.0))
        share_SxN = special.expit(-2.0 * np.log(pairs / half_S[:, None]))
        each = [half_point(pairs, random.binomial(asked, share_N), np.full(7, asked)).n50 for share_N in share_SxN]
        found.append(mean_of_seeds(dict(enumerate(np.log(each)))))
    assert covered([one.interval for one in found], math.log(20)) >= LEAST


@pytest.mark.parametrize("rows", [5, 16])
@pytest.mark.parametrize("strays", [0.0, 0.2])
def test_half_points_over_the_memories_of_a_run(rows, strays):
    random, pairs, found = np.random.default_rng(rows), np.geomspace(4, 100, 8), []
    for _ in range(STUDIES // 2):
        half_R = 20 * np.exp(strays * random.standard_normal((rows, 1)))
        right_RxN = random.binomial(40, special.expit(-2.0 * np.log(pairs / half_R)))
        found.append(half_point_interval(pairs, right_RxN, np.full((rows, 8), 40)))
    assert covered(found, 20.0) >= LEAST


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("share", "deviation"), [(0.5, 0.1), (0.8, 0.1), (0.95, 0.03), (0.98, 0.01), (0.99, 0.0), (0.02, 0.01)]
)
def test_shares_of_right_answers(seeds, share, deviation):
    random = np.random.default_rng([seeds, round(1000 * share)])
    trials = share * (1 - share) / deviation**2 - 1 if deviation else math.inf  # of a beta distribution
    found = []
    for _ in range(STUDIES):
        share_S = random.beta(share * trials, (1 - share) * trials, seeds) if deviation else np.full(seeds, share)
        right = dict(enumerate(random.binomial(256, share_S).tolist()))
        found.append(share_over_seeds(right, dict.fromkeys(right, 256)).interval)
    assert covered(found, share) >= LEAST
