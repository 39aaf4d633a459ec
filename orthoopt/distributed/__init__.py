"""Steps over several ranks."""
