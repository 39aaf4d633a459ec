"""Options of rules that take a polar factor by a chosen method: whether they may stand together, and what they cost."""

from orthoopt.newton_schulz import NS_DTYPES
from orthoopt.polar import check_method
from orthoopt.rules._base import Options


def check_polar(options: Options) -> None:
    """Raise ValueError unless ``method`` takes these ``ns_steps``, ``ns_coefficients`` and ``ns_dtype``."""
    check_method(options["method"], options["ns_steps"], options["ns_coefficients"], NS_DTYPES[options["ns_dtype"]])


def rescales(options: Options) -> bool:
    """Whether the method first rescales the shorter side by sums of magnitudes, which ties it to coordinates."""
    return options["ns_coefficients"] == "aol4" and options["method"] in ("newton_schulz", "gram")
