"""Runs that answer one question: equal budgets, one difference, several seeds.

A study is a file ``questions/NAME.yaml``, see :class:`tests.benchmarks.studies.study.Study`::

    python -m tests.benchmarks.studies                what there is, and how much of it has been run
    python -m tests.benchmarks.studies run NAME       makes the runs that have no record yet;
                                                      --again: all, to say what moved since
    python -m tests.benchmarks.studies judge NAME     compares their students on synthetic images
    python -m tests.benchmarks.studies tables         writes docs/benchmarks.md

**Decisions are made by agreement with the teacher on a pool of synthetic images**, never on test
images. The probes that a run holds back will not do: an arm that makes easy images agrees on easy
probes. So the generators of all of a seed's runs, as they had become by the end, make as many
images each, and every student is asked about those of all other arms. Where two arms are compared,
both are asked about the images of the third ones only: who makes easy images has no advantage.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys

from tests.benchmarks.studies.figures import on_pool
from tests.benchmarks.studies.study import QUESTIONS, judge, records, run, study


def show(names: list[str]) -> None:
    """Prints what has been run of each study."""
    for name in names:
        asked, done = study(name), records(name)
        judged = sum(not math.isnan(on_pool(record)) for record in done.values())
        wanted = len(asked.arms) * len(asked.seeds)
        print(f"{name}: {len(done)} of {wanted} runs, {judged} judged. {asked.title}")


def main() -> None:
    names = sorted(path.stem for path in QUESTIONS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command")
    for command in ("run", "judge"):
        of_one = commands.add_parser(command)
        of_one.add_argument("study", choices=names)
    commands.choices["run"].add_argument("--seeds", type=int, nargs="*", default=())
    commands.choices["run"].add_argument("--arms", nargs="*", default=())
    commands.choices["run"].add_argument("--again", action="store_true")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "run":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the run that is made ends, too
        run(options.study, options.seeds, options.arms, again=options.again)
    elif options.command == "judge":
        judge(options.study)
    elif options.command == "tables":
        from tests.benchmarks.studies.tables import write_tables  # matplotlib takes its time

        write_tables()
    else:
        show(names)


if __name__ == "__main__":
    main()
