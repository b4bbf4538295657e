"""`python -m train` in a checkout: the same as `scratch-gpt`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(package=__package__))
