"""From a folder with a log to verdicts, the report, and an exit status."""

from __future__ import annotations

from pathlib import Path

from pccl_py.report.oracle import Verdict
from stress.storm import figures, history, oracle, page, records
from stress.storm.history import History


def read(folder: Path) -> History:
    """Raises ValueError for a log that is none."""
    with (folder / "log.jsonl").open() as log:
        return history.of(records.parse_all(log))


def schedule(path: Path) -> History:
    """What was done in a storm. Raises ValueError for a file that is no schedule of one."""
    with path.open() as file:
        log = records.parse_all(file)
    made = [one for one in log if isinstance(one, records.Began | records.Fault)]
    if len(made) < 2 or not isinstance(made[0], records.Began):
        raise ValueError(f"{path}: no schedule of a storm")
    found = History(made, made[0])
    found.faults += [one for one in made if isinstance(one, records.Fault)]
    return found


def judged(folder: Path, command: str) -> tuple[History, list[Verdict]]:
    """Writes report.html, too."""
    found = read(folder)
    verdicts = oracle.judge(found)
    (folder / "report.html").write_text(page.page(found, verdicts, command), encoding="utf-8")
    return found, verdicts


def conclude(folder: Path, command: str) -> int:
    """Prints what there was and what was wrong; 1 if something was."""
    found, verdicts = judged(folder, command)
    print(f"chaos: seed {found.began.seed}: {figures.summary(found)}")
    for verdict in verdicts:
        if not verdict.ok:
            print(f"WRONG: {verdict.name}: {verdict.text}")
    bad = sum(not verdict.ok for verdict in verdicts)
    print(f"{len(verdicts) - bad} of {len(verdicts)} checks hold; {folder / 'report.html'}")
    if bad:
        print(f"again: {command}")
    return 1 if bad else 0
