"""Writes deploy/monitoring/grafana.json, a dashboard of the service's metrics for Grafana 10 and newer.

    python scripts/make_grafana.py

A test fails when the file is not what this prints, or when a query names a metric that the service lacks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parents[1] / "deploy" / "monitoring" / "grafana.json"

WIDTH, HEIGHT = 8, 8
"""Of a panel; a row of the dashboard is 24 wide."""

SOURCE = {"type": "prometheus", "uid": "${source}"}
OF = '{job="$job"}'


def rate(metric: str, *by: str) -> str:
    """Per second, summed over processes, by these labels."""
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (rate({metric}{OF}[$__rate_interval]))"


def quantiles(histogram: str, *by: str) -> list[tuple[str, str]]:
    """(query, legend) of the median and the 99th percentile of a histogram, by these labels."""
    named = "".join(f" {{{{{label}}}}}" for label in by)
    buckets = rate(f"{histogram}_bucket", "le", *by)
    return [(f"histogram_quantile({q}, {buckets})", f"p{100 * q:.0f}{named}") for q in (0.5, 0.99)]


def gauge(metric: str, how: str, *by: str) -> str:
    """How the processes' values are put together, by these labels."""
    return f"{how}{f' by ({chr(44).join(by)})' if by else ''} ({metric}{OF})"


