"""What a result was made by: digests of files and recipes, and the commit of the program. Standard library only."""

import hashlib
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent


def commit(program):
    """The commit that the program was built from, as its --version says."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.partition("(")[2].partition(")")[0][:7] or "unknown"


def digest(content):
    """The first 12 hexadecimal digits of the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()[:12]


def content_digest(path):
    """Of a file, or of the names and contents of all files below a folder, with those behind links. Nothing there is the same as
    an empty folder: the program that reads it says what is missing."""
    if path.is_file():
        return digest(path.read_bytes())
    below = (pathlib.Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
    return digest("".join(f"{file.relative_to(path)} {digest(file.read_bytes())}\n" for file in sorted(below) if file.is_file()).encode())


def recipe_digest(path):
    """Of a recipe without its comments, whose words may change."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return digest("\n".join(line for line in lines if line).encode())
