"""The dashboard *Buffer*: what it holds, what passes through it, and how Redis does."""

from __future__ import annotations

from deploy.grafana.panels import Board, Heat, Lines, Number, Query, Row, Step

HEALTH = Row(
    "Is it healthy?",
    (
        Number(
            "Buffer",
            "none",
            queries=(Query('min(ssdkd_buffer_up{run="$run"})', "answers"),),
            says="Whether Redis answers the pipeline. Bad: away; then everybody waits.",
            steps=[Step(None, "red"), Step(1, "green")],
            words={"0": "away", "1": "answers"},
        ),
        Number(
            "Servers left out",
            "none",
            queries=(Query('max(ssdkd_buffer_shards_left_out{run="$run"})', "left out"),),
            says="Good: 0. Of several servers, those that cannot be reached; the run goes on with "
            "the samples of the others.",
            steps=[Step(None, "green"), Step(1, "red")],
        ),
        Number(
            "Filled",
            "percentunit",
            queries=(Query('run:ssdkd_buffer_fill:ratio{run="$run"}', "filled"),),
            says="Grows to 100 % once and stays there. Falling back: the data was lost.",
            steps=[Step(None, "blue")],
        ),
        Number(
            "Draws per insert",
            "none",
            queries=(Query('run:ssdkd_buffer_draws_per_insert:ratio_rate5m{run="$run"}', "draws"),),
            says="Five minutes' mean. Good: buffer.samples_per_insert, where it is set.",
            steps=[Step(None, "blue")],
        ),
        Number(
            "Priorities too late",
            "percentunit",
            queries=(Query('run:ssdkd_buffer_stale_updates:ratio_rate5m{run="$run"}', "stale"),),
            says="Share of priority updates whose sample was gone. Good: near 0; above 20 % the "
            "buffer is small for what is on its way.",
            steps=[Step(None, "green"), Step(0.05, "yellow"), Step(0.2, "red")],
        ),
        Number(
            "Draws repeated",
            "percentunit",
            queries=(Query('run:ssdkd_buffer_redraws:ratio_rate5m{run="$run"}', "repeated"),),
            says="Because a sample was evicted between its draw and its reading. Good: near 0.",
            steps=[Step(None, "green"), Step(0.02, "yellow"), Step(0.1, "red")],
        ),
    ),
)


CONTENTS = Row(
    "What does it hold?",
    (
        Heat(
            "Priorities",
            "suffix: nats",
            queries=(Query('sum by (le) (ssdkd_buffer_priority_bucket{run="$run"})', "{{le}}"),),
            says="Samples by priority. Good: a broad band that sinks slowly. One dark row: all are "
            "alike, and prioritising does nothing. A growing top: samples that are never learnt.",
        ),
        Lines(
            "Samples by class",
            "suffix: samples",
            queries=(
                Query(
                    'sum by (predicted_class) (ssdkd_buffer_class_samples{run="$run"})',
                    "{{predicted_class}}",
                ),
            ),
            says="By the class that the teacher sees. Good: bands of like width. Bad: a band that "
            "vanishes: the student forgets that class.",
            width=12,
            stacked=True,
        ),
        Lines(
            "Samples held",
            "suffix: samples",
            queries=(
                Query('sum by (split) (ssdkd_buffer_samples{run="$run"})', "{{split}}"),
                Query(
                    'sum by (split) (ssdkd_buffer_capacity_samples{run="$run"})', "{{split}}, most"
                ),
            ),
            says="train is drawn from, probe never: it measures. Both fill once and stay full.",
        ),
        Lines(
            "Mean priority",
            "suffix: nats",
            queries=(
                Query(
                    'sum(ssdkd_buffer_priority_gsum{run="$run"}) '
                    '/ sum(ssdkd_buffer_priority_gcount{run="$run"})',
                    "mean",
                ),
            ),
            says="Falls as the student learns; stays up while new, hard samples come.",
        ),
        Lines(
            "Effective sample size",
            "percentunit",
            queries=(
                Query('max(ssdkd_student_effective_sample_ratio{run="$run"})', "1 / (N sum P^2)"),
            ),
            says="100 %: all samples are drawn alike. Below 10 %: a few are nearly all that is "
            "drawn; lower buffer.priority_exponent or raise buffer.uniform_share.",
            most=1,
        ),
    ),
)


