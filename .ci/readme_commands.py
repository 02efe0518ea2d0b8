"""Reads the two commands of the README's first screen, so that CI runs what a newcomer types.

python .ci/readme_commands.py train|test
"""

import argparse
import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
FORMS = {
    "train": re.compile(r"pip install -e \. && fgkd train --config configs/\w+\.py --workdir \S+"),
    "test": re.compile(r"pip install -e '\.\[test\]' && pytest"),
}


def shell_commands(markdown: str) -> list[str]:
    """Lists the commands of the fenced shell blocks, in order.

    Args:
      markdown: the text of a document.

    Returns:
      Every line of a `bash` or `sh` block but comments, and of a `console` block the lines after
      a `$` prompt (the others are output).
    """
    commands = []
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE):
        lines = [line.strip() for line in body.splitlines()]
        if language in ("bash", "sh"):
            commands += [line for line in lines if line and not line.startswith("#")]
        elif language == "console":
            commands += [line[2:] for line in lines if line.startswith("$ ")]
    return commands


def the_two_commands(markdown: str) -> dict[str, str]:
    """Finds the commands that train and that test.

    Args:
      markdown: the text of the README.

    Returns:
      The first two shell commands of the document, as `train` and `test`.

    Raises:
      ValueError: they are not the first two, in this order, or do not have the expected form.
    """
    first = shell_commands(markdown)[:2]
    if len(first) < 2:
        raise ValueError(f"the README has {len(first)} shell commands, expected at least 2")
    found = dict(zip(FORMS, first, strict=True))
    for name, form in FORMS.items():
        if not form.fullmatch(found[name]):
            raise ValueError(
                f"the README's {name} command is {found[name]!r}, expected the form {form.pattern}"
            )
    return found


def main() -> None:
    """Prints one of the two commands, or says what is wrong with the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=list(FORMS))
    which = parser.parse_args().which
    try:
        print(the_two_commands(README.read_text(encoding="utf-8"))[which])
    except ValueError as error:
        sys.exit(f"readme_commands: {error}")


if __name__ == "__main__":
    main()
