"""deploy/monitoring: queries parse and name metrics and labels that the service has; every rule is explained.

The rules' own tests (deploy/monitoring/alerts_test.yaml) run where `promtool` is installed, which is part of
Debian's and Ubuntu's package `prometheus`:

    apt-get download prometheus && dpkg -x prometheus_*.deb /tmp/prometheus
    PATH=/tmp/prometheus/usr/bin:$PATH .venv/bin/pytest tests/test_monitoring.py
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from streamer.metrics import Metrics, PipelineCollector

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "deploy" / "monitoring"
OPERATING = ROOT / "docs" / "operating.md"

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

OF_PROMETHEUS = {"up": frozenset[str](), "ALERTS": frozenset({"alertname", "alertstate"})}
"""Series that Prometheus itself makes, with their labels."""

OF_THE_SCRAPE = frozenset({"job", "instance"})
"""Labels that every series gets."""


def known_series() -> dict[str, frozenset[str]]:
    """Name -> labels of every series that the service can have."""
    metrics = Metrics(CollectorRegistry())
    metrics.registry.register(
        PipelineCollector(
            [type("B", (), {"name": "n", "batches": 1, "size": 1, "fill": 1, "failures": 1})()],
            {"reason": 1},
            {"nvdec": 1},
        )
    )
    series: dict[str, frozenset[str]] = {}
    for family in metrics.registry.collect():
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
            "info": ("_info",),
        }.get(family.type, ("",))
        labels = {label for sample in family.samples for label in sample.labels}
        for suffix in suffixes:
            series[family.name + suffix] = frozenset(labels - {"le"})
    for metric in vars(metrics).values():  # those of which no child exists yet
        if isinstance(metric, MetricWrapperBase):
            for name in list(series):
                if re.fullmatch(rf"{metric._name}(_total|_bucket|_sum|_count)?", name):
                    series[name] |= frozenset(metric._labelnames)
    series["streamer_ensemble_info"] = frozenset({"model_set", "trained"})
    return {name: labels | ({"le"} if name.endswith("_bucket") else set()) for name, labels in series.items()}


SERIES = OF_PROMETHEUS | known_series()


def nodes(expression: Any) -> Iterator[Any]:
    """All parts of a parsed query."""
    yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        part = getattr(expression, name, None)
        if part is not None and type(part).__module__ == "promql_parser":
            yield from nodes(part)
    for part in getattr(expression, "args", ()):
        yield from nodes(part)


def parse(query: str) -> Any:
    """With Grafana's variables replaced by something of their kind."""
    return promql_parser.parse(query.replace("$__rate_interval", "5m").replace("$job", "streamer"))


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """(metric, labels that it is selected by)."""
    for node in nodes(parse(query)):
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name, {matcher.name for matcher in node.matchers.matchers}


def groupings(query: str) -> Iterator[tuple[set[str], set[str]]]:
    """(labels grouped by, metrics within)."""
    for node in nodes(parse(query)):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            within = {n.name for n in nodes(node.expr) if isinstance(n, promql_parser.VectorSelector)}
            yield set(node.modifier.labels), within


def queries() -> Iterator[Any]:
    for rule in RULES:
        yield pytest.param(rule["expr"], id=rule["alert"])
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for annotation in DASHBOARD["annotations"]["list"]:
        yield pytest.param(annotation["expr"], id=annotation["name"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield pytest.param(variable["definition"].split("(")[1].split(",")[0], id=variable["name"])


def test_the_parser_finds_names() -> None:
    query = (
        'sum by (le) (rate(a_bucket{x="1"}[5m])) / on (job) b > 0 or max_over_time(c[5m:1m]) and absent(d)'
    )
    assert list(selectors(query)) == [("a_bucket", {"x"}), ("b", set()), ("c", set()), ("d", set())]
    assert list(groupings(query)) == [({"le"}, {"a_bucket"})]


@pytest.mark.parametrize("query", list(queries()))
def test_query_names_only_what_exists(query: str) -> None:
    found = list(selectors(query))
    assert found
    for name, labels in found:
        assert name in SERIES, f"no metric {name}"
        assert labels <= SERIES[name] | OF_THE_SCRAPE, f"{name} has no label {labels - SERIES[name]}"
    for labels, names in groupings(query):
        for name in names:
            assert labels <= SERIES[name] | OF_THE_SCRAPE, f"{name} has no label {labels - SERIES[name]}"


def test_most_metrics_are_shown_or_watched() -> None:
    """What nobody looks at should not be made; `asyncio_tasks` and such are for the benches."""
    used = {name for param in queries() for name, _ in selectors(param.values[0])}
    ours = {name for name in SERIES if name.startswith("streamer_")}
    unseen = {name for name in ours - used if not name.endswith(("_sum", "_count", "_info"))}
    assert unseen <= {"streamer_asyncio_tasks", "streamer_in_flight_bytes", "streamer_restored_videos_total"}


def test_dashboard_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_grafana.py"))
    assert (MONITORING / "grafana.json").read_text() == script["text"](), (
        "run: python scripts/make_grafana.py"
    )


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_rules_are_complete() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]


def test_every_rule_has_its_section_in_the_manual_and_no_other_has() -> None:
    sections = re.findall(r"^### (Streamer\w+)$", OPERATING.read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]


@pytest.mark.parametrize("page", ["README.md", "docs/operating.md", "docs/failures.md"])
def test_metrics_that_the_manuals_name_exist(page: str) -> None:
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in SERIES}
    for name in re.findall(r"`(streamer_[a-z_]+)", (ROOT / page).read_text()):
        assert name in SERIES or name in families or name == "streamer_", name


def test_every_rule_is_tested_both_ways() -> None:
    tests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    fired = {
        match
        for test in tests
        for sample in (s for one in test["promql_expr_test"] for s in one["exp_samples"])
        for match in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == {rule["alert"] for rule in RULES}
    quiet = {re.split(r"\{", series["series"])[0] for series in tests[0]["input_series"]}
    assert quiet == {name for rule in RULES for name, _ in selectors(rule["expr"])}


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")]
)
def test_promtool(arguments: tuple[str, ...]) -> None:
    assert PROMTOOL is not None
    result = subprocess.run(
        [PROMTOOL, *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_finds_nothing_in_the_metrics() -> None:
    from prometheus_client import generate_latest

    assert PROMTOOL is not None
    text = generate_latest(Metrics(CollectorRegistry()).registry)
    result = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
