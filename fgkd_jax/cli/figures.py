"""How figures are told to people."""

_SHARES = ("accuracy", "harmonic_mean", "ausuc", "pointing")


def is_share(name: str) -> bool:
    """Says whether a figure is a share, which people read in percent.

    Args:
      name: of the figure.

    Returns:
      True for accuracies, harmonic means of them, areas under them, average precisions and the
      pointing game; False for gains and counts.
    """
    return name.startswith("AP") or name.endswith(_SHARES)
