"""How much of a sample's KL is the sample's, and how much the view's that the student was shown.

``python -m tests.benchmarks.studies.views OUT`` shows images of a run's generator to its student
and its teacher, ten times, each cropped, flipped and blended anew, and splits the variance of KL
between images and views (one-way analysis of variance): the share that is the images' is what two
views of one image have in common, and what a priority made of one view says of the next.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from buffer.models import build
from deploy.config import PipelineConfig, load
from distiller import augment
from distiller.losses import kl_divergence
from distiller.schedule import crop_size
from synthesizer.teacher import freeze
from tests.benchmarks.studies.pool import CPU, SEED, pool_of, student_of

VIEWS = 10
IMAGES = 512
SMALLEST_NATS = 1e-6


def views(out: Path, config: PipelineConfig, *, share: float) -> Tensor:
    """``[views, images]`` KL at T = 1 in nats, augmented as after this share of the budget."""
    images, table = pool_of(out, IMAGES), config.distiller
    student, teacher = student_of(out, config), freeze(build(config.teacher), CPU)
    generator = torch.Generator().manual_seed(SEED)
    size = crop_size(table, share, config.teacher.image_shape[1:], first_share=0.0)

    def view() -> Tensor:
        shown = augment.views(
            images,
            padding=table.crop_padding,
            flip=table.flip,
            mixup=table.mixup,
            generator=generator,
            size=size,
        )
        return kl_divergence(student(shown), teacher(shown))

    with torch.no_grad():
        return torch.stack([view() for _ in range(VIEWS)])


def images_share(values: Tensor) -> float:
    """Of the variance of ``[views, images]``: intraclass correlation, 1 if all views say one."""
    within = values.var(dim=0).mean()
    between = values.mean(dim=0).var() - within / len(values)
    return float(between / (between + within))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="+")
    for out in parser.parse_args().out:
        config = load(out / "config.yaml")
        for share in (0.0, 1.0):
            kl = views(out, config, share=share)
            print(
                f"{out.name}, after {share:.0%} of the budget: KL {float(kl.mean()):.2f} nats; the "
                f"images' share of its variance {images_share(kl):.2f}, "
                f"of its logarithm's {images_share((kl + SMALLEST_NATS).log()):.2f}"
            )


if __name__ == "__main__":
    main()
