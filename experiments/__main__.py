"""Lists the experiments."""

from . import listing

if __name__ == "__main__":
    print(listing())
    print(f"\npython -m {__package__}.NAME --help lists the fields of one.")
