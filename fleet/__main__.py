"""`python -m fleet COMMAND`. Exit status: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from planner.errors import PlanError
from runtime.errors import Refusal

COMMANDS = ("plan", "synth", "diff", "policy", "serve", "ask", "bench", "engines", "demo")
"""Each is a module of this package."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fleet", description="TensorRT-LLM engines on Triton, as code.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    given = sys.argv[1:] if arguments is None else arguments
    # All of them together take longer to import than most take to run.
    for name in (given[0],) if given and given[0] in COMMANDS else COMMANDS:
        import_module(f"fleet.{name}").add_parser(commands)
    args = parser.parse_args(given)
    try:
        return args.run(args)
    except (Refusal, PlanError) as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader, `head` perhaps, has seen enough
        return 1


if __name__ == "__main__":
    sys.exit(main())
