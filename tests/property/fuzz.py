"""Random programs with effects and views, as far as one likes: compiled = eager.

    python -m tests.property.fuzz --programs 2000 --first 0

Prints each program that is wrong or crashes, and the counts. Exits with 1 when there is one.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections import Counter

import torch

from tests.property.effects import effects_program
from tests.property.test_effects import check, unexpected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts = Counter[str]()
    for seed in range(arguments.first, arguments.first + arguments.programs):
        try:
            stats = check(effects_program(seed))
            counts["kernels"] += stats.kernels_launched
            counts["right"] += 1
            counts["not captured by PyTorch"] += any(f.level != "op" for f in stats.fallbacks)
            for reason in unexpected(stats):
                counts["fell back"] += 1
                print(f"FELL BACK {seed}: {reason}\n{effects_program(seed)}", flush=True)
        except AssertionError as error:
            counts["wrong"] += 1
            print(f"WRONG {seed}: {error}\n{effects_program(seed)}", flush=True)
        except Exception:
            counts["crashed"] += 1
            print(f"CRASHED {seed}:\n{traceback.format_exc()}\n{effects_program(seed)}", flush=True)
        if (seed + 1 - arguments.first) % 100 == 0:
            print(f"after {seed + 1 - arguments.first}: {dict(counts)}", flush=True)
    print(dict(counts))
    return int(bool(counts["wrong"] or counts["crashed"] or counts["fell back"]))


if __name__ == "__main__":
    sys.exit(main())
