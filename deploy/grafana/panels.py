"""How panels and dashboards look: what the five dashboards have in common.

A panel is for an operator in a hurry: its description says what good and bad look like, its legend
names series by what tells them apart, and its axis has a unit. The dashboards beside are data of
the classes here, which turn it into Grafana's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap as heatmap_builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard, heatmap
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "ssdkd"
SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")


class Query(NamedTuple):
    """What a panel asks Prometheus, and what each series is called."""

    expr: str
    legend: str
    """Labels stand in it as ``{{label}}``."""


class Step(NamedTuple):
    """A colour, from a value upwards; ``None`` for the lowest."""

    value: float | None
    colour: Literal["green", "yellow", "orange", "red", "blue", "text"]


PLAIN = (Step(None, "text"),)
"""No value is better than another."""


class Panel(Protocol):
    """What a dashboard is made of."""

    def builder(self) -> Builder[dashboard.Panel]:
        """The panel as Grafana's SDK builds it."""


@dataclass(frozen=True)
class Lines:
    """Series over time."""

    title: str
    unit: str
    """Grafana's name of it."""
    queries: Sequence[Query]
    says: str
    """What good and bad look like."""
    width: int = 8
    """Of 24 columns."""
    stacked: bool = False
    """On top of each other: for parts of a whole."""
    signed: bool = False
    """Values may be negative; else the axis begins at 0."""
    most: float | None = None
    """Upper end of the axis; ``None``: where the data ends."""

    def builder(self) -> Builder[dashboard.Panel]:
        """See :class:`Panel`."""
        tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
        panel = timeseries.Panel().title(self.title).description(self.says).datasource(SOURCE)
        panel.unit(self.unit).span(self.width).height(8)
        panel.targets([target.range() for target in _targets(self.queries)])
        panel.legend(_legend()).tooltip(tooltip.sort(common.SortOrder.DESCENDING))
        panel.line_width(1).show_points(common.VisibilityMode.NEVER)
        panel.fill_opacity(25 if self.stacked else 8)
        if self.stacked:
            stacking = common_builders.StackingConfig().group("A")
            panel.stacking(stacking.mode(common.StackingMode.NORMAL))
        if not self.signed:
            panel.min(0)
        if self.most is not None:
            panel.max(self.most)
        return panel


@dataclass(frozen=True)
class Number:
    """The newest value, large, in the colour of its step."""

    title: str
    unit: str
    """Grafana's name of it."""
    queries: Sequence[Query]
    says: str
    """What good and bad look like."""
    steps: Sequence[Step] = PLAIN
    words: Mapping[str, str] | None = None
    """Shown instead of values."""
    name: bool = False
    """Show the series' name instead of its value."""
    width: int = 4
    """Of 24 columns."""

    def builder(self) -> Builder[dashboard.Panel]:
        """See :class:`Panel`."""
        panel = stat.Panel().title(self.title).description(self.says).datasource(SOURCE)
        panel.unit(self.unit).span(self.width).height(4)
        # Of a range, a series that has ended would go on being shown.
        panel.targets([target.instant() for target in _targets(self.queries)])
        newest = common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
        panel.reduce_options(newest.fields("")).text_mode(self._text_mode())
        panel.color_mode(common.BigValueColorMode.VALUE).graph_mode(common.BigValueGraphMode.NONE)
        steps = [dashboard.Threshold(value=step.value, color=step.colour) for step in self.steps]
        mode = dashboard.ThresholdsMode.ABSOLUTE
        panel.thresholds(builders.ThresholdsConfig().mode(mode).steps(steps))
        if self.words is not None:
            shown = {
                value: dashboard.ValueMappingResult(text=word) for value, word in self.words.items()
            }
            panel.mappings([dashboard.ValueMap(options=shown)])
        return panel

    def _text_mode(self) -> common.BigValueTextMode:
        if len(self.queries) > 1:
            return common.BigValueTextMode.VALUE_AND_NAME
        return common.BigValueTextMode.NAME if self.name else common.BigValueTextMode.VALUE


