"""Generates the manual pages beside this file from the commands' own parsers. Run by `make man`; a test
proves that the committed pages are fresh."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from cyclopts import App
from cyclopts.argument import Argument

from core_service.main import parser as vmcore_parser
from docs.man.roff import Page
from vmm_client.cli.main import COMMANDS, HELP
from vmm_client.cli.main import app as vmm

DIRECTORY: Final = Path(__file__).parent
VERSION: Final = f"vmsession {version('vmsession')}"
EXIT_STATUS: Final = "Exit status: "
VALUES: Final[dict[Any, str]] = {
    str: "TEXT",
    int: "N",
    float: "SECONDS",
    Path: "PATH",
    datetime: "MOMENT",
    list[int]: "CPUS",
}

SOCKET: Final = ("VMSESSION_SOCKET", "Core's socket, where `--socket` does not name one.")
VMCORE_FILES: Final = (
    ("/run/vmsession/core.sock", "The public socket: gRPC."),
    ("/run/vmsession/fds.sock", "Where clients collect file descriptors."),
    ("/run/vmsession/core.lock", "Held by the core that serves in the directory."),
    ("/var/lib/vmsession/audit/", "The audit log."),
    ("/etc/vmsession/policy.toml", "The policy, as the systemd unit names it."),
)
VMCORE_ENVIRONMENT: Final = (
    ("NOTIFY_SOCKET, WATCHDOG_USEC", "The service manager to tell how core fares, sd_notify(3)."),
    (
        "LISTEN_FDS, LISTEN_FDNAMES",
        "Sockets to serve on, named `core` and `fds`, sd_listen_fds(3).",
    ),
    ("JOURNAL_STREAM", "Where it names stderr, entries with fields go to the journal."),
    ("XDG_RUNTIME_DIR, XDG_STATE_HOME", "Where another user than root has sockets and log."),
)
VMCORE_SIGNALS: Final = (
    ("SIGTERM, SIGINT", "End in order."),
    ("SIGHUP", "Read the policy again; one with mistakes changes nothing."),
)


def pages() -> Iterator[Page]:
    """All manual pages."""
    yield vmcore_page()
    yield vmm_page()
    for name, (_, text) in COMMANDS.items():
        yield command_page(name, text)


def vmcore_page() -> Page:
    """vmcore(8)."""
    parser = vmcore_parser()
    page = Page("vmcore", 8, VERSION, "the core service of vmsession")
    commands = _subcommands(parser)
    page.heading("synopsis")
    for name, _, command in commands:
        operands = " ".join(str(each.metavar) for each in command._get_positional_actions())
        page.synopsis(f"vmcore {name}", f"[OPTION]... {operands}".rstrip())
    page.heading("description")
    page.text(
        "The privileged part of vmsession: it offers virtual machines to unprivileged processes over "
        "gRPC, with one engine process for each, and knows at any time who holds which memory. It needs "
        "no root, only a user of its own that may use /dev/kvm."
    )
    page.heading("commands")
    for name, summary, command in commands:
        page.subheading(f"vmcore {name}")
        page.text(command.description or _sentence(summary))
        for action in command._actions:
            if action.dest != "help":
                _vmcore_item(page, command, action)
    _items(page, "signals", VMCORE_SIGNALS)
    page.heading("exit status")
    page.text(
        "0 after an orderly end, 1 when it cannot serve (a line on stderr, and what to do), 2 for wrong "
        "usage. `vmcore drain` adds its own."
    )
    _items(page, "environment", VMCORE_ENVIRONMENT)
    _items(page, "files", VMCORE_FILES)
    _see_also(page, "vmm(1)", "systemd.service(5)", "journalctl(1)")
    return page


def vmm_page() -> Page:
    """vmm(1)."""
    page = Page("vmm", 1, VERSION, "virtual machines without privilege")
    page.heading("synopsis")
    page.synopsis("vmm", "COMMAND [OPTION]...")
    statuses = _description(page, HELP)
    page.heading("commands")
    for name, (_, text) in COMMANDS.items():
        page.item(f"vmm {name}", "", f"{text.strip().splitlines()[0]} See `{_page_name(name)}(1)`.")
    _exit_status(page, statuses)
    _items(page, "environment", [SOCKET])
    _see_also(page, *(f"{_page_name(name)}(1)" for name in COMMANDS), "vmcore(8)")
    return page


def command_page(name: str, text: str) -> Page:
    """vmm-NAME(1)."""
    summary, _, rest = text.strip().partition("\n")
    arguments = list(_command(name).assemble_argument_collection(parse_docstring=True))
    page = Page(_page_name(name), 1, VERSION, _lowered(summary.rstrip(".")))
    operands = [each for each in arguments if each.index is not None]
    page.heading("synopsis")
    written = (each.name.removeprefix("--").upper() for each in operands)
    shown = (
        word if each.required else f"[{word}]" for word, each in zip(written, operands, strict=True)
    )
    page.synopsis(f"vmm {name}", " ".join(["[OPTION]...", *shown]))
    statuses = _description(page, f"{summary}\n{rest}")
    page.heading("options")
    for each in arguments:
        page.item(_names(each), _value(each), _sentence(each.parameter.help or "") + _default(each))
    _exit_status(page, statuses)
    _items(page, "environment", [SOCKET])
    _see_also(page, "vmm(1)", "vmcore(8)")
    return page


def _command(name: str) -> App:
    command = vmm
    for word in name.split():
        command = command[word]
    return command


def _page_name(command: str) -> str:
    return "-".join(["vmm", *command.split()])


def _description(page: Page, text: str) -> str:
    """A command's help but for its exit statuses, which come later: those."""
    paragraphs = text.strip().split("\n\n")
    statuses = [each for each in paragraphs if each.startswith(EXIT_STATUS)]
    page.heading("description")
    page.text("\n\n".join(each for each in paragraphs if each not in statuses))
    return "\n\n".join(_sentence(each.removeprefix(EXIT_STATUS)) for each in statuses)


