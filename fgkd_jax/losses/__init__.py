"""Losses: arrays in, per-example arrays out, in nats."""

from fgkd_jax.losses.adversarial import feature_discrimination, feature_imitation
from fgkd_jax.losses.classification import cross_entropy, smooth_labels
from fgkd_jax.losses.contrastive import (
    MutualContrastive,
    layerwise_mutual_contrastive,
    mutual_contrastive,
    normalize_embeddings,
)
from fgkd_jax.losses.contrastive_bank import (
    bank_mutual_contrastive,
    layerwise_bank_mutual_contrastive,
    update_bank,
)
from fgkd_jax.losses.contrastive_queue import enqueue, moco_mutual_contrastive
from fgkd_jax.losses.decoupled import (
    DecoupledFeatures,
    DecoupledLogits,
    decoupled_features,
    decoupled_logits,
    decoupled_scores,
)
from fgkd_jax.losses.detection import (
    absolute_error,
    sigmoid_cross_entropy,
    sigmoid_focal,
    smooth_l1,
)
from fgkd_jax.losses.detectors import (
    HeadLosses,
    dense_losses,
    proposal_losses,
    region_losses,
)
from fgkd_jax.losses.distillation import (
    AggregatedTask,
    aggregated_task,
    ensemble_distillation,
    knowledge_distillation,
    mutual_learning,
    soft_target_cross_entropy,
)
from fgkd_jax.losses.zero_shot import (
    attribute_cross_entropy,
    attribute_ranking,
    calibration_bias,
    self_calibration,
    self_calibration_per_example,
    semantic_distillation,
    semantic_distillation_as_printed,
)
