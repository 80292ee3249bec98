"""The dashboard *Distillers*: how fast the student trains, on what, and what it learns."""

from __future__ import annotations

from deploy.grafana.panels import Board, Heat, Lines, Number, Query, Row, Step

HEALTH = Row(
    "Is it healthy?",
    (
        Number(
            "Student steps",
            "locale",
            queries=(Query('max(ssdkd_student_step{run="$run"})', "steps"),),
            says="Of the whole run. Falls back to the newest checkpoint when a worker dies.",
            steps=[Step(None, "blue")],
        ),
        Number(
            "Last step",
            "s",
            queries=(
                Query(
                    'time() - max(ssdkd_distiller_last_step_timestamp_seconds{run="$run"} > 0)',
                    "ago",
                ),
            ),
            says="Time since any worker made a step. Good: seconds. Evaluations and checkpoints "
            "interrupt it.",
            steps=[Step(None, "green"), Step(120, "yellow"), Step(600, "red")],
        ),
        Number(
            "Returns to a checkpoint in an hour",
            "none",
            queries=(Query('max(changes(ssdkd_student_attempt{run="$run"}[1h]))', "returns"),),
            says="Good: 0. A worker died, their number changed, or a run of this name began anew.",
            steps=[Step(None, "green"), Step(1, "yellow"), Step(2, "red")],
        ),
        Number(
            "Time spent waiting",
            "percentunit",
            queries=(Query('run:ssdkd_distiller_idle:ratio_rate5m{run="$run"}', "waiting"),),
            says="For batches. Good: below 30 %. More: synthesizers are too slow, or reading is. "
            "While the buffer fills it is 100 %.",
            steps=[Step(None, "green"), Step(0.3, "yellow"), Step(0.5, "red")],
        ),
        Number(
            "Agreement",
            "percentunit",
            queries=(Query('run:ssdkd_student_agreement:avg5m{run="$run"}', "agreement"),),
            says="Share of drawn samples on which teacher and student name the same class, five "
            "minutes' mean. Good: rises and stays.",
            steps=[Step(None, "blue")],
        ),
        Number(
            "Accuracy",
            "percentunit",
            queries=(Query('run:ssdkd_distiller_accuracy:ratio{run="$run"}', "accuracy"),),
            says="On the test data, at the last evaluation. Nothing in the run is decided by it.",
            steps=[Step(None, "blue")],
        ),
    ),
)


LEARNING = Row(
    "What does the student learn?",
    (
        Lines(
            "Loss",
            "none",
            queries=(Query('avg(ssdkd_distiller_loss{run="$run"})', "last step"),),
            says="Weighted, of single steps: noisy. Good: falls, then wavers. Bad: rises for "
            "minutes, or jumps: lower distiller.learning_rate.",
            width=6,
        ),
        Lines(
            "KL(teacher || student)",
            "suffix: nats",
            queries=(
                Query('avg(ssdkd_distiller_kl_nats{run="$run"})', "last step"),
                Query('max(ssdkd_student_kl_nats{run="$run"})', "mean of an interval"),
            ),
            says="Of drawn samples at T = 1. Good: falls, then wavers as new hard samples come.",
            width=6,
        ),
        Lines(
            "Agreement",
            "percentunit",
            queries=(
                Query('avg(ssdkd_distiller_agreement_ratio{run="$run"})', "last step"),
                Query('max(ssdkd_student_agreement_ratio{run="$run"})', "mean of an interval"),
            ),
            says="Share of equal argmax on drawn samples. Good: rises, then levels out.",
            width=6,
            most=1,
        ),
        Lines(
            "Learning rate",
            "none",
            queries=(Query('max(ssdkd_distiller_learning_rate{run="$run"})', "last step"),),
            says="Follows distiller.schedule over the budget: a warm-up, then a cosine to 0.",
            width=6,
        ),
    ),
)


