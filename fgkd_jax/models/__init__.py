"""Thin Linen modules: backbones, heads and normalisation."""

from fgkd_jax.models.adaptation import Adapters
from fgkd_jax.models.attribute_attention import AttributeAttention, SubnetOutputs
from fgkd_jax.models.backbones import BACKBONES, feature_shapes, make_backbone
from fgkd_jax.models.detection_heads import (
    DensePredictions,
    ProposalHead,
    RegionHead,
    RetinaHead,
)
from fgkd_jax.models.discriminator import FeatureDiscriminator
from fgkd_jax.models.feature_pyramid import FeaturePyramid
from fgkd_jax.models.folding import merge_statistics, unfold_batch_norm
from fgkd_jax.models.hcgnet import HCGNet
from fgkd_jax.models.heads import LinearHead, ProjectionHead
from fgkd_jax.models.mobilenet_v2 import MobileNetV2
from fgkd_jax.models.normalization import BatchNorm
from fgkd_jax.models.phrases import PhraseEncoder, PhrasePooling
from fgkd_jax.models.progressive_attention import ProgressiveAttention
from fgkd_jax.models.resnet import ResNet
from fgkd_jax.models.shufflenet_v2 import ShuffleNetV2
from fgkd_jax.models.stage_matching import Aggregator, MatchNetwork
from fgkd_jax.models.stages import Backbone
from fgkd_jax.models.vgg import VGG
from fgkd_jax.models.wide_resnet import WideResNet
