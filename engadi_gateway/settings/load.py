"""Settings: text from four sources becomes frozen `Settings`, or every fault at once. `options` has the table.

Order: command line > `ENGADI_<SECTION>_<KEY>` > the original service's name (`PORT`, `SECRET_KEY`, ...) > gateway.ini
> default. An unknown section or key is a fault. Durations take `ms s m h d`, sizes `KiB MiB GiB`; bare numbers are
seconds or bytes. A secret can come from a file: `<NAME>_FILE`, or a file of its key's name in
`$CREDENTIALS_DIRECTORY`.

This module reads no file: the caller passes the ini text, the environment and a `read` function.
"""

from __future__ import annotations

import configparser
import contextlib
import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.model import CorsPolicy, Service
from engadi_gateway.settings.coherence import coherence_faults
from engadi_gateway.settings.options import (
    DEFAULT_SERVICES,
    FREE_SECTIONS,
    OPTIONS,
    SECTIONS,
    SERVICE_NAME,
    Option,
    option_env,
    service_env,
)
from engadi_gateway.settings.parsing import as_text, parse_path, parse_url


@dataclass(frozen=True)
class Settings:
    """Every option as an attribute `<section>_<key>`, and the services. Build it with `Settings.load` or `.of`.

    `origins` tells for each option, and each `services.<name>` and `health_paths.<name>`, where its value came from.
    """

    values: Mapping[str, Any]
    services: Mapping[str, Service]
    origins: Mapping[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{key}={value}' for key, value in self.masked().items())})"

    def masked(self) -> dict[str, Any]:
        """All values by `section.key`, secrets as ***."""
        return {
            option.name: "***" if option.is_secret and self.values[option.attribute] else self.values[option.attribute]
            for option in OPTIONS
        }

    @property
    def log_path(self) -> str:
        if self.values["database_log_url"]:
            return str(self.values["database_log_url"])
        stem, dot, suffix = str(self.values["database_url"]).rpartition(".")
        return f"{stem}-log.{suffix}" if dot and "/" not in suffix else f"{self.values['database_url']}-log"

    @property
    def cors_policy(self) -> CorsPolicy:
        """What the settings say; the database has its own once the API changed it."""
        get = self.values
        return CorsPolicy(
            enabled=get["cors_enabled"],
            allow_origins=get["cors_allow_origins"],
            allow_methods=get["cors_allow_methods"],
            allow_headers=get["cors_allow_headers"],
            expose_headers=get["cors_expose_headers"],
            allow_credentials=get["cors_allow_credentials"],
            max_age=int(get["cors_max_age"]),
            reject_denied_origin=get["cors_reject_denied_origin"],
        )

    @classmethod
    def of(cls, services: Mapping[str, str] | None = None, **values: Any) -> Settings:
        """Settings for embedding and tests: `Settings.of(server_port=0, jwt_secret_key="...")`.

        A value is the parsed one (or text, which is parsed); `services` maps names to URLs and replaces the nine.

        Raises:
            ConfigurationError: with all faults.
        """
        known = {option.attribute: option for option in OPTIONS}
        given = {known[name].name: value for name, value in values.items() if name in known}
        faults = [Fault(name, "unknown option" + _hint(name, known)) for name in values if name not in known]
        origins = dict.fromkeys(given, "given")
        settings = _build(
            given, {} if services is None else services, {}, origins, faults, replace_services=services is not None
        )
        if faults:
            raise ConfigurationError(faults)
        return settings

    @classmethod
    def load(
        cls,
        ini: str = "",
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, str] | None = None,
        read: Callable[[str], str] | None = None,
        faults: list[Fault] | None = None,
        ini_name: str = "gateway.ini",
    ) -> Settings:
        """Read all sources.

        Args:
            ini: the text of gateway.ini.
            environ: the environment.
            overrides: `section.key` -> text, from the command line.
            read: reads a file for `*_FILE` and credentials; raises OSError, or ValueError where it is no text.
            faults: where given, faults go there instead of being raised, and what is bad is left at its default.
            ini_name: what faults call the file.

        Raises:
            ConfigurationError: with all faults.
        """
        environ = {} if environ is None else environ
        found: list[Fault] = [] if faults is None else faults
        texts, services, paths = _read_ini(ini, ini_name, found)
        found += [fault for name, url in services.items() for fault in _taken_away(name, url, DEFAULT_SERVICES)]
        free = {"services": services, "health_paths": paths}
        named = [f"{section}.{name}" for section, names in free.items() for name in names]
        origins = dict.fromkeys((*texts, *named), ini_name)
        for option in OPTIONS:
            for name in (option.env, option_env(option)):
                text = _from_environment(name, option, environ, read, found)
                if text is not None:
                    texts[option.name], origins[option.name] = text, name
        _refuse_unknown_environment(environ, found)
        for service in {**DEFAULT_SERVICES, **services}:
            if environ.get(service_env(service), "").strip():
                services[service] = environ[service_env(service)]
                origins[f"services.{service}"] = service_env(service)
        for name, text in (overrides or {}).items():
            section, _, key = name.partition(".")
            if section in free and key:
                found += _taken_away(key, text, {**DEFAULT_SERVICES, **services}) if section == "services" else []
                free[section][key] = text
            elif name in _BY_NAME:
                texts[name] = text
            else:
                said = _hint(name, _BY_NAME) if "." in name else "; an option is SECTION.KEY, such as server.port"
                found.append(Fault(name, "unknown option" + said))
            origins[name] = "command line"
        settings = _build(texts, services, paths, origins, found)
        if found and faults is None:
            raise ConfigurationError(found)
        return settings


