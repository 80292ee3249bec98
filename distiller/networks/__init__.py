"""Reference networks: teachers and students, reached only through a factory string.

Every factory returns a plain ``nn.Module`` that takes normalised images ``[B, C, H, W]`` and
returns logits ``[B, K]``. Nothing else in the project imports them: a user's own network is named
in the configuration the same way, e.g. ``factory: my_package.nets:my_student``.
"""

from distiller.networks.cifar_resnet import cifar_resnet, resnet20, resnet56
from distiller.networks.digits_cnn import digits_cnn
from distiller.networks.resnet_small import resnet20s, resnet32s, resnet_small
from distiller.networks.wide_resnet import wide_resnet

__all__ = [
    "cifar_resnet",
    "digits_cnn",
    "resnet20",
    "resnet20s",
    "resnet32s",
    "resnet56",
    "resnet_small",
    "wide_resnet",
]
