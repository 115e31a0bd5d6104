"""Windows of random length, as the original trains on them.

    base length = 70 with probability 0.95, else 35;   length ~ max(5, N(base length, 5))

The learning rate of a step is multiplied by its length / 70, so that a token counts the same in a
short window as in a long one. Shapes are static: every window has the columns of the longest, those
behind its length are padding. The lengths of an epoch are drawn once; as every epoch cuts the text
at another offset, the cuts fall elsewhere each time.

Source: Merity, Keskar, Socher, arXiv 1708.02182, section 4.1.
"""

import dataclasses
from typing import Any

import numpy as np

from zoo import _checks as checks
from zoo.data.iterator import BatchIterator, host_rows
from zoo.data.permutation import draw


def draw_lengths(num_columns: int, *, num_steps: int, seed: int) -> np.ndarray:
    """Lengths of windows, int32, whose sum is at least ``num_columns`` only with the last."""
    generator = np.random.default_rng((seed, num_steps))
    lengths: list[int] = []
    while sum(lengths) < num_columns:
        base = num_steps if generator.random() < 0.95 else num_steps / 2
        lengths.append(max(5, int(generator.normal(base, 5))))
    return np.array(lengths, np.int32)


class RandomWindows(BatchIterator):
    """As ``zoo.data.StreamPipeline``, with windows of the lengths above.

    A batch has also ``mask``, bool [B, T]: the columns of the window. Where ``mask`` is true and
    ``valid`` is not, at the end of an epoch, the text is read but not counted.
    """

    def __init__(
        self,
        ids: np.ndarray,
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        depends_on: Any = None,
    ):
        seed = checks.count("seed", seed)
        rows = host_rows(batch_size, None, None)
        longest = -(-(len(ids) - 1) // batch_size)
        self.lengths = draw_lengths(longest, num_steps=num_steps, seed=seed)
        batches = _Windows(np.asarray(ids, np.int32), batch_size, rows, self.lengths, seed)
        identity = {"kind": "random windows", "tokens": len(ids), "batch_size": batch_size}
        identity |= {"num_steps": num_steps, "seed": seed}
        super().__init__(
            batches,
            num_epochs=None,
            num_workers=0,
            identity=identity,
            content=(batches.ids, depends_on),
        )


@dataclasses.dataclass(frozen=True)
class _Windows:
    ids: np.ndarray  # int32 [N]
    batch_size: int
    rows: range  # of the global batch
    lengths: np.ndarray  # int32 [batches]
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        epoch, in_epoch = divmod(number, self.batches_per_epoch)
        pairs = len(self.ids) - 1
        offset = draw(self.seed, epoch) % pairs
        rows = np.array(self.rows)[:, None]
        first, past = rows * pairs // self.batch_size, (rows + 1) * pairs // self.batch_size
        position = np.arange(self.lengths.max())[None, :]
        columns = first + self.lengths[:in_epoch].sum() + position
        index = (columns + offset) % pairs
        mask = np.broadcast_to(position < self.lengths[in_epoch], columns.shape)
        return {
            "inputs": self.ids[index],
            "targets": self.ids[index + 1],
            "valid": mask & (columns < past),
            "mask": np.array(mask),
            "start": np.full(len(self.rows), in_epoch == 0),
        }
