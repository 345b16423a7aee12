"""``python -m hypha`` is ``python -m hypha.server``."""

import sys

from hypha.server import main

if __name__ == "__main__":
    sys.exit(main())
