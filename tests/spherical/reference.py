"""The authors' program of JoSE as a specification in NumPy: one thread, float32, its generator.

It follows the rules of ``src/jose.c`` (github.com/yumeng5/Spherical-Text-Embedding): sequential
updates in place, a 64-bit linear congruential generator, a table of negatives. Every event is
recorded, so that other code can replay it.
"""

import math
from typing import NamedTuple

import numpy as np

TABLE = 10**8  # entries of the program's table of negatives


class Event(NamedTuple):
    """One triple that was trained on."""

    rate: float
    center: int
    context: int  # word, or -1 for a document
    document: int  # or -1
    negative: int


class Generator:
    """r ← 25214903917 r + 11 mod 2⁶⁴."""

    def __init__(self, seed):
        self.state = seed

    def draw(self):
        self.state = (self.state * 25214903917 + 11) % 2**64
        return self.state


def normalize(x):
    return (x / np.sqrt(np.sum(x * x, dtype=np.float32))).astype(np.float32)


def vocabulary(lines, min_count):
    """``</s>`` first, then by falling count, ties by falling bytes."""
    counts = {}
    for line in lines:
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
    words = [word for word in counts if counts[word] >= min_count]
    words.sort(key=lambda word: word.encode(), reverse=True)
    words.sort(key=lambda word: -counts[word])
    return ["</s>", *words], [len(lines), *(counts[word] for word in words)]


def table_entry(place, ends):
    """The table goes on to the next word behind the place where its share is passed."""
    return min(int(np.searchsorted(ends, (place - 1) / TABLE)), len(ends) - 1)


def initial_tables(num_words, num_documents, size):
    """Contexts, then centers, then documents, from one stream."""
    generator = Generator(1)

    def table(rows):
        values = [
            [((generator.draw() & 0xFFFF) / 65536 - 0.5) / size for _ in range(size)]
            for _ in range(rows)
        ]
        return np.array([normalize(np.array(row, np.float32)) for row in values])

    contexts, centers = table(num_words), table(num_words)
    return centers, contexts, table(num_documents)


def triple(center, context, negative, rate, margin):
    """The three new vectors, or None where the hinge is met."""
    f, h, old = np.dot(center, context), np.dot(negative, context), negative
    if f - h >= margin:
        return None
    moved = normalize(center + rate * (1 - f) * (context - f * center))
    if negative is center:  # one row: the second update comes on top of the first
        negative = moved
    return (
        moved,
        normalize(context + rate * (1 - (f - h)) * (center - old - (f - h) * context)),
        normalize(negative + rate * 2 * h * (h * negative - context)),
    )


def train(lines, *, size=8, window=2, passes=1, min_count=1, rate=0.04, margin=0.15, negatives=2,
          sample=1e-3):  # fmt: skip
    """Returns words, the tables before and after, and the events in order."""
    words, counts = vocabulary(lines, min_count)
    number = {word: row for row, word in enumerate(words)}
    total = sum(counts)
    shares = np.array(counts, float) ** 0.75
    ends = np.cumsum(shares / shares.sum())
    tables = initial_tables(len(words), len(lines), size)
    start = tuple(t.copy() for t in tables)
    centers, contexts, documents = tables
    random, events = Generator(0), []

    def draw_negative():
        drawn = random.draw()
        return table_entry((drawn >> 16) % TABLE, ends) or drawn % (len(words) - 1) + 1

    def update(targets, target, center, negative):
        first, second = centers[center], centers[negative]
        second = first if negative == center else second
        moved = triple(first, targets[target], second, rate, margin)
        if moved is not None:
            centers[center], targets[target] = moved[0], moved[1]
            centers[negative] = moved[2]

    for _ in range(passes):
        for document, line in enumerate(lines):
            sentence = []
            for word in (number[w] for w in line.split() if w in number):
                count = counts[word]
                keep = (math.sqrt(count / (sample * total)) + 1) * (sample * total) / count
                if keep >= (random.draw() & 0xFFFF) / 65536:
                    sentence.append(word)
            for position, word in enumerate(sentence):
                reach = window - random.draw() % window
                for place in range(position - reach, position + reach + 1):
                    if place == position or not 0 <= place < len(sentence):
                        continue
                    for _ in range(negatives):
                        negative = draw_negative()
                        if negative == word:
                            continue
                        events.append(Event(rate, sentence[place], word, -1, negative))
                        update(contexts, word, sentence[place], negative)
                for _ in range(negatives):
                    negative = draw_negative()
                    if negative == word:
                        continue
                    events.append(Event(rate, word, -1, document, negative))
                    update(documents, document, word, negative)
    return words, start, tables, events
