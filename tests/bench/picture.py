"""The benchmark as a picture: CPU per request of every peer, forwarding alone and with its duties."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tests.bench.report import Document, Figures, caption

_FORMS = (("bare", "forwarding alone"), ("full", "with all the duties that each has"))
_OWN, _OTHER = "#c0392b", "#7f8c8d"


def missing() -> str:
    """Why there can be no picture; "" when there can."""
    return "" if find_spec("matplotlib") else "matplotlib is not installed (python -m pip install --group bench)"


def bars(document: Document, load: str) -> list[tuple[str, float]]:
    """Peer and CPU us, the cheapest first."""
    figures = Figures(document)
    found = [(name, figures.median(load, name, "cpu_us")) for name in document["peers"]]
    return sorted(((name, value) for name, value in found if value), key=lambda bar: bar[1])


def draw(document: Document, path: Path) -> None:
    """Write it; the suffix says in which format."""
    # imported here, for a benchmark without a picture does not need it; without pyplot no display is asked for
    figure = import_module("matplotlib.figure").Figure(figsize=(10, 4.5), layout="constrained")
    for index, (load, title) in enumerate(_FORMS):
        axes = figure.add_subplot(1, 2, index + 1)
        found = bars(document, load)
        names = [name for name, _ in found]
        values = [value for _, value in found]
        drawn = axes.barh(names, values, color=[_OWN if name.startswith("engadi") else _OTHER for name in names])
        axes.bar_label(drawn, [f"{value:.0f}" for value in values], padding=3)
        axes.set_xscale("log")
        axes.set_xlim(5, max(values, default=10) * 3)
        axes.invert_yaxis()
        axes.set_title(title)
        axes.set_xlabel("CPU us a request (logarithmic)")
    figure.supxlabel(caption(document), fontsize=7)
    figure.savefig(path, dpi=150)
