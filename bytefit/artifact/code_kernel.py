"""The compiled part of ``code_stream``: range coder, adaptive bits, and the model of a matrix, for both directions.

Encoding and decoding run the same functions with a flag, so that their models cannot drift apart. There are only integers,
and none of them overflows whatever the data (up to a million columns), so a stream decodes alike on every machine.

All compiled functions are in this file because numba's cache watches the caller's file, not those of the functions it calls.
"""

from __future__ import annotations

import numpy as np

from bytefit.compiled import compiled

_compiled = compiled(error_model="numpy")

# --- Range coder with carry (Martin 1979): a 32-bit range is narrowed by 16-bit probabilities.

# A coder is three integers: the encoder's low end, or the decoder's offset into the range; the range; bytes written or read.
VALUE, RANGE, POSITION = 0, 1, 2
FULL, _BYTE = 1 << 32, 1 << 24  # between bits the range is within [_BYTE, FULL)
_EVEN = 1 << 15


@_compiled
def _carry(coder: np.ndarray, buffer: np.ndarray) -> None:
    coder[VALUE] -= FULL
    position = coder[POSITION] - 1
    while buffer[position] == 255:
        buffer[position] = 0
        position -= 1
    buffer[position] += 1


@_compiled
def _code_with(bit: int, probability: int, coder: np.ndarray, buffer: np.ndarray, decoding: bool) -> int:
    """Code a bit that is 1 with ``probability`` / 2**16. Returns it; when decoding, ``bit`` is not looked at."""
    width = coder[RANGE]
    bound = (width * probability) >> 16
    if decoding:
        bit = 1 if coder[VALUE] < bound else 0
    if bit:
        width = bound
    else:
        width -= bound
        if decoding:
            coder[VALUE] -= bound
        else:
            coder[VALUE] += bound
            if coder[VALUE] >= FULL:
                _carry(coder, buffer)
    while width < _BYTE:
        width <<= 8
        position = coder[POSITION]
        if decoding:
            following = np.int64(buffer[position]) if position < len(buffer) else np.int64(0)
            coder[VALUE] = (coder[VALUE] << 8) | following
        else:
            buffer[position] = coder[VALUE] >> 24
            coder[VALUE] = (coder[VALUE] << 8) & (FULL - 1)
        coder[POSITION] = position + 1
    coder[RANGE] = width
    return bit


@_compiled
def finish(coder: np.ndarray, buffer: np.ndarray) -> int:
    """End an encoded stream; returns its length. One byte is enough: the range holds a multiple of ``_BYTE``."""
    coder[VALUE] += _BYTE - 1
    if coder[VALUE] >= FULL:
        _carry(coder, buffer)
    buffer[coder[POSITION]] = coder[VALUE] >> 24
    return coder[POSITION] + 1


# --- Adaptive bits.

