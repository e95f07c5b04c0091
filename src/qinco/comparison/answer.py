"""What a report answers, in sentences: which codec, how many bytes, whether it is worth it, and when it is not."""

from collections.abc import Mapping

from qinco.comparison.formatting import NOT_MEASURED, count, measured, memory, number, share, words
from qinco.comparison.reading import (
    Crossing,
    Group,
    best,
    crossings,
    family,
    groups,
    part,
    points,
    recall,
    result_of,
    rows_of,
)


def answer(report: Mapping) -> list[str]:
    """A sentence with the answer, and some on what it means."""
    if not (found := groups(report)):
        return ["No codec was measured, so there is no answer yet."]
    group = found[0]
    crossed = crossings(report, group)
    for target in (0.95, 0.9, 0.99):
        mine, rival = best(crossed, target, True), best(crossed, target, False)
        if mine or rival:
            return [_verdict(target, mine, rival), *_worth(report, group, target, mine, rival)]
    return [f"No codec reached an R@10 of .90: {_highest(report, group)}"]


def _verdict(target: float, mine: Crossing | None, rival: Crossing | None) -> str:
    goal = f"An R@10 of {share(target)[:3]}"
    if mine is None and rival is not None:
        return f"{goal} needs {rival} bytes a vector with {rival.family}; none of ours reached it."
    assert mine is not None
    needs = f"{goal} needs {mine} bytes a vector with {mine.family}"
    if rival is None:
        return f"{needs}; no rival reached it."
    if mine.bytes <= rival.bytes:
        return f"{needs} and {rival} with the best rival, {rival.family}."
    return f"{needs}, more than the {rival} of {rival.family}: here qinco is not worth it for its size."


def _worth(report: Mapping, group: Group, target: float, mine: Crossing | None, rival: Crossing | None) -> list[str]:
    """What the bytes mean in memory, and what they cost in time."""
    dim = measured(part(report, "data", "db").get("dim"))
    sizes = [f"{memory(one.bytes * 1e6)} with {one.family}" for one in (mine, rival) if one is not None]
    sizes += [] if dim is None else [f"{memory(4e6 * dim)} as float32"]
    said = [f"Codes of a million vectors take {', '.join(sizes)}."]
    first = mine or rival
    cell = _first_that_reaches(report, group, target, first.family) if first else None
    if cell is not None:
        costs = [
            text.format(number(value))
            for name, text in (("train_seconds", "{} s to train"), ("encode_us", "{} µs to encode a vector"),
                               ("decode_us", "{} µs to decode one"))
            if measured(value := cell.get(name)) is not None
        ]  # fmt: skip
        value = share(recall(result_of(cell, group)))
        said.append(
            f"The smallest code measured that reaches it is {words(cell.get('method') or family(cell))} with "
            f"{number(cell.get('bytes'))} bytes (R@10 {value})" + (f": {', '.join(costs)}." if costs else ".")
        )
    return said


def _first_that_reaches(report: Mapping, group: Group, target: float, name: str) -> dict | None:
    cells = [
        (size, cell.get("prefix_of") is not None, i, cell)
        for i, cell in enumerate(rows_of(report, "cells"))
        if family(cell) == name
        and (size := measured(cell.get("bytes"))) is not None
        and (measured(recall(result_of(cell, group))) or 0) >= target
    ]
    return min(cells, key=lambda one: one[:3])[3] if cells else None


def _highest(report: Mapping, group: Group) -> str:
    found = [(value, -size, name) for name, of in points(report, group).items() for size, value, _ in of]
    if not found:
        return "no recall was measured."
    value, size, name = max(found)
    return f"the highest was {share(value)}, with {number(-size)} bytes of {name}."


def break_even(report: Mapping) -> list[tuple[str, list[str], list[str]]]:
    """When not to use it: for each rival of an index the main sentences, and those about other codecs and recalls."""
    found, said, told = part(report, "break_even"), [], set()
    for name, subject in (("exact", "Against an exact scan"), ("hnsw", "Against HNSW over floats")):
        text = part(found, name).get("text")
        said.append((subject, [words(text)] if text else [], []))
        told.add(text)
    also = found.get("sentences")
    main = [words(text) for text in (also if isinstance(also, list) else []) if text not in told]
    told |= set(main)
    rows = [row for name in ("vectors", "memory", "queries_per_second") for row in rows_of(found, name)]
    rest = [words(row["sentence"]) for row in rows if row.get("sentence") and row["sentence"] not in told]
    if main or rest:
        said.append(("Also", main, list(dict.fromkeys(rest))))
    per_core = measured(part(found, "assumptions").get("gigabytes_per_core"))
    if per_core is not None:
        text = f"A core costs as much as {number(per_core)} GB of memory; times are of one thread."
        said.append(("Assumed", [text], []))
    return said


def provenance(report: Mapping) -> list[tuple[str, str]]:
    """What was run, on which machine, on which data: names and values."""
    machine, data = part(report, "machine"), part(report, "data")
    commit, price, cores = report.get("commit"), measured(report.get("price")), number(machine.get("cores"))
    other = part(data, "other_queries")
    return [
        ("Date", words(report.get("date"))),
        ("qinco", words(report.get("qinco")) + (f", commit {words(commit)}" if commit else "")),
        ("Processor", f"{words(machine.get('processor'))}; cores: {cores}; kernels: {words(machine.get('level'))}"),
        ("Memory", memory(machine.get("memory_bytes"))),
        ("Threads that were timed", number(machine.get("threads_timed"))),
        ("Software", f"Python {words(machine.get('python'))}, faiss {words(machine.get('faiss'))}"),
        ("Time for each of our trainings", _budget(report)),
        ("Time limit of a cell", _limit(report)),
        ("Training vectors", _data(part(data, "train"))),
        ("Database", _data(part(data, "db"))),
        ("Queries", _queries(part(data, "queries"))),
        ("Queries of another distribution", _data(other) if other else "not given"),
        ("Price of a GB and month", "not given" if price is None else number(price)),
    ]


def _budget(report: Mapping) -> str:
    for name in ("minutes", "epochs"):
        if (found := measured(report.get(name))) is not None:
            return f"{number(found)} {name.removesuffix('s') if found == 1 else name}"
    return NOT_MEASURED


def _limit(report: Mapping) -> str:
    limits = {found for cell in rows_of(report, "cells") if (found := measured(cell.get("limit_seconds"))) is not None}
    return ", ".join(f"{number(limit)} s" for limit in sorted(limits)) or NOT_MEASURED


def _data(data: Mapping) -> str:
    name, shape = words(data.get("path")), f"{count(data.get('rows'))} vectors"
    shape += f" of {number(data.get('dim'))} dimensions" if measured(data.get("dim")) is not None else ""
    return f"{name}: {shape}" + (f", {words(data['dtype'])}" if data.get("dtype") else "")


def _queries(data: Mapping) -> str:
    if data.get("held_out") is True:
        return f"{count(data.get('rows'))} vectors held out of the database, since no queries were given"
    return _data(data)
