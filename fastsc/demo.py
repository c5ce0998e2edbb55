"""`python -m fastsc.demo`: the main job on photographs that packages ship, and a picture of it."""

from __future__ import annotations

import sys

from fastsc.demos.photographs import main

if __name__ == "__main__":
    sys.exit(main())
