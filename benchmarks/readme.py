"""Puts the tables of stored results into the README.

python -m lesionrt.benchmarks.readme README.md benchmarks/results/bench-*.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lesionrt.benchmarks.bench_table import readme_table
from lesionrt.runtime.errors import InputError
from lesionrt.runtime.files import write_atomically

BEGIN, END = "<!-- bench -->\n", "<!-- /bench -->\n"


def with_tables(text: str, results: Sequence[Path]) -> str:
    """A README's text with the results' tables between its markers.

    Raises
    ------
    InputError
        If it has no such markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the text has no {BEGIN.strip()} with {END.strip()} after it, on lines of their own")
    tables = "\n".join(readme_table(json.loads(path.read_text())) for path in results)
    return before + begin + tables + end + after


if __name__ == "__main__":
    readme, *stored = map(Path, sys.argv[1:])
    write_atomically({readme: with_tables(readme.read_text(), stored).encode()})
