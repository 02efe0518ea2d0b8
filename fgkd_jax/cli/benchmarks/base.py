"""What a benchmark is: a function that makes cases, and the alternatives it knows."""

import dataclasses
from collections.abc import Callable, Iterator

from fgkd_jax.cli.benchmarks.timing import Case
from fgkd_jax.cli.experiment import Experiment
from fgkd_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Request:
    """What a benchmark is asked for.

    Attributes:
      experiment: the config, for benchmarks that take one.
      against: names of the alternatives to compare with.
      batch_size: images of a call; None for the benchmark's or the config's own.
    """

    experiment: Experiment | None = None
    against: tuple[str, ...] = ()
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; expected at least 1")

    @property
    def config(self) -> Experiment:
        """The experiment, where there has to be one."""
        if self.experiment is None:
            raise UserError("this benchmark needs a config")
        return self.experiment


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
      name: what follows `fgkd bench`.
      cases: makes the cases one after the other, each measured before the next is made.
      against: the alternatives that `--against` may name.
      default_against: those that are compared with when it names none.
      takes_config: whether a config is needed; otherwise none is accepted.
      default_configs: names of those that are measured where none is given.
    """

    name: str
    cases: Callable[[Request], Iterator[Case]]
    against: tuple[str, ...]
    default_against: tuple[str, ...] = ()
    takes_config: bool = False
    default_configs: tuple[str, ...] = ()

    def check(self, request: Request) -> None:
        """Checks that a request fits.

        Args:
          request: what is asked for.

        Raises:
          UserError: an alternative is unknown, or a config is missing or not wanted.
        """
        for name in request.against:
            if name not in self.against:
                hint = nearest(name, self.against)
                raise UserError(f"fgkd bench {self.name} knows no alternative '{name}'{hint}")
        if self.takes_config and request.experiment is None and not self.default_configs:
            raise UserError(f"fgkd bench {self.name} needs --config; see fgkd bench --help")
        if not self.takes_config and request.experiment is not None:
            raise UserError(f"fgkd bench {self.name} takes no --config")
