"""Do penalties make filters more orthogonal than chance has them, and does that help?"""

from experiments import command_line
from experiments.self_orthogonality.config import PRESETS
from experiments.self_orthogonality.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