@dataclass(frozen=True)
class Heat:
    """A histogram over time: a row for each bucket, darker where there are more."""

    title: str
    unit: str
    """Of the buckets' edges."""
    queries: Sequence[Query]
    """One, whose series have the label ``le``."""
    says: str
    """What good and bad look like."""
    width: int = 12
    """Of 24 columns."""

    def builder(self) -> Builder[dashboard.Panel]:
        """See :class:`Panel`."""
        panel = heatmap_builders.Panel().title(self.title).description(self.says)
        panel.datasource(SOURCE).span(self.width).height(8).calculate(False).show_legend()
        colours = heatmap_builders.HeatmapColorOptions().mode(heatmap.HeatmapColorMode.SCHEME)
        colours.scheme("Blues").steps(64).fill("dark-blue").reverse(False)
        panel.color(colours.scale(heatmap.HeatmapColorScale.EXPONENTIAL).exponent(0.5))
        panel.y_axis(heatmap_builders.YAxisConfig().unit(self.unit))
        layout = common.HeatmapCellLayout.AUTO
        panel.rows_frame(heatmap_builders.RowsHeatmapOptions().layout(layout))
        targets = [target.range() for target in _targets(self.queries)]
        return panel.targets([target.format(PromQueryFormat.HEATMAP) for target in targets])


@dataclass(frozen=True)
class Alerts:
    """The alerts of the run that fire or are about to, by Prometheus' rules."""

    title: str
    says: str
    """What good and bad look like."""
    width: int = 8
    """Of 24 columns."""

    def builder(self) -> Builder[dashboard.Panel]:
        """See :class:`Panel`; the SDK has no builder for this kind."""
        panel = builders.Panel().type("alertlist").title(self.title).description(self.says)
        return (
            panel.span(self.width)
            .height(8)
            .options(
                {
                    "viewMode": "list",
                    "alertName": "Ssdkd",
                    "alertInstanceLabelFilter": '{run="$run"}',
                    "stateFilter": {
                        "firing": True,
                        "pending": True,
                        "noData": False,
                        "normal": False,
                    },
                    "groupMode": "default",
                    "sortOrder": 3,
                    "maxItems": 20,
                    "dashboardAlerts": False,
                }
            )
        )


class Row(NamedTuple):
    """Panels under a heading, side by side as far as 24 columns go."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """A dashboard of one run, with its data source and run to be chosen at the top."""

    name: str
    says: str
    """What it is for."""
    rows: Sequence[Row]

    @property
    def uid(self) -> str:
        """By which Grafana knows it, whatever it is called."""
        return f"{TAG}-{self.name.lower()}"

    def dashboard(self) -> dashboard.Dashboard:
        """Grafana's own."""
        made = builders.Dashboard(f"ssdkd: {self.name}").uid(self.uid).description(self.says)
        made.tags([TAG]).editable().timezone("browser").refresh("15s").time("now-30m", "now")
        made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        source = builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
        made.with_variable(source).with_variable(_run())
        links = builders.DashboardLink(TAG).type(dashboard.DashboardLinkType.DASHBOARDS)
        made.link(links.tags([TAG]).keep_time(True).include_vars(True))
        made.annotation(_alerts_on_graphs())
        numbers = iter(range(1, 1000))
        for row in self.rows:
            made.with_row(builders.Row(row.title).id(next(numbers)))
            for panel in row.panels:
                built = panel.builder()
                built.build().id_val = next(numbers)
                made.with_panel(built)
        return made.build()


def _run() -> builders.QueryVariable:
    run = builders.QueryVariable("run").label("Run").datasource(SOURCE)
    run.description("Runs that Prometheus has heard of in the range of time shown.")
    run.query("label_values(ssdkd_buffer_up, run)")
    run.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return run.sort(dashboard.VariableSort.ALPHABETICAL_ASC)


def _alerts_on_graphs() -> builders.AnnotationQuery:
    query = builders.AnnotationQuery().name("Alerts").datasource(SOURCE).enable(True)
    return query.icon_color("red").expr('ALERTS{alertstate="firing", run="$run"}')


def _legend() -> common_builders.VizLegendOptions:
    legend = common_builders.VizLegendOptions().show_legend(True).calcs([])
    legend.display_mode(common.LegendDisplayMode.LIST)
    return legend.placement(common.LegendPlacement.BOTTOM)


def _targets(queries: Sequence[Query]) -> Iterator[prometheus.Dataquery]:
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        made = prometheus.Dataquery().ref_id(letter).datasource(SOURCE)
        yield made.expr(query.expr).legend_format(query.legend)
