"""Writes the YAML head of a dataset card, which the Hugging Face Hub and `load_dataset` read."""

from typing import Any

import msgspec

# The Hub's size categories: of fewer than 10^3 rows, than 10^4 and so on, and the last.
SIZES = (
    *("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M"),
    *("100M<n<1B", "1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T"),
)

DATA_FILES = {  # format to the only files that `load_dataset(folder)` shall read
    "parquet": "*.parquet",
    "huggingface": "data/train-*.parquet",
    "csv": "rows.csv",
    "jsonl": "rows.jsonl",
}


def head(summary: dict[str, Any]) -> str:
    """Returns YAML between two lines of dashes; empty for formats that are not in DATA_FILES."""
    if summary["format"] not in DATA_FILES:
        return ""
    data_files = [{"split": "train", "path": DATA_FILES[summary["format"]]}]
    fields = {
        **(_about(summary) if "features" in summary else {}),
        "configs": [{"config_name": "default", "data_files": data_files}],
    }
    return f"---\n{msgspec.yaml.encode(fields).decode()}---\n\n"


def _about(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns licence, size and features of a set for the Hub."""
    rows = sum(file["rows"] for file in summary["files"])
    size_bytes = sum(file["bytes"] for file in summary["files"])
    return {
        "pretty_name": summary["name"],
        **_licence(summary.get("license")),
        "size_categories": [SIZES[sum(rows >= 10**power for power in range(3, 13))]],
        "tags": ["image-text-pairs", "clipmill"],
        "dataset_info": {
            "features": _named(summary["features"]),
            "splits": [{"name": "train", "num_examples": rows, "num_bytes": size_bytes}],
            "download_size": size_bytes,
            "dataset_size": size_bytes,
        },
    }


def _licence(name: str | None) -> dict[str, str]:
    """Returns an SPDX name in lower case, as the Hub has it, or a page's address as a link."""
    if name is None:
        return {}
    if "://" in name:
        return {"license": "other", "license_name": "as linked", "license_link": name}
    return {"license": name.lower()}


def _named(features: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, **_feature(feature)} for name, feature in features.items()]


def _feature(feature: Any) -> dict[str, Any]:
    """Returns a feature in the card's form: `dtype`, `list` or `struct`."""
    if isinstance(feature, list):
        return {"list": _named(feature[0])}
    kind = feature.get("_type")
    if kind == "Sequence":
        inner = _feature(feature["feature"])
        plain = inner["dtype"] if list(inner) == ["dtype"] else inner
        return {"list": plain} | {k: v for k, v in feature.items() if k == "length"}
    if isinstance(kind, str):
        return {"dtype": feature.get("dtype", kind.lower())}
    return {"struct": _named(feature)}
