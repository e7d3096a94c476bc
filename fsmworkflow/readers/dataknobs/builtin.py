"""The validators and transformers that configurations of dataknobs-fsm name as builtin, by our functions of that kind.

Left out are those whose parameters are Python objects: they are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fsmworkflow import functions

__all__ = ["BUILTIN"]

Made = functions.Check | functions.Change
Make = Callable[..., Made]


def required(fields: list[str], allow_none: bool = False) -> Made:
    return functions.required(*fields, allow_none=allow_none)


def unique(fields: list[str], key: str | None = None) -> Made:
    return functions.unique(*fields, key=key)


def mapped(field_map: Mapping[str, str], drop_unmapped: bool = False, copy_unmapped: bool = True) -> Made:
    return functions.map_fields(field_map, drop=drop_unmapped or not copy_unmapped)


def normalized(normalizations: Mapping[str, Any], fields: list[str] | None = None) -> Made:
    every: str | Iterable[str] = normalizations.get("*", ())
    ways: dict[str, str | Iterable[str]] = {name: told for name, told in normalizations.items() if name != "*"}
    if fields:  # none but these
        ways, every = {name: ways.get(name, every) for name in fields}, ()
    return functions.normalise(every, **ways)


def converted(conversions: Mapping[str, str], strict: bool = False) -> Made:
    return functions.convert(strict=strict, **conversions)


def enriched(enrichments: Mapping[str, Any], overwrite: bool = False) -> Made:
    return functions.enrich(enrichments, overwrite=overwrite)


def split(split_field: str, output_field: str = "records") -> Made:
    return functions.split(split_field, into=output_field)


def flat(fields: list[str], depth: int = 1) -> Made:
    return functions.flatten(*fields, depth=depth)


BUILTIN: dict[str, Make] = {
    "has_required_fields": functions.has_required_fields,
    "data_valid": functions.data_valid,
    "add_metadata": functions.add_metadata,
    "validators.RequiredFieldsValidator": required,
    "validators.RangeValidator": lambda field_ranges: functions.ranges(**field_ranges),
    "validators.range_check": functions.ranges,
    "validators.PatternValidator": lambda field_patterns: functions.patterns(**field_patterns),
    "validators.pattern": functions.patterns,
    "validators.TypeValidator": lambda field_types: functions.types(**field_types),
    "validators.type_check": functions.types,
    "validators.LengthValidator": lambda field_lengths: functions.lengths(**field_lengths),
    "validators.length": functions.lengths,
    "validators.SchemaValidator": lambda schema: functions.schema(schema),
    "validators.UniqueValidator": unique,
    "validators.DependencyValidator": lambda dependencies: functions.depends_on(**dependencies),
    "validators.depends_on": functions.depends_on,
    "transformers.FieldMapper": mapped,
    "transformers.map_fields": lambda mapping, **more: mapped(mapping, **more),
    "transformers.ValueNormalizer": normalized,
    "transformers.normalize": lambda **fields: normalized(fields),
    "transformers.TypeConverter": converted,
    "transformers.convert_types": lambda **fields: converted(fields),
    "transformers.ValueReplacer": lambda replacements: functions.replace(**replacements),
    "transformers.replace_values": functions.replace,
    "transformers.ArrayFlattener": flat,
    "transformers.DataSplitter": split,
    "transformers.split_on": lambda field, output="records": split(field, output),
    "transformers.DataEnricher": enriched,
    "transformers.enrich": lambda **fields: functions.enrich(fields),
    "transformers.FieldFilter": functions.filter_fields,
    "transformers.filter_fields": functions.filter_fields,
}
"""By the names that configurations have for them."""
