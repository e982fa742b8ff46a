"""Keyed noise: frozen bits, an independent implementation, and the statistics of the choices it makes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from specrouter_llm.sampling.noise import gumbel, row_keys

STEADY = settings(deadline=None, derandomize=True)
IDS = [0, 1, 31_999, 151_935]
# (seed, sample, position) -> the 24 bits behind the noise at IDS, and the noise. Changing these changes every seeded
# answer that was ever given: it needs a new major version, not a new test vector.
FROZEN = {
    (0, 0, 0): (
        [0x9A4F55, 0x5C10C3, 0xA89EAE, 0x49D0E6],
        [0.0798579597989728, 0.8080859021375723, -0.07223629163349984, 1.0783380865884056],
    ),
    (1, 0, 0): (
        [0x773CCB, 0x7B375C, 0x7E7E86, 0xEA7888],
        [0.4669180670785057, 0.42090019079462, 0.3835293398179561, -0.9065509804749674],
    ),
    (1, 0, 1): (
        [0x7BFEA0, 0x93FB61, 0x784460, 0xD7E7E3],
        [0.41198397420093436, 0.1474806189097892, 0.4549362081725633, -0.6173164140013835],
    ),
    (1, 1, 0): (
        [0x6EE38C, 0x4F9578, 0x4D62C1, 0x0AFE65],
        [0.5662017487968839, 0.9879697127133603, 1.0217927120110952, 3.125985206095242],
    ),
    (2**63 - 1, 0, 7): (
        [0xE3218A, 0x37511C, 0xA0B429, 0x0F8862],
        [-0.780429664508867, 1.4128432686117236, 0.011883256565179459, 2.771093020884384],
    ),
    (2**63 - 1, 3, 4095): (
        [0x4EA1D7, 0xE6DA58, 0xA20EE1, 0x22BD97],
        [1.0025245815226362, -0.8417548300666375, -0.002498117370301689, 1.9252338775230573],
    ),
}
KEYS = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 127), st.integers(0, 2**20))


def noise(seed, sample, position, ids):
    return gumbel([row_keys(seed, sample, position)], torch.tensor(ids, dtype=torch.int32))[0].numpy()


def bits_of(values):
    """The 24 bits k behind noise values: the inverse of g = -log(-log(1 - (k + 1/2) / 2^24))."""
    k = -np.expm1(-np.exp(-values)) * 2**24 - 0.5
    assert float(np.abs(k - k.round()).max()) < 1e-6, "not of the form (k + 1/2) / 2^24"
    return k.round().astype(np.int64)


def reference_bits(seed, sample, position, ids):
    """NumPy uint32, written from the description of the hash: splitmix64 for the keys, then two low-bias rounds."""

    def low_bias(x):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))

    z = seed * 0x9E3779B97F4A7C15 + sample * 0xBF58476D1CE4E5B9 + position * 0x94D049BB133111EB + 0x632BE59BD9B4E019
    z %= 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    low, high = np.uint32(z % 2**32), np.uint32(z >> 32)
    x = low_bias(np.asarray(ids, dtype=np.uint32) ^ low)
    return (low_bias(x + high) >> np.uint32(8)).astype(np.int64)


@pytest.mark.parametrize("key", FROZEN, ids=str)
def test_the_bits_are_frozen(key):
    """The noise of known keys at known ids never changes: bits exactly, values to the last bits of the logarithm."""
    bits, values = FROZEN[key]
    drawn = noise(*key, IDS)
    assert bits_of(drawn).tolist() == bits
    assert drawn.tolist() == pytest.approx(values, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("name", ["_MULTIPLIERS", "_MASK64"])
def test_the_vector_notices_a_changed_constant(name, monkeypatch):
    """A different constant in the hash or in the keys gives other bits at every frozen key."""
    changed = {"_MULTIPLIERS": (0x7FEB352F, 0x846CA68B - (1 << 32)), "_MASK64": (1 << 63) - 1}
    monkeypatch.setattr(f"specrouter_llm.sampling.noise.{name}", changed[name])
    unchanged = [key for key, (bits, _) in FROZEN.items() if bits_of(noise(*key, IDS)).tolist() == bits]
    assert unchanged == []


@STEADY
@given(key=KEYS, ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
def test_bits_agree_with_an_independent_implementation(key, ids):
    """At any key and any ids the integer bits equal those of the hash written in NumPy uint32."""
    assert bits_of(noise(*key, ids)).tolist() == reference_bits(*key, ids).tolist()


@STEADY
@given(key=KEYS, ids=st.lists(st.integers(0, 31_999), min_size=1, max_size=20))
def test_a_subset_of_ids_reads_the_full_row(key, ids):
    """Noise at a few ids is bit for bit what the row of the whole vocabulary holds there."""
    assert noise(*key, ids).tolist() == noise(*key, range(32_000))[ids].tolist()


def test_rows_do_not_depend_on_the_rows_drawn_with_them():
    """Many keys in one call give the bits that each key gives alone."""
    keys = [row_keys(seed, sample, position) for seed in (0, 9) for sample in (0, 1) for position in (3, 4)]
    ids = torch.arange(1000, dtype=torch.int32)
    together = gumbel(keys, ids)
    assert all(torch.equal(together[i], gumbel([key], ids)[0]) for i, key in enumerate(keys))


def test_noise_is_always_finite_and_has_the_moments_of_gumbel():
    """Five million draws are finite, with mean 0.5772 and variance pi^2 / 6."""
    drawn = gumbel([row_keys(5, 0, p) for p in range(33)], torch.arange(151_936, dtype=torch.int32)).numpy()
    assert bool(np.isfinite(drawn).all())
    assert float(drawn.mean()) == pytest.approx(0.5772, abs=0.004)
    assert float(drawn.var()) == pytest.approx(np.pi**2 / 6, abs=0.01)


@pytest.mark.parametrize("k", [0, 2**24 - 1])
def test_the_extreme_hashes_give_finite_noise(k, monkeypatch):
    """The smallest and the largest 24-bit hash, at which a plain logarithm would be infinite, stay finite."""
    monkeypatch.setattr("specrouter_llm.sampling.noise._mix32_", lambda x: x.fill_((k << 8) - (k >> 23 << 32)))
    value = noise(0, 0, 0, [0])
    assert bits_of(value).tolist() == [k]
    assert bool(np.isfinite(value).all())


def winners(keys, probabilities):
    """What each key chooses from `probabilities`."""
    ids = torch.arange(len(probabilities), dtype=torch.int32)
    scores = torch.tensor(np.log(probabilities))
    return torch.cat([(gumbel(keys[i : i + 5000], ids) + scores).argmax(1) for i in range(0, len(keys), 5000)]).numpy()


def assert_fits(counts, expected):
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < float(chi2.isf(1e-6, counts.size - 1)), f"chi-square {statistic:.1f} over {counts.size} bins"


N = 20_000
PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(16))
STREAMS = {
    "positions": lambda i: (3, 0, i),
    "seeds": lambda i: (i, 0, 5),
    "distant seeds": lambda i: (i << 40, 0, 5),
    "samples": lambda i: (9, i, 5),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_choices_and_successive_pairs_fit_the_distribution(stream):
    """Along positions, seeds and samples, choices fit p and successive choices fit p x p (alpha 1e-6)."""
    chosen = winners([row_keys(*STREAMS[stream](i)) for i in range(N + 1)], PROBABILITIES)
    assert_fits(np.bincount(chosen[:-1], minlength=16), N * PROBABILITIES)
    coarse = np.array([PROBABILITIES[i::4].sum() for i in range(4)])
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (chosen[:-1] % 4, chosen[1:] % 4), 1)
    assert_fits(pairs, N * np.outer(coarse, coarse))


def test_neighbouring_token_ids_are_independent():
    """Noise at an id and at the next id is uncorrelated, within one key and between keys."""
    drawn = gumbel([row_keys(1, 0, p) for p in range(20)], torch.arange(32_000, dtype=torch.int32)).numpy()
    within = float(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1])
    between = float(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1])
    assert max(abs(within), abs(between)) < 0.007
