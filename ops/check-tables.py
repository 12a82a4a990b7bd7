#!/usr/bin/env python3
"""Checks that other programs read a run's tables: pyarrow, DuckDB and Polars, each on its own.

    python ops/check-tables.py RUN_DIR

Works while the run goes on. Every table must have the same rows, columns and a sum over its
columns in all three, read by `tables/NAME/*.parquet` and, for pyarrow and Polars, by the folder
too; every column that a stage writes must carry its doc. Prints one line per table. Exit code: 0 when all
agree, 1 when something doesn't, 2 when it can't be checked (pip install -r ops/requirements.txt).
"""

import pathlib
import sys

try:
    import duckdb
    import polars
    import pyarrow.dataset
    import pyarrow.parquet
except ImportError as error:
    sys.exit(print(f"error: {error}\nhint: pip install -r ops/requirements.txt") or 2)


def parts_of(directory):
    """The table's parts now. A later step may add to them while we read, so all readers get this list."""
    return [str(path) for path in sorted(directory.glob("*.parquet"))]


def check(directory):
    """Reads one table with every program and returns what doesn't agree."""
    problems = []
    parts = parts_of(directory)
    if not parts:
        return ["has no part, not even one without rows"], 0, 0

    arrow = pyarrow.dataset.dataset(parts, format="parquet").to_table()
    names, rows = arrow.column_names, arrow.num_rows
    undocumented = [f.name for f in arrow.schema if b"doc" not in (f.metadata or {})]
    # A query's table has no part for its columns alone; what it computes has no doc either.
    if undocumented and (directory / "schema.parquet").exists():
        problems.append(f"columns without a doc: {', '.join(undocumented)}")

    duck = duckdb.sql(f"SELECT * FROM read_parquet({parts!r}, union_by_name = true)")
    if duck.columns != names:
        problems.append(f"DuckDB has the columns {duck.columns}, pyarrow {names}")
    found = duckdb.sql(f"SELECT count(*) FROM read_parquet({parts!r})").fetchall()[0][0]
    if found != rows:
        problems.append(f"DuckDB reads {found} rows, pyarrow {rows}")

    frame = polars.scan_parquet(parts).collect()
    if frame.columns != names or frame.height != rows:
        problems.append(f"Polars reads {frame.height} rows of {frame.columns}, pyarrow {rows} of {names}")

    for name in names:
        kind = arrow.schema.field(name).type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)):
            continue
        a = sorted(x for x in arrow[name].to_pylist() if x is not None and x == x)
        p = sorted(x for x in frame[name].to_list() if x is not None and x == x)
        d = sorted(x[0] for x in duck.select(f'"{name}"').fetchall() if x[0] is not None and x[0] == x[0])
        if not a == p == d:
            problems.append(f"column `{name}` has other values in one of the programs")

    # The ways people read a whole table, whatever is being written just now.
    pattern = str(directory / "*.parquet")
    whole = [
        ("pyarrow, folder", lambda: pyarrow.dataset.dataset(str(directory), format="parquet").count_rows()),
        ("DuckDB, glob", lambda: duckdb.sql(f"SELECT count(*) FROM '{pattern}'").fetchall()[0][0]),
        ("Polars, glob", lambda: polars.scan_parquet(pattern).select(polars.len()).collect().item()),
        ("Polars, folder", lambda: polars.scan_parquet(str(directory)).select(polars.len()).collect().item()),
    ]
    for reader, count in whole:
        try:
            found = count()
        except Exception as error:  # Whatever a reader raises is what we are here to report.
            problems.append(f"{reader}: {error}")
            continue
        if found < rows:
            problems.append(f"{reader}: {found} rows, earlier there were {rows}")
    return problems, rows, len(parts)


def main():
    if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1]).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    run = pathlib.Path(sys.argv[1])
    directories = sorted(path for path in run.glob("tables/*") if path.is_dir())
    if (run / "metrics").is_dir():
        directories.append(run / "metrics")
    if not directories:
        print(f"error: no tables in {run}\nhint: give the directory that `aha run` wrote", file=sys.stderr)
        return 2
    failed = False
    for directory in directories:
        problems, rows, parts = check(directory)
        print(f"{directory.relative_to(run)}: {rows} rows in {parts} parts: {'FAILED' if problems else 'ok'}")
        for problem in problems:
            print(f"  {problem}")
        failed = failed or bool(problems)
    print(f"pyarrow {pyarrow.__version__}, DuckDB {duckdb.__version__}, Polars {polars.__version__}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
