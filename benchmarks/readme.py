"""Puts the tables of stored results into the README.

python -m lesionrt.benchmarks.readme README.md benchmarks/results/bench-*.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

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
        If it has no such markers.
    """
    if not results:
        raise UsageError("no results; " + USAGE)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the text has no {BEGIN.strip()} with {END.strip()} after it, on lines of their own")
    tables = "\n".join(readme_table(json.loads(path.read_text())) for path in sorted(results))
    return before + begin + tables + end + after


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
