"""What a step sends."""
