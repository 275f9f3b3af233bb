"""The numbers that `toc quantize --record` counted of tokens, by the names that a check can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toc_cli.report.verdict import Values


def datasets(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What was counted per dataset; none where the record is of another command."""
    return (record.get("tokens") or {}).get("datasets", ())


def values(dataset: Mapping[str, Any]) -> Values:
    """Every number of a dataset: `perplexity` of all tables (their geometric mean), `level1.perplexity` and `level1.head0.perplexity`
    of one, `collision_rate` of whole ids and `prefix2.collision_rate` of their first two tokens."""
    codes, used = dataset["codes"], dataset["used_codes"]
    found: dict[str, float | None] = {
        "used_codes": used, "dead_codes": codes - used, "perplexity": dataset["perplexity"]
    }  # fmt: skip
    several = len(dataset["tables"]) > 1
    for table in dataset["tables"]:
        own = use(table)
        found |= {f"{place(dataset, table)}.{name}": value for name, value in own.items()} if several else own
    for ids in dataset["tuples"] or ():
        own = id_counts(ids)
        found |= {f"prefix{ids['length']}.{name}": value for name, value in own.items()}
        if ids["length"] == len(dataset["tables"]):
            found |= own
    return found


def place(dataset: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    parts = (("level", "level"), ("head", "head"))
    counts = {key: len({other[key] for other in dataset["tables"]}) for key, _ in parts}
    return ".".join(f"{word}{table[key]}" for key, word in parts if counts[key] > 1)


def use(table: Mapping[str, Any]) -> dict[str, float | None]:
    bits = table["bits_per_token"]
    return {
        "used_codes": table["used_codes"],
        "dead_codes": table["codes"] - table["used_codes"],
        "perplexity": table["perplexity"],
        "entropy_bits": table["entropy_bits"],
        "entropy": table["entropy_bits"] / bits if bits else None,
    }


def id_counts(ids: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        "distinct_ids": ids["distinct"],
        "largest_id": ids["largest"],
        "rows_alone": ids["alone"],
        "collision_rate": ids["collision_rate"],
    }
