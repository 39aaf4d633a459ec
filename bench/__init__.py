"""Benches: what a step costs, and what an optimizer reaches. The protocol is in README.md beside this file."""
