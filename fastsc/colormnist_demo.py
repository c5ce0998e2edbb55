"""`python -m fastsc.colormnist_demo`: is a network less fooled by colours that lie?"""

from __future__ import annotations

import sys

from fastsc.demos.colormnist import main

if __name__ == "__main__":
    sys.exit(main())
