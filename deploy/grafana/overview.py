"""The dashboard *Overview*: is the run healthy, does the student learn, who waits for whom."""

from __future__ import annotations

from deploy.grafana.panels import Alerts, Board, Lines, Number, Query, Row, Step

IDLE = (Step(None, "green"), Step(0.3, "yellow"), Step(0.5, "red"))


HEALTH = Row(
    "Is it healthy?",
    (
        Number(
            "Alerts",
            "none",
            queries=(
                Query('count(ALERTS{alertstate="firing", run="$run"}) or vector(0)', "firing"),
            ),
            says="Alerts of this run that fire. Good: 0. What each means and what to do: "
            "docs/monitoring.md.",
            steps=[Step(None, "green"), Step(1, "red")],
            width=3,
        ),
        Number(
            "Phase",
            "none",
            queries=(Query('ssdkd_student_phase{run="$run"} == 1', "{{phase}}"),),
            says="filling: the buffer gets its first samples. distilling: the student trains. "
            "finished: the budget is spent. Bad: filling for many minutes.",
            steps=[Step(None, "blue")],
            name=True,
            width=3,
        ),
        Number(
            "Budget spent",
            "percentunit",
            queries=(Query('max(ssdkd_student_elapsed_ratio{run="$run"})', "spent"),),
            says="Share of run.seconds or run.steps. Grows evenly; schedules follow it.",
            steps=[Step(None, "blue")],
            width=3,
        ),
        Number(
            "Buffer",
            "none",
            queries=(Query('min(ssdkd_buffer_up{run="$run"})', "answers"),),
            says="Whether Redis answers the pipeline. Bad: away; then everybody waits.",
            steps=[Step(None, "red"), Step(1, "green")],
            words={"0": "away", "1": "answers"},
            width=3,
        ),
        Number(
            "Synthesizers",
            "none",
            queries=(
                Query('sum(ssdkd_pipeline_synthesizers{run="$run", state="running"})', "run"),
                Query('max(ssdkd_pipeline_synthesizers_wanted{run="$run"})', "wanted"),
            ),
            says="Good: both numbers are equal. Fewer run: no room, or they keep dying.",
            width=4,
        ),
        Number(
            "Time spent waiting",
            "percentunit",
            queries=(
                Query('run:ssdkd_synthesizer_idle:ratio_rate5m{run="$run"}', "synthesizers"),
                Query('run:ssdkd_distiller_idle:ratio_rate5m{run="$run"}', "distillers"),
            ),
            says="Good: both below 30 %. Synthesizers wait: there are more than the training can "
            "use. Distillers wait: too few. While the buffer fills, distillers wait all the time.",
            steps=IDLE,
            width=4,
        ),
        Number(
            "Accuracy",
            "percentunit",
            queries=(Query('run:ssdkd_distiller_accuracy:ratio{run="$run"}', "accuracy"),),
            says="Of the student on the test data, at the last evaluation; none is shown without "
            "evaluation.data. Nothing in the run is decided by it.",
            steps=[Step(None, "blue")],
            width=4,
        ),
    ),
)


LEARNING = Row(
    "Does the student learn?",
    (
        Lines(
            "Agreement of teacher and student",
            "percentunit",
            queries=(
                Query('max(ssdkd_student_agreement_ratio{run="$run"})', "drawn samples"),
                Query('max(ssdkd_student_probe_agreement_ratio{run="$run"})', "probes"),
                Query('run:ssdkd_distiller_accuracy:ratio{run="$run"}', "accuracy, test data"),
            ),
            says="Good: all rise and level out. Bad: probes fall while drawn samples rise (the "
            "student learns its samples by heart), or all fall.",
            width=12,
            most=1,
        ),
        Lines(
            "KL(teacher || student)",
            "suffix: nats",
            queries=(
                Query('max(ssdkd_student_kl_nats{run="$run"})', "drawn samples"),
                Query('max(ssdkd_student_probe_kl_nats{run="$run"})', "probes"),
            ),
            says="Good: probes fall. Drawn samples may stay above them: the hard ones are drawn "
            "more often. Bad: probes rise for minutes.",
            width=12,
        ),
    ),
)


FLOW = Row(
    "Who waits for whom?",
    (
        Lines(
            "Time spent waiting",
            "percentunit",
            queries=(
                Query('run:ssdkd_synthesizer_idle:ratio_rate5m{run="$run"}', "synthesizers"),
                Query('run:ssdkd_distiller_idle:ratio_rate5m{run="$run"}', "distillers"),
            ),
            says="Five minutes' mean. One side near 0 and the other above 50 %: the first is the "
            "bottleneck. `ssdkd scale` changes the number of synthesizers.",
            most=1,
        ),
        Lines(
            "Images inserted",
            "suffix: images/s",
            queries=(Query('run:ssdkd_synthesizer_images:rate5m{run="$run"}', "images"),),
            says="By all synthesizers. Good: steady. 0: they prepare, wait, or are stuck.",
        ),
        Lines(
            "Samples trained on",
            "suffix: samples/s",
            queries=(Query('run:ssdkd_distiller_samples:rate5m{run="$run"}', "samples"),),
            says="By all workers. Good: steady. It drops at evaluations and checkpoints.",
        ),
    ),
)


LIMITS = Row(
    "What is in the way?",
    (
        Alerts(
            "Alerts that fire or are about to",
            says="Empty is good. Each leads by its name to a section of docs/monitoring.md.",
        ),
        Lines(
            "How much is used",
            "percentunit",
            queries=(
                Query('run:ssdkd_buffer_fill:ratio{run="$run"}', "buffer's capacity"),
                Query(
                    'max(ssdkd_redis_memory_used_bytes{run="$run"} '
                    '/ clamp_min(ssdkd_redis_memory_limit_bytes{run="$run"}, 1) '
                    'and ssdkd_redis_memory_limit_bytes{run="$run"} > 0 '
                    'or ssdkd_redis_memory_limit_bytes{run="$run"} * 0)',
                    "Redis' memory",
                ),
            ),
            says="The buffer fills once and stays full. Redis above 90 %: it will refuse inserts. "
            "Without a limit (maxmemory) its share is 0.",
            most=1,
        ),
        Lines(
            "How fresh samples are",
            "percentunit",
            queries=(
                Query('run:ssdkd_buffer_age:ratio{run="$run"}', "training since the mean sample"),
                Query(
                    'run:ssdkd_buffer_stale_updates:ratio_rate5m{run="$run"}', "priorities too late"
                ),
            ),
            says="The first falls as the buffer is renewed; staying above 75 %: it hardly is. The "
            "second above 20 %: samples are gone before they are judged.",
            most=1,
        ),
    ),
)

OVERVIEW = Board(
    "Overview",
    "One run at a glance. The top row is green when nobody needs to look further.",
    (HEALTH, LEARNING, FLOW, LIMITS),
)
