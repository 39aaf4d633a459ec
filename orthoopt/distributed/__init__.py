"""Many processes: matrices are gathered to owners, computed once, and their updates sent back; see docs/distributed.md.

Imported at the first step of a program that has initialised ``torch.distributed``, never before.
"""