FLOW = Row(
    "What passes through it?",
    (
        Lines(
            "Inserts, draws, evictions",
            "suffix: samples/s",
            queries=(
                Query('run:ssdkd_buffer_inserts:rate5m{run="$run"}', "inserts"),
                Query('run:ssdkd_buffer_draws:rate5m{run="$run"}', "draws"),
                Query(
                    'max(rate(ssdkd_buffer_evictions_total{run="$run"}[$__rate_interval]))',
                    "evictions",
                ),
            ),
            says="A full buffer evicts as much as it takes in. Good: steady.",
        ),
        Lines(
            "Limiter's balance",
            "suffix: draws",
            queries=(Query('max(ssdkd_buffer_limiter_balance_draws{run="$run"})', "paid for"),),
            says="Draws that inserts have paid for. Good: between the bounds of "
            "buffer.error_buffer. At the lower: distillers wait; at the upper: synthesizers.",
            signed=True,
        ),
        Lines(
            "Refusals",
            "suffix: /s",
            queries=(
                Query(
                    "sum by (side) "
                    '(rate(ssdkd_buffer_refusals_total{run="$run"}[$__rate_interval]))',
                    "{{side}}",
                ),
            ),
            says="How often a side had to wait for the other. insert: synthesizers are ahead. "
            "sample: distillers are, or the first samples are missing.",
        ),
        Lines(
            "Priority updates by what became of them",
            "suffix: updates/s",
            queries=(
                Query(
                    "sum by (result) "
                    '(rate(ssdkd_buffer_updates_total{run="$run"}[$__rate_interval]))',
                    "{{result}}",
                ),
            ),
            says="Good: applied. stale: the sample is gone. older: another worker had written a "
            "newer one.",
            stacked=True,
        ),
        Lines(
            "Repeated work",
            "suffix: /s",
            queries=(
                Query(
                    'max(rate(ssdkd_buffer_redraws_total{run="$run"}[$__rate_interval]))', "redraws"
                ),
                Query(
                    'max(rate(ssdkd_buffer_duplicate_inserts_total{run="$run"}[$__rate_interval]))',
                    "repeated deliveries",
                ),
            ),
            says="Good: 0. Redraws: samples go before they are read. Deliveries: lost answers.",
        ),
        Lines(
            "Images in and out",
            "Bps",
            queries=(
                Query(
                    "sum by (direction) "
                    '(rate(ssdkd_buffer_payload_bytes_total{run="$run"}[$__rate_interval]))',
                    "{{direction}}",
                ),
            ),
            says="Bytes of samples between services and Redis; what a cache had is not read again.",
        ),
    ),
)


REDIS = Row(
    "How does Redis do?",
    (
        Lines(
            "Memory",
            "bytes",
            queries=(
                Query(
                    'max by (shard) (ssdkd_redis_memory_used_bytes{run="$run"})', "{{shard}}, used"
                ),
                Query(
                    'max by (shard) (ssdkd_redis_memory_limit_bytes{run="$run"})',
                    "{{shard}}, limit",
                ),
            ),
            says="Good: used stays below 90 % of the limit (0: there is none). At its limit Redis "
            "refuses inserts.",
            width=6,
        ),
        Lines(
            "Last fork",
            "s",
            queries=(
                Query('max by (shard) (ssdkd_redis_last_fork_seconds{run="$run"})', "{{shard}}"),
            ),
            says="How long the last snapshot of Redis' own stopped all clients; 0: none. Bad: "
            "above 100 ms; switch `save` and `appendonly` off.",
            width=6,
        ),
        Lines(
            "Duration of calls, 99th percentile",
            "s",
            queries=(
                Query(
                    "histogram_quantile(0.99, sum by (op, le) "
                    '(rate(ssdkd_buffer_call_seconds_bucket{run="$run"}[$__rate_interval])))',
                    "{{op}}",
                ),
            ),
            says="As services see it. Good: milliseconds. All high: Redis or the network is busy. "
            "One high: that operation moves much.",
            width=6,
        ),
        Lines(
            "Calls",
            "suffix: calls/s",
            queries=(
                Query(
                    "sum by (op) "
                    '(rate(ssdkd_buffer_call_seconds_count{run="$run"}[$__rate_interval]))',
                    "{{op}}",
                ),
            ),
            says="By operation, of all services. docs/capacity.md says how many one server takes.",
            width=6,
        ),
    ),
)

BUFFER = Board(
    "Buffer",
    "The prioritised replay buffer, and the Redis servers that hold it.",
    (HEALTH, CONTENTS, FLOW, REDIS),
)