# An adaptive probability is a word of 31 bits: 21 bits of P(bit is 1), and 10 bits that count what it has seen.
_COUNT_BITS = 10
_MOST_SEEN = (1 << _COUNT_BITS) - 1
UNSEEN = 1 << 30
_CERTAIN = (1 << 21) - 1
# The n-th bit moves it by 1 / (n + 1.6): the mean of all it has seen, and later of about the last thousand.
_RATES = np.array([(10 << 16) // (10 * n + 16) for n in range(_MOST_SEEN + 1)], dtype=np.int64)
_LEAST = 16  # of 2**16: the lowest probability to code with


@_compiled
def _learn(words: np.ndarray, index: int, bit: int) -> None:
    word = int(words[index])
    probability, count = word >> _COUNT_BITS, word & _MOST_SEEN
    if bit:
        probability += ((_CERTAIN - probability) * _RATES[count]) >> 16
    else:
        probability -= (probability * _RATES[count]) >> 16
    words[index] = (probability << _COUNT_BITS) | min(count + 1, _MOST_SEEN)


@_compiled
def _code_bit(bit: int, first: int, second: int, words: np.ndarray, coder: np.ndarray, buffer: np.ndarray, decoding: bool) -> int:
    """Code a bit with the mean of two adaptive probabilities, and let both learn it."""
    probability = ((int(words[first]) >> _COUNT_BITS) + (int(words[second]) >> _COUNT_BITS)) >> 6
    bit = _code_with(bit, min(max(probability, _LEAST), (1 << 16) - _LEAST), coder, buffer, decoding)
    _learn(words, first, bit)
    _learn(words, second, bit)
    return bit


# --- Magnitudes.

LARGEST_CODE = 1 << 20  # a difference of two has one bit more
# Nodes 0.._MOST_BITS-1 ask "has the magnitude more bits than this?". Then come the bits below the leading one, the first three
# by trees of 7 nodes, one tree for each number of bits from 2 on (from 13 on they share one). The others are about even.
_MOST_BITS = 22
_TREE_SIZE, _TREE_DEPTH, _NUM_TREES = 8, 3, 12
_NUM_NODES = _MOST_BITS + _TREE_SIZE * _NUM_TREES
MOST_BYTES = (12 * (_MOST_BITS + _TREE_DEPTH) + _MOST_BITS) // 8 + 1  # of one code: 12 bits for each bit at _LEAST


@_compiled
def _code_magnitude(
    magnitude: int, first: int, second: int, words: np.ndarray, coder: np.ndarray, buffer: np.ndarray, decoding: bool
) -> int:
    num_bits = 0
    while num_bits < _MOST_BITS and _code_bit(
        1 if magnitude >> num_bits else 0, first + num_bits, second + num_bits, words, coder, buffer, decoding
    ):
        num_bits += 1
    if num_bits < 2:
        return num_bits
    tree = _MOST_BITS + _TREE_SIZE * (min(num_bits - 2, _NUM_TREES - 1))
    num_even = max(num_bits - 1 - _TREE_DEPTH, 0)
    prefix = 1
    for k in range(num_bits - 2, num_even - 1, -1):
        node = tree + prefix
        prefix = 2 * prefix + _code_bit((magnitude >> k) & 1, first + node, second + node, words, coder, buffer, decoding)
    for k in range(num_even - 1, -1, -1):
        prefix = 2 * prefix + _code_with((magnitude >> k) & 1, _EVEN, coder, buffer, decoding)
    return prefix


# --- The magnitude to expect: column factor times row factor, in fixed point.

_UNIT = 8  # fraction bits of magnitudes and column factors
_ROW_UNIT = 12  # fraction bits of row factors
START = 2 << _UNIT  # expected before anything is known
_LARGEST, _SMALLEST = 1 << 30, 2  # limits of column factors
_LARGEST_ROW, _SMALLEST_ROW = 1 << 28, 1 << 4
# Estimates start from the mean over columns, and from that of the last rows, with the weight of so many codes.
_COLUMN_PRIOR, _ROW_PRIOR = 2, 6

# A context is a bucket of expected magnitude (a quarter of an octave) and a trellis state. The second prediction's buckets
# are shifted by half their width, so that their mean interpolates.
_NUM_BUCKETS, _NUM_STATES = 100, 8
_NUM_CONTEXTS = _NUM_BUCKETS * _NUM_STATES
NUM_WORDS = 2 * _NUM_CONTEXTS * _NUM_NODES
# Logarithms in eighths of an octave, linear within the octave and rounded down.
_LOG_BITS = 12
_LOGS = np.array(
    [0] + [8 * (n.bit_length() - 1) + ((n << 3 >> (n.bit_length() - 1)) & 7) for n in range(1, 1 << _LOG_BITS)], dtype=np.int64
)


@_compiled
def _eighths(value: int) -> int:
    octaves = 0
    while value >> _LOG_BITS:
        value >>= 1
        octaves += 1
    return 8 * octaves + _LOGS[value]


@_compiled
def _row_factor(row_sum: int, row_expected: int, mean: int, typical: int) -> int:
    """What the row's magnitudes are in proportion to the columns' expectation, from those so far."""
    prior = _ROW_PRIOR * mean
    factor = ((row_sum << _ROW_UNIT) + prior * typical) // (row_expected + prior)
    return min(max(factor, _SMALLEST_ROW), _LARGEST_ROW)


# --- Linear prediction from the codes to the left: normalised least mean squares, a filter for each column.

_TRIAL = 64  # rows after which a predictor that does not pay is given up
_MOST_COLUMNS = 1024  # filters grow with the square
_LARGEST_WEIGHT, _WEIGHT_UNIT = 1 << 20, 16
_LARGEST_INPUT = 1 << 14
_STEP = 3  # the step size is 2**-_STEP
_GUARD = 14  # further fraction bits of the gain


@_compiled
def _predict(weights: np.ndarray, inputs: np.ndarray, count: int) -> int:
    total = 0
    for k in range(count):
        total += int(weights[k]) * int(inputs[k])
    prediction = (total + (1 << (_WEIGHT_UNIT - 1))) >> _WEIGHT_UNIT
    return min(max(prediction, -LARGEST_CODE), LARGEST_CODE)


@_compiled
def _adapt(weights: np.ndarray, inputs: np.ndarray, count: int, error: int, energy: int) -> None:
    error = min(max(error, -_LARGEST_INPUT), _LARGEST_INPUT)
    gain = (error << (_WEIGHT_UNIT + _GUARD - _STEP)) // (energy + 1)
    for k in range(count):
        weight = int(weights[k]) + ((gain * int(inputs[k])) >> _GUARD)
        weights[k] = min(max(weight, -_LARGEST_WEIGHT), _LARGEST_WEIGHT)


# --- A matrix.


@_compiled
def code_matrix(
    codes: np.ndarray,
    next_state: np.ndarray,
    quantiser: np.ndarray,
    words: np.ndarray,
    carried: np.ndarray,
    coder: np.ndarray,
    buffer: np.ndarray,
    decoding: bool,
) -> bool:
    """Code a matrix (int32) row by row; when decoding, ``codes`` is filled in.

    ``words`` and ``carried`` hold what is learnt from one matrix to the next: adaptive bits, and the mean magnitude. Where
    there is no trellis, ``next_state`` has one state. Returns False if the encoder's buffer is too short.
    """
    num_rows, num_columns = codes.shape
    trellis = len(quantiser) > 1
    states = np.zeros(num_columns, dtype=np.int64)
    sums, expected, sizes = np.zeros((3, num_columns), dtype=np.int64)
    mean, typical = int(carried[0]), 1 << _ROW_UNIT
    learning = num_rows > _TRIAL and num_columns <= _MOST_COLUMNS
    weights = np.zeros((num_columns if learning else 0, num_columns + 1), dtype=np.int32)
    inputs = np.zeros(num_columns + 1, dtype=np.int32)
    plain = left = mean_energy = 0  # decaying sums of |code| and of |code - prediction|; mean energy of a row
    for i in range(num_rows):
        if not decoding and coder[POSITION] + MOST_BYTES * (num_columns + 1) > len(buffer):
            return False
        for j in range(num_columns):
            expected[j] = max((sums[j] + _COLUMN_PRIOR * mean) // (i + _COLUMN_PRIOR), _SMALLEST)
        row_sum = row_expected = row_plain = row_left = 0
        predicting = 64 * left < 63 * plain
        inputs[0] = min(mean >> _UNIT, _LARGEST_INPUT)  # a constant, for the column's mean
        energy = int(inputs[0]) ** 2
        for j in range(num_columns):
            state = states[j]
            factor = _row_factor(row_sum, row_expected, mean, typical)
            scale = _eighths(((expected[j] * factor) >> _ROW_UNIT) + 3)
            first = (min(scale >> 1, _NUM_BUCKETS - 1) * _NUM_STATES + state) * _NUM_NODES
            second = (min((scale + 1) >> 1, _NUM_BUCKETS - 1) * _NUM_STATES + state + _NUM_CONTEXTS) * _NUM_NODES
            prediction = _predict(weights[j], inputs, j + 1) if learning else 0
            offset = prediction if predicting else 0

            difference = codes[i, j] - offset
            size = _code_magnitude(abs(difference), first, second, words, coder, buffer, decoding)
            if decoding:
                negative = size != 0 and _code_with(0, _EVEN, coder, buffer, True) != 0
                codes[i, j] = min(max(offset - size if negative else offset + size, -LARGEST_CODE), LARGEST_CODE)
            elif size != 0:
                _code_with(1 if difference < 0 else 0, _EVEN, coder, buffer, False)

            code = int(codes[i, j])
            if learning:
                _adapt(weights[j], inputs, j + 1, code - prediction, energy + (mean_energy >> 6))
                inputs[j + 1] = min(max(code, -_LARGEST_INPUT), _LARGEST_INPUT)
                energy += int(inputs[j + 1]) ** 2
                row_plain += abs(code)
                row_left += abs(code - prediction)
            if trellis:  # the second quantiser's values lie half a step further in
                sizes[j] = (2 * size - (quantiser[state] if size else 0)) << (_UNIT - 1)
                states[j] = next_state[state, code & 1]
            else:
                sizes[j] = size << _UNIT
            row_sum += sizes[j]
            row_expected += expected[j]

        factor = _row_factor(row_sum, row_expected, mean, typical)
        total = 0
        for j in range(num_columns):
            sums[j] += min((sizes[j] << _ROW_UNIT) // factor, _LARGEST)
            total += sums[j]
        mean = max(total // (num_columns * (i + 1)), _SMALLEST)
        typical += (factor - typical) >> 3
        if learning:
            plain += row_plain - (plain >> 5)
            left += row_left - (left >> 5)
            mean_energy += (energy - mean_energy) // min(i + 1, 16)
            if i == _TRIAL and 64 * left >= 63 * plain:
                learning = False
    carried[0] = min(max((mean * typical) >> _ROW_UNIT, _SMALLEST), _LARGEST)
    return True
