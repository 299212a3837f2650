"""`python -m tvm_mobilenet` is the same as the `tvm-mobilenet` command."""

from __future__ import annotations

import sys

from tvm_mobilenet.cli import main

if __name__ == "__main__":
    sys.exit(main())
