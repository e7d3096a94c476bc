"""Bridges to what runs around a program. Each file is imported by its own name."""