def _taken_away(name: str, url: str, known: Mapping[str, str]) -> list[Fault]:
    """A service without a URL is to be none; then there must have been one of that name."""
    is_slip = not url.strip() and name not in known
    return [Fault(f"services.{name}", "no URL, and no such service to take away" + _hint(name, known))] * is_slip


_BY_NAME = {option.name: option for option in OPTIONS}


def _hint(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _from_environment(
    name: str,
    option: Option,
    environ: Mapping[str, str],
    read: Callable[[str], str] | None,
    faults: list[Fault],
) -> str | None:
    if not name or name in environ or not (option.is_secret and read):
        return environ.get(name) if name else None
    path = environ.get(f"{name}_FILE", "")
    credentials = environ.get("CREDENTIALS_DIRECTORY", "") if name == option.env else ""
    try:
        if path:
            return read(path).strip()
        return read(f"{credentials}/{option.key}").strip() if credentials else None
    except FileNotFoundError:
        if not path:
            return None  # other services' credentials may be there without ours
        faults.append(Fault(f"{name}_FILE", f"{path}: no such file"))
    except (OSError, ValueError) as error:  # a UnicodeDecodeError holds all that was read
        why = getattr(error, "strerror", None) or "no text in UTF-8 (random bytes: make them Base64)"
        faults.append(Fault(f"{name}_FILE", f"{path or credentials} cannot be read: {why}"))
    return None


_SERVICE_LINK = re.compile(
    r"\w+_SERVICE_HOST=[0-9A-Fa-f.:]+|\w+_SERVICE_PORT(_\w+)?=[0-9]+|\w+_PORT(_[0-9]+_[A-Z]+)?=\w+://.*"
    r"|\w+_PORT_[0-9]+_[A-Z]+_(PROTO=\w+|PORT=[0-9]+|ADDR=[0-9A-Fa-f.:]+)"
)


def _refuse_unknown_environment(environ: Mapping[str, str], faults: list[Fault]) -> None:
    """`ENGADI_` is ours: a name that no option has is a slip, as it is in the file.

    But for what Kubernetes tells every pod of a service that is called `engadi-gateway`, say.
    """
    known = {option_env(option) for option in OPTIONS}
    known |= {f"{option_env(option)}_FILE" for option in OPTIONS if option.is_secret}
    faults.extend(
        Fault(name, "unknown option" + _hint(name, known))
        for name, text in environ.items()
        if name.startswith("ENGADI_") and name not in known and not _SERVICE_LINK.fullmatch(f"{name}={text}")
    )


def _read_ini(text: str, file: str, faults: list[Fault]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    try:
        parser.read_string(text, file)
    except configparser.Error as error:
        faults.append(Fault(file, _slip(error)))
        return {}, {}, {}
    known = {option.name for option in OPTIONS}
    texts: dict[str, str] = {}
    free: dict[str, dict[str, str]] = {section: {} for section in FREE_SECTIONS}
    if parser.defaults():
        faults.append(Fault("DEFAULT", "unknown section"))
    for section in parser.sections():
        if section not in SECTIONS:
            faults.append(Fault(section, "unknown section" + _hint(section, SECTIONS)))
            continue
        for key, value in parser.items(section):
            name = f"{section}.{key}"
            if section in free:
                free[section][key] = value
            elif name in known:
                texts[name] = value
                if _COMMENT.search(value) and not _BY_NAME[name].is_secret:
                    faults.append(Fault(name, "a comment has a line of its own: here ; and # are part of the value"))
            elif len(key) > _LONGEST_KEY:
                faults.append(Fault(section, "a name longer than any option's; a value that slipped to the next line?"))
            else:
                faults.append(Fault(name, "unknown option" + _hint(name, known)))
    return texts, free["services"], free["health_paths"]


_COMMENT = re.compile(r"\s[;#]")
#: What is longer is not repeated: a key in Base64 ends in `=`, and on a line of its own is read as a name.
_LONGEST_KEY = 30

#: The first row that fits. configparser's own words repeat the line, which may be a secret's.
_SLIPS: tuple[tuple[type[configparser.Error], str], ...] = (
    (configparser.MissingSectionHeaderError, "above the first [section], or a [section] that is not whole"),
    (configparser.DuplicateSectionError, "a section that is there already"),
    (configparser.DuplicateOptionError, "an option that is there already"),
    (configparser.Error, "neither [section] nor name = value"),
)


def _slip(error: configparser.Error) -> str:
    """Where the text is none of ours, and why, without the text."""
    why = next(why for kind, why in _SLIPS if isinstance(error, kind))
    lines = [error.lineno] if hasattr(error, "lineno") else [line for line, _ in getattr(error, "errors", ())]
    return f"line {', '.join(map(str, lines))}: {why}"


def _build(
    given: Mapping[str, Any],
    services: Mapping[str, str],
    paths: Mapping[str, str],
    origins: Mapping[str, str],
    faults: list[Fault],
    *,
    replace_services: bool = False,
) -> Settings:
    values: dict[str, Any] = {}
    for option in OPTIONS:
        value = given.get(option.name, option.default)
        try:
            values[option.attribute] = _parse_option(option, value)
        except ValueError as error:
            origin = origins.get(option.name)
            may_be_shown = not option.is_secret and "@" not in str(value)
            said = f"; {origin} says {value!r}" if origin and may_be_shown else ""
            faults.append(Fault(option.name, f"{error}{said}"))
            values[option.attribute] = option.parse(option.default)
    named = dict(services) if replace_services else {**DEFAULT_SERVICES, **services}
    urls = {name: url for name, url in named.items() if url.strip()}
    built = _services(urls, paths, values["health_path"], origins, faults)
    faults += coherence_faults(values)
    if values["jwt_mode"] != "local" and not values["jwt_remote_url"] and "auth" not in urls:
        faults.append(Fault("jwt.remote_url", "required: there is no auth service to ask"))
    free = [f"{section}.{name}" for section in FREE_SECTIONS for name in built]
    from_where = {name: origins.get(name, "default") for name in (*(option.name for option in OPTIONS), *free)}
    settings = Settings(values, built, from_where)
    if Path(settings.log_path).resolve() == Path(settings.database_url).resolve():
        faults.append(Fault("database.log_url", "the same file as database.url; they are two"))
    return settings


def _parse_option(option: Option, given: Any) -> Any:
    """What a text means, or a value that was given as such: the same bounds hold for both."""
    value = _meaning(option, given) if isinstance(given, str) else _of_its_kind(option, given)
    if option.low is not None and value < option.low:
        raise ValueError(f"{given} is below {as_text(float(option.low))}")
    if option.high is not None and value > option.high:
        raise ValueError(f"{given} is above {as_text(float(option.high))}")
    return value


def _meaning(option: Option, text: str) -> Any:
    """What holds for every text, wherever it is from: no path, key or database takes a NUL, nor what is no UTF-8."""
    if "\0" in text:
        raise ValueError("expected text without NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text in UTF-8") from None
    return option.parse(text)


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", tuple: "a sequence", str: "text"}


def _of_its_kind(option: Option, given: Any) -> Any:
    """A value that is no text must be of the kind that the option's text would become, and so must its parts."""
    kind = type(option.parse(option.default))
    value = tuple(given) if isinstance(given, list) else given
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"expected {_KINDS[kind]}, or text that says it")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return _meaning(option, as_text(value)) if kind is tuple else value


def _services(
    urls: Mapping[str, str],
    paths: Mapping[str, str],
    default_path: str,
    origins: Mapping[str, str],
    faults: list[Fault],
) -> dict[str, Service]:
    services: dict[str, Service] = {}
    for name, url in urls.items():
        if not SERVICE_NAME.fullmatch(name):
            faults.append(Fault(f"services.{name}", "a name of a-z, 0-9 and -"))
            continue
        with _noted(f"services.{name}", url, origins, faults):
            services[name] = Service(name, parse_url(url), default_path)
    for name, path in paths.items():
        if name not in urls:
            faults.append(Fault(f"health_paths.{name}", "no such service" + _hint(name, services)))
            continue
        with _noted(f"health_paths.{name}", path, origins, faults):
            services[name] = replace(services[name], health_path=parse_path(path))
    return services


@contextlib.contextmanager
def _noted(name: str, text: str, origins: Mapping[str, str], faults: list[Fault]) -> Iterator[None]:
    """What is wrong with a text becomes a fault, which shows it unless it may hold a password."""
    try:
        yield
    except ValueError as error:
        said = f"; {origins[name]} says {text!r}" if name in origins and "@" not in text else ""
        faults.append(Fault(name, f"{error}{said}"))
    except KeyError:
        return  # the service's own URL is a fault already
