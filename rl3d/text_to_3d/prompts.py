"""Prompts as text: what may be one, many of them in a file, and the name of the folder that one gets."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rl3d.errors import InputError

LONGEST_PROMPT = 500  # characters
LARGEST_FILE_MIB = 16
LONGEST_SLUG = 60  # characters of a folder's name


def clean_prompt(text: str) -> str:
    """The prompt without surrounding white space.

    Raises:
        InputError: it is empty, longer than 500 characters, no Unicode text, or not one line.
    """
    text = text.strip()
    if not text:
        raise InputError("the prompt is empty; describe an object, such as 'a small wooden barrel'")
    if len(text) > LONGEST_PROMPT:
        raise InputError(f"the prompt has {len(text)} characters; at most {LONGEST_PROMPT} are read")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the prompt is not valid UTF-8 text; check the terminal's encoding") from None
    if not text.isprintable():
        raise InputError("the prompt holds line breaks or control characters; write it in one line")
    return text


def read_prompts(file: str | Path) -> list[str]:
    """The prompts of a UTF-8 text file, one a line; blank lines and lines that begin with # are none.

    Lines are not judged here (see `clean_prompt`): one bad line must not lose the others.

    Raises:
        InputError: there is no such file, it is no text, or no line of it is a prompt.
    """
    path = Path(file)
    if path.is_dir():
        raise InputError(f"--prompts {file} is a folder; give a text file with a prompt a line")
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST_FILE_MIB * 2**20 + 1)
    except FileNotFoundError:
        raise InputError(f"no such file: --prompts {file}") from None
    except OSError as error:
        raise InputError(f"cannot read --prompts {file}: {error.strerror or error}; give a readable file") from error
    if len(data) > LARGEST_FILE_MIB * 2**20:
        raise InputError(f"--prompts {file} has over {LARGEST_FILE_MIB} MiB; give a text file with a prompt a line")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"--prompts {file}, line {line} is not UTF-8 text; save the file as UTF-8") from None
    if "\0" in text:
        raise InputError(f"--prompts {file} is no text file, it holds zero bytes; give one with a prompt a line")
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise InputError(f"--prompts {file} holds no prompt; write one a line, such as 'a small wooden barrel'")
    return prompts


def slug(text: str) -> str:
    """Lower-case letters a to z, digits and dashes, at most 60 of them; possibly empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:LONGEST_SLUG].rstrip("-")


def folder_name(prompt: str) -> str:
    """A readable name that no other prompt has: its words, and a short hash of it where they do not say all of it."""
    words = slug(prompt)
    if words and words.replace("-", " ") == prompt:
        return words
    return f"{words or 'asset'}-{hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:8]}"
