"""How figures are told to people."""

import re

_SHARES = re.compile(
    r"(.*_)?(accuracy|harmonic_mean|ausuc|pointing)|accuracy_.*|(voc\d*_)?A[PR](\d+|_.*)?"
    "|background_false_positives"
)


def is_share(name: str) -> bool:
    """Says whether a figure is a share, which people read in percent.

    Args:
      name: of the figure.

    Returns:
      True for accuracies, harmonic means of them, areas under them, average precisions and
      recalls, the share of false positives on background, and the pointing game; False for gains,
      offsets, losses and counts.
    """
    return _SHARES.fullmatch(name) is not None