ROWS: dict[str, list[tuple[str, str, list[tuple[str, str]]]]] = {
    "Is it well?": [
        (
            "Waiting chunks, by partition",
            "short",
            [
                (gauge("streamer_consumer_lag_records", "max", "partition"), "{{partition}}"),
                (f"{gauge('streamer_withheld_records', 'max', 'partition')} > 0", "{{partition}}: withheld"),
            ],
        ),
        (
            "Work waiting, at the rate of now",
            "s",
            [
                (
                    f"{gauge('streamer_consumer_lag_records', 'sum')} / {rate('streamer_chunks_total')}",
                    "work",
                )
            ],
        ),
        ("From published to scored", "s", quantiles("streamer_end_to_end_latency_seconds")),
        (
            "Chunks per second, by status",
            "short",
            [(rate("streamer_chunks_total", "status"), "{{status}}")],
        ),
        (
            "Dead letters per second, by reason",
            "short",
            [(f"{rate('streamer_dead_letters_total', 'stage', 'reason')} > 0", "{{stage}}: {{reason}}")],
        ),
        (
            "Alerts raised, pictures of evidence published, per minute",
            "short",
            [
                (f"60 * {rate('streamer_alerts_raised_total')}", "alerts"),
                (f"60 * {rate('streamer_evidence_messages_total')}", "chunks with pictures"),
                (f"60 * {rate('streamer_evidence_crops_total')}", "pictures"),
            ],
        ),
    ],
    "Where the time goes": [
        ("Stages of a chunk", "s", quantiles("streamer_stage_duration_seconds", "stage")),
        ("Deliveries", "s", quantiles("streamer_delivery_duration_seconds")),
        (
            "Sampled frames and faces per second",
            "short",
            [
                (rate("streamer_frames_total"), "sampled frames"),
                (rate("streamer_faces_total"), "faces"),
            ],
        ),
        (
            "Images per batch, by network",
            "short",
            [
                (
                    f"{rate('streamer_batch_items_total', 'network')}"
                    f" / {rate('streamer_batches_total', 'network')}",
                    "{{network}}",
                )
            ],
        ),
        (
            "Fill of batches since the start",
            "percentunit",
            [(gauge("streamer_batch_fill_ratio", "avg", "network"), "{{network}}")],
        ),
        (
            "CPU of the main process (decode workers are others)",
            "short",
            [(rate("process_cpu_seconds_total", "instance"), "{{instance}}")],
        ),
    ],
    "Load": [
        (
            "Fill of the queues, by partition",
            "percentunit",
            [(gauge("streamer_queue_fill_ratio", "max", "partition"), "{{partition}}")],
        ),
        (
            "Fill of the memory for chunks",
            "percentunit",
            [(gauge("streamer_in_flight_bytes_ratio", "max", "instance"), "{{instance}}")],
        ),
        (
            "Chunks under way, partitions paused",
            "short",
            [
                (gauge("streamer_chunks_in_flight", "sum"), "under way"),
                (gauge("streamer_queued_chunks", "sum"), "queued"),
                (gauge("streamer_paused_partitions", "sum"), "paused partitions"),
            ],
        ),
        (
            "Sampled frames per second of video",
            "hertz",
            [(gauge("streamer_sampling_rate_hertz", "min", "partition"), "{{partition}}")],
        ),
        ("Chunks thinned per second", "short", [(rate("streamer_thinned_chunks_total"), "thinned")]),
        ("Bytes taken per second", "Bps", [(rate("streamer_chunk_bytes_total"), "bytes")]),
    ],
    "Group and state": [
        (
            "Partitions, by process",
            "short",
            [(gauge("streamer_assigned_partitions", "max", "instance"), "{{instance}}")],
        ),
        (
            "Rebalances, replays, chunks given up or lost, per minute",
            "short",
            [
                (f"60 * {rate('streamer_lost_chunks_total')}", "chunks lost to retention"),
                (f"60 * {rate('streamer_rebalances_total')}", "rebalances"),
                (f"60 * {rate('streamer_replayed_chunks_total')}", "replayed chunks"),
                (f"60 * {rate('streamer_cancelled_chunks_total')}", "chunks given up"),
            ],
        ),
        (
            "Silence of Kafka, oldest delivery, last restore",
            "s",
            [
                (gauge("streamer_kafka_silent_seconds", "max"), "silent"),
                (gauge("streamer_delivery_age_seconds", "max"), "oldest delivery"),
                (gauge("streamer_restore_seconds", "max"), "restore"),
            ],
        ),
        (
            "Videos with state",
            "short",
            [
                (gauge("streamer_videos", "sum"), "videos"),
                (gauge("streamer_unusable_states", "sum"), "of another ensemble"),
            ],
        ),
        (
            "Memory of the main process",
            "bytes",
            [(gauge("process_resident_memory_bytes", "max", "instance"), "{{instance}}")],
        ),
        (
            "Decode workers replaced, batches failed, per minute",
            "short",
            [
                (f"60 * {rate('streamer_decode_worker_restarts_total', 'reason')}", "{{reason}}"),
                (f"60 * {rate('streamer_batch_failures_total', 'network')}", "{{network}} failed"),
            ],
        ),
        (
            "Chunks decoded with NVDEC, or why not, per minute",
            "short",
            [(f"60 * {rate('streamer_decoded_chunks_total', 'decoder')}", "{{decoder}}")],
        ),
    ],
}
"""Title of a row -> its panels: title, unit, queries with their legends."""


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row, contents in ROWS.items():
        at = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append({"type": "row", "id": len(panels) + 1, "title": row, "gridPos": at, "panels": []})
        y += 1
        for index, (title, unit, queries) in enumerate(contents):
            place = {"x": index % 3 * WIDTH, "y": y + index // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(
                {
                    "type": "timeseries",
                    "id": len(panels) + 1,
                    "title": title,
                    "datasource": SOURCE,
                    "gridPos": place,
                    "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                    "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
                    "targets": [
                        {
                            "refId": chr(ord("A") + n),
                            "datasource": SOURCE,
                            "expr": expr,
                            "legendFormat": legend,
                        }
                        for n, (expr, legend) in enumerate(queries)
                    ],
                }
            )
        y += -(-len(contents) // 3) * HEIGHT
    return panels


def document() -> dict[str, Any]:
    """The whole dashboard."""
    jobs = "label_values(streamer_build_info, job)"
    return {
        "title": "streamer",
        "uid": "streamer",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "tags": ["streamer"],
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "job",
                    "type": "query",
                    "label": "Job",
                    "datasource": SOURCE,
                    "definition": jobs,
                    "query": {"query": jobs, "refId": "jobs"},
                    "refresh": 2,
                    "sort": 1,
                },
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Alerts of the rules",
                    "enable": True,
                    "datasource": SOURCE,
                    "expr": 'ALERTS{alertstate="firing", job="$job"}',
                    "titleFormat": "{{alertname}}",
                    "iconColor": "red",
                }
            ]
        },
        "panels": _panels(),
    }


def text() -> str:
    """What the file must hold."""
    return json.dumps(document(), indent=1) + "\n"


if __name__ == "__main__":
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(text())
    print(OUTPUT)
