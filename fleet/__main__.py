"""`python -m fleet COMMAND`. Exit status: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted."""

import argparse
import sys
from collections.abc import Sequence

from fleet import ask, demo, engines, plan, serve
from planner.errors import PlanError
from runtime.errors import Refusal


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fleet", description="TensorRT-LLM engines on Triton, as code.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (plan, serve, ask, engines, demo):
        command.add_parser(commands)
    args = parser.parse_args(arguments)
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
