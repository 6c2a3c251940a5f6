"""What was measured, as Markdown: `python -m tests.bench.report FILE.json [--readme README.md]`.

Medians of the rounds; beside the CPU time how far the rounds lie apart (half their range, in percent of the median).
A dagger says that the core of the load was busy throughout: then requests/s and latency are the load's, and only the
CPU time is the peer's.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.targets import TARGETS, Median

Document = Mapping[str, Any]
Rounds = Sequence[Mapping[str, float]]

_BUSY = 0.95
_MARKERS = re.compile(r"(<!-- benchmark -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def medians(rounds: Rounds) -> dict[str, float]:
    """Of each figure over the rounds; {} of none."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]} if rounds else {}


def spread_percent(rounds: Rounds, key: str) -> float:
    """Half the range of the rounds, in percent of their median."""
    values = [one[key] for one in rounds]
    middle = statistics.median(values)
    return (max(values) - min(values)) / 2 / middle * 100 if middle else 0.0


class Figures:
    """The cells of a document by load and peer."""

    def __init__(self, document: Document) -> None:
        self._rounds = {(cell["load"], cell["peer"]): cell["rounds"] for cell in document["cells"] if not cell["error"]}

    def rounds(self, load: str, peer: str) -> Rounds:
        found: Rounds = self._rounds.get((load, peer), ())
        return found

    def median(self, load: str, peer: str, key: str) -> float | None:
        return medians(self.rounds(load, peer)).get(key)

    def cpu(self, load: str, peer: str) -> str:
        """CPU per request in us, with its spread."""
        rounds = self.rounds(load, peer)
        if not rounds:
            return ""
        return f"{medians(rounds)['cpu_us']:.0f} ±{spread_percent(rounds, 'cpu_us'):.0f} %"

    def number(self, load: str, peer: str, key: str, digits: int) -> str:
        value = self.median(load, peer, key)
        if value is None:
            return ""
        is_busy = key != "cpu_us" and (self.median(load, peer, "load_core_share") or 0) >= _BUSY
        return f"{value:,.{digits}f}{'†' if is_busy else ''}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def caption(document: Document) -> str:
    machine, plan = document["machine"], document["plan"]
    return (
        f"{document['date']}, {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']},"
        f" CPython {machine['python']}; medians of {plan['rounds']} rounds of {plan['seconds']:g} s,"
        " CPU in us a request, ± half the range of the rounds. † the load's core was full: the figure is the load's."
    )


def main_table(document: Document) -> list[str]:
    """All peers: forwarding alone, and with their duties."""
    figures = Figures(document)
    rows = []
    for name, about in document["peers"].items():
        cells = [figures.cpu("bare", name), figures.number("bare", name, "requests_per_s", 0)]
        cells += [figures.cpu("full", name)]
        cells += [figures.number("full", name, key, digits) for key, digits in _FULL]
        if any(cells):
            rows.append([name, *cells, ", ".join(about["duties"])])
    head = [
        "64 connections, 1 KiB",
        "bare: CPU",
        "requests/s",
        "full: CPU",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "MiB",
        "duties",
    ]
    return table(head, rows) if rows else []


_FULL = (("requests_per_s", 0), ("p50_ms", 2), ("p99_ms", 2), ("resident_mib", 0))
_OTHERS = ("full-1", "full-256", "full-1000", "download", "upload", "strangers")


def other_table(document: Document) -> list[str]:
    """The other loads on the full forms: CPU, p50 and p99."""
    figures = Figures(document)
    titles = {cell["load"]: cell["title"].removeprefix("all duties, ") for cell in document["cells"]}
    loads = [load for load in _OTHERS if load in titles]
    rows = []
    for name in document["peers"]:
        cells = [_three(figures, load, name) for load in loads]
        if any(cells):
            rows.append([name, *cells])
    return table(["full: CPU / p50 ms / p99 ms", *(titles[load] for load in loads)], rows) if rows else []


def _three(figures: Figures, load: str, peer: str) -> str:
    keys = (("cpu_us", 0), ("p50_ms", 2), ("p99_ms", 1))
    return " / ".join(filter(None, (figures.number(load, peer, key, digits) for key, digits in keys)))


def own_table(document: Document) -> list[str]:
    """The loads that only this gateway is asked."""
    figures = Figures(document)
    rows = [
        [
            cell["title"],
            figures.cpu(cell["load"], "engadi"),
            _three(figures, cell["load"], "engadi").partition(" / ")[2],
        ]
        for cell in document["cells"]
        if cell["is_own"]
    ]
    return table(["this gateway, all duties", "CPU", "p50 / p99 ms"], rows) if rows else []


def target_table(document: Document) -> list[str]:
    """What was asked for, and what came."""
    median = Figures(document).median
    rows = []
    for target in TARGETS:
        value, on_pypy = target.value(median), target.value(_on_pypy(median))
        if value is not None:
            met = "yes" if value <= target.most else "**no**"
            rows.append([target.title, f"{target.most:g}", f"{value:.2f}", met, f"{on_pypy:.2f}" if on_pypy else ""])
    if not any(row[-1] for row in rows):
        return table(["target", "at most", "measured", "met"], [row[:-1] for row in rows]) if rows else []
    return table(["target", "at most", "measured", "met", "on PyPy"], rows)


def _on_pypy(median: Median) -> Median:
    """The same figures, with the PyPy form in this gateway's place."""
    return lambda load, peer, key: median(load, f"{peer} on PyPy" if peer == "engadi" else peer, key)


def versions(document: Document) -> list[str]:
    """Who was measured, and how it does its duties."""
    return [
        f"- {name}: {about['version']}{'; ' if about['note'] else ''}{about['note']}"
        for name, about in document["peers"].items()
    ]


def absent(document: Document) -> list[str]:
    """Who was left out, and what went wrong."""
    lines = [f"- {name}: {why}" for name, why in document["missing"].items()]
    lines += [f"- {cell['peer']}, {cell['load']}: {cell['error']}" for cell in document["cells"] if cell["error"]]
    return ["Not measured:", "", *lines] if lines else []


def markdown(document: Document, *, has_targets: bool = True) -> str:
    """All of it."""
    parts = [[caption(document)], main_table(document), other_table(document), own_table(document)]
    if has_targets:
        parts.append(target_table(document))
    parts += [versions(document), absent(document)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def with_table(readme: str, text: str) -> str:
    """The README with this between its benchmark markers."""
    return _MARKERS.sub(lambda found: f"{found[1]}{text}{found[2]}", readme)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.report", description="Markdown of a benchmark's JSON")
    parser.add_argument("file", type=Path)
    parser.add_argument("--readme", type=Path, help="put the tables between its <!-- benchmark --> markers")
    arguments = parser.parse_args()
    document = json.loads(arguments.file.read_text())
    if arguments.readme:
        arguments.readme.write_text(with_table(arguments.readme.read_text(), markdown(document, has_targets=False)))
    else:
        print(markdown(document), end="")


if __name__ == "__main__":
    main()
