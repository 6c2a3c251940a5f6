"""The command line: data to stdout, talk to stderr.

Exit codes: 0 ok, 1 failed, 2 usage, 69 cannot listen, 78 bad configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engadi_gateway import __version__
from engadi_gateway.cli.demo import demo_upstreams
from engadi_gateway.cli.offline import Offline, all_faults, overruled_at_rest
from engadi_gateway.cli.readiness import why_not_ready
from engadi_gateway.cli.serve import Process
from engadi_gateway.errors import ConfigurationError, Fault, RefusedError
from engadi_gateway.explain import MistakenError
from engadi_gateway.gateway.assembly import files_wanted
from engadi_gateway.gateway.gateway import Gateway
from engadi_gateway.gateway.listeners import BindError, allow_open_files, inherited_sockets
from engadi_gateway.gateway.secret import with_secret
from engadi_gateway.gateway.tls import server_tls, validity_of, warning_of
from engadi_gateway.gateway.trial import trial_faults
from engadi_gateway.pipeline.identity import make_token
from engadi_gateway.record.lines import LineWriter, descriptor_of, stream_to
from engadi_gateway.settings.load import Settings
from engadi_gateway.settings.parsing import as_text, parse_duration_s
from engadi_gateway.store.errors import HeldError, StoreError, UnavailableError

EX_FAILED = 1
EX_UNAVAILABLE = 69
EX_CONFIG = 78
DEFAULT_CONFIG = "gateway.ini"
#: What is said whatever `log.level` is: starts, stops, reloads.
_LOG = logging.getLogger("engadi.cli")
#: What `health` goes by: other slips in the settings are for who reloads, and no reason to end what is running.
_WHERE = frozenset(("server.host", "server.port", "server.unix_socket", "server.tls_certificate", "server.tls_key"))
_LOST = "{} lines on stderr were lost: nobody read them".format


def _say(text: str) -> None:
    """While serving, this is the stream of `_talking`, as for whatever else writes to stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _talking(settings: Settings) -> Iterator[None]:
    """Set up logging; until the end of the block nobody waits for who reads stderr."""
    with contextlib.ExitStack() as stack:
        descriptor = descriptor_of(sys.stderr)
        if descriptor is not None:  # else it is closed, or something in memory
            writer = LineWriter(descriptor, "engadi-stderr", note=_LOST)
            stack.callback(writer.close)
            stack.enter_context(contextlib.redirect_stderr(stream_to(writer, sys.stderr.encoding)))
        handler = logging.StreamHandler(sys.stderr)
        stack.callback(logging.getLogger().removeHandler, handler)
        logging.basicConfig(level=_level(settings), format="%(asctime)s %(levelname)s %(message)s", handlers=[handler])
        _LOG.setLevel(logging.INFO)
        yield


_PROGRAMS = {"engadi-gateway": "engadi-gateway", "__main__.py": "python -m engadi_gateway"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAMS.get(Path(sys.argv[0]).name, "run.py"),
        description="Engadi Gateway: one entry point for a family of services. Without a command it serves.",
        epilog="Every option of gateway.ini can also be set by --set, or (not [services] and [health_paths]) as "
        "ENGADI_<SECTION>_<KEY> in the environment; URLs of the nine services and of those in the file also as "
        "<NAME>_SERVICE_URL.",
    )
    parser.add_argument("--version", action="version", version=f"engadi-gateway {__version__}")
    parser.add_argument(
        "--check", action="store_true", help="read the whole configuration, say what is wrong, and stop"
    )
    _common(parser, default=None, overrides="overrides")
    commands = parser.add_subparsers(dest="command", metavar="command")
    serve = commands.add_parser("serve", help="run the gateway (what happens without a command)")
    _common(serve, default=argparse.SUPPRESS)
    config = commands.add_parser("config", help="print every option, where it is from, and whether the API changed it")
    _common(config, default=argparse.SUPPRESS)
    config.add_argument("--json", action="store_true", help="as JSON")
    routes = commands.add_parser("routes", help="print the routes in the order in which they are tried")
    _common(routes, default=argparse.SUPPRESS)
    routes.add_argument("--json", action="store_true", help="as JSON")
    explain = commands.add_parser("explain", help="say what would be done with a request, and why; nothing is sent")
    _common(explain, default=argparse.SUPPRESS)
    explain.add_argument("method", help="for example GET")
    explain.add_argument("path", help="for example /api/v1/content/articles")
    explain.add_argument("--host", default="localhost", help="the Host that the client would ask for")
    explain.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="may be repeated")
    explain.add_argument("--token", help="a JWT, sent as Authorization: Bearer")
    explain.add_argument("--ip", default="127.0.0.1", help="the client's address")
    explain.add_argument("--admin", action="store_true", help="it comes to [admin] listen")
    token = commands.add_parser("token", help="print a signed token, for trying things out")
    _common(token, default=argparse.SUPPRESS)
    token.add_argument("--sub", required=True, type=_subject, help="whom it is for: the user id")
    token.add_argument("--role", default="user", help="the role claim; admin opens the admin API (default: user)")
    token.add_argument("--ttl", default="1h", help="how long it is good (default: 1h)")
    token.add_argument("--email", help="the email claim")
    health = commands.add_parser("health", help="ask the running gateway whether it is ready: exit 0, or 1 and why not")
    _common(health, default=argparse.SUPPRESS)
    return parser


