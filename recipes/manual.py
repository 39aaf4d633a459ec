"""`builtin:manual`: Python's manual in English prose, which no model of the standard library's source has seen.

`pydoc_data/topics.py` holds it, one text a topic, and `builtin:stdlib` leaves that file out. It is small, at hand
everywhere, and of another kind than the code around it: what models are fine-tuned on where nothing else is given.
"""

from __future__ import annotations

import hashlib
import platform

from orthoopt.recipes.corpus import Corpus, CorpusInfo, hold_out
from orthoopt.recipes.errors import RecipeError


def manual_corpus(fraction: float) -> Corpus:
    """Every topic of the manual as a document, `fraction` of them held out by a hash of their names.

    Raises `RecipeError` where Python was installed without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RecipeError(
            "builtin:manual needs pydoc_data.topics, which this Python was installed without; use --data text:PATH"
        ) from error
    digest, names = hashlib.sha256(), sorted(topics)
    for name in names:
        digest.update(f"{name}\0{topics[name]}\0".encode())
    held = hold_out(names, fraction)
    train = [topics[name] for name, out in zip(names, held, strict=True) if not out]
    validation = [topics[name] for name, out in zip(names, held, strict=True) if out]
    size = sum(len(text.encode()) for text in topics.values())
    info = CorpusInfo("builtin:manual", digest.hexdigest(), len(names), size, platform.python_version())
    return Corpus(info, train, validation)
