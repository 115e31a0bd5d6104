"""Do penalties make filters more orthogonal than chance has them, and does that help?"""

from .. import command_line
from .config import PRESETS
from .train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
