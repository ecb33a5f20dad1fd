"""Puts the tables of stored results into the README.

python -m lesionrt.benchmarks.readme README.md benchmarks/results/bench-*.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lesionrt.benchmarks.bench_table import readme_table
from lesionrt.runtime.errors import InputError, LesionrtError, UsageError
from lesionrt.runtime.files import write_atomically

USAGE = "expected: python -m lesionrt.benchmarks.readme README.md benchmarks/results/bench-*.json"
BEGIN, END = "<!-- bench -->\n", "<!-- /bench -->\n"


def with_tables(text: str, results: Sequence[Path]) -> str:
    """A README's text with the results' tables between its markers, in the order of their paths.

    Raises
    ------
    UsageError
        If there are no results, which would empty it.
    InputError
        If it has no such markers, or a result is none of `lesionrt bench`.
    """
    if not results:
        raise UsageError("no results; " + USAGE)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the text has no {BEGIN.strip()} with {END.strip()} after it, on lines of their own")
    tables = "\n".join(readme_table(_report(path)) for path in sorted(results))
    return before + begin + tables + end + after


def _report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text at all
        raise InputError(f"{path}: is no JSON ({error}); expected a bench.json of `lesionrt bench`") from error
    if not isinstance(report, dict) or not {"baseline", "cases", "volume"} <= report.keys():
        raise InputError(f"{path}: is no result of `lesionrt bench`; give its bench.json")
    return report


def main(arguments: Sequence[str]) -> None:
    """Write the tables.

    Raises
    ------
    LesionrtError
        If a file cannot be used.
    """
    if not arguments:
        raise UsageError("no README; " + USAGE)
    readme, *stored = map(Path, arguments)
    for path in (readme, *stored):
        if not path.is_file():
            raise InputError(f"{path}: no such file; {USAGE}")
    write_atomically({readme: with_tables(readme.read_text(), stored).encode()})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LesionrtError as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(problem.exit_code) from problem
