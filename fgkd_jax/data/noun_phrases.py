"""Noun phrases of descriptive sentences, by rules over lists of words.

Descriptions of birds and flowers are plain: things, their marks, and what those look like. A few
lists of function words and of adjectives find their phrases without a model of the language, in
microseconds. Running text is for spaCy (`spacy_chunker`).
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from fgkd_jax.errors import UserError

Chunker = Callable[[str], tuple[tuple[str, ...], ...]]
"""From a sentence to its noun phrases, each a tuple of words in lower case."""

SPACY_MODEL = "en_core_web_sm"
"""The model that `spacy_chunker` loads unless told otherwise."""

_TOKEN = re.compile(r"[^\W_]+(?:[-'\u2019][^\W_]+)*|[.,;:!?()&/]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this these those its his her their my our your it's each every another such any some"
)
_COPULAS = _words(
    "is are was were be being been am isn't aren't look looks looked appear appears appeared seem "
    "seems seemed become becomes became remain remains"
)
_RELATIVES = _words("that which who whose where when while as it they he she there them what")
_AND = _words("and or but & plus yet , /")
_ENDS = _words(". ; : ! ? ( )")
_PREPOSITIONS = _words(
    "with without in on at of by from to into onto over under above below beneath behind beside "
    "between among around about near along across against through throughout toward towards "
    "during for than like off up down out upon within via until if so because also both downward "
    "upward downwards upwards inward outward lot lots hint hints bit kind type sort bunch couple "
    "then just only too either neither well here again together"
)
_VERBS = _words(
    "has have had having do does did can could will would may might must shows show showing shown "
    "features feature featuring contains contain containing includes include including consists "
    "consist consisting composed made comes come coming goes go going gets get getting grows grow "
    "growing gives give giving holds hold holding makes make making takes take taking uses use "
    "using sits sit sitting sat stands stand standing stood perches perching perched flies fly "
    "flying flew swims swim swimming walks walk walking eats eat eating sings sing singing rests "
    "resting faces facing covers covering covered surrounds surround surrounding surrounded "
    "attached placed arranged connected located positioned found seen set called known forms "
    "forming extends extend extending extended fades fade fading faded sticks stick sticking "
    "protrudes protrude turns turn turning turned starts start starting ends ending hangs hang "
    "hanging points pointing curves curve bends droop droops blends blending runs running rises "
    "transitions spreads let lets lays laying lies lying displays displaying displayed matches "
    "match matching compared filled lined accented accompanied followed topped bordered "
    "outlined supported overlap overlaps resembles resemble"
)
_ADVERBS = _words(
    "very quite rather really somewhat slightly mostly mainly almost nearly completely entirely "
    "partially partly extremely fairly more most less least highly deeply brightly lightly darkly "
    "evenly closely loosely relatively pretty all overall primarily predominantly vividly "
    "distinctly noticeably proportionally no not"
)
_ADJECTIVES = _words(
    "black white grey gray brown red orange yellow green blue purple pink violet crimson rufous "
    "gold golden teal rose olive buff ivory tan beige cream maroon lavender magenta scarlet "
    "turquoise burgundy indigo lilac peach silver rust chestnut navy aqua fuchsia mauve cyan "
    "charcoal dark light bright pale deep dull vivid vibrant rich solid iridescent glossy shiny "
    "translucent transparent colorful colourful multicolored multicoloured multi "
    "small large big tiny little long short tall wide narrow thin thick broad slim slender huge "
    "massive fat stout plump chubby medium sized miniature great petite skinny "
    "round flat sharp blunt smooth rough soft fluffy fuzzy furry silky waxy papery velvety spiky "
    "spiny hairy feathery bushy stringy wispy lacy delicate ruffled wavy crinkled wrinkled curly "
    "straight conical hooked curved forked pointed pointy square oval ovate circular triangular "
    "tubular cylindrical stubby bulbous elongated "
    "crested tufted plain spotted streaked striped speckled mottled barred banded tipped tinged "
    "edged flecked dotted patterned webbed layered overlapping drooping protruding contrasting "
    "rounded tapered tapering serrated lobed veined visible prominent distinct noticeable "
    "single double many several few numerous multiple one two three four five six seven eight "
    "nine ten first second other same different similar various main entire whole upper lower "
    "inner outer central open closed beautiful "
    "lovely unique unusual interesting odd nice elegant simple fragile strong powerful thinner "
    "longer shorter larger smaller darker lighter brighter wider rounder bare naked even"
)
_SUFFIXES = ("ish", "ed", "shaped", "colored", "coloured")
_NOT_ADJECTIVES = _words("fish seed bed weed breed reed radish dish red-wing feed need head")
_COMPOUNDS = _words("shaped colored coloured like tipped")
_PLURAL_COPULAS = _words("are were aren't look appear seem become remain")
_IRREGULAR = _words("feet teeth leaves stamen anther geese mice")
_SHAPELESS = _words("color colour colors colours shape shapes size length appearance texture hue")

_BREAK, _STOP, _JOIN, _LINK, _NAME, _QUALITY, _DEGREE, _SKIP = range(8)


def tokenize(text: str) -> list[str]:
    """Splits a text into words and marks, in lower case.

    Hyphens and apostrophes inside a word stay; digits are words; accents stay, composed as in
    Unicode's NFKC.

    Args:
      text: any text.

    Returns:
      Words and marks in order.

    Example:
      >>> tokenize("A blue-grey bird, isn't it?")
      ['a', 'blue-grey', 'bird', ',', "isn't", 'it', '?']
    """
    folded = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return _TOKEN.findall(folded)


def rule_chunker(sentence: str) -> tuple[tuple[str, ...], ...]:
    """Finds the noun phrases of descriptive sentences.

    A phrase is a run of adjectives and the nouns behind them; every word that is on no list is
    taken for a noun. Articles are left out. Adjectives joined by a comma or "and" stay together.
    Adjectives without a noun say what the thing before them looks like, and are put before its
    name: "the petals are pink" has the phrase "pink petals". That thing is the last that agrees
    with "is" or "are"; after "and is", the sentence's first; and before "are" all of "throat and
    belly".

    Args:
      sentence: one or more sentences in English.

    Returns:
      Phrases in order.

    Example:
      >>> rule_chunker("this bird has a short yellow bill and two white wing bars")
      (('bird',), ('short', 'yellow', 'bill'), ('two', 'white', 'wing', 'bars'))
      >>> rule_chunker("The petals are pink and white.")
      (('pink', 'and', 'white', 'petals'),)
    """
    reader = _Reader()
    tokens = _joined(tokenize(sentence))
    for i, word in enumerate(tokens):
        reader.read(word, _kind(word, tokens[i - 1] if i else ""))
    reader.end_sentence()
    return tuple(phrase.words for phrase in reader.phrases)


def spacy_chunker(*, model: str = SPACY_MODEL) -> Chunker:
    """Loads spaCy's noun chunks.

    Args:
      model: name of an installed model.

    Returns:
      A chunker: spaCy's `noun_chunks` without articles and pronouns, in lower case.

    Raises:
      UserError: spaCy or the model is not installed; the message says how to install it.
    """
    try:
        import spacy
    except ImportError:
        raise UserError(
            "data.text.chunker is 'spacy', but spaCy is not installed; pip install "
            "'fgkd-jax[text]', or take the chunker 'rules'"
        ) from None
    try:
        pipeline: Any = spacy.load(model)
    except OSError:
        raise UserError(
            f"spaCy has no model {model!r} here; python -m spacy download {model}"
        ) from None

    def chunk(sentence: str) -> tuple[tuple[str, ...], ...]:
        found = []
        for chunk in pipeline(sentence).noun_chunks:
            words = [w for token in chunk if token.pos_ != "PRON" for w in tokenize(token.text)]
            words = [w for w in words if w not in _DETERMINERS and w[0].isalnum()]
            if words:
                found.append(tuple(words))
        return tuple(found)

    return chunk


def _joined(tokens: list[str]) -> list[str]:
    """Joins "bell shaped" to "bell-shaped", so that the noun in it is none."""
    out: list[str] = []
    for i, word in enumerate(tokens):
        named = out and _kind(out[-1], "") == _NAME
        # "a beak like a needle" compares; "a needle like beak" describes.
        if named and word in _COMPOUNDS and not (word == "like" and _determined(tokens, i)):
            out[-1] += f"-{word}"
        else:
            out.append(word)
    return out


def _determined(tokens: list[str], i: int) -> bool:
    """Whether an article, or nothing, follows."""
    return i + 1 == len(tokens) or tokens[i + 1] in _DETERMINERS


def _kind(word: str, before: str) -> int:
    """What a word does in a description; the sets are tried in an order that resolves overlaps."""
    if (word == "other" and before == "each") or word.endswith("'s"):
        return _STOP
    if word in _SHAPELESS:
        return _STOP if before in ("in", "of") else _SKIP
    for words, kind in (
        (_ENDS, _BREAK),
        (_AND, _JOIN),
        (_COPULAS, _LINK),
        (_DETERMINERS | _RELATIVES | _PREPOSITIONS | _VERBS, _STOP),
        (_ADVERBS, _DEGREE),
        (_ADJECTIVES, _QUALITY),
    ):
        if word in words:
            return kind
    last = word.rpartition("-")[2]
    if word.isdecimal() or last in _ADJECTIVES:
        return _QUALITY
    if word not in _NOT_ADJECTIVES and len(word) > 4 and word.endswith(_SUFFIXES):
        return _QUALITY
    return _NAME


class _Phrase:
    """A noun phrase: qualities, then the name of the thing."""

    def __init__(self, qualities: list[str], name: list[str]):
        self.qualities, self.name = qualities, name

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.qualities, *self.name)

    @property
    def plural(self) -> bool:
        """Whether it names several things, as far as its ending tells."""
        return self.name[-1] in _IRREGULAR or self.name[-1][-1] == "s"


class _Reader:
    """Reads a sentence word by word."""

    def __init__(self) -> None:
        self.phrases: list[_Phrase] = []
        self.qualities: list[str] = []
        self.name: list[str] = []
        self.named: list[_Phrase] = []  # things of this sentence, in order
        self.together = 0  # how many of the last ones are joined: "throat and belly"
        self.subjects: list[_Phrase] = []  # what adjectives without a noun describe
        self.before = _BREAK

    def read(self, word: str, kind: int) -> None:
        """Takes one word."""
        if kind == _NAME:
            self.name.append(word)
        elif kind in (_QUALITY, _DEGREE):
            if self.name:
                self.close()
            self.qualities.append(word)
        elif kind == _JOIN:
            if self.name:
                self.close()
                self.together = -abs(self.together)  # goes on if a bare name is next
            elif self.qualities and word not in (",", "/"):
                self.qualities.append(word)
        elif kind == _LINK:
            direct = bool(self.name)
            self.close()
            self._choose_subjects(direct, plural=word in _PLURAL_COPULAS)
        elif kind == _STOP:
            self.close()
            self.together = 0
        elif kind == _BREAK:
            self.end_sentence()
        self.before = kind if kind != _SKIP else self.before

    def end_sentence(self) -> None:
        """Ends a sentence; the next one is about something else."""
        self.close()
        self.named, self.subjects, self.together = [], [], 0

    def close(self) -> None:
        """Ends a run of adjectives and nouns."""
        qualities, name = self.qualities, self.name
        self.qualities, self.name = [], []
        loose = (*_AND, *_ADVERBS) if not name else _AND
        while qualities and qualities[-1] in loose:
            qualities.pop()
        if name:
            phrase = _Phrase(qualities, name)
            bare = not qualities
            self.together = (1 - self.together if self.together < 0 else 1) if bare else 0
            self.named.append(phrase)
            self.phrases.append(phrase)
            self.subjects = [phrase]
        elif qualities and not self.subjects:
            self.phrases.append(_Phrase(qualities, []))
        elif qualities:
            self._describe(qualities)

    def _choose_subjects(self, direct: bool, *, plural: bool) -> None:
        """Finds what the adjectives after "is" or "are" describe."""
        if not self.named:
            return
        if self.before == _JOIN:
            self.subjects = self.named[:1]
        elif direct and plural and self.together > 1:
            self.subjects = self.named[-self.together :]
        else:
            agreeing = [phrase for phrase in self.named if phrase.plural == plural]
            self.subjects = (agreeing or self.named)[-1:]

    def _describe(self, qualities: list[str]) -> None:
        """Says of things what they look like: in the phrase, or in one more where it has some."""
        for subject in self.subjects:
            if subject.qualities:
                self.phrases.append(_Phrase(qualities, subject.name))
            else:
                subject.qualities = qualities
