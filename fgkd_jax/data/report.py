"""What a check of a data set found."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """What `check_dataset` found.

    Attributes:
      name: the data set.
      data_dir: where it was looked for.
      lines: rows of the table, (what, found).
      problems: one line each; empty when all is well.
    """

    name: str
    data_dir: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, what: str, found: object) -> None:
        """Adds a row to the table.

        Args:
          what: what was looked at.
          found: what was found.
        """
        self.lines.append((what, str(found)))

    def render(self, *, limit: int = 20) -> str:
        """Lays the report out as text.

        Args:
          limit: how many problems to list; the rest are counted.

        Returns:
          Several lines: the table, then the problems.
        """
        rows = [("data set", self.name), ("looked in", self.data_dir), *self.lines]
        width = max(len(what) for what, _ in rows)
        text = [f"{what:<{width}}  {found}" for what, found in rows]
        text.append(f"{'problems':<{width}}  {len(self.problems) or 'none'}")
        text += [f"  - {problem}" for problem in self.problems[:limit]]
        if len(self.problems) > limit:
            text.append(f"  ... and {len(self.problems) - limit} more")
        return "\n".join(text)

    def __str__(self) -> str:
        return self.render()
