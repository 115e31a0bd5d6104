"""A permutation of 0..N-1 that is evaluated where it is needed, in O(1) memory and without set-up.

NumPy's permutation takes 8 N bytes in every worker process and is made anew in each of them and on
every resume: too much from N = 10^8 on; and saved runs depend on this order. A Feistel network is a
bijection of pairs (left, right) whatever its round function F is, since each round can be undone:

    left = left ^ F(right, key)        in even rounds
    right = right ^ F(left, key)       in odd rounds

left and right are the upper and lower bits of a number below the first power of two that covers N
(16 at least); a value of N or above goes through the network again until it is below ("cycle
walking"), which keeps the map a bijection of 0..N-1. Source: J. Black and P. Rogaway, Ciphers with
Arbitrary Finite Domains, CT-RSA 2002. grain's ``index_shuffle`` walks cycles in a domain of 2**16
at least: 70 µs per index for N = 1,800, against about 4 µs here.
"""

import numpy as np

_ROUNDS = 8


def draw(seed: int, epoch: int) -> int:
    """A 64-bit number that depends on its two arguments alone, in every version of NumPy."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])


def shuffled(positions: np.ndarray, *, length: int, key: int) -> np.ndarray:
    """The indices that stand at some positions of a shuffled 0..N-1.

    Args:
        positions: integers [...] in 0..N-1.
        length: N, at least 1.
        key: which permutation, a non-negative integer.

    Returns:
        int64 [...].

    >>> sorted(shuffled(np.arange(5), length=5, key=7).tolist())
    [0, 1, 2, 3, 4]
    """
    bits = max(4, (length - 1).bit_length())  # parts of one bit would mix badly
    low = np.uint64(bits - bits // 2)  # bits of the right part
    left_mask, right_mask = (np.uint64((1 << int(n)) - 1) for n in (bits // 2, low))
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    values = np.array(positions, np.uint64).ravel()
    walking = np.arange(len(values))
    while len(walking):
        left, right = values[walking] >> low, values[walking] & right_mask
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left ^= _mix(right ^ even) & left_mask
            right ^= _mix(left ^ odd) & right_mask
        values[walking] = (left << low) | right
        walking = walking[values[walking] >= length]
    return values.astype(np.int64).reshape(np.shape(positions))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit moves half the others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
