"""`qinco plan`: what work on many vectors takes."""

import json
from dataclasses import fields

from qinco.cli.keys import Key, task
from qinco.errors import ConfigError


@task(
    "plan",
    "hours, memory, disk and network of compressing and searching many vectors",
    keys=[
        Key("vectors", "positive", None, "number of vectors, such as 1e9"),
        Key("dim", "integer", None, "dimension of the vectors"),
        Key("bytes", "integer", None, "bytes of a code"),
        Key("machines", "integer", 1, "machines that share the work"),
        Key("cores", "integer", None, "cores of each; null: as many as this machine has"),
        Key("replicas", "integer", 1, "of each part of the index"),
        Key("value_bytes", "integer", 4, "bytes of a stored value: 2 for float16"),
        Key("rates", "path", None, "JSON file of rates, such as of an earlier plan, instead of measuring this machine"),
        "model_args minutes ivf_K search.nprobe search.nshort",
    ],
    required=("vectors", "dim", "bytes"),
    imports=("qinco.codec",),
)
def plan(settings, console) -> None:
    from qinco.planning import Rates
    from qinco.planning import plan as planned

    given = {name: settings[name] for name in ("machines", "cores", "replicas", "value_bytes")}
    given["num_lists"] = settings["ivf_K"]
    if settings["minutes"] is not None:
        given["minutes"] = settings["minutes"]
    for key, field in (("search.nprobe", "nprobe"), ("search.nshort", "num_short")):
        if settings.given(key):
            if len(settings[key]) != 1:
                raise ConfigError(f"{key}={list(settings[key])} are several values: a plan is for one")
            given[field] = settings[key][0]
    rates = None if settings["rates"] is None else _read_rates(settings["rates"], Rates)
    if rates is None:
        console.info("measuring this machine for about a minute")
    done = planned(
        settings["vectors"], settings["dim"], settings["bytes"], preset=settings["model_args"] or "qinco2-S",
        rates=rates, progress=console.progress, **given,
    )  # fmt: skip
    result = done.to_dict()
    if settings["json"]:
        console.print_result(result, True)
        return
    columns = ("stage", "hours", "memory GB", "disk GB", "network GB", "waits for", "")
    console.print_table([list(stage.values()) for stage in result.pop("stages")], columns)
    facts = {name: result[name] for name in ("hours", "bytes_per_vector", "queries_per_second", "query_ms")}
    console.print_result(facts | result["rates"], False)


def _read_rates(path: str, kind):
    """Rates in a JSON file, alone or in what `qinco plan json=true` printed."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            content = json.load(file)
        content = content.get("rates", content)
        return kind(**{field.name: float(content[field.name]) for field in fields(kind)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"rates={path} is no file of rates, as `qinco plan json=true` prints them: {error}") from None
