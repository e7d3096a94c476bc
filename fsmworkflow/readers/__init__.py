"""Readers of other engines' files: each maps a definition to a Workflow, and refuses by name what it cannot map."""