def _common(parser: argparse.ArgumentParser, default: Any, overrides: str = "more_overrides") -> None:
    """What every command takes, in front of its name or behind it."""
    parser.add_argument("--config", metavar="FILE", default=default, help=f"settings file (default: {DEFAULT_CONFIG})")
    parser.add_argument(
        "--demo",
        action="store_true",
        default=False if default is None else default,
        help="also start nine small upstreams on the services' ports: a demonstration, not for production",
    )
    parser.add_argument(
        "--set", action="append", type=_override, default=[], dest=overrides, metavar="SECTION.KEY=VALUE",
        help="an option of the settings file, before all other sources; may be repeated",
    )  # fmt: skip


def _override(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"not SECTION.KEY=VALUE: {text!r}")
    return name.strip(), value


def _subject(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a user has a name")
    return text


def load_settings(args: argparse.Namespace) -> Settings:
    """Read all sources. A file that was named must be there; the default one may be missing, and that is said."""
    return _read_settings(args, None)


def checked_settings(args: argparse.Namespace, checks: Callable[[Settings], list[Fault]] = trial_faults) -> Settings:
    """The same, and what they name is tried: all faults at once.

    What is bad was left at its default, which nobody asked for: what trying that shows is not said.
    """
    faults: list[Fault] = []
    settings = _read_settings(args, faults)
    named = {fault.pointer for fault in faults}
    faults += [fault for fault in checks(settings) if fault.pointer not in named]
    if faults:
        raise ConfigurationError(faults)
    return settings


def _read_settings(args: argparse.Namespace, faults: list[Fault] | None) -> Settings:
    path = Path(args.config or DEFAULT_CONFIG)
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin with a mark
    except FileNotFoundError:
        if args.config:
            raise _config_error(str(path), "no such file") from None
        _say(f"no {path} here: using defaults and the environment")
    except (OSError, UnicodeDecodeError) as error:
        raise _config_error(str(path), f"cannot be read: {error}") from None
    overrides = dict(args.overrides + getattr(args, "more_overrides", []))
    return Settings.load(
        text, os.environ, overrides, lambda name: Path(name).read_text(encoding="utf-8"), faults, str(path)
    )


def _config_error(pointer: str, detail: str) -> ConfigurationError:
    return ConfigurationError([Fault(pointer, detail)])


def main(argv: list[str] | None = None) -> int:
    """Run a command; the result is the exit code."""
    args = build_parser().parse_args(argv)
    commands: dict[str | None, Callable[[argparse.Namespace], int]] = {
        None: _serve,
        "serve": _serve,
        "config": _config,
        "routes": _routes,
        "explain": _explain,
        "token": _token,
        "health": _health,
    }
    try:
        return _check(args) if args.check else commands[args.command](args)
    except (ConfigurationError, RefusedError) as error:
        for fault in _faults_of(error):
            _say(f"{fault.pointer}: {fault.detail}")
        return EX_CONFIG
    except HeldError as error:
        _say(f"database: {error}")
        return EX_UNAVAILABLE
    except StoreError as error:
        _say(f"database: {error}")
        return EX_FAILED if isinstance(error, UnavailableError) else EX_CONFIG
    except BindError as error:
        _say(str(error))
        return EX_UNAVAILABLE
    except BrokenPipeError:
        sys.stderr.close()
        return EX_FAILED


def _faults_of(error: ConfigurationError | RefusedError) -> list[Fault]:
    """What is refused at the start stands in the database: routes that cannot be told apart, say."""
    if isinstance(error, ConfigurationError):
        return error.faults
    return [Fault("database.url", error.refusal.detail)]


def _check(args: argparse.Namespace) -> int:
    settings = checked_settings(args, all_faults)
    _say_if_new(settings)
    _loop_factory(settings)
    context = server_tls(settings)
    warning = "" if context is None else warning_of(validity_of(context, settings), time.time())
    if warning:
        _say(f"server.tls_certificate: {settings.server_tls_certificate} {warning}")
    print("configuration ok")
    return 0


def _say_if_new(settings: Settings) -> None:
    """Who looks in the wrong folder sees what a start there would make, and should not take it for what is served."""
    if not Path(settings.database_url).exists():
        _say(f"no {settings.database_url} here: what is shown is what a start would make")


def _config(args: argparse.Namespace) -> int:
    settings = load_settings(args)
    _say_if_new(settings)
    values = {
        **settings.masked(),
        **{f"services.{service.name}": service.url for service in settings.services.values()},
        **{f"health_paths.{service.name}": service.health_path for service in settings.services.values()},
    }
    origins = dict(settings.origins)
    try:
        origins.update({name: f"{origins[name]}; the API changed it" for name in overruled_at_rest(settings)})
    except StoreError as error:
        _say(f"what the API changed cannot be told: {error}")
    columns = ("option", "from", "value")
    rows = [dict(zip(columns, (name, origins[name], as_text(values[name])), strict=True)) for name in values]
    _print_rows(rows, columns, as_json=args.json)
    return 0


def _routes(args: argparse.Namespace) -> int:
    columns = ("priority", "host", "methods", "path_pattern", "target", "access", "id")
    settings = load_settings(args)
    _say_if_new(settings)
    _print_rows(Offline(settings).routes(), columns, as_json=args.json)
    return 0


def _print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _explain(args: argparse.Namespace) -> int:
    headers = []
    for text in args.header:
        name, separator, value = text.partition(":")
        if not separator:
            _say(f"not a header: {text!r}; write 'Name: value'")
            return 2
        headers.append((name.strip(), value.strip()))
    settings, _ = with_secret(load_settings(args))
    _say_if_new(settings)
    asked = {"host": args.host, "headers": headers, "token": args.token, "client_ip": args.ip, "is_admin": args.admin}
    try:
        answer = Offline(settings).explain(args.method, args.path, **asked)
    except MistakenError as error:
        _say(error.refusal.detail)
        return 2
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    return 0


def _token(args: argparse.Namespace) -> int:
    settings, said = with_secret(load_settings(args))
    if said:
        _say(said)
    algorithm = settings.jwt_algorithms[0]
    if not algorithm.startswith("HS"):
        _say(f"jwt.algorithms is {algorithm}: only whoever has the private key can make tokens")
        return EX_FAILED
    try:
        ttl_s = parse_duration_s(args.ttl)
    except ValueError as error:
        _say(f"--ttl: {error}")
        return 2
    now = int(time.time())
    claims: dict[str, Any] = {"sub": args.sub, settings.jwt_role_claim: args.role, "iat": now, "exp": now + int(ttl_s)}
    optional = {"email": args.email, "iss": settings.jwt_issuer, "aud": settings.jwt_audience}
    claims.update({name: value for name, value in optional.items() if value})
    print(make_token(settings.jwt_secret_key, algorithm, claims))
    return 0


def _health(args: argparse.Namespace) -> int:
    faults: list[Fault] = []
    settings = _read_settings(args, faults)
    faults = [fault for fault in faults if fault.pointer in _WHERE or fault.pointer == (args.config or DEFAULT_CONFIG)]
    if faults:
        raise ConfigurationError(faults)
    why_not = why_not_ready(settings)
    if why_not:
        _say(f"not ready: {why_not}")
        return EX_FAILED
    print("ready")
    return 0


def _serve(args: argparse.Namespace) -> int:
    settings = checked_settings(args)
    if Path(DEFAULT_CONFIG).exists():
        args.config = args.config or DEFAULT_CONFIG  # what was there once must be there for a reload too
    allow_open_files(files_wanted(settings))
    factory = _loop_factory(settings)
    with _talking(settings), asyncio.Runner(debug=settings.gateway_debug, loop_factory=factory) as runner:
        return runner.run(_serve_until_stopped(args, settings))


def _level(settings: Settings) -> str:
    return "DEBUG" if settings.gateway_debug else str(settings.log_level)


def _loop_factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if settings.server_loop == "asyncio":
        return None
    if find_spec("uvloop") is None:
        if settings.server_loop == "uvloop":
            raise _config_error("server.loop", "uvloop is not installed: python -m pip install uvloop")
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory


async def _serve_until_stopped(args: argparse.Namespace, settings: Settings) -> int:
    async with contextlib.AsyncExitStack() as stack:
        if args.demo:
            _say("DEMONSTRATION: nine toy upstreams run in this process; do not use --demo in production")
            for sentence in await stack.enter_async_context(demo_upstreams(settings.services)):
                _say(f"  {sentence}")
        gateway = Gateway(settings, inherited=inherited_sockets())
        await Process(gateway, read=lambda: checked_settings(args), taken=_speak_up, say=_say).run()
    return 0


def _speak_up(settings: Settings) -> None:
    """As much as re-read settings ask for."""
    logging.getLogger().setLevel(_level(settings))
    asyncio.get_running_loop().set_debug(settings.gateway_debug)
