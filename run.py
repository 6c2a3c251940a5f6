"""Start Engadi Gateway: `python run.py`. Says which Python or dependency is missing instead of a traceback."""

import importlib.util
import sys

OLDEST = (3, 11)
REQUIRED = {"h11": "h11>=0.16,<0.17", "jwt": "PyJWT>=2.14,<3"}


def main() -> int:
    if sys.version_info < OLDEST:
        wanted, found = (".".join(map(str, version)) for version in (OLDEST, sys.version_info[:2]))
        print(f"engadi-gateway: needs Python {wanted} or later, this is {found}", file=sys.stderr)
        return 1
    missing = [package for module, package in REQUIRED.items() if importlib.util.find_spec(module) is None]
    if missing:
        wanted = " ".join(f"'{package}'" for package in missing)
        print(
            f"engadi-gateway: missing {', '.join(missing)}; install with: python -m pip install {wanted}",
            file=sys.stderr,
        )
        return 1
    from engadi_gateway.cli.commands import main as cli_main

    return cli_main()


if __name__ == "__main__":
    sys.exit(main())
