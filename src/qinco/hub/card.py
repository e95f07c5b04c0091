"""Model cards: a README.md whose head the hub reads, with the figures that were measured and how to use the files."""

import json
import re
from collections.abc import Mapping
from typing import Any

from qinco.errors import ConfigError

TAGS = ("vector-compression", "embeddings", "quantization", "similarity-search")
_PLAIN = re.compile(r"[A-Za-z][\w./-]*( [\w./-]+)*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # no text in YAML
_TITLES = {"codec": "Codec", "index": "Index", "collection": "Collection", "named_collection": "Collection"}
_USE = {
    "codec": """codec = qinco.Codec.from_pretrained("{name}")
codes = codec.encode(x)  # (N, {num_codes}) codes of float vectors (N, {dim})
x_hat = codec.decode(codes)""",
    "index": """index = qinco.Index.from_pretrained("{name}")
distances, ids = index.search(queries, k=10)  # queries (Q, {dim})""",
    "collection": """docs = qinco.Collection.from_pretrained("{name}")  # folder="docs.qinco" makes a copy to write to
hits = docs.search(query, k=10)  # a query ({dim},)""",
    "named_collection": """docs = qinco.NamedCollection.from_pretrained("{name}")  # folder=...: a copy to write to
hits = docs.search(query, k=10, using={using})  # a query ({dim},)""",
}
_INDEX_ROWS = {"recall": "search", "recall_exhaustive": "all decoded vectors",
               "recall_rq": "a residual quantizer of as many bytes"}  # fmt: skip


def render(name: str, kind: str, config: Mapping, metadata: Mapping, measured: Mapping | None) -> str:
    """The text of a card.

    Args:
        name: of the repository.
        kind: "codec", "index", "collection" or "named_collection".
        config: what config.json says.
        metadata: values for the head, such as license, base_model and datasets, which replace ours; tags are added.
        measured: figures, or None.
    """
    head = {"library_name": "qinco"} | dict(metadata)
    tags = head.pop("tags", None) or []
    head["tags"] = list(dict.fromkeys([*TAGS, *([tags] if isinstance(tags, str) else tags)]))
    if measured and (results := _results(name, measured)):
        head.setdefault("model-index", results)
    using, named = next(iter(_named(config).items()), (None, config))
    use = _USE[kind].format(name=name, dim=named.get("dim"), num_codes=config.get("num_codes"), using=json.dumps(using))
    parts = [f"---\n{_yaml(head)}---", f"# {name.rpartition('/')[2]}", _about(kind, config, metadata)]
    parts.append(f"## Use\n```python\nimport qinco  # pip install 'qinco[hub]'\n\n{use}\n```")
    trained = _trained(config)
    if measured or trained:
        parts.append("\n\n".join(["## Measured", *(_figures(measured) if measured else []), *trained]))
    return "\n\n".join(parts) + "\n"


def _about(kind: str, config: Mapping, metadata: Mapping) -> str:
    base = metadata.get("base_model")
    whose = f"embeddings of {_words(base)}" if base else "vectors"
    about = f"{_TITLES[kind]} of [qinco](https://pypi.org/project/qinco/), "
    if named := _named(config):
        about += f"with {config['records']:,} records and {whose} by name."
    else:
        size = config.get("bytes_per_vector")
        does = "which compresses" if kind == "codec" else f"with {config['num_vectors']:,}"
        about += f"{does} {whose} of dimension {config.get('dim')}" + ("" if size is None else f", {_size(size)} each")
        about += f", metric {config['metric']}." if config.get("metric") else "."
    about += f" Data: {_words(metadata['datasets'])}." if metadata.get("datasets") else ""
    return about + (f"\n\n{_table(_rows_of_names(named))}" if named else "")


def _rows_of_names(named: Mapping[str, Mapping]) -> list[list[str]]:
    rows = [["name", "vectors", "dimension", "bytes each", "metric"]]
    for name, own in named.items():
        size = _number(own["bytes_per_vector"] or 4 * (own["dim"] or 0))
        rows.append([name.replace("|", "\\|"), f"{own['num_vectors']:,}", str(own["dim"] or ""), size, own["metric"]])
    return rows


def _named(config: Mapping) -> Mapping[str, Mapping]:
    """What is said of the vectors of each name; empty where they have none."""
    return config.get("vectors") or {}


def _recalls(measured: Mapping) -> dict[str, Mapping]:
    """What was measured of the vectors of each name."""
    named = measured.get("vectors")
    each = named.items() if isinstance(named, Mapping) else ()
    return {name: own for name, own in each if isinstance(own, Mapping) and own.get("recall") is not None}


def _figures(measured: Mapping) -> list[str]:
    """Tables and lines of what was measured."""
    found, on = [], []
    if rows := measured.get("prefixes"):
        table = [["bytes", "MSE", "recall@1", "recall@10"]]
        table += [[_number(row.get(key)) for key in ("bytes", "mse", "recall_at_1", "recall_at_10")] for row in rows]
        found.append(_table(table))
    if isinstance(measured.get("recall"), Mapping):
        ranks = list(measured["recall"])
        table = [["searched", *(f"recall@{rank}" for rank in ranks)]]
        for key, title in _INDEX_ROWS.items():
            if key in measured:
                table.append([title, *(_number(measured[key].get(rank)) for rank in ranks)])
        found.append(_table(table))
    elif measured.get("recall") is not None:
        found.append(f"Search finds {_number(measured['recall'])} of the {measured.get('k')} nearest records.")
    for name, own in _recalls(measured).items():
        found.append(f"Search by {name} finds {_number(own['recall'])} of the {own.get('k')} nearest records.")
    if measured.get("mse") is not None:
        found.append(f"Mean squared error of a vector: {_number(measured['mse'])}.")
    if measured.get("num_vectors") is not None:
        on.append(f"{measured['num_vectors']:,} vectors")
    if measured.get("num_queries") is not None:
        on.append(f"{measured['num_queries']:,} queries")
    if on:
        data = f" of {measured['dataset']}" if measured.get("dataset") else ""
        metric = f" (metric {measured['metric']})" if measured.get("metric") else ""
        found.append(f"Measured on {' and '.join(on)}{data}{metric}.")
    if measured.get("encode_us") is not None:
        found.append(f"Encoding takes {_number(measured['encode_us'])} µs a vector, decoding "
                     f"{_number(measured['decode_us'])} µs, on {measured['machine']}.")  # fmt: skip
    return found


def _trained(config: Mapping) -> list[str]:
    trained = config.get("trained") or {}
    if trained.get("valid_mse") is None:
        return []
    count = f"Trained on {trained['num_vectors']:,} vectors; the" if trained.get("num_vectors") else "The"
    return [f"{count} mean squared error of those held out was {_number(trained['valid_mse'])}."]


def _results(name: str, measured: Mapping) -> list[dict]:
    """The head's model-index."""
    metrics = []
    for row in measured.get("prefixes") or []:
        for key, title in (("mse", "MSE"), ("recall_at_1", "Recall@1"), ("recall_at_10", "Recall@10")):
            if row.get(key) is not None:
                metrics.append({"type": key, "value": row[key], "name": f"{title} at {_size(row['bytes'])}"})
    recall = measured.get("recall")
    if isinstance(recall, Mapping):
        metrics += [{"type": f"recall_at_{rank}", "value": value, "name": f"Recall@{rank}"}
                    for rank, value in recall.items()]  # fmt: skip
    elif recall is not None:
        metrics.append(
            {"type": f"recall_at_{measured.get('k')}", "value": recall, "name": f"Recall@{measured.get('k')}"}
        )
    for name, own in _recalls(measured).items():
        metrics.append({"type": f"recall_at_{own.get('k')}", "value": own["recall"],
                        "name": f"Recall@{own.get('k')} by {name}"})  # fmt: skip
    if not metrics:
        return []
    data = str(measured.get("dataset") or "held-out vectors")
    task = {"type": "vector-compression", "name": "Vector compression"}
    result = {"task": task, "dataset": {"type": re.sub(r"\W+", "-", data.lower()), "name": data}, "metrics": metrics}
    return [{"name": name.rpartition("/")[2], "results": [result]}]


def _size(count: float) -> str:
    return "1 byte" if count == 1 else f"{count:.4g} bytes"


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _number(value) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _yaml(value: Any, indent: str = "") -> str:
    """JSON values as YAML, in lines."""
    lines = []
    for name, part in value.items() if isinstance(value, Mapping) else [(None, part) for part in value]:
        start = indent + ("-" if name is None else f"{_scalar(str(name))}:")
        if isinstance(part, Mapping | list | tuple) and part:
            inner = indent + "  "
            text = _yaml(part, inner)
            lines.append(f"{start} {text.removeprefix(inner)}" if name is None else f"{start}\n{text}")
        else:
            lines.append(f"{start} {_scalar(part)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        text = f"{value:.6g}"
        return text if "." in text or "e" not in text else text.replace("e", ".0e")  # YAML wants the point
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        raise ConfigError(f"metadata must be JSON values, not {value!r:.60}") from None