TIME = Row(
    "Where does the time go?",
    (
        Lines(
            "Where workers' time goes",
            "suffix: s/s",
            queries=(
                Query(
                    'sum(rate(ssdkd_distiller_step_seconds_sum{run="$run"}[$__rate_interval]))',
                    "steps",
                ),
                Query(
                    'sum(rate(ssdkd_distiller_waiting_seconds_total{run="$run"}[$__rate_interval]))',
                    "waiting for batches",
                ),
                Query(
                    'sum(rate(ssdkd_distiller_checkpoint_seconds_total{run="$run"}[$__rate_interval]))',
                    "checkpoints",
                ),
            ),
            says="Seconds per second: together about the number of workers. Good: mostly steps.",
            stacked=True,
        ),
        Heat(
            "Duration of a step",
            "s",
            queries=(
                Query(
                    "sum by (le) "
                    '(rate(ssdkd_distiller_step_seconds_bucket{run="$run"}[$__rate_interval]))',
                    "{{le}}",
                ),
            ),
            says="Good: one narrow band. Two bands: one worker is slower, and the others wait for "
            "it at every step.",
            width=8,
        ),
        Lines(
            "Steps",
            "suffix: steps/s",
            queries=(
                Query('run:ssdkd_student_steps:deriv5m{run="$run"}', "student steps"),
                Query(
                    'sum(rate(ssdkd_distiller_steps_total{run="$run"}[$__rate_interval]))',
                    "steps of all workers",
                ),
            ),
            says="Workers make each student step together: with n of them the second is n times "
            "the first.",
        ),
        Lines(
            "Draws that had to wait",
            "suffix: s/s",
            queries=(
                Query(
                    'sum(rate(ssdkd_distiller_refused_seconds_total{run="$run"}[$__rate_interval]))',
                    "time waited",
                ),
            ),
            says="Because the buffer refused them. High: synthesizers are the bottleneck. Low, "
            "while workers wait for batches: reading samples is.",
        ),
        Lines(
            "Refused draws",
            "suffix: /s",
            queries=(
                Query(
                    'sum(rate(ssdkd_distiller_refusals_total{run="$run"}[$__rate_interval]))',
                    "refusals",
                ),
            ),
            says="How often a draw had to be tried again.",
        ),
        Lines(
            "Samples trained on",
            "locale",
            queries=(Query('max(ssdkd_student_samples_drawn{run="$run"})', "samples"),),
            says="Of the whole run, over all workers. Good: grows evenly.",
        ),
    ),
)


SAMPLES = Row(
    "What is it trained on?",
    (
        Heat(
            "Age of drawn samples",
            "suffix: steps",
            queries=(
                Query(
                    "sum by (le) "
                    '(rate(ssdkd_distiller_sample_age_steps_bucket{run="$run"}[$__rate_interval]))',
                    "{{le}}",
                ),
            ),
            says="Student steps since a sample was made. Good: a broad band that stays. Climbing "
            "without end: nothing new comes.",
        ),
        Lines(
            "Mean age of the buffer",
            "suffix: steps",
            queries=(Query('max(ssdkd_student_buffer_age_steps{run="$run"})', "held"),),
            says="Of all samples held, estimated from the draws. Levels out once the buffer has "
            "been renewed; a straight rise: it is not.",
            width=12,
        ),
        Lines(
            "Draws repeated in a batch",
            "percentunit",
            queries=(Query('max(ssdkd_distiller_repeated_draws_ratio{run="$run"})', "last batch"),),
            says="Share of a batch that is in it more than once. Good: a few percent. High: the "
            "buffer is small for the batch, or few samples have all the priority.",
            width=12,
            most=1,
        ),
        Lines(
            "Effective share of a batch",
            "percentunit",
            queries=(
                Query('min(ssdkd_distiller_weight_effective_ratio{run="$run"})', "last batch"),
            ),
            says="Effective sample size of the importance weights over the batch's size. Good: "
            "above 50 %. Low: a few samples make the gradient; lower buffer.importance_exponent.",
            width=12,
            most=1,
        ),
    ),
)

DISTILLERS = Board(
    "Distillers",
    "The workers that train the student together.",
    (HEALTH, LEARNING, TIME, SAMPLES),
)
