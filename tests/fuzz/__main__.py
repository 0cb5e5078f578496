"""`python -m tests.fuzz [READER...]`: read mutated files; keep those that break the contract."""

import argparse
import sys
from pathlib import Path

from tests.fuzz.campaign import Outcome, run
from tests.fuzz.readers import READERS


def main() -> int:
    """1 when an input broke the contract."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)}")
    parser.add_argument("--count", type=int, default=100_000, help="inputs for each reader")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--seconds", type=float, help="for each reader")
    parser.add_argument("--keep", type=Path, help="write one input for each kind of fault there")
    given = parser.parse_args()
    unknown = set(given.readers) - set(READERS)
    if unknown:
        parser.error(f"no reader: {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
    failed = False
    for name in given.readers or READERS:
        outcome = run(
            name, seed=given.seed, count=given.count, seconds=given.seconds, first=given.first
        )
        _say(outcome)
        failed = failed or bool(outcome.faults)
        if given.keep is not None:
            _keep(outcome, given.keep)
    return int(failed)


def _say(outcome: Outcome) -> None:
    counts = ", ".join(f"{count} {how}" for how, count in sorted(outcome.counts.items()))
    lines = [f"{outcome.reader}: {outcome.inputs} inputs in {outcome.seconds:.0f} s: {counts}"]
    for kind in dict.fromkeys(fault.kind for fault in outcome.faults):
        faults = [fault for fault in outcome.faults if fault.kind == kind]
        first = faults[0]
        lines.append(f"  {len(faults)} times, first {first.number} ({first.target}): {first.why}")
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def _keep(outcome: Outcome, folder: Path) -> None:
    """READER/NUMBER/TARGET, as the corpus has them."""
    for kind in dict.fromkeys(fault.kind for fault in outcome.faults):
        fault = next(fault for fault in outcome.faults if fault.kind == kind)
        path = folder / outcome.reader / str(fault.number) / fault.target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fault.data)


if __name__ == "__main__":
    sys.exit(main())
