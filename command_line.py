"""How every command starts: its arguments by tyro, mistakes of the user's in one line."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import tyro

from superres.errors import InputError


def command(main: Callable[..., None] | dict[str, Callable[..., None]],
            presets: dict[str, tuple[str, Any]] | None = None, settings: type | None = None) -> None:
    """Run `main` from the command line.

    Args:
        main: Function whose arguments become the command line. With presets, it takes
            the chosen preset's name and its settings. Or a dict of such functions, by the word that the
            command line begins with.
        presets: Dict of name -> (description, settings), `"quick"` among them, which is taken where
            the command line names none.
        settings: A dataclass of the command line. `main` takes one, and the words that are none of its,
            for another program.

    A mistake of the user's, and a full disk or the like, ends the program with one line
    and status 2; Ctrl-C with status 130.
    """
    warnings.showwarning = _one_line
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        if settings:
            main(*tyro.cli(settings, return_unknown_args=True))
        elif isinstance(main, dict):
            tyro.extras.subcommand_cli_from_dict(main)
        elif presets is None:
            tyro.cli(main)
        else:
            arguments = sys.argv[1:]
            asked = {"-h", "--help"} & {*arguments}
            if not asked and (not arguments or arguments[0].startswith("-")):
                others = ", ".join(preset for preset in presets if preset != "quick")
                print(f"preset quick: {presets['quick'][0]} Others: {others}; --help explains.")
                arguments = ["quick", *arguments]
            settings = tyro.extras.overridable_config_cli(presets, description=main.__doc__, args=arguments)
            main(arguments[0], settings)
    except BrokenPipeError:  # who reads the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (InputError, OSError) as error:
        sys.exit(_fail(error))
    except MemoryError as error:
        sys.exit(_fail(f"not enough memory: {error}"))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _fail(error):
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _one_line(message, category, filename, lineno, file=None, line=None):
    print(f"{'warning' if issubclass(category, UserWarning) else category.__name__}: {message}",
          file=sys.stderr)
