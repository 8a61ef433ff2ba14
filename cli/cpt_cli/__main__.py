"""`python -m cpt_cli`: the same program as the console script `cpt`."""

import sys

from cpt_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