def _exit_status(page: Page, text: str) -> None:
    if text:
        page.heading("exit status")
        page.text(text)


def _items(
    page: Page, title: str, items: tuple[tuple[str, str], ...] | list[tuple[str, str]]
) -> None:
    page.heading(title)
    for term, text in items:
        page.item(term, "", text)


def _see_also(page: Page, *others: str) -> None:
    page.heading("see also")
    page.text(", ".join(f"`{other}`" for other in others))


def _subcommands(
    parser: argparse.ArgumentParser,
) -> list[tuple[str, str, argparse.ArgumentParser]]:
    """Name, summary and parser of each."""
    (choices,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    summaries = {each.dest: each.help or "" for each in choices._choices_actions}
    return [(name, summaries[name], command) for name, command in choices.choices.items()]


def _vmcore_item(page: Page, command: argparse.ArgumentParser, action: argparse.Action) -> None:
    value = ""
    if action.option_strings and action.nargs != 0:
        choices = "|".join(map(str, action.choices or ()))
        value = choices or str(action.metavar or action.dest.upper())
    term = ", ".join(action.option_strings) or str(action.metavar)
    expanded = (action.help or "") % {"default": action.default, "prog": command.prog}
    page.item(term, value, _sentence(expanded))


def _names(argument: Argument) -> str:
    if argument.index is None:
        return ", ".join(argument.names)
    return ", ".join([argument.name.removeprefix("--").upper(), *argument.names])


def _value(argument: Argument) -> str:
    """The word for an option's value; none for a switch."""
    kinds = [kind for kind in (get_args(argument.hint) or [argument.hint]) if kind is not NoneType]
    if get_origin(argument.hint) is Literal:
        return "|".join(map(str, kinds))
    if callable(argument.show_default):
        return "SIZE"
    kind: Any = kinds[0]
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return "" if kind is bool else VALUES[kind]


def _default(argument: Argument) -> str:
    if not argument.show_default or argument.required:
        return ""
    default = argument.field_info.default
    if default in ("", (), None, False):
        return ""
    shown = argument.show_default(default) if callable(argument.show_default) else default
    return f" Default: {shown}."


def _sentence(text: str) -> str:
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", ".)")) else f"{text}."


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    for made in pages():
        (DIRECTORY / made.file).write_text(str(made))
