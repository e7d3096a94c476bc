"""Functions for steps, conditions and files: checks that say what is wrong with data, and changes that make other data.

    known = required("email") & ranges(age=(0, 150))
    clean = normalise(email=["trim", "lowercase"]) | convert(age="int")

    order.step("clean", initial=True, then=[(known, "sold"), "refused"])(clean)

A check is a condition as it stands, a change is a step, or the `update=` of a transition; either is also called with a
dict. What is checked, converted, normalised, replaced or given another name is named as by `field()`: "customer.email"
looks inside; other changes are of the fields at the top. What is missing or None is passed over, save by `required`.
"""

from __future__ import annotations

from fsmworkflow.functions.changes import (
    Change,
    add_metadata,
    chain,
    convert,
    enrich,
    filter_fields,
    flatten,
    map_fields,
    normalise,
    replace,
    split,
    validate,
)
from fsmworkflow.functions.checks import (
    Check,
    data_valid,
    depends_on,
    has_required_fields,
    lengths,
    patterns,
    ranges,
    required,
    schema,
    types,
    unique,
)
from fsmworkflow.functions.words import Invalid

__all__ = [
    "Change", "Check", "Invalid", "add_metadata", "chain", "convert", "data_valid", "depends_on", "enrich",
    "filter_fields", "flatten", "has_required_fields", "lengths", "map_fields", "normalise", "patterns", "ranges",
    "replace", "required", "schema", "split", "types", "unique", "validate",
]  # fmt: skip
