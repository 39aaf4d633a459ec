"""Shapes of published models, by name, so that they can be looked at and trained from scratch without the Hub."""
