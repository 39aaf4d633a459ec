"""Write the routing that the rules expect: ``python tests/make_routing.py [family [model type ...]]``."""

from __future__ import annotations

import sys

import architectures
import routing_files
from routing_rules import expected_routing


def text_of(family: str, name: str) -> str:
    """What the rules say of a model type, as a file's text."""
    expected = expected_routing(architectures.build(name, family=family))
    return routing_files.write(architectures.class_name(name, family), expected)


def main(arguments: list[str]) -> None:
    """Write the files of a family, all or the model types named."""
    for family in arguments[:1] or architectures.FAMILIES:
        for name in arguments[1:] or architectures.names(family) + architectures.variants(family):
            path = routing_files.file_of(family, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text_of(family, name))


if __name__ == "__main__":
    main(sys.argv[1:])
