"""GPUs that a dry run can be asked about; `flops.py` has how fast they are."""

from __future__ import annotations

GPUS: dict[str, float] = {
    "A100": 80.0,
    "A10": 24.0,
    "B200": 180.0,
    "GH200": 96.0,
    "H100": 80.0,
    "H200": 141.0,
    "L4": 24.0,
    "L40S": 48.0,
    "MI300X": 192.0,
}
"""Name -> memory in GB, as their vendors state it; the larger of two where there are two."""
