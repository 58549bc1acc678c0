"""The Pareto front as a picture: cost against inter-token latency, in the terminal or as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from planner.candidate import Candidate
from planner.search import Result
from runtime.errors import Refusal

Points = tuple[list[float], list[float]]
FARTHEST = 30
X, Y = "inter-token latency (ms, estimate)", "USD per million output tokens"


def points(candidates: Sequence[Candidate]) -> Points:
    """Milliseconds and USD of each."""
    return [1000 * each.estimate.inter_token_latency_s for each in candidates], [
        each.usd_per_million for each in candidates
    ]


def draw(result: Result, width: int) -> str:
    """The plot as text, for a terminal of so many columns."""
    try:
        import plotext
    except ImportError:
        return "no plot in the terminal: plotext is not installed"
    plot: Any = plotext  # its functions have no annotations
    plot.clear_figure()
    plot.theme("clear")
    plot.plot_size(min(width, 90), 16)
    plot.xscale("log")
    plot.yscale("log")
    plot.scatter(*points(_near(result.ranked, result)), marker="·", label="meet the target")
    plot.plot(*points(_near(result.front, result)), marker="braille", label="Pareto front")
    plot.scatter(*points(result.ranked[:1]), marker="1", label="best")
    plot.xlabel(X)
    plot.title(Y)
    return str(plot.uncolorize(plot.build()))


def _near(candidates: Sequence[Candidate], result: Result) -> list[Candidate]:
    """Those of at most FARTHEST times the best's cost: the others would squeeze the rest together."""
    return [each for each in candidates if each.usd_per_million <= FARTHEST * result.ranked[0].usd_per_million]


def write_png(result: Result, path: Path, title: str) -> None:
    """Draw it into a PNG file, whole or not at all. Raises Refusal where it cannot be written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        fix = "pip install -r requirements/local.txt"
        raise Refusal("matplotlib is not installed", "there is no PNG", fix) from None
    figure: Any = Figure(figsize=(9, 5.5), dpi=120)  # matplotlib's functions are partly untyped
    axes, canvas = figure.subplots(), cast(Any, FigureCanvasAgg(figure))
    axes.scatter(
        *points(_near(result.ranked, result)), s=10, color="0.7", label="meets the target, at its largest batch"
    )
    axes.plot(*points(_near(result.front, result)), "o-", color="tab:blue", label="Pareto front, over batches")
    axes.scatter(*points(result.ranked[:1]), s=90, marker="*", color="tab:red", zorder=3, label=str(result.ranked[0]))
    axes.set(xscale="log", yscale="log", xlabel=X, ylabel=f"{Y} (estimate)", title=title)
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize=8)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            canvas.print_png(file)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Refusal(f"{path}: {error.strerror}", "there is no PNG", "give a path that can be written") from None
