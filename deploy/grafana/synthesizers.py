"""The dashboard *Synthesizers*: how many work, how fast, and how good their images are."""

from __future__ import annotations

from deploy.grafana.panels import Board, Heat, Lines, Number, Query, Row, Step

HEALTH = Row(
    "Is it healthy?",
    (
        Number(
            "Running",
            "none",
            queries=(
                Query('sum(ssdkd_pipeline_synthesizers{run="$run", state="running"})', "run"),
                Query('max(ssdkd_pipeline_synthesizers_wanted{run="$run"})', "wanted"),
            ),
            says="Good: both numbers are equal. Else see the states below.",
        ),
        Number(
            "Restarts in an hour",
            "none",
            queries=(
                Query(
                    'sum(increase(ssdkd_pipeline_synthesizer_restarts_total{run="$run"}[1h]))',
                    "restarts",
                ),
            ),
            says="Good: 0. Each died and was started again; after nine deaths it is in quarantine.",
            steps=[Step(None, "green"), Step(1, "yellow"), Step(4, "red")],
        ),
        Number(
            "Time spent waiting",
            "percentunit",
            queries=(Query('run:ssdkd_synthesizer_idle:ratio_rate5m{run="$run"}', "waiting"),),
            says="For permits of the limiter, or for a buffer that is away. Good: below 30 %. "
            "More: there are more synthesizers than the training can use.",
            steps=[Step(None, "green"), Step(0.3, "yellow"), Step(0.5, "orange")],
        ),
        Number(
            "Prepared",
            "percentunit",
            queries=(Query('min(ssdkd_synthesizer_prepared_ratio{run="$run"})', "prepared"),),
            says="How far the method's preparation is, of the one that is least far. Nothing is "
            "inserted before 100 %.",
            steps=[Step(None, "yellow"), Step(1, "green")],
        ),
        Number(
            "Images inserted",
            "suffix: images/s",
            queries=(Query('run:ssdkd_synthesizer_images:rate5m{run="$run"}', "images"),),
            says="By all of them, five minutes' mean. 0: they prepare, wait, or are stuck.",
            steps=[Step(None, "blue")],
        ),
        Number(
            "Last insert",
            "s",
            queries=(
                Query(
                    'time() - max(ssdkd_synthesizer_last_insert_timestamp_seconds{run="$run"} > 0)',
                    "ago",
                ),
            ),
            says="Time since anyone inserted. Good: about a round's duration.",
            steps=[Step(None, "green"), Step(300, "yellow"), Step(900, "red")],
        ),
    ),
)


WORK = Row(
    "What do they do?",
    (
        Lines(
            "States",
            "none",
            queries=(
                Query('sum by (state) (ssdkd_pipeline_synthesizers{run="$run"})', "{{state}}"),
            ),
            says="Good: all run. waiting for resources: no node has room. restarting for long, or "
            "quarantine: they die, and their log says why.",
            stacked=True,
        ),
        Lines(
            "Where their time goes",
            "suffix: s/s",
            queries=(
                Query(
                    'sum(rate(ssdkd_synthesizer_busy_seconds_total{run="$run"}[$__rate_interval]))',
                    "busy",
                ),
                Query(
                    'sum(rate(ssdkd_synthesizer_waiting_seconds_total{run="$run"}[$__rate_interval]))',
                    "waiting",
                ),
            ),
            says="Seconds per second: both together are about the number of synthesizers. A sum "
            "that drops: rounds hang.",
            stacked=True,
        ),
        Lines(
            "Pauses",
            "suffix: /s",
            queries=(
                Query(
                    'sum(rate(ssdkd_synthesizer_waits_total{run="$run"}[$__rate_interval]))',
                    "pauses",
                ),
            ),
            says="How often one had to wait. Many short ones are cheap; see where their time goes.",
        ),
        Lines(
            "Images by what became of them",
            "suffix: images/s",
            queries=(
                Query(
                    "sum by (result) "
                    '(rate(ssdkd_synthesizer_images_total{run="$run"}[$__rate_interval]))',
                    "{{result}}",
                ),
            ),
            says="Good: committed only. rejected: the buffer would not take them. abandoned: a "
            "round was lost, to a stop or a repeated delivery.",
            stacked=True,
        ),
        Lines(
            "Rounds",
            "suffix: rounds/s",
            queries=(
                Query(
                    'sum(rate(ssdkd_synthesizer_rounds_total{run="$run"}[$__rate_interval]))',
                    "rounds",
                ),
            ),
            says="Batches made, by all of them. Good: steady.",
        ),
        Heat(
            "Duration of a round",
            "s",
            queries=(
                Query(
                    "sum by (le) "
                    '(rate(ssdkd_synthesizer_round_seconds_bucket{run="$run"}[$__rate_interval]))',
                    "{{le}}",
                ),
            ),
            says="Good: one narrow band. A second band: some nodes are slower, or share their "
            "processors.",
            width=8,
        ),
    ),
)


QUALITY = Row(
    "How good are the images?",
    (
        Lines(
            "Loss terms",
            "none",
            queries=(Query('max by (term) (ssdkd_synthesizer_loss{run="$run"})', "{{term}}"),),
            says="Newest round, before weights. Good: bn and task fall at first, then stay. "
            "Bad: bn (BatchNorm) rises for minutes: images leave what the teacher was trained on.",
            width=6,
        ),
        Lines(
            "Teacher's confidence",
            "percentunit",
            queries=(Query('avg(ssdkd_synthesizer_confidence_ratio{run="$run"})', "mean"),),
            says="Mean over the newest round. Good: high, and a little below 100 %: hard ones are "
            "wanted. Bad: near 1 / classes: noise.",
            width=6,
            most=1,
        ),
        Lines(
            "Modulation phi",
            "none",
            queries=(Query('avg(ssdkd_synthesizer_modulation{run="$run"})', "mean"),),
            says="Mean over the newest round: weight of rare classes and hard images. Near 0: "
            "images are easy and of classes that the buffer has plenty of.",
            width=6,
        ),
        Lines(
            "Disagreement of the student",
            "suffix: nats",
            queries=(
                Query(
                    'avg(ssdkd_synthesizer_disagreement_nats{run="$run"})', "KL(teacher || student)"
                ),
            ),
            says="Of new images. Above that of drawn samples: they bring something new. Near 0: "
            "the student has nothing left to learn from them.",
            width=6,
        ),
    ),
)


STUDENT = Row(
    "How current is the student they see?",
    (
        Lines(
            "Snapshot's lag",
            "suffix: steps",
            queries=(Query('max(ssdkd_synthesizer_student_lag_steps{run="$run"})', "largest"),),
            says="Student steps since the snapshot in use. Good: a saw-tooth, as high as a round "
            "and distiller.snapshot_seconds together last.",
            width=12,
        ),
        Lines(
            "The same in time",
            "s",
            queries=(Query('run:ssdkd_student_lag:seconds{run="$run"}', "largest"),),
            says="Bad: minutes, when rounds take seconds: snapshots come rarely or load slowly.",
            width=12,
        ),
    ),
)

SYNTHESIZERS = Board(
    "Synthesizers",
    "The services that turn the teacher into images. Sums and means are over all of them.",
    (HEALTH, WORK, QUALITY, STUDENT),
)
