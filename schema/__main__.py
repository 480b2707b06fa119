"""`python -m schema` writes the JSON Schemas of `schema/published/`; `--check` finds stale ones."""

import argparse
import json
import sys
from pathlib import Path

from schema.published.schemas import file_name, schemas

FOLDER = Path(__file__).parent / "published"


def rendered() -> dict[Path, str]:
    """The content that each schema file should have."""
    return {
        FOLDER / file_name(name): json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }


def stale() -> list[Path]:
    """The schema files that are missing or have other content."""
    return [
        path
        for path, text in rendered().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str] | None = None) -> int:
    """Write the schema files, or with `--check` only compare them. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    paths = stale()
    if parser.parse_args(arguments).check:
        for path in paths:
            print(f"{path} is not current; run: python -m schema", file=sys.stderr)
        return 1 if paths else 0
    for path in paths:
        path.write_text(rendered()[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
