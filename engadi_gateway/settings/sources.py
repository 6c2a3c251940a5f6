"""Where settings come from: gateway.ini, the environment and the command line, each over the one before it.

Order: command line > `ENGADI_<SECTION>_<KEY>` > the original service's name (`PORT`, `SECRET_KEY`, ...) > gateway.ini
> default. An unknown section or key is a fault. A secret can come from a file: `<NAME>_FILE`, or a file of its key's
name in `$CREDENTIALS_DIRECTORY`. What the texts mean is not looked at here.
"""

from __future__ import annotations

import configparser
import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from engadi_gateway.errors import Fault
from engadi_gateway.settings.options import (
    DEFAULT_SERVICES,
    FREE_SECTIONS,
    OPTIONS,
    SECTIONS,
    Option,
    option_env,
    service_env,
)

_BY_NAME = {option.name: option for option in OPTIONS}
_COMMENT = re.compile(r"\s[;#]")
#: What is longer is not repeated: a key in Base64 ends in `=`, and on a line of its own is read as a name.
LONGEST_KEY = 30
#: The first row that fits. configparser's own words repeat the line, which may be a secret's.
_SLIPS: tuple[tuple[type[configparser.Error], str], ...] = (
    (configparser.MissingSectionHeaderError, "above the first [section], or a [section] that is not whole"),
    (configparser.DuplicateSectionError, "a section that is there already"),
    (configparser.DuplicateOptionError, "an option that is there already"),
    (configparser.Error, "neither [section] nor name = value"),
)
_SERVICE_LINK = re.compile(
    r"\w+_SERVICE_HOST=[0-9A-Fa-f.:]+|\w+_SERVICE_PORT(_\w+)?=[0-9]+|\w+_PORT(_[0-9]+_[A-Z]+)?=\w+://.*"
    r"|\w+_PORT_[0-9]+_[A-Z]+_(PROTO=\w+|PORT=[0-9]+|ADDR=[0-9A-Fa-f.:]+)"
)
#: Reads a file for `*_FILE` and credentials; raises OSError, or ValueError where it is no text.
Read = Callable[[str], str]


def hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant, for the end of a sentence."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class Given:
    """What the sources say, each in its turn.

    Args:
        faults: what is wrong with them goes there.

    Attributes:
        texts: of options, by `section.key`.
        services, health_paths: by the service's name.
        origins: where each of all these is from, by `section.key`.
    """

    def __init__(self, faults: list[Fault]) -> None:
        self.texts: dict[str, str] = {}
        self.services: dict[str, str] = {}
        self.health_paths: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self._free = dict(zip(FREE_SECTIONS, (self.services, self.health_paths), strict=True))
        self._faults = faults

    # gateway.ini

    def take_file(self, text: str, name: str) -> None:
        """The text of gateway.ini, which faults call by that name."""
        parser = configparser.ConfigParser(interpolation=None, strict=True)
        try:
            parser.read_string(text, name)
        except configparser.Error as error:
            self._faults.append(Fault(name, _slip(error)))
            return
        if parser.defaults():
            self._faults.append(Fault("DEFAULT", "unknown section"))
        for section in parser.sections():
            if section in SECTIONS:
                self._take_section(section, parser.items(section), name)
            else:
                self._faults.append(Fault(section, "unknown section" + hint(section, SECTIONS)))
        for service, url in self.services.items():
            self._refuse_if_unknown(service, url, DEFAULT_SERVICES)

    def _take_section(self, section: str, items: Iterable[tuple[str, str]], origin: str) -> None:
        for key, value in items:
            name = f"{section}.{key}"
            if section in self._free:
                self._free[section][key] = value
            elif name in _BY_NAME:
                self.texts[name] = value
                if _COMMENT.search(value) and not _BY_NAME[name].is_secret:
                    detail = "a comment has a line of its own: here ; and # are part of the value"
                    self._faults.append(Fault(name, detail))
            else:
                self._faults.append(_unknown_key(section, key))
                continue
            self.origins[name] = origin

    def _refuse_if_unknown(self, name: str, url: str, known: Mapping[str, str]) -> None:
        """A service without a URL is to be none; then there must have been one of that name."""
        if not url.strip() and name not in known:
            detail = "no URL, and no such service to take away" + hint(name, known)
            self._faults.append(Fault(f"services.{name}", detail))

    # the environment

    def take_environment(self, environ: Mapping[str, str], read: Read | None) -> None:
        for option in OPTIONS:
            for name in (option.env, option_env(option)):
                text = self._from_environment(name, option, environ, read)
                if text is not None:
                    self.texts[option.name], self.origins[option.name] = text, name
        self._refuse_unknown_environment(environ)
        for service in {**DEFAULT_SERVICES, **self.services}:
            if environ.get(service_env(service), "").strip():
                self.services[service] = environ[service_env(service)]
                self.origins[f"services.{service}"] = service_env(service)

    def _from_environment(self, name: str, option: Option, environ: Mapping[str, str], read: Read | None) -> str | None:
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
            self._faults.append(Fault(f"{name}_FILE", f"{path}: no such file"))
        except (OSError, ValueError) as error:  # a UnicodeDecodeError holds all that was read
            why = getattr(error, "strerror", None) or "no text in UTF-8 (random bytes: make them Base64)"
            self._faults.append(Fault(f"{name}_FILE", f"{path or credentials} cannot be read: {why}"))
        return None

    def _refuse_unknown_environment(self, environ: Mapping[str, str]) -> None:
        """`ENGADI_` is ours: a name that no option has is a slip, as it is in the file.

        But for what Kubernetes tells every pod of a service that is called `engadi-gateway`, say.
        """
        known = {option_env(option) for option in OPTIONS}
        known |= {f"{option_env(option)}_FILE" for option in OPTIONS if option.is_secret}
        self._faults.extend(
            Fault(name, "unknown option" + hint(name, known))
            for name, text in environ.items()
            if name.startswith("ENGADI_") and name not in known and not _SERVICE_LINK.fullmatch(f"{name}={text}")
        )

    # the command line

    def take_command_line(self, overrides: Mapping[str, str]) -> None:
        """`section.key` -> text."""
        for name, text in overrides.items():
            section, _, key = name.partition(".")
            if section in self._free and key:
                if section == "services":
                    self._refuse_if_unknown(key, text, {**DEFAULT_SERVICES, **self.services})
                self._free[section][key] = text
            elif name in _BY_NAME:
                self.texts[name] = text
            else:
                said = hint(name, _BY_NAME) if "." in name else "; an option is SECTION.KEY, such as server.port"
                self._faults.append(Fault(name, "unknown option" + said))
            self.origins[name] = "command line"


def _slip(error: configparser.Error) -> str:
    """Where the text is none of ours, and why, without the text."""
    why = next(why for kind, why in _SLIPS if isinstance(error, kind))
    lines = [error.lineno] if hasattr(error, "lineno") else [line for line, _ in getattr(error, "errors", ())]
    return f"line {', '.join(map(str, lines))}: {why}"


def _unknown_key(section: str, key: str) -> Fault:
    if len(key) > LONGEST_KEY:
        return Fault(section, "a name longer than any option's; a value that slipped to the next line?")
    return Fault(f"{section}.{key}", "unknown option" + hint(f"{section}.{key}", _BY_NAME))
