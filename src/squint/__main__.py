"""`python -m squint`, and what torchrun starts: `torchrun --nproc-per-node 2 -m squint run RECIPE`."""

import sys

from squint.cli import main

if __name__ == "__main__":
    sys.exit(main())
