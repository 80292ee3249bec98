"""The dashboard *Controller*: what it decided, and what it got for it."""

from __future__ import annotations

from deploy.grafana.panels import Board, Lines, Number, Query, Row, Step

HEALTH = Row(
    "Is it healthy?",
    (
        Number(
            "Last decision",
            "s",
            queries=(
                Query(
                    "time() - "
                    'max(ssdkd_controller_last_decision_timestamp_seconds{run="$run"} > 0)',
                    "ago",
                ),
            ),
            says="Good: less than twice controller.interval_seconds. Longer: it gets no reward, or "
            "has died.",
            steps=[Step(None, "green"), Step(300, "yellow"), Step(900, "red")],
            width=6,
        ),
        Number(
            "Interval",
            "s",
            queries=(Query('max(ssdkd_controller_interval_seconds{run="$run"})', "interval"),),
            says="controller.interval_seconds: what there should be between two decisions.",
            width=6,
        ),
        Number(
            "Decisions",
            "none",
            queries=(Query('sum(ssdkd_controller_decisions_total{run="$run"})', "decisions"),),
            says="Since the pipeline began. Good: grows by one an interval in training.",
            steps=[Step(None, "blue")],
            width=6,
        ),
        Number(
            "Duration of a decision",
            "s",
            queries=(
                Query(
                    'sum(ssdkd_controller_decision_seconds_sum{run="$run"}) '
                    '/ sum(ssdkd_controller_decision_seconds_count{run="$run"})',
                    "mean",
                ),
            ),
            says="Good: far below the interval between two of them.",
            steps=[Step(None, "green"), Step(1, "yellow"), Step(10, "red")],
            width=6,
        ),
    ),
)


REWARD = Row(
    "What does it get?",
    (
        Lines(
            "Reward",
            "none",
            queries=(
                Query('max(ssdkd_controller_reward{run="$run"})', "of the parameters before"),
            ),
            says="Drop of the probes' KL per second under the parameters before the newest "
            "decision. Good: above 0, large at first and small later. Below 0: they did harm.",
            signed=True,
        ),
        Lines(
            "KL on probes",
            "suffix: nats",
            queries=(Query('max(ssdkd_student_probe_kl_nats{run="$run"})', "probes"),),
            says="What the reward is the slope of. Good: falls.",
        ),
        Lines(
            "Agreement on probes",
            "percentunit",
            queries=(Query('max(ssdkd_student_probe_agreement_ratio{run="$run"})', "probes"),),
            says="On samples that the student never trains on. Good: rises.",
            most=1,
        ),
    ),
)


ACTIONS = Row(
    "What does it do?",
    (
        Lines(
            "Arms chosen",
            "suffix: decisions",
            queries=(
                Query('sum by (arm) (ssdkd_controller_decisions_total{run="$run"})', "{{arm}}"),
            ),
            says="How often each was, so far. A learner tries all of them at first, and then "
            "prefers some; one alone from the start: controller.policy is fixed.",
            stacked=True,
            width=12,
        ),
        Lines(
            "Sampling parameters in force",
            "none",
            queries=(Query('max by (name) (ssdkd_buffer_parameter{run="$run"})', "{{name}}"),),
            says="Steps where a decision changed one. What each does: docs/configuration.md, "
            "table buffer.",
            width=12,
        ),
    ),
)

CONTROLLER = Board(
    "Controller",
    "Who adjusts the sampling while the run goes on. Empty where controller.policy is off.",
    (HEALTH, REWARD, ACTIONS),
)
