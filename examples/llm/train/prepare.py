"""Turn verses into prose: `bible -f Gen1:1-Rev22:21 | python prepare.py > kjv.txt`

Input: one verse a line, `Book<chapter>:<verse> text`. Output: one paragraph a line, a blank line
after each chapter, no verse numbers. The source marks no paragraphs, so a paragraph ends with the first
whole sentence past PARAGRAPH characters: long enough to carry a thought, short enough to read.
"""

import re
import sys

PARAGRAPH = 400


def chapters(lines):
    """Yield the verses of one chapter at a time."""
    name, verses = None, []
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"(\w+?\d+):\d+ (.+)", line.strip())
        if not match:
            sys.exit(f"prepare: line {number} is {line.strip()!r}, expected 'Book<chapter>:<verse> text'")
        if match[1] != name and verses:
            yield verses
            verses = []
        name = match[1]
        verses.append(" ".join(match[2].split()))
    if verses:
        yield verses


def paragraphs(verses):
    text = ""
    for verse in verses:
        text = f"{text} {verse}" if text else verse
        if len(text) >= PARAGRAPH and text[-1] in ".?!":
            yield text
            text = ""
    if text:
        yield text


if __name__ == "__main__":
    for verses in chapters(sys.stdin):
        print("\n".join(paragraphs(verses)), end="\n\n")
