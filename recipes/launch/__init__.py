"""`orthoopt launch`: scripts and configs that start the recipes on many processes, as files to copy.

orthoopt launch                             # what there is
orthoopt launch slurm.sh > my_job.sh
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable

from orthoopt.recipes.errors import nearest


def files() -> dict[str, Traversable]:
    """Name -> file, in order of name."""
    found = (entry for entry in resources.files(__name__).iterdir() if entry.name.endswith((".sh", ".yaml")))
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the file that is named, or without a name what each is for; 2 for a name that is none of them."""
    words = list(sys.argv[1:] if argv is None else argv)
    known = files()
    if len(words) == 1 and words[0] in known:
        print(known[words[0]].read_text(encoding="utf-8"), end="")
        return 0
    asked = not words or words[0] in ("-h", "--help")
    if not asked:
        print(f"orthoopt launch: no file {' '.join(words)!r}{nearest(words[0], known)}\n", file=sys.stderr)
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {_about(file)}" for name, file in known.items()]
    text = "\n".join(["usage: orthoopt launch FILE > MY_FILE", "", *lines])
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _about(file: Traversable) -> str:
    """The first line of a file's comment."""
    comments = (line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next(comments)[2:].rstrip(":")
