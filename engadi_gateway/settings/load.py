"""Settings: what the sources say (`sources`) becomes frozen `Settings`, or every fault at once.

`options` has the table, `parsing` says what each text means, `coherence` what they mean together. Nothing here reads a
file: the caller passes the ini text, the environment and a `read` function.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engadi_gateway.errors import ConfigurationError, Fault
from engadi_gateway.model import CorsPolicy, Service
from engadi_gateway.settings.coherence import coherence_faults
from engadi_gateway.settings.options import DEFAULT_SERVICES, FREE_SECTIONS, OPTIONS, SERVICE_NAME, Option
from engadi_gateway.settings.parsing import as_text, parse_path, parse_url
from engadi_gateway.settings.sources import Given, hint


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
        faults = [Fault(name, "unknown option" + hint(name, known)) for name in values if name not in known]
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
        found: list[Fault] = [] if faults is None else faults
        given = Given(found)
        given.take_file(ini, ini_name)
        given.take_environment({} if environ is None else environ, read)
        given.take_command_line({} if overrides is None else overrides)
        settings = _build(given.texts, given.services, given.health_paths, given.origins, found)
        if found and faults is None:
            raise ConfigurationError(found)
        return settings


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
            faults.append(Fault(f"health_paths.{name}", "no such service" + hint(name, services)))
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
