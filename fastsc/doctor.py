"""`python -m fastsc.doctor`: what works on this machine, and what to install where it fails."""

from __future__ import annotations

import sys

from fastsc.diagnostics.doctor import main

if __name__ == "__main__":
    sys.exit(main())
