"""The reference of `sharding`, alone in its process: prints tokens/s."""

import sys
from pathlib import Path

from tests.benchmarks.sharding import plain

if __name__ == "__main__":
    print(plain(Path(sys.argv[1])))
