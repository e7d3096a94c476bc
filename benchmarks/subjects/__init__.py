"""This package, measured through its public names only."""
