"""One thread per test process: sums are the same wherever, and processes do not take turns."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported
