"""The methods, one file each. `METHODS` is the only place that lists them."""

from fgkd_jax.methods.afd import AFD
from fgkd_jax.methods.classifier import Classifier
from fgkd_jax.methods.defeat_detectors import DefeatFasterRCNN, DefeatRetinaNet
from fgkd_jax.methods.faster_rcnn import FasterRCNN
from fgkd_jax.methods.kd import KD
from fgkd_jax.methods.lmcl import LMCL
from fgkd_jax.methods.lmcl_bank import LMCLBank
from fgkd_jax.methods.mcl import MCL
from fgkd_jax.methods.mcl_bank import MCLBank
from fgkd_jax.methods.mcl_moco import MCLMoCo
from fgkd_jax.methods.msdn import MSDN
from fgkd_jax.methods.pma import PMA, PMAVision
from fgkd_jax.methods.pma_student import PMAStudent
from fgkd_jax.methods.pma_text import PMAText
from fgkd_jax.methods.retinanet import RetinaNet
from fgkd_jax.methods.tasn import TASN

METHODS = {
    "afd": AFD,
    "classifier": Classifier,
    "defeat_faster_rcnn": DefeatFasterRCNN,
    "defeat_retinanet": DefeatRetinaNet,
    "faster_rcnn": FasterRCNN,
    "kd": KD,
    "lmcl": LMCL,
    "lmcl_bank": LMCLBank,
    "mcl": MCL,
    "mcl_bank": MCLBank,
    "mcl_moco": MCLMoCo,
    "msdn": MSDN,
    "pma": PMA,
    "pma_student": PMAStudent,
    "pma_text": PMAText,
    "pma_vision": PMAVision,
    "retinanet": RetinaNet,
    "tasn": TASN,
}
"""Methods by the name that a config gives as `method.name`."""

__all__ = [
    "AFD",
    "KD",
    "LMCL",
    "MCL",
    "METHODS",
    "MSDN",
    "PMA",
    "TASN",
    "Classifier",
    "DefeatFasterRCNN",
    "DefeatRetinaNet",
    "FasterRCNN",
    "LMCLBank",
    "MCLBank",
    "MCLMoCo",
    "PMAStudent",
    "PMAText",
    "PMAVision",
    "RetinaNet",
]
